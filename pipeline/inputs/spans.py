"""The stretch of a video that a row of a manifest is about. The decoder's child reads it, so it imports little.

A span is written as one text, in seconds or in frames: `12.5s-17.25s`, `48f-129f`, `48f+5.0625s` (so long from there),
`12.5s-` (to the end). Seconds count from the video's first frame; the end itself is outside. Frames count the file's
own frames from 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SLACK = 5e-4 + 1e-6  # seconds: many tables round times to milliseconds
BEYOND = 0.5  # seconds that a span may end after its video: the sound of many is a little longer

_TEXT = re.compile(r"([0-9]+(?:\.[0-9]+)?)([sf])([-+])(?:([0-9]+(?:\.[0-9]+)?)([sf]))?")
_CLOCK = re.compile(r"(?:(?:(\d+):)?(\d{1,3}):)?(\d+(?:[.,]\d+)?)\s*(?:s|sec|seconds)?")


class SpanError(ValueError):
    """A span that no video has, as a sentence without a full stop."""


@dataclass(frozen=True)
class Span:
    """From `start` to `end` (None: the video's end), or `length` long. `start_unit` and `unit` are `s` or `f`."""

    start: float
    start_unit: str
    end: float | None
    unit: str
    is_length: bool = False

    def __str__(self) -> str:
        rest = "" if self.end is None else f"{plain(self.end)}{self.unit}"
        return f"{plain(self.start)}{self.start_unit}{'+' if self.is_length else '-'}{rest}"

    def shown(self) -> str:
        """The span in words."""
        words = {"s": "{} s", "f": "frame {}"}
        start = words[self.start_unit].format(plain(self.start))
        if self.end is None:
            return f"from {start} on"
        if self.is_length:
            return f"{plain(self.end)} {'seconds' if self.unit == 's' else 'frames'} from {start} on"
        return f"from {start} to {words[self.unit].format(plain(self.end))}"


def plain(number: float) -> str:
    """A number of seconds or frames to the microsecond, without zeros at its end: equal times are equal texts."""
    return f"{number:.6f}".rstrip("0").rstrip(".")


def parse(text: str) -> Span:
    """A span from its text. Raises SpanError."""
    match = _TEXT.fullmatch(text)
    if match is None:
        raise SpanError(f"{text!r} is no span; write for example 12.5s-17.25s or 48f-129f")
    start, start_unit, sign, end, unit = match.groups()
    return between(float(start), start_unit, None if end is None else float(end), unit or start_unit, sign == "+")


def between(start: float, start_unit: str, end: float | None, unit: str, is_length: bool = False) -> Span:
    """A span, checked. Raises SpanError where it begins before the video, or ends before it begins."""
    numbers = [number for number in (start, end) if number is not None]
    if not np.isfinite(numbers).all():
        raise SpanError(f"its span has {start!r} and {end!r}, of which one is no number")
    if start < 0:
        raise SpanError(f"its span begins before the video, at {plain(start)}")
    span = Span(float(start), start_unit, None if end is None else float(end), unit, is_length)
    if end is not None and (end <= 0 if is_length else unit == start_unit and end <= start):
        raise SpanError(f"its span ends where it begins or before that: {span.shown()}")
    return span


def seconds(value: object) -> float | None:
    """A number of seconds, or a time as h:mm:ss.mmm, mm:ss.mmm or seconds; None for nothing. Raises SpanError."""
    if value is None or isinstance(value, bool):
        if value is None:
            return None
        raise SpanError(f"{value!r} is no time")
    if isinstance(value, int | float):
        return None if value != value else float(value)
    text = str(value).strip()
    if not text or text.casefold() in ("nan", "none", "null"):
        return None
    match = _CLOCK.fullmatch(text)
    if match is None:
        raise SpanError(f"{text[:40]!r} is no time; write seconds, or h:mm:ss.mmm")
    hours, minutes, rest = match.groups()
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(rest.replace(",", "."))


def overlap(one: str | None, other: str | None) -> bool:
    """Whether two spans of one video may share a frame; None is the whole video. Seconds and frames of one video cannot
    be compared without it: they may."""
    if one is None or other is None:
        return True
    first, second = parse(one), parse(other)
    if {first.start_unit, first.unit} != {second.start_unit, second.unit} or first.start_unit != first.unit:
        return True
    (start, end), (begin, stop) = (_ends(span) for span in (first, second))
    return start < stop and begin < end


def _ends(span: Span) -> tuple[float, float]:
    if span.end is None:
        return span.start, float("inf")
    return span.start, span.start + span.end if span.is_length else span.end


def bounds(span: Span, times: npt.NDArray[np.float64]) -> tuple[int, int, float]:
    """The first and the last frame of a span among a video's frames, whose times [n] ascend, and the time at which the
    span ends. Raises SpanError where it lies outside the video."""
    origin, count = float(times[0]), len(times)
    gap = float(np.median(np.diff(times))) if count > 1 else 0.0
    length = float(times[-1]) - origin + gap
    in_frames = span.start_unit == "f"
    first = int(span.start) if in_frames else int(np.searchsorted(times, origin + span.start - SLACK))
    if first >= count:
        raise SpanError(
            f"its span ({span.shown()}) begins after the end of the video, which has {count} frames in {length:.3f} s"
        )
    begin = float(times[first]) - origin
    if span.end is None:
        return first, count - 1, float(times[-1]) + gap
    if span.unit == "f":
        stop = first + int(span.end) if span.is_length else int(span.end)
        end = float(times[min(stop, count - 1)]) - origin + max(0, stop - (count - 1)) * gap
    else:
        # A length counts from the frame where it begins, an end from the video's beginning.
        end = begin + span.end if span.is_length else span.end
        stop = int(np.searchsorted(times, origin + end - SLACK))
    if end > length + BEYOND:
        raise SpanError(f"its span ({span.shown()}) ends after the video, which has {count} frames in {length:.3f} s")
    last = min(stop, count) - 1
    if last < first:
        raise SpanError(f"its span ({span.shown()}) is shorter than a frame of the video")
    return first, last, origin + end
