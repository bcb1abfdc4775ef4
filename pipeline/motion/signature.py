"""What a clip shows, in a few hundred bytes: near-duplicates have nearly the same signature.

One half is the mean picture, the other how each place differs from it in four stretches of the clip. Both halves weigh
the same, so that another motion in the same scene is another clip. The frames are grey and small: codecs, sizes and
narrow crops change little of it. `jobs.benchmarks.duplicates` measures how little.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from pipeline.motion.thumbnails import thumbnails

Floats = npt.NDArray[np.float64]

VERSION = 1  # raise by hand when a signature changes
STRETCHES, CELLS = 4, 8  # of time, and of each side of the picture
NUMBERS = CELLS**2 * (1 + STRETCHES)
LUMA = np.array([299, 587, 114])  # of red, green and blue, in thousandths (ITU-R BT.601)
FAINT = 60.0  # length in grey levels below which a half is no more than a codec's noise, and weighs less


def signature(frames: npt.NDArray[np.uint8]) -> bytes | None:
    """The signature of a clip [F, H, W, 3]: NUMBERS of int8. None for one that is of one colour all the time.

    It is the same on every machine: grey levels are added up as whole numbers, and lengths are rounded once.
    """
    means = _means(frames)
    still = means.sum(0) / STRETCHES
    courses = means - still
    still = (still - math.fsum(still.flat) / still.size) * math.sqrt(STRETCHES)
    numbers = np.concatenate([(half / max(FAINT, _length(half))).ravel() for half in (still, courses)])
    largest = float(np.abs(numbers).max())
    if largest < 1e-9:
        return None
    return np.rint(numbers * (127 / largest)).astype(np.int8).tobytes()


def unit_rows(signatures: list[bytes]) -> npt.NDArray[np.float32]:
    """Signatures as rows of length one, [N, NUMBERS]: their inner product is how alike two clips look, at most 1."""
    rows = np.frombuffer(b"".join(signatures), np.int8).reshape(-1, NUMBERS).astype(np.float32)
    unit: npt.NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def _means(frames: npt.NDArray[np.uint8]) -> Floats:
    """Mean grey level, 0 to 255, of each stretch and cell: [STRETCHES, CELLS, CELLS]. Stretches and cells share frames
    and pixels at their borders where there are fewer of them."""
    sums, sizes = thumbnails(frames).astype(np.int64) @ LUMA, np.ones(1, np.int64)
    for axis, count in enumerate((STRETCHES, CELLS, CELLS)):
        length = sums.shape[axis]
        starts = np.arange(count) * length // count
        stops = -(-(np.arange(count) + 1) * length // count)
        running = np.insert(sums.cumsum(axis), 0, 0, axis)
        sums = running.take(stops, axis) - running.take(starts, axis)
        sizes = np.multiply.outer(sizes, stops - starts)
    means: Floats = sums / (1000.0 * sizes[0])
    return means


def _length(values: Floats) -> float:
    return math.sqrt(math.fsum((values * values).flat))
