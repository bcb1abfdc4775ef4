"""Where one shot of a video ends and the next begins."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]


def cuts(small: Frames) -> npt.NDArray[np.int64]:
    """Indices of the thumbnails [n, h, w, 3] at which another shot begins (hard cuts; fades are not looked for).

    At a cut both the pixels and the colour histogram change, much more than they do within 8 frames around it: camera
    motion changes the former alone, flicker and fast motion change neighbours as well.
    """
    if len(small) < 2:
        return np.empty(0, np.int64)
    pixels = np.array([np.abs(a.astype(np.int16) - b).mean() / 255 for a, b in zip(small[1:], small[:-1], strict=True)])
    colours = np.stack([_histogram(picture) for picture in small])
    shift = np.abs(np.diff(colours, axis=0)).sum(1) / 2
    found = []
    for i in np.flatnonzero((pixels > 0.08) & (shift > 0.12)):
        around = np.r_[max(0, i - 8) : i, i + 1 : min(len(pixels), i + 9)]
        usual = [float(np.quantile(change[around], 0.8)) if len(around) else 0.0 for change in (pixels, shift)]
        if pixels[i] > 2.5 * usual[0] and shift[i] > 2.5 * usual[1]:
            found.append(i + 1)
    return np.array(found, np.int64)


def _histogram(picture: Frames) -> Floats:
    """Share of the pixels [h, w, 3] in 6 x 6 x 6 colours, spread to the neighbouring ones: noise moves it little."""
    code = (picture.reshape(-1, 3).astype(np.int64) * 6) >> 8
    counts = np.bincount(code @ np.array([36, 6, 1]), minlength=216).reshape(6, 6, 6).astype(np.float64)
    for axis in range(3):
        counts = counts + 0.5 * (np.roll(counts, 1, axis) + np.roll(counts, -1, axis))
    spread: Floats = (counts / counts.sum()).reshape(-1)
    return spread
