"""The pipeline's own call against the adapter: the arguments that it passes, and where a perfect model takes it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models.conditioning import batched
from pipeline.models.diffusers_model import DiffusersModel, picture
from pipeline.models.loss import own_noise
from pipeline.operations.model_checks.subject import CAPTIONS, CheckError, Subject, difference, within

STEPS = 8  # of the pipeline's own call


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
    conditionings, compared, worst, problems = batched([conditioning]), 0, 0.0, list[str]()
    for call, timestep in zip(calls, times, strict=True):
        if call is calls[0]:
            continue  # the first step is at the end of the scale
        noisy = model.noisy_of(call.arguments)
        if model.expert(timestep).part != call.part:
            problems.append(f"at t = {timestep:g} the pipeline asks {call.part}")
        own = model.arguments(noisy, subject.time(timestep), conditionings)
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
