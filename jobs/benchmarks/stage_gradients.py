"""Measurements of `jobs.benchmarks.stages` from the loss on: gradient, projection, and attention's backends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from jobs.benchmarks.stage_measures import Figure, Rates, attempt, clock, flops, worked
from jobs.benchmarks.stage_subjects import Subject
from pipeline.attribution.gradients import ProjectedGradients, restrict, take_clip
from pipeline.config.attribution import Setting
from pipeline.models.attention import fastest_attention
from pipeline.models.loss import loss_map, masked_mean, shared_noise
from pipeline.projection import Projection

LAST_THIRD = r"blocks\.(2[0-9])\."
SEQUENCE = 32_760  # tokens of 81x480x832


@dataclass(frozen=True)
class Inputs:
    """What a gradient takes: random latents and masks stand for a clip's."""

    latent: Tensor  # [C, f, h, w]
    text: Tensor  # [1, tokens, width]
    mask: Tensor  # [f, h, w]


def _inputs(subject: Subject, grid: tuple[int, int, int]) -> Inputs:
    channels = int(subject.model.transformer.config.in_channels)
    latent = shared_noise(1, 0, (channels, *grid)).to(subject.device)
    mask = torch.rand(grid, generator=torch.Generator().manual_seed(0)).to(subject.device)
    width = int(subject.model.transformer.config.text_dim)
    text = torch.randn(1, subject.model.text_tokens, width, generator=torch.Generator().manual_seed(0))
    return Inputs(latent, text.to(subject.device, subject.model.transformer.dtype), mask)


@contextmanager
def _dropped(module: nn.Module) -> Iterator[None]:
    """Gradients are freed as backward produces them, and nothing else is done with them."""

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    handles = [p.register_post_accumulate_grad_hook(drop) for p in module.parameters() if p.requires_grad]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _losses(subject: Subject, given: Inputs, settings: Sequence[Setting]) -> Iterator[Tensor]:
    """The losses of settings that share one forward pass."""
    t = torch.full((1,), settings[0].timestep, device=subject.device)
    noise = shared_noise(0, settings[0].noise, tuple(given.latent.shape)).to(subject.device)  # type: ignore[arg-type]
    errors = loss_map(subject.model, given.latent[None], given.text, t, noise[None])
    for setting in settings:
        yield masked_mean(errors, given.mask[None] if setting.mask == "motion" else None)


@fastest_attention()
def _bare(subject: Subject, given: Inputs, settings: Sequence[Setting]) -> None:
    """As `take_clip` does it: one forward pass for all, or under checkpointing one for each."""
    for some in [[setting] for setting in settings] if subject.model.checkpointing else [settings]:
        losses = list(_losses(subject, given, some))
        for i, loss in enumerate(losses):
            loss.backward(retain_graph=i + 1 < len(losses))


def gradients(subject: Subject, rates: Rates) -> list[Figure]:
    """Loss and backward, what projecting adds by kind, and on a GPU the cheaper geometries and parameters."""
    given, what = _inputs(subject, subject.grid), f"{len(subject.settings)} setting(s)"
    found = [attempt("gradient", what, partial(_gradient, subject, rates, given, what, True))]
    bare = found[0].seconds
    if bare is not None:
        found += [
            attempt("projection", kind, partial(_projection, subject, rates, given, kind, bare)) for kind in rates.kinds
        ]
    return found + (_cheaper(subject, rates, given) if subject.device.type == "cuda" else [])


def _cheaper(subject: Subject, rates: Rates, given: Inputs) -> list[Figure]:
    model, small = subject.model.transformer, _inputs(subject, (11, 30, 52))
    both, what = (Setting(mask="motion"), Setting(mask="none")), "motion mask and none"
    found = [attempt("gradient", what, partial(_gradient, subject, rates, given, what, settings=both))]
    what = "41x240x416"
    found.append(attempt("gradient", what, partial(_gradient, subject, rates, small, what)))
    model.disable_gradient_checkpointing()
    what += " without checkpointing"
    found.append(attempt("gradient", what, partial(_gradient, subject, rates, small, what)))
    model.enable_gradient_checkpointing()
    restrict(model, LAST_THIRD)
    what = "the last third of the blocks alone"
    found.append(attempt("gradient", what, partial(_gradient, subject, rates, given, what)))
    restrict(model, ".*")
    return found


def _gradient(
    subject: Subject,
    rates: Rates,
    given: Inputs,
    what: str,
    counts: bool = False,
    settings: Sequence[Setting] | None = None,
) -> Figure:
    """Loss and backward of a clip's settings; the subject's own, unless others are given.

    Model FLOPs are three forward passes, hardware FLOPs what is executed: recomputation under checkpointing and within
    attention's backward included.
    """
    taken = subject.settings if settings is None else settings
    with torch.no_grad():
        forward = flops(lambda: list(_losses(subject, given, taken))) if counts else 0.0
    with _dropped(subject.model.transformer):
        executed = flops(lambda: _bare(subject, given, taken))
        seconds, details = clock(lambda: _bare(subject, given, taken), subject.device, warmup=0)
    dtype = subject.model.transformer.dtype
    details["of matmul rate"] = executed / seconds / rates.product(dtype)
    if counts:  # elsewhere not every block has a backward
        asked = forward * (1 + 2 * len(taken))
        details |= {"model TFLOP": asked / 1e12, "model TFLOP/s": asked / seconds / 1e12}
    what = f"loss and backward, {what}, {str(dtype).removeprefix('torch.')}"
    return worked("gradient", what, seconds, executed, rates, dtype, counts, details)


def _projection(subject: Subject, rates: Rates, given: Inputs, kind: str, bare: float) -> Figure:
    """The time that projecting adds to loss and backward: the sketch streamed, dense kinds held as the recipe says."""
    a = subject.run.attribution.projection
    projection = Projection(kind, a.dim, a.seed)  # type: ignore[arg-type]
    hold = subject.hold if projection.dense else 1
    gradients = ProjectedGradients(subject.model.transformer, projection, hold)
    clips = max(1, subject.hold // len(subject.settings))

    def call() -> None:
        for _ in range(clips):
            take_clip(gradients, subject.model, subject.settings, given.latent, given.text, given.mask, 0)
        gradients.collect()

    try:
        seconds, details = clock(call, subject.device)
    finally:
        gradients.close()
    size = sum(p.numel() for p in subject.model.transformer.parameters())
    width = next(iter(subject.model.transformer.parameters())).element_size()
    floor = len(subject.settings) * size * width / rates.copied  # every gradient is read once
    if kind == "gaussian":  # twelve random bits to an entry, once for all the gradients that are held together
        floor = max(floor, size * a.dim * 1.5 / rates.limits["random_bytes_per_s"] / clips)
    details["with gradient s"] = seconds / clips
    what = f"{kind}, {f'hold {hold}' if hold > 1 else 'streamed'}, {clips} clip(s) together"
    return Figure("projection", what, max(0.0, seconds / clips - bare), floor, kind == a.kind, details)


def attentions(subject: Subject, rates: Rates) -> list[Figure]:
    """One attention of 12 heads x 32,760 x 128 in bfloat16, forward and backward, by each of PyTorch's backends."""
    if subject.device.type != "cuda":
        return []
    found = []
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        name = str(backend).rpartition(".")[2].lower()
        found.append(attempt("attention", name, partial(_attention, subject, rates, backend, name)))
    return found


def _attention(subject: Subject, rates: Rates, backend: SDPBackend, name: str) -> Figure:
    shape = (1, 12, SEQUENCE, 128)
    q, k, v = (torch.randn(shape, device=subject.device, dtype=torch.bfloat16).requires_grad_() for _ in range(3))

    def call() -> None:
        with sdpa_kernel(backend):
            scaled_dot_product_attention(q, k, v).sum().backward()

    seconds, details = clock(call, subject.device)
    work = 14 * 12 * SEQUENCE**2 * 128  # forward 4, backward 8, and 2 for the scores that backward computes again
    return worked("attention", f"{name}, 12x{SEQUENCE}x128", seconds, work, rates, torch.bfloat16, False, details)
