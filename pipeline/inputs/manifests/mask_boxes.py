"""The part of a clip whose motion counts: a rectangle of the picture and a stretch of time, outside which a mask is 0.

It is written as one text, in the column `mask_box` of a table or manifest: `left,top,right,bottom` as shares of the
picture, and where not all of the clip's time counts, its first and last second after that: `0.25,0.5,0.75,1,0.5,1.25`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pipeline.errors import ClipError

LEAST = 0.05  # of the picture's width and height


@dataclass(frozen=True)
class MaskBox:
    """Shares of the picture from its upper left corner; seconds from the clip's first frame, `last` itself outside."""

    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0
    first: float = 0.0
    last: float = math.inf

    def __post_init__(self) -> None:
        """Raise ValueError for a box that is none."""
        sides = (self.left, self.top, self.right, self.bottom)
        if not all(0 <= side <= 1 for side in sides):
            raise ValueError(f"its sides {sides} must be shares of the picture, from 0 to 1")
        if self.right - self.left < LEAST or self.bottom - self.top < LEAST:
            raise ValueError(f"its sides {sides} leave less than a twentieth of the picture's width or height")
        if not 0 <= self.first < self.last:
            raise ValueError(f"it begins at {self.first:g} s and ends at {self.last:g} s")

    def __str__(self) -> str:
        numbers = [self.left, self.top, self.right, self.bottom]
        if self.first > 0 or self.last < math.inf:
            numbers += [self.first, self.last]
        return ",".join(f"{number:.6f}".rstrip("0").rstrip(".") if number < math.inf else "inf" for number in numbers)

    @property
    def is_whole(self) -> bool:
        return self == MaskBox()

    def of_picture(self) -> MaskBox:
        """The same rectangle for all of a clip's time."""
        return replace(self, first=0.0, last=math.inf)

    def frames(self, count: int, fps: float) -> list[bool]:
        """Which of a clip's frames are inside."""
        slack = 1e-3 / fps  # of seconds that were written as decimals
        return [self.first - slack <= n / fps < self.last - slack for n in range(count)]

    def keep(self, count: int, fps: float, height: int, width: int) -> npt.NDArray[np.bool_]:
        """Which places of a clip are inside, [count, height, width] bool; a pixel is inside where its centre is.

        Raises ClipError where fewer than two frames or no pixel are.
        """
        times = np.array(self.frames(count, fps))
        y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
        rows, columns = (self.top <= y) & (y < self.bottom), (self.left <= x) & (x < self.right)
        if times.sum() < 2 or not rows.any() or not columns.any():
            raise ClipError(
                "refused",
                f"its mask_box {self} holds fewer than two of the {count} frames at {fps:g} a second that attribution "
                "sees, or none of the flow's pixels; widen it.",
            )
        inside: npt.NDArray[np.bool_] = times[:, None, None] & rows[:, None] & columns
        return inside


def parse(text: str) -> MaskBox:
    """A box from its text. Raises ValueError, with a sentence."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (4, 6) or any(math.isnan(number) for number in numbers):
        raise ValueError(
            f"mask_box={text!r}: write left,top,right,bottom as shares of the picture, and perhaps the first and the "
            "last second after that, for example 0.25,0.5,0.75,1 or 0,0,1,1,0.5,1.25"
        )
    try:
        return MaskBox(*numbers)
    except ValueError as error:
        raise ValueError(f"mask_box={text!r}: {error}") from None


def of_row(text: str | None) -> MaskBox | None:
    """The box of a row, None where it has none. Raises ClipError for a text that is no box."""
    if text is None or not text.strip():
        return None
    try:
        box = parse(text)
    except ValueError as error:
        raise ClipError("refused", f"{error}.") from error
    return None if box.is_whole else box
