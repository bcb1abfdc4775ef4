"""A file as segments: every frame is decoded and noted, and its notes are cut into segments by time stamp.

As `pipeline.video.frames`, this reads untrusted files and runs in a decoder's child.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from pipeline.errors import ClipError
from pipeline.inputs import spans
from pipeline.inputs.spans import Span, SpanError
from pipeline.video.cuts import Changes
from pipeline.video.orientation import pose
from pipeline.video.packets import DisplacedError, Packets, Pulse, no_pulse, read_packets
from pipeline.video.timeline import (
    TIE,
    DisorderedError,
    Floats,
    Picture,
    Timeline,
    agrees,
    counted,
    end_time,
    nearest,
    numbered,
    pictures,
    read_timeline,
    room,
    stamped,
)

T = TypeVar("T")


# --- segments --------------------------------------------------------------------------------------------------------


def segments(
    path: str, frames: int, fps: float, stride: int | None = None, pulse: Pulse = no_pulse, span: str | None = None
) -> list[dict[str, Any]]:
    """The segments of `frames` frames at `fps` that a file holds, one every `stride` frames (None: `frames`). With a
    `span` (the text of one, see `pipeline.inputs.spans`) they begin where it does and lie inside it.

    Each is {start_frame, num_frames, fps, height, width, cuts, error}: start_frame counts source frames, height and
    width are those of the picture on the screen, cuts are the frames of the segment at which another shot begins. No
    two begin at one source frame. `error` is None, or says why this segment cannot be used while others can. The first
    may have a `note`, a sentence about the file. Raises ClipError where none can.
    """
    footage = _whole(path, fps, pulse) if span is None else _within(path, spans.parse(span), fps, pulse)
    rows = cut(footage, frames, fps, stride, "" if span is None else " in its span", pulse)
    packets = read_packets(path, pulse)
    if packets.streams > 1:
        rows[0]["note"] = stream_note(packets)
    return rows


def stream_note(packets: Packets) -> str:
    return f"it has {packets.streams} video streams; of these the stream {packets.stream} is used"


def cut(
    footage: Footage, frames: int, fps: float, stride: int | None, where: str = "", pulse: Pulse = no_pulse
) -> list[dict[str, Any]]:
    """The segments of the footage, as `segments` has them. Raises ClipError, with `where` in its sentence."""
    times, first = footage.line.times, int(footage.numbers[0])
    has = room(times, first, fps, footage.end)
    if has < frames:
        raise ClipError("too_short", f"it has {has} frames at {fps:g} frames a second{where}, a segment needs {frames}")
    rows: list[dict[str, Any]] = []
    # A frame on show for long is the nearest of many starts: it is one, and a pause of hours takes no time.
    start_times = times[first] + np.arange(0, has - frames + 1, stride or frames) / fps
    starts = np.unique(footage.numbers[nearest(footage.times, start_times, fps)])
    fits = (footage.end - times[starts]) * fps + TIE >= frames - 1
    for start in starts[fits].tolist():
        pulse()
        cuts, error = footage.segment(times[start] + np.arange(frames) / fps, fps)
        row = {"start_frame": start, "num_frames": frames, "fps": float(fps)}
        rows.append({**row, "height": footage.height, "width": footage.width, "cuts": cuts, "error": error})
    if all(row["error"] for row in rows):
        raise ClipError.of_row(rows[0]["error"])
    return rows


class PictureNotes:
    """What is noted of each frame while a file or a span of it is decoded."""

    def __init__(self, packets: Packets) -> None:
        self.height, self.width = 0, 0
        self.rows: list[tuple[int, int, bool]] = []  # its number or ordinal, its decoding stamp, whether it is damaged
        self.changes = Changes()
        self._aspect, self._thumbnail = packets.aspect, VideoReformatter()

    def add(self, number: int, picture: Picture) -> None:
        frame = picture.frame
        if not self.rows:
            tall, wide = pose(frame, self._aspect).shape(frame.height, frame.width)
            self.height, self.width = round(tall), round(wide)
        small = self._thumbnail.reformat(frame, 32, 18, "rgb24", interpolation="AREA", threads=1).to_ndarray()
        self.changes.add(small.astype(np.uint8, copy=False))
        self.rows.append((number, picture.dts, picture.damaged))

    def table(self) -> npt.NDArray[np.int64]:
        """The rows [3, n]. Raises ClipError where there are none."""
        if not self.rows:
            raise ClipError("decode", "not one frame of it can be decoded")
        return np.array(self.rows, np.int64).T.copy()


@dataclass(frozen=True)
class Footage:
    """What a file or a span of it shows: `numbers` [n] of the frames that can be decoded, in the file's timeline."""

    line: Timeline
    numbers: npt.NDArray[np.int64]
    damaged: npt.NDArray[np.bool_]  # [n]
    changes: npt.NDArray[np.int64]  # at which of the n frames another shot begins
    lost: npt.NDArray[np.int64]  # numbers of frames that cannot be decoded
    height: int
    width: int
    end: float  # the last time at which a frame may be wanted

    @property
    def times(self) -> Floats:
        return self.line.times[self.numbers]

    def segment(self, moments: Floats, fps: float) -> tuple[list[int], str | None]:
        """The cuts of the segment of these times, counted in its frames, and its error."""
        chosen = nearest(self.times, moments, fps)
        inside = self.changes[(self.changes > chosen[0]) & (self.changes <= chosen[-1])]
        cuts = [int(cut) for cut in np.unique(np.searchsorted(chosen, inside))]
        needed = nearest(self.line.times, moments, fps)
        if needed[-1] > self.numbers[-1]:
            return cuts, f"decode: {missing_sentence(int(self.numbers[-1]) + 1)}"
        gone = self.lost[(self.lost >= needed[0]) & (self.lost <= needed[-1])]
        if len(gone):
            return cuts, f"decode: {broken_sentence(int(gone[0]))}"
        broken = np.flatnonzero(self.damaged[chosen[0] : chosen[-1] + 1])
        if len(broken):
            return cuts, f"decode: {broken_sentence(int(self.numbers[chosen[0] + broken[0]]))}"
        return cuts, None


def _whole(path: str, fps: float, pulse: Pulse) -> Footage:
    """What a whole file shows."""
    packets = read_packets(path, pulse)
    notes, lost = from_start(lambda: _all_pictures(path, packets, pulse))
    ordinals, dts, damaged = notes.table()
    line = _line(packets, ordinals, dts)
    numbers = np.arange(len(ordinals)) if line.ordinals is None else line.number_of[ordinals]
    shown = numbers >= 0
    if not shown.any():
        raise ClipError("decode", "not one of the frames that it shows can be decoded")
    gone = line.number_of[np.array(lost, np.int64)]
    return Footage(
        line=line,
        numbers=numbers[shown],
        damaged=damaged[shown].astype(bool),
        changes=notes.changes.cuts() - int(np.argmax(shown)),
        lost=np.setdiff1d(gone[gone >= 0], numbers[shown]),
        height=notes.height,
        width=notes.width,
        end=end_time(line.times, fps),
    )


def _all_pictures(path: str, packets: Packets, pulse: Pulse) -> tuple[PictureNotes, list[int]]:
    """Every frame of a file, and the ordinals of the packets that cannot be decoded."""
    notes, lost = PictureNotes(packets), list[int]()
    for picture in pictures(path, packets, 0, pulse, lost):
        notes.add(picture.ordinal, picture)
    return notes, lost


def _within(path: str, span: Span, fps: float, pulse: Pulse) -> Footage:
    """What a span of a file shows, decoded from the key frame before it. Raises ClipError where it lies outside."""
    packets = read_packets(path, pulse)
    line = read_timeline(path, packets, True, pulse)
    try:
        return _span_of(path, packets, line, span, fps, pulse)
    except DisorderedError:
        line = read_timeline(path, packets, False, pulse)
        return _span_of(path, packets, line, span, fps, pulse)


def _span_of(path: str, packets: Packets, line: Timeline, span: Span, fps: float, pulse: Pulse) -> Footage:
    if not len(line.times):
        raise ClipError("decode", "not one of the frames that it shows can be decoded")
    try:
        first, last, end = spans.bounds(span, line.times)
    except SpanError as error:
        raise ClipError("too_short", str(error)) from error
    key = line.start_for(packets, first)
    notes: PictureNotes | None = None
    if key:
        with contextlib.suppress(ClipError, DisorderedError, DisplacedError):
            notes = pictures_between(path, packets, line, key, first, last, pulse)
    # As when decoding: from the start of the file it may be whole.
    if notes is None or not is_whole(notes, first, last):
        notes = from_start(lambda: pictures_between(path, packets, line, 0, first, last, pulse))
    numbers, _, damaged = notes.table()
    if last + 1 < len(line.times):  # a time nearer to the next frame would show that one
        end = min(max(end, float(line.times[last])), float(line.times[last] + line.times[last + 1]) / 2)
    else:
        end = min(max(end, float(line.times[last])), end_time(line.times, fps))
    return Footage(
        line=line,
        numbers=numbers,
        damaged=damaged.astype(bool),
        changes=notes.changes.cuts(),
        lost=np.setdiff1d(np.arange(first, last + 1), numbers),
        height=notes.height,
        width=notes.width,
        end=end,
    )


def pictures_between(
    path: str, packets: Packets, line: Timeline, start: int, first: int, last: int, pulse: Pulse
) -> PictureNotes:
    """The frames from number `first` to `last`, decoded from the packet of ordinal `start` on."""
    notes = PictureNotes(packets)
    for number, picture in numbered(path, packets, line, start, pulse):
        if number > last:
            break
        if number >= first:
            notes.add(number, picture)
    return notes


def is_whole(notes: PictureNotes, first: int, last: int) -> bool:
    return len(notes.rows) == last - first + 1 and not any(damaged for _, _, damaged in notes.rows)


def _line(packets: Packets, ordinals: npt.NDArray[np.int64], dts: npt.NDArray[np.int64]) -> Timeline:
    """The timeline of a file of which every frame has been decoded: that of its stamps where they tell the truth."""
    if packets.stamped:
        line = stamped(packets)
        if agrees(line, ordinals):
            return line
    return counted(packets, ordinals, dts)


def from_start(read: Callable[[], T]) -> T:
    """What is read from the start of a file. A container that went back to its beginning may be elsewhere then; one
    that is opened anew is not."""
    try:
        return read()
    except DisplacedError:
        return read()


def missing_sentence(number: int) -> str:
    return f"its frames from {number} on cannot be decoded: it is cut off or damaged"


def broken_sentence(number: int) -> str:
    return f"its frame {number} is damaged"
