"""What a run will cost: a pilot's seconds (`pilot`) multiplied out to hours, bytes and money. Arithmetic only.

A clip holds its actor for the sum of its parts, or for its decoding where that takes longer: decoders work ahead, one
for each CPU of the actor but one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import hypot
from statistics import fmean
from typing import Any

import pyarrow as pa
from torch import nn

from pipeline.config import Run
from pipeline.config.attribution import Attribution
from pipeline.config.operations import Pool, Prices
from pipeline.models import Family, fp8
from pipeline.models.device import DTYPES
from pipeline.statistics.intervals import standard_error
from pipeline.tables import schemas
from pipeline.training import loop

PARTS = ("decode", "motion", "encode", "caption", "gradient", "projection")
_TRAINED = 12  # bytes of a trained parameter in a checkpoint: float32, and two moments
_CHECKPOINTS = 2  # checkpoints at a time

Seconds = Mapping[str, list[float]]  # of each part, clip by clip


@dataclass(frozen=True)
class Cost:
    """`count` times `seconds` on an actor of that many GPUs and CPUs; `error` is the standard error of `seconds`."""

    what: str
    count: float
    seconds: float
    gpus: float
    cpus: float
    error: float | None = None

    @property
    def gpu_hours(self) -> float:
        return self.count * self.seconds * self.gpus / 3600

    @property
    def cpu_hours(self) -> float:
        return self.count * self.seconds * self.cpus / 3600

    def money(self, prices: Prices) -> float:
        return self.gpu_hours * prices.gpu_hour + self.cpu_hours * prices.cpu_hour


@dataclass(frozen=True)
class Size:
    """What there is to do: videos and clips found, held-out clips, and numbers of the model."""

    videos: int
    clips: float  # an estimate: videos times what one of the pilot's gave
    held_out: int
    parameters: int
    latent_numbers: int  # of a clip at the training geometry
    mask_numbers: int  # of a clip at that of attribution
    cheaper_mask_numbers: int | None = None  # at that of a shortlist's variant, where it is another


def seconds_by_part(rows: pa.Table, variant: str) -> dict[str, list[float]]:
    """The pilot's seconds of a variant; what went wrong does not count."""
    seconds: dict[str, list[float]] = {}
    for row in rows.to_pylist():
        if row["variant"] == variant and row["problem"] is None and row["seconds"] is not None:
            seconds.setdefault(row["metric"], []).append(row["seconds"])
    return seconds


def attribution(name: str, parts: Seconds, clips: float, pool: Pool) -> Cost:
    """Motion and features of every clip."""
    mean = {part: fmean(parts[part]) for part in PARTS if parts.get(part)}
    decoding = mean.pop("decode", 0.0) / max(1, int(pool.cpus) - 1)
    errors = [standard_error(parts[part]) for part in mean if len(parts[part]) > 1]
    return Cost(name, clips, max(sum(mean.values()), decoding), pool.gpus, pool.cpus, hypot(*errors))


def two_stages(name: str, cheaper: Cost, full: Cost, share: float) -> Cost:
    """A cheaper attribution of every clip, and the full one of a share of them."""
    seconds, errors = cheaper.seconds + share * full.seconds, (cheaper.error or 0.0, share * (full.error or 0.0))
    return Cost(name, cheaper.count, seconds, full.gpus, full.cpus, hypot(*errors))


def stages(run: Run, size: Size, parts: Seconds, attributed: Cost) -> list[Cost]:
    """Every stage of `curate` for the recipe as it stands, of which `attributed` is motion and features."""
    r, e, f = run.resources, run.evaluate, run.finetune
    mean = {part: fmean(seconds) for part, seconds in parts.items()}
    costs = [Cost("index_clips", size.videos, mean["index"], r.index_clips.gpus, r.index_clips.cpus)]
    costs.append(attributed)
    arms = [arm for arm in dict.fromkeys([f.arm, *e.arms]) if arm != "base"]
    losses = len(e.arms) * size.held_out * (1 + len(e.twins)) * e.passes
    return [*costs, *arms_of(run, len(arms), losses, len(e.arms) * e.generate * len(e.seeds), mean)]


def arms_of(run: Run, arms: int, losses: int, videos: int, mean: Mapping[str, float]) -> list[Cost]:
    """Fine-tuning of so many arms, so many forward passes for held-out losses, and so many generated videos, by the
    mean seconds of the pilot's parts."""
    r, e, f = run.resources, run.evaluate, run.finetune
    costs = []
    if arms and "step" in mean:
        steps = arms * f.steps * f.workers
        title = f"finetune, {arms} arm{'s' * (arms > 1)}"
        costs.append(Cost(title, steps, mean["step"], r.finetune.gpus, r.finetune.cpus))
    if "denoising" in mean:
        forward = mean["denoising"] / (2 if e.guidance > 1 else 1)
        video = mean["video"] + e.steps * mean["denoising"]
        costs.append(Cost("evaluate, held-out losses", losses, forward, r.evaluate.gpus, r.evaluate.cpus))
        costs.append(Cost("evaluate, videos", videos, video, r.evaluate.gpus, r.evaluate.cpus))
    return costs


def storage(run: Run, size: Size) -> dict[str, float]:
    """Bytes of what a run keeps, before compression."""
    a, f = run.attribution, run.finetune
    share = 1.0 if a.shortlist is None else a.shortlist.share
    arms = len([arm for arm in dict.fromkeys([f.arm, *run.evaluate.arms]) if arm != "base"])
    drawn = min(size.clips, f.steps * f.batch * f.accumulate * f.workers)
    whole = f.lora_rank is None
    return {
        "features": size.clips * (share * _row(a) + (0 if a.cheaper is None else _row(a.cheaper))),
        "masks": size.clips
        * (
            size.mask_numbers
            if size.cheaper_mask_numbers is None
            else share * size.mask_numbers + size.cheaper_mask_numbers
        ),
        "latents of clips that arms train on": arms * drawn * 4 * size.latent_numbers,
        "fine-tuned arms": arms * 4 * size.parameters if whole else 0,
        "checkpoints": _CHECKPOINTS * _TRAINED * size.parameters if whole else 0,
    }


def _row(attribution: Attribution) -> int:
    """Bytes of a clip's features."""
    each: int = schemas.STORED_AS[attribution.storage].bit_width // 8
    return len(attribution.alone("clips").settings) * (each * attribution.projection.dim + 4 * 2)


def frozen_weights(run: Run, family: Family, skeleton: nn.Module) -> dict[str, int]:
    """Bytes of the transformers' frozen weights on the device of a worker that trains adapters, by the value of
    `finetune.frozen_weights`. Nothing where every parameter is trained."""
    if run.finetune.lora_rank is None:
        return {}
    modules = dict(skeleton.named_children()) if len(family.experts) > 1 else {"transformer": skeleton}
    parts = dict.fromkeys(expert.part for expert in loop.trained_experts(family, run.finetune.expert))
    dtype = DTYPES[run.model.dtype]
    return {how: sum(fp8.frozen_bytes(modules[part], dtype, how == "fp8") for part in parts) for how in ("full", "fp8")}


def table(costs: Sequence[Cost], prices: Prices) -> list[list[str]]:
    """Rows of text: what, how often, seconds each, GPU-hours, CPU-hours, money."""
    rows = [["", "times", "seconds each", "GPU-hours", "CPU-hours", prices.currency]]
    for cost in costs:
        error = f" +- {cost.error:.2g}" if cost.error else ""
        rows.append([cost.what, f"{cost.count:,.0f}", f"{cost.seconds:.3g}{error}", *_sums([cost], prices)])
    return rows


def total(costs: Sequence[Cost], prices: Prices) -> list[str]:
    return ["all", "", "", *_sums(costs, prices)]


def _sums(costs: Sequence[Cost], prices: Prices) -> list[str]:
    gpu, cpu = sum(c.gpu_hours for c in costs), sum(c.cpu_hours for c in costs)
    money = sum(c.money(prices) for c in costs)
    return [_short(gpu), _short(cpu), _short(money) if prices.known else "-"]


def _short(value: float) -> str:
    return f"{value:,.2f}" if value >= 1 else f"{value:.3g}"


def summary(
    costs: Sequence[Cost], bytes_kept: Mapping[str, float], frozen: Mapping[str, int], prices: Prices
) -> dict[str, Any]:
    """The plan as plain values, for plan.json."""
    listed = [
        {"what": c.what, "count": c.count, "seconds": c.seconds, "gpu_hours": c.gpu_hours, "cpu_hours": c.cpu_hours}
        | ({"money": c.money(prices)} if prices.known else {})
        for c in costs
    ]
    return {
        "stages": listed,
        "bytes": dict(bytes_kept),
        "frozen_weights": dict(frozen),
        "currency": prices.currency if prices.known else None,
    }
