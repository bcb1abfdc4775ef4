"""Where one shot of a video ends and the next begins."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

BLOCK = 64  # frames that are compared together


class Changes:
    """How much each frame of a film differs from the one before it: two numbers a frame, whatever the film's length.

    At a cut both the pixels and the colour histogram change, much more than they do within 8 frames around it: camera
    motion changes the former alone, flicker and fast motion change neighbours as well. Frames are compared a block at
    a time: of a small video NumPy's calls cost more than the thumbnails.
    """

    def __init__(self) -> None:
        self.first: Frames | None = None  # the first frame's thumbnail
        self._last: Frames | None = None  # of those that were compared
        self._waiting: list[Frames] = []
        self._pixels: list[float] = []
        self._colours: list[float] = []

    @classmethod
    def noted(cls, first: Frames, last: Frames, pixels: list[float], colours: list[float]) -> Changes:
        """Those of frames that another one noted: the first and the last thumbnail, and the changes between."""
        changes = cls()
        changes.first, changes._last, changes._pixels, changes._colours = first, last, list(pixels), list(colours)
        return changes

    def add(self, small: Frames) -> None:
        """The next frame's thumbnail [h, w, 3]."""
        if self.first is None:
            self.first = small
        self._waiting.append(small)
        if len(self._waiting) == BLOCK:
            self._compare()

    def extend(self, later: Changes) -> None:
        """The frames that follow, whose changes are known."""
        if later.first is None:
            return
        self.add(later.first)
        self._compare()
        self._pixels += later.pixels
        self._colours += later.colours
        self._last = later.last

    @property
    def last(self) -> Frames | None:
        """The last frame's thumbnail."""
        self._compare()
        return self._last

    @property
    def pixels(self) -> list[float]:
        """Mean difference of the pixels of each frame but the first, of 1."""
        self._compare()
        return self._pixels

    @property
    def colours(self) -> list[float]:
        """Share of the pixels of each frame but the first that have another colour."""
        self._compare()
        return self._colours

    def _compare(self) -> None:
        """Compare the frames that wait, each with the one before it."""
        if not self._waiting:
            return
        before = [] if self._last is None else [self._last]
        pictures = np.stack([*before, *self._waiting])
        differences = np.abs(np.subtract(pictures[1:], pictures[:-1], dtype=np.int16))
        self._pixels += (differences.mean((1, 2, 3)) / 255).tolist()
        self._colours += (np.abs(np.diff(_histograms(pictures), axis=0)).sum(1) / 2).tolist()
        self._last = self._waiting[-1]
        self._waiting.clear()

    def cuts(self) -> npt.NDArray[np.int64]:
        """Indices of the frames at which another shot begins (hard cuts; fades are not looked for)."""
        pixels, colours = np.array(self.pixels), np.array(self.colours)
        indices = []
        for i in np.flatnonzero((pixels > 0.08) & (colours > 0.12)):
            around = np.r_[max(0, i - 8) : i, i + 1 : min(len(pixels), i + 9)]
            usual = [float(np.quantile(change[around], 0.8)) if len(around) else 0.0 for change in (pixels, colours)]
            if pixels[i] > 2.5 * usual[0] and colours[i] > 2.5 * usual[1]:
                indices.append(i + 1)
        return np.array(indices, np.int64)


def cuts(small: Frames) -> npt.NDArray[np.int64]:
    """Indices of the thumbnails [n, h, w, 3] at which another shot begins."""
    changes = Changes()
    for picture in small:
        changes.add(picture)
    return changes.cuts()


_SIXTH = (np.arange(256) * 6 >> 8).astype(np.uint8)  # which sixth of its range a value lies in
_RED, _GREEN, _BLUE = 36 * _SIXTH, 6 * _SIXTH, _SIXTH


def _histograms(pictures: Frames) -> Floats:
    """Share of the pixels of each picture [n, h, w, 3] in 6 x 6 x 6 colours, spread to the neighbouring ones: [n, 216].
    Noise moves it little.

    Counts and their spread are multiples of an eighth, so that no order of adding changes a bit.
    """
    codes = _RED.take(pictures[..., 0]) + _GREEN.take(pictures[..., 1]) + _BLUE.take(pictures[..., 2])
    first = 216 * np.arange(len(pictures))[:, None]
    counts = np.bincount((codes.reshape(len(pictures), -1) + first).ravel(), minlength=216 * len(pictures))
    spread = counts.reshape(-1, 6, 6, 6).astype(np.float64)
    for axis in (1, 2, 3):  # by a matrix it is as fast, but BLAS would start threads for it
        spread = spread + 0.5 * (np.roll(spread, 1, axis) + np.roll(spread, -1, axis))
    flat = spread.reshape(-1, 216)
    shares: Floats = flat / flat.sum(1, keepdims=True)
    return shares
