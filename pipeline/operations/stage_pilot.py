"""A pilot of the stages that compute: seconds, memory and output of each on an actor of its own. No Ray.

Parts are measured in the order in which their memory grows: motion before the model is loaded, generated videos before
steps of training. So the peak after each part is what an actor of that stage needs.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import fmean
from typing import TypeVar

import pyarrow as pa
import torch

from pipeline import models, motion
from pipeline.attribution.attributed_model import open_attributed, projected_gradients, projection_of
from pipeline.attribution.gradients import ProjectedGradients, take_clip
from pipeline.config import Run
from pipeline.errors import ClipError, first_line, is_out_of_memory
from pipeline.models.conditioning import split
from pipeline.motion.worker import MotionWorker
from pipeline.operations.index_pilot import FEWEST, PART_SECONDS, Report, Row, peak_memory
from pipeline.operations.pilot import TrainingPilot, timed
from pipeline.operations.pools import Measure
from pipeline.tables import schemas
from pipeline.video.decoders import Decoders, Frames

SHARED = 8  # gradients that share a generation of P while that is timed
GENERATION_AT_MOST = 0.95  # of a clip's time: what is left is never nothing
T = TypeVar("T")
CONTEXT = 600 << 20  # bytes of a GPU that each process takes beside its tensors


def attribute_clips(run: Run, clips: list[Row], features: bool) -> Report:
    """Measure estimate_motion, and with `features` extract_features, on the GPU share of the pool of extract_features.

    A clip that cannot be used, or that takes more memory than there is, is one of the problems.
    """
    begun = time.perf_counter()
    pool = run.resources.extract_features
    worker = MotionWorker(run, models.grid(run), pool.gpus, 1)
    load, clock, problems = time.perf_counter() - begun, _Clock(worker.device), list[str]()
    moving = list[tuple[Row, Row]]()
    for clip in _in_time(clips, clock, "motion"):
        with _Problems(problems, worker.device) as problem:
            frames = clock.time("decode", partial(_frames, run, worker.decoder, clip))
            moving.append((clip, clock.time("motion", partial(worker.measure, clip, frames))))
        if problem.has_come:
            clock.forget()
    measures = dict[str, Measure]()
    if moving:
        seconds = clock.means()
        rows = pa.Table.from_pylist([m for _, m in moving], schema=schemas.motion_schema(schemas.CLIPS))
        output = rows.nbytes // len(moving)
        measures["estimate_motion"] = _measure(
            worker, len(moving), seconds["motion"], decode=seconds["decode"], load=load, output=output
        )
    if features and moving:
        before = len(problems)
        measured = _features(run, worker, moving, measures["estimate_motion"], clock.means()["motion"], problems)
        if measured is not None:
            measures["extract_features"] = measured
        elif len(problems) == before:
            problems.append("no_motion: none of the pilot's clips has a gradient under these settings")
    worker.decoder.close()
    return Report(measures, time.perf_counter() - begun, problems=problems)


def train_and_generate(run: Run, clips: list[Row], stages: Sequence[str]) -> Report:
    """Measure evaluate by a generated video, and finetune by steps on these clips."""
    begun = time.perf_counter()
    pilot = TrainingPilot(run)
    load, measures, problems = time.perf_counter() - begun, dict[str, Measure](), list[str]()
    with _Problems(problems, pilot.device):
        if "evaluate" in stages:
            seconds = {row["metric"]: row["seconds"] for row in pilot.generated(clips[0])}
            video = seconds["video"] + run.evaluate.steps * seconds["denoising"]
            measures["evaluate"] = _of_process(pilot.device, 1, video, load)
        if "finetune" in stages:
            steps = [row["seconds"] for row in pilot.trained(clips)]
            measures["finetune"] = _of_process(pilot.device, len(steps), fmean(steps), load)
    pilot.decoder.close()
    return Report(measures, time.perf_counter() - begun, problems=problems)


# --- features --------------------------------------------------------------------------------------------------------


def _features(
    run: Run, worker: MotionWorker, moving: list[tuple[Row, Row]], before: Measure, flow: float, problems: list[str]
) -> Measure | None:
    """Autoencoder, text and gradients of clips whose motion is measured, in the same process: as curate's actors have
    it. None where no clip has a gradient."""
    begun, device = time.perf_counter(), worker.device
    a = run.of("clips").attribution
    (model, host), projection = open_attributed(run, device, a.settings), projection_of(run)
    load = before.load + time.perf_counter() - begun

    def take(gradients: ProjectedGradients, clip: Row, measured: Row, frames: Frames) -> int:
        """The losses of a clip; how many there are."""
        mask = None
        if measured["mask"] is not None:
            mask = motion.decode_mask(measured["mask"], measured["mask_shape"]).to(device)
        latent, of_clip = split(model.encode(frames, run.geometry[1]))
        conditioning = {**of_clip, **model.text(clip["caption"] or "")}
        return len(take_clip(gradients, model, a.settings, latent, conditioning, mask, run.seed))

    def attribute(hold: int, some: list[tuple[Row, Row]]) -> tuple[_Clock, int]:
        """Seconds of these clips with so many held gradients; of their losses, the last stage among them."""
        gradients, clock, losses = projected_gradients(run, model, host, hold), _Clock(device), 0
        for clip, measured in _in_time(some, clock, "clip"):
            with _Problems(problems, device) as problem:
                frames = _frames(run, worker.decoder, clip)
                losses += clock.time("clip", partial(take, gradients, clip, measured, frames))
            if problem.has_come:
                clock.forget()
                gradients.close()
                gradients = projected_gradients(run, model, host, hold)
        clock.time("last", gradients.collect)
        gradients.close()
        return clock, losses

    attribute(1, moving[:1])  # compiles, and chooses algorithms
    streamed, losses = attribute(1, moving)
    if not losses:
        return None
    count = len(streamed.seconds["clip"])
    compute = streamed.total("clip", "last") / count
    generation, counted = 0.0, sum(p.numel() * p.element_size() for p in model.trained.parameters() if p.requires_grad)
    each = max(1, round(losses / count))
    if projection.dense and not problems:
        clock, several = attribute(SHARED, (moving * SHARED)[: max(1, SHARED // each)])
        generation = _generation(compute / each, clock.total("clip", "last"), several)
    share = _gpu_share(device, partial(attribute, 1, moving[:1])) if device.type == "cuda" else None
    looks, _ = run.of("clips").looks
    compute *= looks  # one was measured
    if run.motion.of == "all":  # of a sample alone, motion does not count
        compute += flow
    return _measure(
        worker,
        count,
        compute,
        decode=before.decode,
        generation=generation,
        gradients=each * looks if projection.dense else 0,
        gradient_bytes=counted,
        gpu_share=share,
        load=load,
        output=4 * each * (projection.dim + 2),
    )


def _generation(alone: float, shared: float, losses: int) -> float:
    """Seconds of one generation of P: from those of a loss that has one to itself, and those of so many together that
    share theirs, SHARED to each."""
    if losses < 2:
        return 0.0
    saved = alone - shared / losses  # of a loss
    generations = math.ceil(losses / SHARED) / losses
    return min(max(0.0, saved / (1 - generations)), GENERATION_AT_MOST * alone)


def _gpu_share(device: torch.device, call: Callable[[], object]) -> float | None:
    """The share of a call's time in which its kernels ran; None where the profiler sees none."""
    _, seconds = timed(call, device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize(device)
    kernels = sum(event.self_device_time_total for event in profile.key_averages()) / 1e6
    return min(1.0, kernels / seconds) if kernels > 0 else None


# --- clocks and memory -----------------------------------------------------------------------------------------------


class _Clock:
    """Seconds of parts, clip by clip."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {}
        self._last: list[str] = []

    def time(self, part: str, call: Callable[[], T]) -> T:
        result, seconds = timed(call, self.device)
        self.seconds.setdefault(part, []).append(seconds)
        self._last.append(part)
        return result

    def next(self) -> None:
        """Another clip begins."""
        self._last = []

    def forget(self) -> None:
        """The present clip does not count."""
        for part in self._last:
            self.seconds[part].pop()
        self._last = []

    def total(self, *parts: str) -> float:
        return sum(sum(self.seconds.get(part, ())) for part in parts)

    def means(self) -> dict[str, float]:
        """Without the first clip of several, which waits for a process to start and for algorithms to be chosen."""
        return {part: fmean(values[1:] or values) for part, values in self.seconds.items()}


def _in_time(clips: list[T], clock: _Clock, part: str) -> Iterator[T]:
    """Clips until the part has taken long enough."""
    for clip in clips:
        if clock.total(part) > PART_SECONDS and len(clock.seconds[part]) >= FEWEST:
            return
        clock.next()
        yield clip


class _Problems:
    """A clip that cannot be used, or for which there is no memory, becomes one of the problems."""

    def __init__(self, problems: list[str], device: torch.device) -> None:
        self.problems, self.device, self.has_come = problems, device, False

    def __enter__(self) -> _Problems:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, ClipError):
            self.problems.append(str(error))
        elif error is not None and is_out_of_memory(error):
            self.problems.append(f"memory: {first_line(error)}")
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        else:
            return False
        self.has_come = True
        return True


def _frames(run: Run, decoder: Decoders, clip: Row) -> Frames:
    frames, fps, height, width = run.geometry
    return decoder.submit_frames(clip["uri"], clip["start_frame"], frames, fps, height, width).result()


def _measure(worker: MotionWorker, rows: int, compute: float, **values: float | int | None) -> Measure:
    """A measure with the memory that this process and its decoder had so far."""
    children = max((peak_memory(pid) for pid in worker.decoder.pids), default=0)
    return _of_process(worker.device, rows, compute, decoder_memory=children, **values)


def _of_process(
    device: torch.device, rows: int, compute: float, load: float | None = 0.0, **values: float | int | None
) -> Measure:
    gpu = {}
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        gpu = {"gpu_memory": torch.cuda.max_memory_allocated(device) + CONTEXT, "gpu_total": total}
    memory = peak_memory(os.getpid())
    return Measure.model_validate(
        {"rows": rows, "compute": max(compute, 1e-4), "load": load, "memory": memory, **gpu, **values}
    )
