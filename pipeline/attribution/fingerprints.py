"""What makes the rows of a table comparable: each stage's fingerprint, and checks that need the model's configuration.

Paths, resources, batch sizes and library versions are no part of it; they are recorded in config.yaml only.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator, Sequence
from math import lcm, prod
from typing import Any

from pipeline import models
from pipeline.attribution.gradients import manifest, manifest_hash
from pipeline.config import NUMERICS, Motion, Run, VideoModelConfig
from pipeline.errors import ConfigError
from pipeline.models import Expert
from pipeline.models.lora import adapters
from pipeline.models.promoted import promoted
from pipeline.motion import flaws, judge, signature, weights_file

Fingerprint = dict[str, Any]


def clips(run: Run) -> Fingerprint:
    d = run.data
    return {"numerics": NUMERICS, "data.frames": d.frames, "data.fps": d.fps, "data.stride": d.stride or d.frames}


def motion(run: Run) -> Fingerprint:
    m = run.motion
    settings = {
        f"motion.{key}": getattr(m, key)
        for key in ("flow", "height", "width", "updates", "camera", "normalise", "quantile", "still", "dtype")
    }
    strides = models.family(run.model).strides
    return {**clips(run), **_geometry(run), **settings, "motion.weights": flow_hash(m), "model.strides": list(strides)}


def movement(run: Run) -> Fingerprint:
    m = run.motion
    settings = {f"motion.{key}": getattr(m, key) for key in ("flow", "height", "width", "updates", "dtype")}
    versions = {"judge": judge.VERSION, "flaws": flaws.VERSION}
    return {**clips(run), **_geometry(run), **settings, "motion.weights": flow_hash(m), **versions}


def pictures(run: Run) -> Fingerprint:
    return {**clips(run), **_geometry(run), "signature": signature.VERSION}


def features(run: Run) -> Fingerprint:
    family, a = models.family(run.model), run.attribution
    weights = models.weights_hash(run.model)
    return {
        **motion(run),
        "seed": run.seed,
        "model.weights": weights,
        "attribution.weights": None if a.weights is None else promoted(a.weights)["weights"],
        "model.dtype": run.model.dtype,
        "model.vae_dtype": run.model.vae_dtype,
        "model.text_tokens": run.model.text_tokens,
        "model.parameters": _parameters(run.model, weights),
        "attribution.settings": [setting.record() for setting in a.settings],
        "attribution.parameters": a.parameters,
        "attribution.projection": a.projection.model_dump(),
        **_unusual(run),
        **family.record(run.model),
    }


@functools.cache  # half a second each, and a job asks for its fingerprints ten times
def _parameters(model: VideoModelConfig, weights: str) -> str:
    """The hash of what counts of a model. Files of other content have other `weights`."""
    return manifest_hash(manifest(models.family(model).skeleton()))


def _unusual(run: Run) -> Fingerprint:
    """What features depend on where a run asks for it; tables of before these keys stay what they are."""
    q, unusual = run.queries, Fingerprint()
    if run.model.adapter is not None:
        unusual["model.adapter"] = run.model.adapter
    unusual |= _compiled(run)
    if run.attribution.lora is not None:
        unusual["attribution.lora"] = adapters(run.model, run.attribution.lora).digest
    if run.attribution.captions != "own":
        unusual["attribution.captions"] = run.attribution.captions
    if run.attribution.storage != "float32":
        unusual["attribution.storage"] = run.attribution.storage
    if run.attribution.looks != 1:
        unusual["attribution.looks"] = run.attribution.looks
    if q.looks != 1:
        unusual["queries.looks"] = q.looks
    if q.changes != ("colours",):
        unusual["queries.changes"] = list(q.changes)
    if q.functional != "loss":
        unusual |= {"queries.functional": q.functional, "queries.twins": list(q.twins)}
    return unusual


def _compiled(run: Run) -> Fingerprint:
    """Compiled code rounds differently, so rows of both ways must not be compared."""
    return {"model.compile": True} if run.model.compile else {}


def ranking(run: Run) -> Fingerprint:
    fingerprint = {**features(run), "ranking": run.ranking.rule}
    if run.queries.unwanted:
        fingerprint["queries.unwanted"] = list(run.queries.unwanted)
    if run.attribution.shortlist is not None:
        fingerprint["attribution.shortlist"] = run.attribution.shortlist.model_dump()
    return fingerprint


def evaluation(run: Run) -> Fingerprint:
    """`evaluate.twins` has no part in it: a row names its twin, and no other row depends on it."""
    e = run.evaluate
    return {
        **motion(run),
        "seed": run.seed,
        "model.weights": models.weights_hash(run.model),
        "model.dtype": run.model.dtype,
        "model.vae_dtype": run.model.vae_dtype,
        "model.text_tokens": run.model.text_tokens,
        "data.size": [run.data.height, run.data.width],
        "evaluate.timesteps": e.timesteps if e.timesteps == "drawn" else list(e.timesteps),
        "evaluate.noises": f"{e.noises} of each clip's own",
        "evaluate.steps": e.steps,
        "evaluate.guidance": e.guidance,
        **_compiled(run),
        **models.family(run.model).record(run.model),
    }


def flow_hash(config: Motion) -> str:
    """Official weights by name, which torchvision's file names tie to their content; local ones by content."""
    path = weights_file(config)
    if path is None:
        return f"{config.flow}:{config.weights}"
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def check_geometry(run: Run, key: str = "attribution") -> None:
    """Raise ConfigError for frames or sides that the model's strides cannot take; those of `run.geometry` under `key`
    of the configuration."""
    family = models.family(run.model)
    frames, _, height, width = run.geometry
    for name, count in (("data.frames", run.data.frames), (f"{key}.frames", frames)):
        try:
            family.folds(count)
        except ConfigError as error:
            raise ConfigError(f"{name}={count}: {error}") from error
    rows, columns = family.sides
    sides = {"data.height": (run.data.height, rows), "data.width": (run.data.width, columns)}
    sides |= {f"{key}.height": (height, rows), f"{key}.width": (width, columns)}
    generates = bool(run.evaluate.generate or run.queries.prompts)
    for name, (side, step) in sides.items():
        if generates and name.startswith("data."):
            step = lcm(step, family.generates)
        if side % step:
            raise ConfigError(f"{name}={side}: the model takes multiples of {step}; use {_near(side, step)}.")


def check_times(run: Run, key: str = "attribution") -> None:
    """Raise ConfigError for times that the model has not, and for experts that no setting asks or that do not count."""
    family = models.family(run.model)
    for setting in run.attribution.settings:
        family.schedule.check(setting.timestep, f"{key}.settings.timestep")
    for timestep in run.evaluate.timesteps if run.evaluate.timesteps != "drawn" else ():
        family.schedule.check(timestep, "evaluate.timesteps")
    if family.image and run.queries.prompts:
        raise ConfigError(
            f"queries.prompts: {family.name} makes a video from its first frame, which a prompt does not have. Give "
            "query videos (queries.videos)."
        )
    experts = family.experts
    if len(experts) == 1:
        if run.finetune.expert != "both":
            raise ConfigError(
                f"finetune.expert={run.finetune.expert!r}: {family.name} has one transformer for all times; leave the "
                "key out."
            )
        return
    counted = {name.split(".")[0] for name, _ in _counted(run)}
    for expert in experts:
        asked = any(expert.has(setting.timestep) for setting in run.attribution.settings)
        times = f"times {expert.first:g} to {expert.last:g}"
        where = f"the {expert.name}-noise expert of {family.name} ({expert.part}, {times})"
        if expert.part in counted and not asked:
            raise ConfigError(
                f"{key}.settings: none asks {where}, so its parameters would count and have no gradient. Add a setting "
                f"with such a timestep, or leave it out by {key}.parameters={_others(experts, expert)!r}."
            )
        if asked and expert.part not in counted:
            raise ConfigError(
                f"{key}.parameters={run.attribution.parameters!r} finds nothing in {where}, which "
                f"{key}.settings ask, so those gradients would be zero. Leave the setting out, or let its parameters "
                "count."
            )


def _counted(run: Run) -> Iterator[tuple[str, int]]:
    """Names and sizes of the parameters that attribution.parameters finds and that a loss reaches."""
    family, lora = models.family(run.model), run.attribution.lora
    if lora is not None:
        shapes = dict(adapters(run.model, lora).shapes)
    else:
        shapes = {name: tuple(parameter.shape) for name, parameter in family.skeleton().named_parameters()}
    for name, shape in shapes.items():
        idle = family.idle is not None and re.search(family.idle, name) is not None
        if re.search(run.attribution.parameters, name) and not idle:
            yield name, prod(shape)


def _others(experts: Sequence[Expert], but: Expert) -> str:
    """A pattern of the parameters of all experts but one."""
    return "|".join(rf"^{expert.part}\." for expert in experts if expert is not but)


def _near(side: int, step: int) -> str:
    """The multiples of a step on either side of a number."""
    below = side // step * step
    return f"{below} or {below + step}" if below else f"{step}"


def _geometry(run: Run) -> Fingerprint:
    geometry: Fingerprint = dict(zip(("frames", "fps", "height", "width"), run.geometry, strict=True))
    if run.data.scaler != "pillow":  # tables of before there was the key have none
        geometry["data.scaler"] = run.data.scaler
    return geometry
