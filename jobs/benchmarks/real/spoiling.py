"""Clips that are spoiled on purpose, by known means: what a score of harm is measured on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from jobs.benchmarks.matching import by_hash
from pipeline.video.looks import twin

Frames = npt.NDArray[np.uint8]  # [F, H, W, 3]

POWER = 3.0  # of time
PAN = 0.5  # of the picture's width, over the clip
ZOOM = 1.5  # at least what a pan needs to stay inside the picture
CAPTION = "wrong caption"


def _late(frames: Frames) -> Frames:
    moments = np.linspace(0, 1, len(frames)) ** POWER
    return frames[np.rint(moments * (len(frames) - 1)).astype(np.int64)]


def _panned(frames: Frames) -> Frames:
    """The first frame, enlarged, under a window that moves over it from left to right."""
    still = frames[0]
    height, width = still.shape[:2]
    rows = (np.arange(height) / ZOOM + height * (1 - 1 / ZOOM) / 2).astype(np.int64)
    room = width * (1 - 1 / ZOOM)
    window = np.arange(width) / ZOOM
    starts = np.linspace(0, min(room, PAN * width), len(frames))
    return np.stack([still[rows][:, (start + window).astype(np.int64)] for start in starts])


def _spliced(frames: Frames, other: Frames) -> Frames:
    half = len(frames) // 2
    return np.concatenate([frames[: len(frames) - half], other[len(frames) - half :]])


_ORDERS: dict[str, Callable[[Frames, Frames, str], Frames]] = {
    "frozen half": lambda frames, other, key: twin(frames, "frozen", key),
    "dropped and doubled frames": lambda frames, other, key: twin(frames, "stuttering", key),
    "spliced with another clip": lambda frames, other, key: _spliced(frames, other),
    "shuffled": lambda frames, other, key: twin(frames, "shuffled", key),
    "time to the power 3": lambda frames, other, key: _late(frames),
    "a still with a pan": lambda frames, other, key: _panned(frames),
    CAPTION: lambda frames, other, key: frames,
}
WAYS = tuple(_ORDERS)


def spoiled(frames: Frames, way: str, key: str, other: Frames) -> Frames:
    """A clip spoiled in one of WAYS; `other` is another clip of the same shape. Of a wrong caption the frames stay.
    KeyError for another way."""
    return np.ascontiguousarray(_ORDERS[way](frames, other, key))


def chosen(clip_ids: Sequence[str], share: float, seed: int = 0) -> dict[str, str]:
    """Which clips are spoiled, and how: a share of them, at least one, the ways in turn."""
    count = max(1, round(share * len(clip_ids)))
    return {clip_id: WAYS[n % len(WAYS)] for n, clip_id in enumerate(by_hash(seed, list(clip_ids))[:count])}
