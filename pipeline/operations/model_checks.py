"""Checks of a model against diffusers' own pipeline and against itself: the first thing to run with new weights.

An adapter says what a transformer takes and what it is trained to predict. Each check holds a part of that against
something that does not trust the adapter: the arguments that the pipeline's own call passes, a perfect model put in
the transformer's place, autograd without hooks, diffusers' own loaders. `jobs.check_model` prints them for a
checkpoint, and tests/models runs them on a tiny pipeline of every family.
"""

from __future__ import annotations

import copy
import inspect
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.attribution.gradients import ProjectedGradients, manifest, restrict, take_clip
from pipeline.config import Finetune
from pipeline.config.attribution import Setting
from pipeline.models import Conditioning, Frames, grid_of
from pipeline.models.conditioning import batched, split
from pipeline.models.diffusers_model import DiffusersModel, picture
from pipeline.models.loss import loss_map, masked_mean, own_noise, shared_noise
from pipeline.projection import Projection
from pipeline.training import loop

CAPTIONS = ("a red ball rolls", 'a sign that says "left" falls over slowly')
STEPS = 8  # of the pipeline's own call
DIM = 8  # of the projection


class CheckError(Exception):
    """What a check found wrong, as a sentence."""


@dataclass(frozen=True)
class Check:
    name: str
    passed: bool
    detail: str


@dataclass
class Subject:
    """A model with a clip, as every check takes it. `exact` is what two ways of computing the same may differ by."""

    model: DiffusersModel
    geometry: tuple[int, int, int]
    fps: float
    timesteps: Sequence[float]
    exact: float

    @property
    def frames(self) -> Frames:
        """Drifting random colours, the same each time."""
        frames, height, width = self.geometry
        picture = own_noise("check", 0, (height, width, 3)).clamp(-2, 2).mul(60).add(128).byte().numpy()
        return np.stack([np.roll(picture, 2 * n, 1) for n in range(frames)])

    def clip(self, caption: str = CAPTIONS[0]) -> tuple[Tensor, Conditioning]:
        latent, of_clip = split(self.model.encode(self.frames, self.fps))
        return latent, {**of_clip, **self.model.text(caption)}

    def noise(self, latent: Tensor, index: int = 0) -> Tensor:
        return shared_noise(0, index, tuple(latent.shape)).to(latent.device)

    def time(self, timestep: float, count: int = 1) -> Tensor:
        return torch.full((count,), timestep, device=self.model.device)


# --- the clip and its loss --------------------------------------------------------------------------------------------


def check_grid(subject: Subject) -> str:
    """Latents have the shape that the configuration promised; motion masks are made for it."""
    expected = grid_of(subject.model.family, *subject.geometry)
    latent, _ = subject.clip()
    if tuple(latent.shape[1:]) != expected.shape or sum(expected.folds) != subject.geometry[0]:
        raise CheckError(f"the latent is {tuple(latent.shape[1:])}, and the configuration says {expected.shape}")
    if latent.shape[0] != subject.model.family.channels:
        raise CheckError(f"the latent has {latent.shape[0]} channels, not {subject.model.family.channels}")
    return f"{subject.geometry} -> {expected.shape}"


def check_captions(subject: Subject) -> str:
    """Two captions condition differently, and a caption the same twice."""
    first, again, other = (subject.model.text(c) for c in (CAPTIONS[0], CAPTIONS[0], CAPTIONS[1]))
    if all(torch.equal(first[name], other[name]) for name in first):
        raise CheckError("two captions condition alike, so that the words are cut off")
    if not all(torch.equal(first[name], again[name]) for name in first):
        raise CheckError("a caption conditions differently the second time")
    return ", ".join(f"{name} {tuple(t.shape)}" for name, t in first.items())


@torch.no_grad()
def check_batch(subject: Subject) -> str:
    """A batch of two captions and times gives each clip what it gives alone."""
    latent, first = subject.clip()
    _, second = subject.clip(CAPTIONS[1])
    worst = 0.0
    for timestep in subject.timesteps:
        times = torch.cat([subject.time(timestep), subject.time(timestep - 50)])
        noise = torch.stack([subject.noise(latent), subject.noise(latent, 1)])
        both = loss_map(subject.model, torch.stack([latent, latent]), batched([first, second]), times, noise)
        for n, one in enumerate((first, second)):
            alone = loss_map(subject.model, latent[None], batched([one]), times[n : n + 1], noise[n : n + 1])
            worst = max(worst, difference(both[n], alone[0]))
    return within(worst, subject.exact, "a clip's loss depends on its neighbours in a batch")


@torch.no_grad()
def check_loss(subject: Subject) -> str:
    """Under a mask of ones the loss is the plain one, and that is the mean squared error of the prediction from the
    target, with noise and target written out from the scheduler's definition."""
    latent, conditioning = subject.clip()
    worst = 0.0
    for timestep in subject.timesteps:
        noise, t, batch = subject.noise(latent)[None], subject.time(timestep), batched([conditioning])
        errors = loss_map(subject.model, latent[None], batch, t, noise)
        masked, plain = masked_mean(errors, torch.ones_like(errors)), masked_mean(errors, None)
        if not torch.equal(masked, plain):
            raise CheckError("a mask of ones does not give the plain loss")
        noisy, target = written_out(subject.model, latent[None].double(), noise.double(), timestep)
        predicted = subject.model.predict(noisy.float(), t, batch).double()
        counted = subject.model.counted(latent.shape[1])
        places = slice(None) if counted is None else counted.bool()
        own = (predicted - target).square()[:, :, places].mean()
        worst = max(worst, abs(float(plain - own)) / float(own))
    return within(worst, 10 * subject.exact, "the loss is not the family's own")


def written_out(model: DiffusersModel, latent: Tensor, noise: Tensor, timestep: float) -> tuple[Tensor, Tensor]:
    """Noisy latent and target, from the definition of flow matching or from the scheduler's alphas."""
    if model.schedule.kind == "flow":
        part = timestep / 1000
        return (1 - part) * latent + part * noise, model.schedule.sign * (noise - latent)
    squared = float(model.pipeline.scheduler.alphas_cumprod[int(timestep)])
    alpha, sigma = squared**0.5, (1 - squared) ** 0.5
    noisy = alpha * latent + sigma * noise
    return noisy, noise if model.schedule.prediction == "epsilon" else alpha * noise - sigma * latent


# --- the pipeline's own call ------------------------------------------------------------------------------------------


@dataclass
class Call:
    """One call of a transformer in the pipeline's own loop."""

    part: str
    arguments: dict[str, Any]


@contextmanager
def replaced(model: DiffusersModel, forward: Callable[[str, nn.Module], Callable[..., Any]]) -> Iterator[None]:
    """The transformers with another forward method."""
    modules = model.transformers()
    before = {part: module.forward for part, module in modules.items()}
    for part, module in modules.items():
        module.forward = forward(part, module)
    try:
        yield
    finally:
        for part, module in modules.items():
            module.forward = before[part]


def own_call(subject: Subject, **changes: Any) -> Any:
    """The pipeline's own call at guidance 1, with latents for a result."""
    model = subject.model
    arguments = {**model.call(*subject.geometry, subject.fps, model.guidance), **model.check_call(), **changes}
    if model.family.image:
        arguments["image"] = picture(subject.frames[0])
    with torch.no_grad():
        return model.pipeline(
            prompt=CAPTIONS[0],
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
            **arguments,
        ).frames


def times_of(model: DiffusersModel) -> list[float]:
    """The times of the steps of the last call, on the scale of the contract."""
    scheduler = model.pipeline.scheduler
    if model.schedule.kind == "vp":
        return [float(t) for t in scheduler.timesteps]
    times = [float(t) for t in scheduler.timesteps]
    return [1000 - t for t in times] if model.schedule.sign == -1 else times


def check_arguments(subject: Subject) -> str:
    """What the pipeline's own call passes to the transformer in its steps is what the adapter passes."""
    model, calls = subject.model, list[Call]()

    def recording(part: str, module: nn.Module) -> Callable[..., Any]:
        forward, signature = module.forward, inspect.signature(type(module).forward)

        def record(*positional: Any, **named: Any) -> Any:
            bound = signature.bind(module, *positional, **named)
            bound.apply_defaults()
            calls.append(Call(part, {n: copied(v) for n, v in bound.arguments.items() if n != "self"}))
            return forward(*positional, **named)

        return record

    with replaced(model, recording):
        own_call(subject)
    calls = [call for call in calls if model.compared_call(call.arguments)]
    times, (_, conditioning) = times_of(model), subject.clip()
    given, compared, worst, problems = batched([conditioning]), 0, 0.0, list[str]()
    for call, timestep in zip(calls, times, strict=True):
        if call is calls[0]:
            continue  # the first step is at the end of the scale
        noisy = model.noisy_of(call.arguments)
        if model.expert(timestep).part != call.part:
            problems.append(f"at t = {timestep:g} the pipeline asks {call.part}")
        own = model.arguments(noisy, subject.time(timestep), given)
        signature = inspect.signature(type(model.transformers()[call.part]).forward)
        own = {**{n: p.default for n, p in signature.parameters.items() if n in call.arguments}, **own}
        for name in sorted(set(own) | set(call.arguments) - {"return_dict"}):
            if name in model.idle_arguments:
                problems += changed_by(name, own, call, model)
            elif name != "return_dict":
                gap = gap_of(own.get(name), call.arguments.get(name))
                worst = max(worst, gap)
                if gap > max(subject.exact, 1e-6):
                    problems.append(f"{name} differs by {gap:.2g} at t = {timestep:g}")
        compared += 1
    if problems:
        raise CheckError("; ".join(dict.fromkeys(problems)))
    return f"{compared} calls, largest difference {worst:.1g}"


@torch.no_grad()
def changed_by(name: str, own: Mapping[str, Any], call: Call, model: DiffusersModel) -> list[str]:
    """What is wrong with an argument that the adapter says changes no prediction: it has the pipeline's shape, and with
    the pipeline's value the transformer predicts the same to the bit."""
    if own[name].shape != call.arguments[name].shape:
        return [f"{name} is {tuple(own[name].shape)}, and the pipeline has {tuple(call.arguments[name].shape)}"]
    module = model.transformers()[call.part]
    first, second = (
        module(**{**own, name: value, "return_dict": False})[0] for value in (own[name], call.arguments[name])
    )
    return [] if torch.equal(first, second) else [f"{name} changes the prediction by {difference(second, first):.2g}"]


def check_oracle(subject: Subject) -> str:
    """With a perfect model in the transformer's place, the pipeline ends at the clip, from pure noise.

    A wrong sign, target, noise level or time would miss it, also one that loss and prediction share.
    """
    model, inputs = subject.model, list[tuple[float, Tensor]]()
    ends = dict[str, Tensor]()

    def perfect(part: str, module: nn.Module) -> Callable[..., Any]:
        signature = inspect.signature(type(module).forward)

        def forward(*positional: Any, **named: Any) -> Any:
            arguments = signature.bind(module, *positional, **named).arguments
            t, noisy = subject.time(model.time_of(arguments)), model.noisy_of(arguments)
            if not ends:
                ends["clip"] = own_noise("oracle", 1, tuple(noisy.shape)).to(noisy)
                ends["noise"] = noisy.clone()  # pure noise, where the pipeline begins
            if model.compared_call(arguments):
                inputs.append((float(t), noisy.clone()))
            target = model.schedule.target(ends["clip"], ends["noise"], t)
            output = model.packed_output(target).to(arguments["hidden_states"].dtype)
            if arguments.get("return_dict", True):
                return SimpleNamespace(sample=output)
            return model.outputs(output, arguments)

        return forward

    with replaced(model, perfect):
        latents = own_call(subject)
    end = model.latent_of_call(latents, ends["clip"])
    counted = model.counted(end.shape[2])
    places = slice(None) if counted is None else counted.bool()
    off = difference(end[:, :, places], ends["clip"][:, :, places])
    middle, noisy = inputs[len(inputs) // 2]
    level = exact_times(model)[len(inputs) // 2]
    own = model.schedule.noised(ends["clip"], ends["noise"], subject.time(level))
    inside = difference(noisy[:, :, places], own[:, :, places])
    if inside > 20 * max(subject.exact, 1e-6) + 2e-3 * (model.schedule.kind == "flow"):
        raise CheckError(f"at t = {middle:g} the pipeline's latent differs from the adapter's noising by {inside:.1%}")
    return within(off, max(1e-2, 10 * subject.exact), "the pipeline does not end at the clip")


def exact_times(model: DiffusersModel) -> list[float]:
    """The times of the last call's steps with the digits that its sigmas have: some schedulers round what they pass."""
    if model.schedule.kind == "vp":
        return times_of(model)
    sigmas = [float(s) * 1000 for s in model.pipeline.scheduler.sigmas]
    return [1000 - s for s in sigmas] if model.schedule.sign == -1 else sigmas


# --- gradients --------------------------------------------------------------------------------------------------------


def check_gradients(subject: Subject) -> str:
    """A parameter counts if and only if it gets a gradient at some of the times: what is named idle gets none."""
    model = subject.model
    reached = set[str]()
    with counting(model, idle=False):
        for timestep in subject.timesteps:
            for name, gradient in whole_gradient(subject, timestep).items():
                if not bool(torch.isfinite(gradient).all()):
                    raise CheckError(f"the gradient of {name} is not finite at t = {timestep:g}")
                if bool(gradient.any()):
                    reached.add(name)
    with counting(model):
        counted = {name for name, p in model.trained.named_parameters() if p.requires_grad}
    for what, names in (("count and get no", counted - reached), ("are named idle and get a", reached - counted)):
        if names:
            raise CheckError(f"{len(names)} parameters {what} gradient: {', '.join(sorted(names)[:5])} ...")
    return f"{len(counted)} parameters count, {len(list(model.trained.parameters())) - len(counted)} are idle"


@contextmanager
def counting(model: DiffusersModel, idle: bool = True) -> Iterator[None]:
    """Gradients of every parameter; `idle`: but of those that no loss reaches."""
    restrict(model.trained, ".*", model.family.idle if idle else None)
    try:
        yield
    finally:
        model.trained.zero_grad(set_to_none=True)


def whole_gradient(subject: Subject, timestep: float) -> dict[str, Tensor]:
    """By autograd alone, of the parameters that are reached."""
    model, (latent, conditioning) = subject.model, subject.clip(CAPTIONS[1])
    noise = subject.noise(latent)[None]
    loss = loss_map(model, latent[None], batched([conditioning]), subject.time(timestep), noise).mean()
    named = {name: p for name, p in model.trained.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: g for name, g in zip(named, gradients, strict=True) if g is not None}


def check_checkpointing(subject: Subject) -> str:
    """Computing blocks again in backward changes no gradient."""
    worst, timestep = 0.0, subject.timesteps[0]
    modules = list(subject.model.transformers().values())
    before = subject.model.checkpointing
    results = []
    with counting(subject.model):
        for checkpointing in (False, True):
            for module in modules:
                switch(module, checkpointing)
            results.append(whole_gradient(subject, timestep))
    for module in modules:
        switch(module, before)
    for name, gradient in results[0].items():
        worst = max(worst, difference(results[1][name], gradient))
    return within(worst, subject.exact, "gradient checkpointing changes gradients")


def switch(module: Any, checkpointing: bool) -> None:
    module.enable_gradient_checkpointing() if checkpointing else module.disable_gradient_checkpointing()


def check_features(subject: Subject) -> str:
    """Features, streamed out of backward, are the projection of autograd's gradient."""
    model, projection, worst = subject.model, Projection("gaussian", DIM, 3), 0.0
    with counting(model):
        gradients = ProjectedGradients(model.trained, projection)
        latent, conditioning = subject.clip(CAPTIONS[1])
        settings = [Setting(timestep=t, mask="none") for t in subject.timesteps]
        take_clip(gradients, model, settings, latent, conditioning, None, 0)
        features, _ = gradients.collect()
        gradients.close()
        for feature, timestep in zip(features, subject.timesteps, strict=True):
            whole = whole_gradient(subject, timestep)
            own = torch.zeros(1, DIM)
            for placed in manifest(model.trained):
                if placed.name in whole:
                    own += projection(whole[placed.name].detach().float().reshape(1, -1), placed.offset).cpu()
            worst = max(worst, difference(feature, own[0]))
    return within(worst, max(1e-4, subject.exact), "features are not the projection of the gradient")


def check_skeleton(subject: Subject) -> str:
    """Names and shapes that the driver counts with are those of the loaded model."""
    own = [(name, tuple(p.shape)) for name, p in subject.model.trained.named_parameters()]
    skeleton = subject.model.family.skeleton()
    if [(name, tuple(p.shape)) for name, p in skeleton.named_parameters()] != own:
        raise CheckError("the configuration promises other parameters than the weights have")
    numbers = sum(p.numel() for p in skeleton.parameters())
    return f"{len(own)} tensors, {numbers:,} numbers"


def check_blocks(subject: Subject) -> str:
    """Blocks are told for sharding and for layers."""
    counts = {}
    for part, module in subject.model.transformers().items():
        blocks = subject.model.blocks(module)
        if not blocks:
            raise CheckError(f"{part} has no list of blocks, so that it cannot be sharded")
        inside = sum(p.numel() for block in blocks for p in block.parameters())
        counts[part] = f"{len(blocks)} blocks with {inside / sum(p.numel() for p in module.parameters()):.0%}"
    return ", ".join(f"{part}: {count}" for part, count in counts.items())


# --- weights ----------------------------------------------------------------------------------------------------------


def check_lora(subject: Subject) -> str:
    """Adapters that training writes, loaded by diffusers' own classes, give the same prediction as in training."""
    model, before = subject.model, predictions(subject)
    config = Finetune(lora_rank=2, steps=1)
    training = loop.begin(model, config, 0)
    with torch.no_grad():
        for n, parameter in enumerate(training.parameters.values()):
            parameter.add_(0.5 * own_noise("lora", n, tuple(parameter.shape)).to(parameter))
    model.trained.eval()
    after = predictions(subject)
    with tempfile.TemporaryDirectory() as folder:
        loop.save_weights(training, folder)
        for module in model.transformers().values():
            module.unload_lora()  # type: ignore[operator]
        plain = predictions(subject)
        model.read_lora_as_pipeline(folder)
        loaded = predictions(subject)
        for module in model.transformers().values():
            module.unload_lora()  # type: ignore[operator]
    if difference(after, before) < 1e-4:
        raise CheckError("adapters change nothing, so that their targets are not where the model attends")
    if difference(plain, before) > subject.exact:
        raise CheckError("the base is another one after its adapters were taken off")
    count = len(training.parameters)
    return f"{count} tensors; " + within(
        difference(loaded, after), 10 * subject.exact, "diffusers loads other adapters than were trained"
    )


def check_full(subject: Subject) -> str:
    """Weights that training writes are what diffusers' from_pretrained loads."""
    model, parts = subject.model, []
    dtypes = {name: p.dtype for name, p in model.trained.named_parameters()}
    training = loop.begin(model, Finetune(steps=1), 0)
    model.trained.eval()
    with tempfile.TemporaryDirectory() as folder:
        loop.save_weights(training, folder)
        for part, module in model.transformers().items():
            loaded = type(module).from_pretrained(Path(folder, part), use_safetensors=True).state_dict()  # type: ignore[attr-defined]
            own = module.state_dict()
            if set(own) != set(loaded) or not all(torch.equal(own[n].float(), loaded[n].float()) for n in own):
                raise CheckError(f"{part}: diffusers loads other weights than were trained")
            parts.append(part)
    for name, parameter in model.trained.named_parameters():
        parameter.data = parameter.data.to(dtypes[name])  # training made float32 of them
    model.trained.requires_grad_(True)
    return ", ".join(parts)


@torch.no_grad()
def predictions(subject: Subject) -> Tensor:
    latent, conditioning = subject.clip()
    given = batched([conditioning])
    outputs = []
    for timestep in subject.timesteps:
        t = subject.time(timestep)
        noisy = subject.model.schedule.noised(latent[None], subject.noise(latent)[None], t)
        outputs.append(subject.model.predict(noisy, t, given).float())
    return torch.stack(outputs)


def check_generation(subject: Subject) -> str:
    """A generated video has the shape that was asked for, and the seed decides it."""
    image = subject.frames[0] if subject.model.family.image else None
    make = partial(
        subject.model.generate, CAPTIONS[0], subject.geometry, subject.fps, steps=2, guidance=2.0, image=image
    )
    first, again, other = make(seed=1), make(seed=1), make(seed=2)
    if first.shape != (*subject.geometry, 3) or first.dtype != np.uint8:
        raise CheckError(f"a video has the shape {first.shape}, and {(*subject.geometry, 3)} was asked for")
    if not np.array_equal(first, again) or np.array_equal(first, other):
        raise CheckError("the seed does not decide the video")
    return f"{first.shape}"


# --- the battery ------------------------------------------------------------------------------------------------------

CHECKS: Mapping[str, Callable[[Subject], str]] = {
    "latent grid": check_grid,
    "captions differ": check_captions,
    "batch equals singles": check_batch,
    "loss": check_loss,
    "arguments of the pipeline": check_arguments,
    "perfect model": check_oracle,
    "gradients": check_gradients,
    "checkpointing": check_checkpointing,
    "features": check_features,
    "skeleton": check_skeleton,
    "blocks": check_blocks,
    "lora": check_lora,
    "full weights": check_full,
    "generation": check_generation,
}


def run(subject: Subject, names: Sequence[str] = tuple(CHECKS)) -> Iterator[Check]:
    """The checks one after the other; one that fails says why, and the others go on."""
    for name in names:
        try:
            yield Check(name, True, CHECKS[name](subject))
        except CheckError as error:
            yield Check(name, False, str(error))
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
            yield Check(name, False, f"{type(error).__name__}: {error}")


def difference(a: Tensor, b: Tensor) -> float:
    """The length of the difference, relative to b's."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


def within(value: float, limit: float, otherwise: str) -> str:
    if not value <= limit:
        raise CheckError(f"{otherwise}: {value:.2g} apart, where {limit:.2g} is allowed")
    return f"{value:.1g} apart"


def copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else copy.copy(value)


def gap_of(own: Any, theirs: Any) -> float:
    """How far two arguments are apart: relative for tensors, infinite where they are of another kind or shape."""
    if isinstance(own, Tensor) and isinstance(theirs, Tensor):
        if own.shape != theirs.shape:
            return float("inf")
        return difference(own, theirs) if bool(theirs.any()) else float(own.double().norm())
    if isinstance(own, Mapping) and isinstance(theirs, Mapping) and set(own) == set(theirs):
        return max((gap_of(own[key], theirs[key]) for key in own), default=0.0)
    if isinstance(own, tuple | list) and isinstance(theirs, tuple | list) and len(own) == len(theirs):
        return max((gap_of(a, b) for a, b in zip(own, theirs, strict=True)), default=0.0)
    if isinstance(own, int | float) and isinstance(theirs, int | float):
        return abs(own - theirs) / max(abs(theirs), 1e-30) if theirs else abs(own)
    return 0.0 if own is theirs or own == theirs else float("inf")
