"""The same motion in other looks, and spoiled twins with the same looks: what sets a query's motion apart.

A look has other colours, another background, or the two sides exchanged, and what moves in it moves as it did. A twin
has the frames of a video in another order: the same pictures, another motion.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Mapping

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]  # [F, H, W, 3]
Floats = npt.NDArray[np.float32]
Order = npt.NDArray[np.int64]  # [F]

CONTRAST = (0.6, 1.4)  # of each channel about its mean
OFFSET = 30.0  # of each channel, up or down, of 255
POWER = 2.5  # of time in a slow start
WAVES = 5  # that a background is made of
CYCLES = (0.3, 2.2)  # of a wave over the shorter side


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


def in_look(
    frames: Frames, key: str, look: int, changes: Collection[str], moving: Floats | None = None
) -> tuple[Frames, bool]:
    """A video in another look, and whether its sides are exchanged: mask and caption then have to follow.

    `changes` says in what looks differ: colours, background (which takes `moving`, [H, W]), mirrored (every second
    look). Look 0 is the video itself. ValueError for a negative one.
    """
    if "background" in changes:
        assert moving is not None, "what moves is known before its background is exchanged"
        frames = before_another_background(frames, moving, key, look)
    if "colours" in changes:
        frames = recoloured(frames, key, look)
    is_mirrored = "mirrored" in changes and look % 2 == 1
    return np.ascontiguousarray(frames[:, :, ::-1]) if is_mirrored else frames, is_mirrored


def before_another_background(frames: Frames, moving: Floats, key: str, look: int) -> Frames:
    """What moves in a video, before a still picture: a few soft waves about a colour.

    `moving` [H, W] in [0, 1] says what of the video stays (`motion.moving_region`). A camera's motion goes with the
    background that it moved. Look 0 is the video itself; another's picture depends on `key` and its number alone.
    """
    if look == 0:
        return frames
    picture = _waves(_drawn(f"background {look} {key}"), *frames.shape[1:3])
    shares = moving[..., None]
    exchanged: Frames = np.rint(frames * shares + picture * (1 - shares)).astype(np.uint8)
    return exchanged


def _waves(rng: np.random.Generator, height: int, width: int) -> Floats:
    """[H, W, 3], 0 to 255."""
    side = min(height, width)
    y, x = np.mgrid[0:height, 0:width] / side
    heading, pace = rng.uniform(0, 2 * np.pi, WAVES), rng.uniform(*CYCLES, WAVES) * 2 * np.pi
    phase, amplitude = rng.uniform(0, 2 * np.pi, WAVES), rng.normal(0, 255 * 0.12 / np.sqrt(WAVES), (WAVES, 3))
    waves = np.sin(x[..., None] * np.cos(heading) * pace + y[..., None] * np.sin(heading) * pace + phase)
    picture: Floats = np.clip(255 * rng.uniform(0.25, 0.75, 3) + waves @ amplitude, 0, 255).astype(np.float32)
    return picture


def mirrored_caption(caption: str) -> str:
    """A caption with `left` and `right` exchanged, as the sides of a mirrored video are; English alone."""
    return re.sub(r"\b(left|right)(?=(?:ward|wards)?\b)", _other_side, caption, flags=re.IGNORECASE)


def _other_side(match: re.Match[str]) -> str:
    word = match[0]
    other = "right" if word.lower() == "left" else "left"
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other


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
