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
        self._last: tuple[Frames, Floats] | None = None
        self._pixels: list[float] = []
        self._colours: list[float] = []

    def add(self, small: Frames) -> None:
        """The next frame's thumbnail [h, w, 3]."""
        colours = _histogram(small)
        if self._last is not None:
            picture, histogram = self._last
            self._pixels.append(float(np.abs(small.astype(np.int16) - picture).mean() / 255))
            self._colours.append(float(np.abs(colours - histogram).sum() / 2))
        self._last = small, colours

    def cuts(self) -> npt.NDArray[np.int64]:
        """Indices of the frames at which another shot begins (hard cuts; fades are not looked for)."""
        pixels, colours = np.array(self._pixels), np.array(self._colours)
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


def _histogram(picture: Frames) -> Floats:
    """Share of the pixels [h, w, 3] in 6 x 6 x 6 colours, spread to the neighbouring ones: noise moves it little."""
    code = (picture.reshape(-1, 3).astype(np.int64) * 6) >> 8
    counts = np.bincount(code @ np.array([36, 6, 1]), minlength=216).reshape(6, 6, 6).astype(np.float64)
    for axis in range(3):
        counts = counts + 0.5 * (np.roll(counts, 1, axis) + np.roll(counts, -1, axis))
    spread: Floats = (counts / counts.sum()).reshape(-1)
    return spread
