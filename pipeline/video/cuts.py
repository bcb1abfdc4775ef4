"""Where one shot of a video ends and the next begins."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]


class Changes:
    """How much each frame of a film differs from the one before it: two numbers a frame, whatever the film's length.

    At a cut both the pixels and the colour histogram change, much more than they do within 8 frames around it: camera
    motion changes the former alone, flicker and fast motion change neighbours as well.
    """

    def __init__(self) -> None:
        self.first: Frames | None = None  # the first and the last frame's thumbnail
        self.last: Frames | None = None
        self.pixels: list[float] = []
        self.colours: list[float] = []
        self._histogram: Floats | None = None  # of the last one

    def add(self, small: Frames) -> None:
        """The next frame's thumbnail [h, w, 3]."""
        histogram = _histogram(small)
        if self.last is None or self._histogram is None:
            self.first = small
        else:
            self.pixels.append(float(np.abs(np.subtract(small, self.last, dtype=np.int16)).mean() / 255))
            self.colours.append(float(np.abs(histogram - self._histogram).sum() / 2))
        self.last, self._histogram = small, histogram

    def extend(self, later: Changes) -> None:
        """The frames that follow, of which another one noted the changes."""
        if later.first is None or later.last is None:
            return
        self.add(later.first)
        self.pixels += later.pixels
        self.colours += later.colours
        self.last, self._histogram = later.last, _histogram(later.last)

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


def _smoothing() -> Floats:
    """The matrix [216, 216] that adds half of each colour's count to its neighbours, round each of the three axes."""
    one = np.eye(6) + 0.5 * (np.roll(np.eye(6), 1, 0) + np.roll(np.eye(6), -1, 0))
    return np.kron(np.kron(one, one), one)


_SIXTH = (np.arange(256) * 6 >> 8).astype(np.uint8)  # which sixth of its range a value lies in
_RED, _GREEN, _BLUE = 36 * _SIXTH, 6 * _SIXTH, _SIXTH
_SPREAD = _smoothing()


def _histogram(picture: Frames) -> Floats:
    """Share of the pixels [h, w, 3] in 6 x 6 x 6 colours, spread to the neighbouring ones: noise moves it little.

    Counts and their spread are multiples of an eighth, so that no order of adding changes a bit.
    """
    code = _RED[picture[..., 0]] + _GREEN[picture[..., 1]] + _BLUE[picture[..., 2]]
    counts = np.bincount(code.reshape(-1), minlength=216).astype(np.float64)
    spread = _SPREAD @ counts
    shares: Floats = spread / spread.sum()
    return shares
