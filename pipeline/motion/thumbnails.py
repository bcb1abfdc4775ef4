"""Frames as small as colours, changes and likeness need them."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

SIDE = 96  # pixels of the longer side that are looked at


def thumbnails(frames: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Every n-th row and column of [F, H, W, 3], at most SIDE of each: a view."""
    step = -(-max(frames.shape[1:3]) // SIDE)
    return frames[:, ::step, ::step]
