"""Frames as they are meant to be seen: turned, mirrored and stretched as their file says, then fitted to a size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.errors import ClipError

Frames = npt.NDArray[np.uint8]

_EXTREME = 32.0  # no pixel is so many times as wide as high, or as high as wide
_SLANT = (
    0.2  # tangent of the angle up to which a picture counts as upright: what a camera's sensor says may be a bit off
)


@dataclass(frozen=True)
class Pose:
    """How stored pixels lie on the screen: rows become columns if `transposed`, then rows and columns are reversed.
    `aspect` is the width of a stored pixel over its height."""

    transposed: bool
    reverse_rows: bool
    reverse_columns: bool
    aspect: float

    def shape(self, height: int, width: int) -> tuple[float, float]:
        """Height and width on the screen, in units of the stored pixel's height, of so many stored rows and columns."""
        wide = width * self.aspect
        return (wide, float(height)) if self.transposed else (float(height), wide)


def pose(frame: Any, aspect: float) -> Pose:
    """The pose of a decoded frame whose pixels have this aspect. Raises ClipError (decode) for an impossible
    aspect, and where the picture lies aslant.

    The display matrix [a b u; c d v; x y w] sends the stored pixel (x, y) to (a x + c y, b x + d y), y downwards
    (ISO/IEC 14496-12, section 6.2.2); FFmpeg keeps it as nine native 32-bit integers.
    """
    if not 1 / _EXTREME <= aspect <= _EXTREME:
        raise ClipError("decode", f"its pixels are said to be {aspect:g} times as wide as high")
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return Pose(False, False, False, aspect)
    a, b, _, c, d, *_ = (int(number) for number in np.frombuffer(bytes(data), np.int32, 9))
    straight, crossed = abs(a) + abs(d), abs(b) + abs(c)
    if min(straight, crossed) > _SLANT * max(straight, crossed):
        raise ClipError("decode", f"its display matrix turns it by no quarter: a b c d = {a} {b} {c} {d} / 65536")
    if straight >= crossed:
        return Pose(False, d < 0, a < 0, aspect)
    return Pose(True, b < 0, c < 0, aspect)


def fit(frame: Any, seen: Pose, height: int, width: int) -> Frames:
    """A decoded frame as RGB [height, width, 3]: upright, scaled to cover with antialiasing, cropped centrally."""
    # One thread: the scaler begins one for each core otherwise, for every frame, and a child has no room for many.
    pixels = frame.to_ndarray(format="rgb24", threads=1)
    if seen.transposed:
        pixels = pixels.transpose(1, 0, 2)
    if seen.reverse_rows:
        pixels = pixels[::-1]
    if seen.reverse_columns:
        pixels = pixels[:, ::-1]
    image = Image.fromarray(np.ascontiguousarray(pixels))
    tall, wide = seen.shape(frame.height, frame.width)
    scale = max(height / tall, width / wide)
    # Margins that are cut off, in stored pixels.
    left = (wide - width / scale) / 2 * (image.width / wide)
    top = (tall - height / scale) / 2 * (image.height / tall)
    box = (max(left, 0.0), max(top, 0.0), min(image.width - left, image.width), min(image.height - top, image.height))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box=box))
