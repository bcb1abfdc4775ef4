"""What breaks a clip's motion whatever it shows: a picture that stands still while the rest moves, frames that are
shown again, a jump. Told from the frames alone, without flow.

What comes to rest by itself slows down before; a picture that is frozen does not change at all. How far a measure is
too far, the queries say (`spoils`): videos of a low rate that were resampled repeat frames, and so do their queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.motion.thumbnails import thumbnails

Floats = npt.NDArray[np.float64]

FLAWS = ("frozen", "repeats", "cut")
VERSION = 1  # raise by hand when a measure changes
SAME = 0.05  # of the clip's large changes: less is the same picture again, as a codec writes it
LARGE = 0.9  # quantile of a clip's changes that counts as a large one
LEAST = np.array([0.2, 0.2, 4.0])  # of FLAWS: what is taken for a flaw at least
TIMES = np.array([1.0, 1.0, 2.0])  # and how many times the largest among the queries


def flaws(frames: npt.NDArray[np.uint8]) -> Floats:
    """Of a clip [F, H, W, 3], in the order of FLAWS: the longest stretch in which the picture stands, of at least two
    steps, and the steps beyond it that show the last frame again, as shares of all steps; and the largest change from
    a frame to the next over the median one. Zeros for a clip that never changes, and for one of fewer than four frames.
    """
    changes = _changes(frames)
    if len(changes) < 3 or not changes.any():
        return np.zeros(len(FLAWS))
    same = changes <= SAME * np.quantile(changes, LARGE)
    frozen = _longest(same)
    frozen = frozen if frozen > 1 else 0
    moving = changes[~same]
    steps = len(changes)
    return np.array([frozen / steps, (same.sum() - frozen) / steps, moving.max() / np.median(moving)])


def spoils(measures: Floats, queries: Floats) -> npt.NDArray[np.bool_]:
    """Which measures [N, flaws] are flaws: above LEAST, and above those of all queries [Q, flaws]."""
    most = queries.max(0) if len(queries) else np.zeros(len(FLAWS))
    above: npt.NDArray[np.bool_] = (measures >= LEAST) & (measures > TIMES * most)
    return above


def sentence(flaw: str, measure: float) -> str:
    """What a flaw is, in words."""
    words = {
        "frozen": f"its picture stands still for {measure:.0%} of the clip",
        "repeats": f"{measure:.0%} of its frames are shown again",
        "cut": f"it jumps: a change {measure:.1f} times the usual one",
    }
    return f"{words[flaw]}, which no query does"


def _changes(frames: npt.NDArray[np.uint8]) -> Floats:
    """Mean absolute difference of each frame from the one before it: [F-1]."""
    small = thumbnails(frames).astype(np.int16)
    changes: Floats = np.abs(np.diff(small, axis=0)).mean((1, 2, 3))
    return changes


def _longest(steps: Sequence[bool] | npt.NDArray[np.bool_]) -> int:
    """Length of the longest run of true ones."""
    longest = run = 0
    for step in steps:
        run = run + 1 if step else 0
        longest = max(longest, run)
    return longest
