"""What every stage of a clip costs: ``python -m jobs.benchmarks.stages [--only raft,vae] [--videos FOLDER]``.

Ceilings first, then a table, one line of JSON last. Without a GPU the demo's recipe and model are measured on one core;
with one, Wan2.1-T2V-1.3B's architecture with random weights at the recipe's 81x480x832. A floor is what a stage's
arithmetic (or bytes) would take at the measured rate of matrix products (or copies). A part that cannot run is a row
that says why.
"""

from __future__ import annotations

import argparse
import copy
import gc
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import interpolate, scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from jobs.benchmarks import agreement, ceilings, measured_models
from jobs.benchmarks.measured_models import Subject
from pipeline.attribution.gradients import ProjectedGradients, restrict, take_clip
from pipeline.config import Motion
from pipeline.config.attribution import Setting
from pipeline.errors import first_line
from pipeline.models import Conditioning
from pipeline.models.attention import fastest_attention
from pipeline.models.compiling import keeps_graph
from pipeline.models.conditioning import batched
from pipeline.models.diffusers_model import channels_last
from pipeline.models.loss import loss_map, masked_mean, shared_noise
from pipeline.motion import camera_motion, encode_mask, estimate, motion_mask, statistics
from pipeline.projection import Projection
from pipeline.video.decoder import Decoder
from pipeline.video.frames import write_mp4

LAST_THIRD = r"blocks\.(2[0-9])\."
SEQUENCE = 32_760  # tokens of 81x480x832


@dataclass(frozen=True)
class Figure:
    """Seconds of one clip in one stage. `floor` is what its FLOPs or bytes take at the measured rate; figures that
    `counts` make up the bill, the others are variants."""

    stage: str
    what: str
    seconds: float | None
    floor: float | None = None
    counts: bool = False
    details: dict[str, float] = field(default_factory=dict)
    failure: str | None = None


@dataclass(frozen=True)
class Rates:
    """The ceilings measured, and the kinds of projection to measure; the recipe's own counts."""

    limits: Mapping[str, float]
    kinds: Sequence[str] = ("sketched_gaussian", "gaussian")

    def product(self, dtype: torch.dtype) -> float:
        """FLOP/s of a large matrix product; where bfloat16 has no rate of its own, float32's."""
        bf16 = self.limits.get("matmul_bf16_flop_per_s") if dtype == torch.bfloat16 else None
        return bf16 or self.limits["matmul_fp32_flop_per_s"]

    @property
    def copied(self) -> float:
        return self.limits["copy_bytes_per_s"]


def failed(stage: str, what: str, error: Exception) -> Figure:
    reason = first_line(error)[:160]
    return Figure(stage, what, None, failure=f"{type(error).__name__}: {reason}")


def attempt(stage: str, what: str, measure: Callable[[], Figure]) -> Figure:
    try:
        return measure()
    except Exception as error:  # one variant's lack of memory, or of a backend, is its own row
        return failed(stage, what, error)
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def clock(call: Callable[[], object], device: torch.device, warmup: int = 1) -> tuple[float, dict[str, float]]:
    """Median seconds of two calls (five where one takes under a second), and on a GPU the peak memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    seconds = ceilings.timed(call, device, 2, warmup)
    if max(seconds) < 1:
        seconds += ceilings.timed(call, device, 3, warmup=0)
    if device.type != "cuda":
        return median(seconds), {}
    peak = torch.cuda.max_memory_allocated()
    return median(seconds), {"peak GiB": peak / 2**30, "above start GiB": (peak - before) / 2**30}


def flops(call: Callable[[], object]) -> float:
    """Floating-point operations of the matrix products, convolutions and attentions of a call, recomputed ones too.

    The call is carried out, so it warms up the clock as well.
    """
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


# --- decoding, flow and mask -----------------------------------------------------------------------------------------


def decoding(subject: Subject, rates: Rates) -> list[Figure]:
    count, fps, height, width = subject.run.geometry
    with tempfile.TemporaryDirectory() as folder, Decoder() as decoder:
        path = str(Path(folder) / "clip.mp4")
        write_mp4(path, subject.frames, fps)
        seconds, _ = clock(lambda: decoder.frames(path, 0, count, fps, height, width), torch.device("cpu"))
    floor = 3 * subject.frames.nbytes / ceilings.copy_bandwidth("cpu")  # written, sent through a pipe, read
    return [
        Figure("decode", f"H.264 {count}x{height}x{width}, one core, in the decoder's process", seconds, floor, True)
    ]


def flows(subject: Subject, rates: Rates) -> list[Figure]:
    own = subject.run.motion
    sizes = [(own.height, own.width)]
    if subject.device.type == "cuda":
        sizes.append(subject.run.geometry[2:])
    figures = []
    for height, width in sizes:
        for dtype in ("float32", "bfloat16"):
            config = own.model_copy(update={"height": height, "width": width, "dtype": dtype})
            figures.append(attempt("raft", dtype, partial(_flow, subject, rates, config)))
    if subject.device.type == "cuda":
        whole = own.model_copy(update={"batch": len(subject.frames) - 1})
        figures.append(attempt("raft", "a clip at a time", partial(_flow, subject, rates, whole)))
    what = f"{own.flow} {own.height}x{own.width}, {own.dtype}, by torchvision's own forward"
    return [*figures, attempt("raft", what, partial(_torchvision, subject, what))]


def _flow(subject: Subject, rates: Rates, config: Motion) -> Figure:
    def call() -> object:
        return estimate(subject.frames, subject.raft, config, subject.device)

    work = flops(call)
    seconds, details = clock(call, subject.device, warmup=0)
    what = f"{config.flow} {config.height}x{config.width}, {config.updates} updates, {config.dtype}"
    what += f", {config.batch} pairs at a time"
    dtype: torch.dtype = getattr(torch, config.dtype)
    return worked("raft", what, seconds, work, rates, dtype, config == subject.run.motion, details)


def worked(
    stage: str,
    what: str,
    seconds: float,
    work: float,
    rates: Rates,
    dtype: torch.dtype,
    counts: bool,
    details: Mapping[str, float],
) -> Figure:
    rates_of = {"TFLOP": work / 1e12, "TFLOP/s": work / seconds / 1e12}
    return Figure(stage, what, seconds, work / rates.product(dtype), counts, {**rates_of, **details})


@torch.no_grad()
def _torchvision(subject: Subject, what: str) -> Figure:
    """The forward pass of torchvision under autocast, pair by pair of a batch, for comparison."""
    own, device = subject.run.motion, subject.device
    size = (own.height, own.width)

    def call() -> None:
        images = torch.from_numpy(subject.frames).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        images = interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=own.dtype == "bfloat16"):
            for i in range(0, len(images) - 1, own.batch):
                after = images[i + 1 : i + 1 + own.batch]
                subject.raft(images[i : i + own.batch][: len(after)], after, own.updates)

    return Figure("raft", what, *_only_time(call, device))


def _only_time(call: Callable[[], object], device: torch.device) -> tuple[float, None, bool, dict[str, float]]:
    seconds, details = clock(call, device)
    return seconds, None, False, details


def masks(subject: Subject, rates: Rates) -> list[Figure]:
    own = subject.run.motion
    shape = (len(subject.frames) - 1, 2, own.height, own.width)  # of noise: random weights know no motion
    flow = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(subject.device)

    def call() -> None:
        moved = flow - camera_motion(flow)
        statistics(moved)
        mask = motion_mask(moved, own, subject.grid)
        if mask is not None:
            encode_mask(mask)

    seconds, details = clock(call, subject.device)
    floor = 15 * 2 * flow.numel() * 8 / rates.copied  # fifteen rounds read target and residual in float64
    return [Figure("mask", f"camera, mask, statistics at {own.height}x{own.width}", seconds, floor, True, details)]


# --- autoencoder and text --------------------------------------------------------------------------------------------


def autoencoders(subject: Subject, rates: Rates) -> list[Figure]:
    layouts = [True, False] if subject.device.type == "cuda" else [False]
    figures, first = [], subject.model.vae
    for last in layouts:
        for dtype in ("float32", "bfloat16"):
            what = f"encode {dtype}{', channels last' if last else ''}"
            figures.append(attempt("vae", what, partial(_autoencoder, subject, rates, dtype, last, what)))
            subject.model.vae = first
    return figures


def _autoencoder(subject: Subject, rates: Rates, dtype: str, last: bool, what: str) -> Figure:
    """One dtype and memory layout of the convolutions' weights, in a copy of the model's autoencoder."""
    model = subject.model
    model.vae = copy.deepcopy(model.vae)
    nn.Module.to(model.vae, getattr(torch, dtype))
    channels_last(model.vae, last)
    work = flops(lambda: model.encode(subject.frames, subject.run.geometry[1]))
    seconds, details = clock(lambda: model.encode(subject.frames, subject.run.geometry[1]), subject.device, warmup=0)
    counts = dtype == subject.run.model.vae_dtype and last == (subject.device.type == "cuda")
    return worked("vae", what, seconds, work, rates, getattr(torch, dtype), counts, details)


def texts(subject: Subject, rates: Rates) -> list[Figure]:
    dtype = next(iter(subject.model.pipeline.text_encoder.parameters())).dtype
    work = flops(subject.text)
    seconds, details = clock(subject.text, subject.device, warmup=0)
    what = f"one caption of {subject.model.text_tokens} tokens, {str(dtype).removeprefix('torch.')}"
    return [worked("text", what, seconds, work, rates, dtype, True, details)]


# --- gradient, projection, attention ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inputs:
    """What a gradient takes: random latents and masks stand for a clip's."""

    latent: Tensor  # [C, f, h, w]
    conditioning: Conditioning
    mask: Tensor  # [f, h, w]


def _inputs(subject: Subject, grid: tuple[int, int, int]) -> Inputs:
    channels = subject.model.family.channels
    latent = shared_noise(1, 0, (channels, *grid)).to(subject.device)
    mask = torch.rand(grid, generator=torch.Generator().manual_seed(0)).to(subject.device)
    width = subject.model.family.number("transformer", "text_dim")
    text = torch.randn(subject.model.text_tokens, width, generator=torch.Generator().manual_seed(0))
    return Inputs(latent, {"text": text.to(subject.device, subject.model.dtype)}, mask)


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


def _losses(subject: Subject, inputs: Inputs, settings: Sequence[Setting]) -> Iterator[Tensor]:
    """The losses of settings that share one forward pass."""
    t = torch.full((1,), settings[0].timestep, device=subject.device)
    noise = shared_noise(0, settings[0].noise, tuple(inputs.latent.shape)).to(subject.device)
    errors = loss_map(subject.model, inputs.latent[None], batched([inputs.conditioning]), t, noise[None])
    for setting in settings:
        yield masked_mean(errors, inputs.mask[None] if setting.mask == "motion" else None)


@fastest_attention()
def _bare(subject: Subject, inputs: Inputs, settings: Sequence[Setting]) -> None:
    """As `take_clip` does it: one forward pass for all, or under checkpointing one for each."""
    for some in [[setting] for setting in settings] if not keeps_graph(subject.model) else [settings]:
        losses = list(_losses(subject, inputs, some))
        for i, loss in enumerate(losses):
            loss.backward(retain_graph=i + 1 < len(losses))


def gradients(subject: Subject, rates: Rates) -> list[Figure]:
    """Loss and backward, what projecting adds by kind, on a GPU the cheaper geometries and parameters; last,
    compiled blocks."""
    inputs, what = _inputs(subject, subject.grid.shape), f"{len(subject.settings)} setting(s)"
    figures = [attempt("gradient", what, partial(_gradient, subject, rates, inputs, what, True))]
    bare = figures[0].seconds
    if bare is not None:
        figures += [
            attempt("projection", kind, partial(_projection, subject, rates, inputs, kind, bare))
            for kind in rates.kinds
        ]
    if subject.device.type == "cuda":
        figures += _cheaper(subject, rates, inputs)
    return [*figures, attempt("gradient", "blocks compiled", partial(_compiled_gradient, subject, rates, inputs))]


def _cheaper(subject: Subject, rates: Rates, inputs: Inputs) -> list[Figure]:
    model: Any = subject.model.trained
    small = _inputs(subject, (11, 30, 52))
    both, what = (Setting(mask="motion"), Setting(mask="none")), "motion mask and none"
    figures = [attempt("gradient", what, partial(_gradient, subject, rates, inputs, what, settings=both))]
    what = "41x240x416"
    figures.append(attempt("gradient", what, partial(_gradient, subject, rates, small, what)))
    model.disable_gradient_checkpointing()
    what += " without checkpointing"
    figures.append(attempt("gradient", what, partial(_gradient, subject, rates, small, what)))
    model.enable_gradient_checkpointing()
    restrict(model, LAST_THIRD)
    what = "the last third of the blocks alone"
    figures.append(attempt("gradient", what, partial(_gradient, subject, rates, inputs, what)))
    restrict(model, ".*")
    return figures


def _compiled_gradient(subject: Subject, rates: Rates, inputs: Inputs) -> Figure:
    """Loss and backward by compiled blocks, which they stay; the call that compiles them is a detail."""
    with _dropped(subject.model.trained):
        executed = flops(lambda: _bare(subject, inputs, subject.settings))  # of compiled code none are counted
        subject.model.compile()
        (first,) = ceilings.timed(lambda: _bare(subject, inputs, subject.settings), subject.device, 1, warmup=0)
        seconds, details = clock(lambda: _bare(subject, inputs, subject.settings), subject.device, warmup=0)
    details["first call s"] = first
    return worked("gradient", "blocks compiled", seconds, executed, rates, subject.model.dtype, False, details)


def _gradient(
    subject: Subject,
    rates: Rates,
    inputs: Inputs,
    what: str,
    counts: bool = False,
    settings: Sequence[Setting] | None = None,
) -> Figure:
    """Loss and backward of a clip's settings; the subject's own, unless others are given.

    Model FLOPs are three forward passes, hardware FLOPs what is executed: recomputation under checkpointing and within
    attention's backward included.
    """
    chosen_settings = subject.settings if settings is None else settings
    with torch.no_grad():
        forward = flops(lambda: list(_losses(subject, inputs, chosen_settings))) if counts else 0.0
    with _dropped(subject.model.trained):
        executed = flops(lambda: _bare(subject, inputs, chosen_settings))
        seconds, details = clock(lambda: _bare(subject, inputs, chosen_settings), subject.device, warmup=0)
    dtype = subject.model.dtype
    details["of matmul rate"] = executed / seconds / rates.product(dtype)
    if counts:  # elsewhere not every block has a backward
        asked = forward * (1 + 2 * len(chosen_settings))
        details |= {"model TFLOP": asked / 1e12, "model TFLOP/s": asked / seconds / 1e12}
    what = f"loss and backward, {what}, {str(dtype).removeprefix('torch.')}"
    return worked("gradient", what, seconds, executed, rates, dtype, counts, details)


def _projection(subject: Subject, rates: Rates, inputs: Inputs, kind: str, bare: float) -> Figure:
    """The time that projecting adds to loss and backward: the sketch streamed, dense kinds held as the recipe says."""
    a = subject.run.attribution.projection
    projection = Projection(kind, a.dim, a.seed)  # type: ignore[arg-type]
    hold = subject.hold if projection.dense else 1
    gradients = ProjectedGradients(subject.model.trained, projection, hold)
    clips = max(1, subject.hold // len(subject.settings))

    def call() -> None:
        for _ in range(clips):
            take_clip(gradients, subject.model, subject.settings, inputs.latent, inputs.conditioning, inputs.mask, 0)
        gradients.collect()

    try:
        seconds, details = clock(call, subject.device)
    finally:
        gradients.close()
    size = sum(p.numel() for p in subject.model.trained.parameters())
    width = next(iter(subject.model.trained.parameters())).element_size()
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
    figures = []
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        name = str(backend).rpartition(".")[2].lower()
        figures.append(attempt("attention", name, partial(_attention, subject, rates, backend, name)))
    return figures


def _attention(subject: Subject, rates: Rates, backend: SDPBackend, name: str) -> Figure:
    shape = (1, 12, SEQUENCE, 128)
    q, k, v = (torch.randn(shape, device=subject.device, dtype=torch.bfloat16).requires_grad_() for _ in range(3))

    def call() -> None:
        with sdpa_kernel(backend):
            scaled_dot_product_attention(q, k, v).sum().backward()

    seconds, details = clock(call, subject.device)
    work = 14 * 12 * SEQUENCE**2 * 128  # forward 4, backward 8, and 2 for the scores that backward computes again
    return worked("attention", f"{name}, 12x{SEQUENCE}x128", seconds, work, rates, torch.bfloat16, False, details)


# --- the table --------------------------------------------------------------------------------------------------------


PARTS: Mapping[str, Callable[[Subject, Rates], list[Figure]]] = {
    "decode": decoding,
    "raft": flows,
    "mask": masks,
    "vae": autoencoders,
    "text": texts,
    "gradient": gradients,
    "attention": attentions,
}


def run(subject: Subject, rates: Rates, only: Sequence[str]) -> list[Figure]:
    """Every part that is wanted; one that raises is a row with its reason, and the others still run."""
    figures: list[Figure] = []
    for name in only:
        if name not in PARTS:
            continue
        start = time.monotonic()
        try:
            new = PARTS[name](subject, rates)
        except Exception as error:  # whatever this machine lacks, the other parts are still worth their figures
            new = [failed(name, "", error)]
        figures += new
        gc.collect()
        if subject.device.type == "cuda":
            torch.cuda.empty_cache()
        summary = ", ".join(f"{f.what} {f.failure or format(f.seconds or 0, '.4f') + ' s'}" for f in new)
        print(f"({name} within {time.monotonic() - start:.0f} s: {summary})", file=sys.stderr, flush=True)
    return figures


def bill(figures: Sequence[Figure]) -> dict[str, float]:
    """Seconds of each stage that a clip passes, from the figures that count."""
    return {f.stage: f.seconds for f in figures if f.counts and f.seconds is not None}


def print_figures(figures: Sequence[Figure]) -> None:
    costs = bill(figures)
    total = sum(costs.values())
    rows = []
    for f in figures:
        title = f"{'*' if f.counts else ' '} {f.stage}: {f.what}"
        if f.failure:
            rows.append([title, "failed", "", "", "", f.failure])
            continue
        assert f.seconds is not None
        share = f"{f.seconds / total:.1%}" if f.counts else ""
        floor = "" if f.floor is None else f"{f.floor:.4f}"
        times = "" if not f.floor else f"{f.seconds / f.floor:.1f}x"
        notes = ", ".join(f"{name} {value:.4g}" for name, value in f.details.items())
        rows.append([title, f"{f.seconds:.4f}", share, floor, times, notes])
    ceilings.print_table(["stage", "s a clip", "share", "floor, s", "of floor", "details"], rows)
    decode = costs.get("decode", 0.0)
    print(f"a clip's bill (rows with *): {total:.3f} s; without decoding, which runs beside: {total - decode:.3f} s\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join([*PARTS, "agreement"]), help="parts, separated by commas")
    parser.add_argument("--videos", type=Path, help="a folder of videos for the agreement, instead of the world's")
    parser.add_argument("--kinds", default="sketched_gaussian,gaussian", help="kinds of projection, by commas")
    arguments = parser.parse_args()
    only = arguments.only.split(",")
    if unknown := set(only) - {*PARTS, "agreement"}:
        parser.error(f"--only: {', '.join(sorted(unknown))}; choose from {', '.join([*PARTS, 'agreement'])}")
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = ceilings.machine()
    ceilings.print_machine(machine)
    limits = ceilings.measured(device)
    if "matmul_bf16_flop_per_s" not in limits:  # minutes on a CPU without bfloat16
        limits["matmul_bf16_flop_per_s"] = ceilings.matmul_rate(device, torch.bfloat16)
    ceilings.print_ceilings(limits, device)
    start = time.monotonic()
    subject = measured_models.wan(device) if device.type == "cuda" else measured_models.demo(device)
    print(f"({subject.name}: made within {time.monotonic() - start:.0f} s)", file=sys.stderr, flush=True)
    figures = run(subject, Rates(limits, tuple(arguments.kinds.split(","))), only)
    if figures:
        print_figures(figures)
    agreements = agreement.print_agreements(device, arguments.videos) if "agreement" in only else None
    ceilings.print_json(
        {
            "benchmark": "stages",
            "subject": subject.name,
            "machine": machine,
            "ceilings": limits,
            "figures": [asdict(f) for f in figures],
            "bill_s": bill(figures),
            "agreement": agreements,
        }
    )


if __name__ == "__main__":
    main()
