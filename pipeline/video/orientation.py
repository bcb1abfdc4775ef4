"""Frames as they are meant to be seen: turned, mirrored and stretched as their file says, then scaled to a size.

There are two ways to scale, by the name that `data.scaler` has; both give the same geometry. `pillow` makes RGB at the
size of the frame and scales that; features of roots without the key were made of its pixels. `ffmpeg` lets FFmpeg's
scaler do both in one step, in about a fifth of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from PIL import Image

from pipeline.errors import ClipError

Frames = npt.NDArray[np.uint8]

_EXTREME = 32.0  # no pixel is so many times as wide as high, or as high as wide
_SLANT = (
    0.2  # tangent of the angle up to which a picture counts as upright: what a camera's sensor says may be a bit off
)
LONGEST = 16_384  # pixels: the longest side of a scaled frame before its margins are cut off; FFmpeg refuses far more
UNSPECIFIED = 2  # FFmpeg's number of a matrix that a stream does not name
HD_HEIGHT, HD_WIDTH = 576, 1280  # a picture higher than this, or as wide, is HD: players read it as BT.709
# A triangle as wide as an output pixel, as Pillow's BILINEAR has, and colour at the full size; no rounding that is
# quick and differs from one processor to another.
_EXACT = (
    Interpolation.ACCURATE_RND | Interpolation.BITEXACT | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
)
_TRIANGLE = int(Interpolation.BILINEAR | _EXACT)


# --- how it lies on the screen ---------------------------------------------------------------------------------------


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


# --- scaling ---------------------------------------------------------------------------------------------------------

Scale = Callable[[Any, Pose, Frames], None]  # a decoded frame, its pose, and the RGB [height, width, 3] that it fills


def fit(frame: Any, pose: Pose, height: int, width: int) -> Frames:
    """A decoded frame as RGB [height, width, 3]: upright, scaled to cover with antialiasing, cropped centrally."""
    # One thread: the scaler begins one for each core otherwise, for every frame, and a child has no room for many.
    pixels = frame.to_ndarray(format="rgb24", threads=1)
    if pose.transposed:
        pixels = pixels.transpose(1, 0, 2)
    if pose.reverse_rows:
        pixels = pixels[::-1]
    if pose.reverse_columns:
        pixels = pixels[:, ::-1]
    image = Image.fromarray(np.ascontiguousarray(pixels))
    tall, wide = pose.shape(frame.height, frame.width)
    scale = max(height / tall, width / wide)
    # Margins that are cut off, in stored pixels.
    left = (wide - width / scale) / 2 * (image.width / wide)
    top = (tall - height / scale) / 2 * (image.height / tall)
    box = (max(left, 0.0), max(top, 0.0), min(image.width - left, image.width), min(image.height - top, image.height))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box=box))


def scale_by_pillow(frame: Any, pose: Pose, picture: Frames) -> None:
    """Fill a picture [height, width, 3] with what `fit` makes of a decoded frame."""
    picture[:] = fit(frame, pose, *picture.shape[:2])


class FFmpegScaler:
    """Scales frames with FFmpeg's scaler in one thread; frames of one kind share what it sets up.

    The whole frame is scaled to a size that covers the picture, in whole pixels and with margins of whole pixels, which
    are then cut off: a point lies at most half a pixel from where exact margins would have it. The matrix and the range
    of colours are those of the frame; a frame of HD that names no matrix has that of BT.709. Raises ClipError (refused)
    for a picture so long beside the size asked for that scaling it whole would take a side of more than LONGEST pixels.
    """

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def __call__(self, frame: Any, pose: Pose, picture: Frames) -> None:
        height, width = picture.shape[:2]
        tall, wide = pose.shape(frame.height, frame.width)
        scale = max(height / tall, width / wide)
        rows, columns = _covering(tall * scale, height), _covering(wide * scale, width)
        if max(rows, columns) > LONGEST:
            raise ClipError(
                "refused",
                f"to cover {width} x {height} it would be scaled to {columns} x {rows}, and FFmpeg's scaler is asked "
                f"for at most {LONGEST} a side; data.scaler: pillow scales the middle alone",
            )
        top, left = (rows - height) // 2, (columns - width) // 2
        stored_rows, stored_columns = (columns, rows) if pose.transposed else (rows, columns)
        # Planes: packed RGB has no quick way to full colour. One thread, for the reason that `fit` gives.
        planar: Any = self._reformatter.reformat(
            frame,
            stored_columns,
            stored_rows,
            "gbrp",
            src_colorspace=_matrix(frame),
            interpolation=_TRIANGLE,
            threads=1,
        )
        for channel, plane in zip((1, 2, 0), planar.planes, strict=True):
            pixels = np.frombuffer(plane, np.uint8).reshape(stored_rows, plane.line_size)[:, :stored_columns]
            if pose.transposed:
                pixels = pixels.T
            if pose.reverse_rows:
                pixels = pixels[::-1]
            if pose.reverse_columns:
                pixels = pixels[:, ::-1]
            picture[..., channel] = pixels[top : top + height, left : left + width]


SCALERS: Mapping[str, Callable[[], Scale]] = {"pillow": lambda: scale_by_pillow, "ffmpeg": FFmpegScaler}


def _covering(exact: float, side: int) -> int:
    """The whole number of pixels nearest to `exact`, at least `side`, that leaves two equal margins of whole pixels."""
    return side + 2 * max(0, round((exact - side) / 2))


def _matrix(frame: Any) -> Colorspace | None:
    """The matrix of a frame that names none: BT.709 for HD. None: what FFmpeg takes, the frame's own or BT.601."""
    is_hd = frame.height > HD_HEIGHT or frame.width >= HD_WIDTH
    return Colorspace.ITU709 if is_hd and frame.colorspace == UNSPECIFIED and not frame.format.is_rgb else None
