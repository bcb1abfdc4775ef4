"""Measurements of `jobs.benchmarks.stages` up to the text: seconds of a clip, and their floor. No gradient here."""

from __future__ import annotations

import copy
import gc
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import interpolate
from torch.utils.flop_counter import FlopCounterMode

from jobs.benchmarks import ceilings
from jobs.benchmarks.stage_subjects import Subject
from pipeline.config import Motion
from pipeline.models.wan import channels_last
from pipeline.motion import camera_motion, encode_mask, estimate, motion_mask, statistics


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
    reason = (str(error).splitlines() or [""])[0][:160]
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
    taken = ceilings.timed(call, device, 2, warmup)
    if max(taken) < 1:
        taken += ceilings.timed(call, device, 3, warmup=0)
    if device.type != "cuda":
        return median(taken), {}
    peak = torch.cuda.max_memory_allocated()
    return median(taken), {"peak GiB": peak / 2**30, "above start GiB": (peak - before) / 2**30}


def flops(call: Callable[[], object]) -> float:
    """Floating-point operations of the matrix products, convolutions and attentions of a call, recomputed ones too.

    The call is carried out, so it warms up the clock as well.
    """
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


# --- decoding, flow and mask -----------------------------------------------------------------------------------------


def decoding(subject: Subject, rates: Rates) -> list[Figure]:
    from pipeline.video.decoder import Decoder
    from pipeline.video.frames import write_mp4

    count, fps, height, width = subject.run.geometry
    with tempfile.TemporaryDirectory() as folder, Decoder() as decoder:
        path = str(Path(folder) / "clip.mp4")
        write_mp4(path, subject.frames, fps)
        seconds, _ = clock(lambda: decoder.frames(path, 0, count, fps, height, width), torch.device("cpu"))
    floor = 3 * subject.frames.nbytes / ceilings.copy_bandwidth("cpu")  # written, sent through a pipe, read
    return [
        Figure("decode", f"H.264 {count}x{height}x{width}, one core, in the decoder's process", seconds, floor, True)
    ]


def decoded_folder(folder: Path, count: int, fps: float, height: int, width: int) -> list[npt.NDArray[np.uint8]]:
    """The first `count` frames at `fps` of every video of a folder that has them."""
    from pipeline.errors import ClipError
    from pipeline.video.frames import decode

    found = []
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".mp4", ".mov", ".webm", ".avi", ".mkv", ".gif")):
        try:
            found.append(decode(str(path), 0, count, fps, height, width))
        except ClipError as error:
            print(f"({path.name} left out: {error})")
    return found


def flows(subject: Subject, rates: Rates) -> list[Figure]:
    own = subject.run.motion
    sizes = [(own.height, own.width)]
    if subject.device.type == "cuda":
        sizes.append(subject.run.geometry[2:])
    found = []
    for height, width in sizes:
        for dtype in ("float32", "bfloat16"):
            config = own.model_copy(update={"height": height, "width": width, "dtype": dtype})
            found.append(attempt("raft", dtype, partial(_flow, subject, rates, config)))
    if subject.device.type == "cuda":
        whole = own.model_copy(update={"batch": len(subject.frames) - 1})
        found.append(attempt("raft", "a clip at a time", partial(_flow, subject, rates, whole)))
    what = f"{own.flow} {own.height}x{own.width}, {own.dtype}, by torchvision's own forward"
    return [*found, attempt("raft", what, partial(_torchvision, subject, what))]


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
        mask = motion_mask(moved, own, subject.grid, subject.model.temporal_stride)
        if mask is not None:
            encode_mask(mask)

    seconds, details = clock(call, subject.device)
    floor = 15 * 2 * flow.numel() * 8 / rates.copied  # fifteen rounds read target and residual in float64
    return [Figure("mask", f"camera, mask, statistics at {own.height}x{own.width}", seconds, floor, True, details)]


# --- autoencoder and text --------------------------------------------------------------------------------------------


def autoencoders(subject: Subject, rates: Rates) -> list[Figure]:
    layouts = [True, False] if subject.device.type == "cuda" else [False]
    found, first = [], subject.model.vae
    for last in layouts:
        for dtype in ("float32", "bfloat16"):
            what = f"encode {dtype}{', channels last' if last else ''}"
            found.append(attempt("vae", what, partial(_autoencoder, subject, rates, dtype, last, what)))
            subject.model.vae = first
    return found


def _autoencoder(subject: Subject, rates: Rates, dtype: str, last: bool, what: str) -> Figure:
    """One dtype and memory layout of the convolutions' weights, in a copy of the model's autoencoder."""
    model = subject.model
    model.vae = copy.deepcopy(model.vae)
    nn.Module.to(model.vae, getattr(torch, dtype))
    channels_last(model.vae, last)
    work = flops(lambda: model.encode(subject.frames))
    seconds, details = clock(lambda: model.encode(subject.frames), subject.device, warmup=0)
    counts = dtype == subject.run.model.vae_dtype and last == (subject.device.type == "cuda")
    return worked("vae", what, seconds, work, rates, getattr(torch, dtype), counts, details)


def texts(subject: Subject, rates: Rates) -> list[Figure]:
    dtype = next(iter(subject.model.pipeline.text_encoder.parameters())).dtype
    work = flops(subject.text)
    seconds, details = clock(subject.text, subject.device, warmup=0)
    what = f"one caption of {subject.model.text_tokens} tokens, {str(dtype).removeprefix('torch.')}"
    return [worked("text", what, seconds, work, rates, dtype, True, details)]
