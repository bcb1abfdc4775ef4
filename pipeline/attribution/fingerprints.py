"""What makes the rows of a table comparable: each stage's fingerprint, and checks that need the model's configuration.

Paths, resources, batch sizes and library versions are no part of it; they are recorded in config.yaml only.
"""

from __future__ import annotations

import hashlib
from math import lcm
from typing import Any

from pipeline import models
from pipeline.attribution.gradients import manifest, manifest_hash
from pipeline.config import NUMERICS, Motion, Run
from pipeline.errors import ConfigError
from pipeline.models.promoted import promoted
from pipeline.motion import flaws, judge, weights_file

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


def features(run: Run) -> Fingerprint:
    family, a = models.family(run.model), run.attribution
    return {
        **motion(run),
        "seed": run.seed,
        "model.weights": models.weights_hash(run.model),
        "attribution.weights": None if a.weights is None else promoted(a.weights)["weights"],
        "model.dtype": run.model.dtype,
        "model.vae_dtype": run.model.vae_dtype,
        "model.text_tokens": run.model.text_tokens,
        "model.parameters": manifest_hash(manifest(family.skeleton())),
        "attribution.settings": [setting.record() for setting in a.settings],
        "attribution.parameters": a.parameters,
        "attribution.projection": a.projection.model_dump(),
        **_unusual(run),
        **family.record(run.model),
    }


def _unusual(run: Run) -> Fingerprint:
    """What features depend on where a run asks for it; tables of before these keys stay what they are."""
    q, unusual = run.queries, Fingerprint()
    if run.attribution.captions != "own":
        unusual["attribution.captions"] = run.attribution.captions
    if q.looks != 1:
        unusual["queries.looks"] = q.looks
    if q.functional != "loss":
        unusual |= {"queries.functional": q.functional, "queries.twins": list(q.twins)}
    return unusual


def ranking(run: Run) -> Fingerprint:
    fingerprint = {**features(run), "ranking": run.ranking.model_dump()}
    if run.queries.unwanted:
        fingerprint["queries.unwanted"] = list(run.queries.unwanted)
    if run.attribution.shortlist is not None:
        fingerprint["attribution.shortlist"] = run.attribution.shortlist.model_dump()
    return fingerprint


def evaluation(run: Run) -> Fingerprint:
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


def _near(side: int, step: int) -> str:
    """The multiples of a step on either side of a number."""
    below = side // step * step
    return f"{below} or {below + step}" if below else f"{step}"


def _geometry(run: Run) -> Fingerprint:
    return dict(zip(("frames", "fps", "height", "width"), run.geometry, strict=True))
