"""The same motion in other looks, and spoiled twins with the same looks: what sets a query's motion apart.

A recolouring changes every colour of a video and nothing that moves. A twin has the frames of a video in another order:
the same pictures, another motion.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]  # [F, H, W, 3]
Order = npt.NDArray[np.int64]  # [F]

CONTRAST = (0.6, 1.4)  # of each channel about its mean
OFFSET = 30.0  # of each channel, up or down, of 255
POWER = 2.5  # of time in a slow start


def recoloured(frames: Frames, key: str, look: int) -> Frames:
    """A video in another look: its channels permuted, each with another contrast about its mean and another offset.

    Look 0 is the video itself. A look depends on `key` and its number alone. ValueError for a negative one.
    """
    if look < 0:
        raise ValueError(f"look={look}: looks are numbered from 0")
    if look == 0:
        return frames
    rng = _drawn(f"look {look} {key}")
    values = frames[..., rng.permutation(3)].astype(np.float32)
    mean = values.mean((0, 1, 2))
    changed = (values - mean) * rng.uniform(*CONTRAST, 3) + mean + rng.uniform(-OFFSET, OFFSET, 3)
    look_frames: Frames = np.clip(np.rint(changed), 0, 255).astype(np.uint8)
    return look_frames


def _backwards(count: int, key: str) -> Order:
    return np.arange(count)[::-1].copy()


def _slow_start(count: int, key: str) -> Order:
    return np.rint(np.linspace(0, 1, count) ** POWER * (count - 1)).astype(np.int64)


def _shuffled(count: int, key: str) -> Order:
    return _drawn(f"shuffled {key}").permutation(count)


def _frozen(count: int, key: str) -> Order:
    return np.minimum(np.arange(count), count // 2)


def _stuttering(count: int, key: str) -> Order:
    return np.arange(count) // 2 * 2


TWINS: Mapping[str, Callable[[int, str], Order]] = {
    "backwards": _backwards,
    "slow_start": _slow_start,
    "shuffled": _shuffled,
    "frozen": _frozen,  # from the middle on
    "stuttering": _stuttering,  # every second frame instead of its successor
}


def twin(frames: Frames, name: str, key: str) -> Frames:
    """A video with its frames in the order of one of TWINS, which depends on `key` alone. KeyError for another name."""
    return frames[TWINS[name](len(frames), key)]


def _drawn(text: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big"))
