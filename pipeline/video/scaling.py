"""The ways to scale a decoded frame, by the name that `data.scaler` has. All of them give the same geometry.

`pillow` makes RGB at the size of the frame and scales that; features of runs without the key were made of its pixels.
`ffmpeg` lets FFmpeg's scaler do both in one step, in about a fifth of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from pipeline.errors import ClipError
from pipeline.video.orientation import Frames, Pose, fit

Scale = Callable[[Any, Pose, Frames], None]  # a decoded frame, its pose, and the RGB [height, width, 3] that it fills

LONGEST = 16_384  # pixels: the longest side of a scaled frame before its margins are cut off; FFmpeg refuses far more
UNSPECIFIED = 2  # FFmpeg's number of a matrix that a stream does not name
HD_HEIGHT, HD_WIDTH = 576, 1280  # a picture higher than this, or as wide, is HD: players read it as BT.709
# A triangle as wide as an output pixel, as Pillow's BILINEAR has, and colour at the full size; no rounding that is
# quick and differs from one processor to another.
_EXACT = (
    Interpolation.ACCURATE_RND | Interpolation.BITEXACT | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
)
_TRIANGLE = int(Interpolation.BILINEAR | _EXACT)


def scale_by_pillow(frame: Any, seen: Pose, picture: Frames) -> None:
    picture[:] = fit(frame, seen, *picture.shape[:2])


class FFmpegScaler:
    """Scales frames with FFmpeg's scaler in one thread; frames of one kind share what it sets up.

    The whole frame is scaled to a size that covers the picture, in whole pixels and with margins of whole pixels, which
    are then cut off: a point lies at most half a pixel from where exact margins would have it. The matrix and the range
    of colours are those of the frame; a frame of HD that names no matrix has that of BT.709. Raises ClipError (refused)
    for a picture so long beside the size asked for that scaling it whole would take a side of more than LONGEST pixels.
    """

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def __call__(self, frame: Any, seen: Pose, picture: Frames) -> None:
        height, width = picture.shape[:2]
        tall, wide = seen.shape(frame.height, frame.width)
        scale = max(height / tall, width / wide)
        rows, columns = _covering(tall * scale, height), _covering(wide * scale, width)
        if max(rows, columns) > LONGEST:
            raise ClipError(
                "refused",
                f"to cover {width} x {height} it would be scaled to {columns} x {rows}, and FFmpeg's scaler is asked "
                f"for at most {LONGEST} a side; data.scaler: pillow scales the middle alone",
            )
        top, left = (rows - height) // 2, (columns - width) // 2
        stored_rows, stored_columns = (columns, rows) if seen.transposed else (rows, columns)
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
            if seen.transposed:
                pixels = pixels.T
            if seen.reverse_rows:
                pixels = pixels[::-1]
            if seen.reverse_columns:
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
