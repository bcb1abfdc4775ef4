"""Which frames of a clip's file a trainer reads, and at which speed its model sees them.

Each rule is written from what the trainer documents and does: docs/exports.md says which version. A rule takes the
file's frames and rate, the rate of the model, and how many frames training asks for; it gives the indices of the
source frames in the order in which they are read. An empty result: the trainer passes the clip over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
# Frames of the file, its rate, the model's rate, frames that training asks for.
FrameRule = Callable[[int, float, float, int], Indices]

MODEL_RATES = {
    "wan": 16.0,
    "cosmos-predict2": 16.0,
    "wan2.2-5b": 24.0,
    "hunyuan": 24.0,
    "ltx-2": 24.0,
    "ltx-video": 25.0,
    "framepack": 30.0,
}


# --- the rules -------------------------------------------------------------------------------------------------------


def whole_file(source_frames: int, source_fps: float, model_fps: float, frames: int) -> Indices:
    """A loader that is no trainer gives every frame."""
    return np.arange(source_frames)


def musubi(source_frames: int, source_fps: float, model_fps: float, frames: int) -> Indices:
    """`frame_extraction = "head"` with `source_fps`: frames are skipped down to the model's rate, none is shown twice.
    Then the first `frames`; a clip that has fewer is passed over. Frames must be 4 n + 1."""
    ticks = np.floor(np.arange(source_frames) * (model_fps / source_fps) + 1e-9)
    is_first = np.diff(ticks, prepend=-1.0) > 0
    rest = np.flatnonzero(is_first)
    target = _multiple_plus_one(frames, 4)
    return rest[:target] if len(rest) >= target else rest[:0]


def diffusion_pipe(source_frames: int, source_fps: float, model_fps: float, frames: int) -> Indices:
    """Re-timed to as many frames as the model's rate gives, evenly from the first to the last one and rounded down; of
    these the first 4 n + 1 of the bucket. A clip that is shorter then would go to the bucket of one frame, which videos
    never do."""
    count = int(source_frames * model_fps / source_fps)
    bucket = _multiple_plus_one(frames, 4)
    if count < bucket or not count:
        return np.arange(0)
    return evenly(source_frames, source_fps, model_fps, count)[:bucket]


def diffsynth(source_frames: int, source_fps: float, model_fps: float, frames: int) -> Indices:
    """The first `frames` at the file's own rate; a shorter clip gives the longest 4 n + 1 that it has."""
    return np.arange(_multiple_plus_one(min(frames, source_frames), 4))


def ltx_2(source_frames: int, source_fps: float, model_fps: float, frames: int) -> Indices:
    """The first frames at the file's own rate, as many as its bucket: 8 n + 1. A shorter clip is passed over."""
    bucket = _multiple_plus_one(frames, 8)
    return np.arange(bucket if bucket <= source_frames else 0)


def evenly(source_frames: int, source_fps: float, model_fps: float, frames: int) -> Indices:
    """finetrainers, and ai-toolkit with `shrink_video_to_frames`: so many frames, evenly over the whole clip."""
    if not source_frames:
        return np.arange(0)
    steps: Indices = np.floor(np.linspace(0, source_frames - 1, frames) + 1e-9).astype(np.int64)
    return steps


def simpletuner(source_frames: int, source_fps: float, model_fps: float, frames: int) -> Indices:
    """A run of `num_frames` frames at the file's own rate. With `min_frames` as many, a shorter clip is passed over;
    which run of a longer one is read, is drawn: here the first."""
    return np.arange(frames if frames <= source_frames else 0)


def fastvideo(source_frames: int, source_fps: float, model_fps: float, frames: int) -> Indices:
    """Every (file's rate / `train_fps`)-th frame, rounded down, then the first `num_frames`; a clip that has fewer is
    passed over."""
    steps: Indices = np.floor(np.arange(0, source_frames, source_fps / model_fps) + 1e-9).astype(np.int64)
    return steps[:frames] if len(steps) >= frames else steps[:0]


def _multiple_plus_one(count: int, step: int) -> int:
    """The largest step n + 1 that is no more than `count`; 0 for 0."""
    return (count - 1) // step * step + 1 if count > 0 else 0


# --- what follows ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """What a trainer makes of a clip: the `indices` of the frames that it reads, and how many times as fast as filmed
    its model sees them."""

    indices: Indices
    speed: float


def read_clip(rule: FrameRule, knows_rate: bool, clip_frames: int, clip_fps: float, model_fps: float) -> Reading:
    """What a trainer makes of an exported clip of `clip_frames` at `clip_fps`, asked for as many frames.

    `knows_rate`: the trainer tells its model the file's rate, so that no rate is another speed.
    """
    indices = rule(clip_frames, clip_fps, model_fps, clip_frames)
    if knows_rate or len(indices) < 2:
        return Reading(indices, 1.0)
    step = float(indices[-1] - indices[0]) / (len(indices) - 1)
    return Reading(indices, step / clip_fps * model_fps)


def difference(reading: Reading, clip_frames: int) -> str | None:
    """What is different about the frames that a trainer reads, as a clause; None where they are those ranked, at the
    speed at which they were ranked."""
    indices = reading.indices
    if not len(indices):
        return f"passes every clip of {clip_frames} frames over"
    if not np.array_equal(indices, np.arange(clip_frames)):
        shown = ", ".join(map(str, indices[:6].tolist()))
        rest = f", ... {indices[-1]}" if len(indices) > 6 else ""
        return f"reads {len(indices)} frames ({shown}{rest}) and not 0 to {clip_frames - 1}"
    if abs(reading.speed - 1) > 1e-6:
        return f"reads the same frames, but its model takes them for {reading.speed:.3g} times as fast as they are"
    return None
