"""Video files as frames: segments by time stamp, cuts, exact decoding of one segment, writing mp4.

`segments` and `decode` read untrusted files and may hang or crash inside a codec: the pipeline calls them through
`decoder.Decoder`, in a child process. That child imports this module, so it needs numpy, PyAV and Pillow only.

Frames are chosen by time stamp, the nearest one to each wanted time or, in a pause, the one that is on the screen, so
variable rates, GIFs and files without a duration or frame count need no special case. `start_frame` counts source
frames in presentation order.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from pipeline.errors import ClipError
from pipeline.inputs import spans
from pipeline.inputs.spans import Span, SpanError
from pipeline.video.cuts import Changes
from pipeline.video.orientation import Frames, fit, pose
from pipeline.video.packets import DisplacedError, Packets, Pulse, no_pulse, read_packets
from pipeline.video.timeline import (
    DisorderedError,
    Floats,
    Picture,
    Timeline,
    agrees,
    counted,
    numbered,
    pictures,
    read_timeline,
    stamped,
)

T = TypeVar("T")

_TIE = 1e-6  # seconds; of two frames equally near, the earlier one is taken whatever the rounding


# --- time ------------------------------------------------------------------------------------------------------------


def nearest(times: Floats, moments: Floats, fps: float) -> npt.NDArray[np.int64]:
    """Indices [m] of the times [n] (ascending) nearest to those wanted [m]; the earlier one of two equally near.

    A frame is not shown half a step of `fps` or more before its time: until then its predecessor stays on the screen,
    through a pause or while a slow film is read at a higher rate.
    """
    after = np.clip(np.searchsorted(times, moments), 0, len(times) - 1)
    before = np.maximum(after - 1, 0)
    ahead = times[after] - moments
    earlier = (moments - times[before] <= ahead + _TIE) | (ahead > 0.5 / fps - _TIE)
    return np.where(earlier, before, after).astype(np.int64)


def _end(times: Floats, fps: float) -> float:
    """The last time at which a frame may be wanted: half a source frame after the last one."""
    half = float(np.median(np.diff(times))) / 2 if len(times) > 1 else 0.5 / fps
    return float(times[-1]) + half


def _room(times: Floats, start: int, fps: float, end: float | None = None) -> int:
    """How many frames at `fps` there are from source frame `start` on, until `end` (None: that of the file)."""
    return int(((_end(times, fps) if end is None else end) - times[start]) * fps + _TIE) + 1


# --- one look --------------------------------------------------------------------------------------------------------


def look(path: str, pulse: Pulse = no_pulse) -> list[dict[str, Any]]:
    """What a file is, as a list of one: {height, width, fps, seconds}, height and width of the picture on the screen.

    Its packets are read and one frame is decoded, so that a film of hours takes seconds. Raises ClipError.
    """
    packets = read_packets(path, pulse)
    count = int(np.count_nonzero(packets.shown))
    for picture in pictures(path, packets, 0, pulse):
        tall, wide = pose(picture.frame, packets.aspect).shape(picture.frame.height, picture.frame.width)
        seconds = count / packets.rate
        if packets.stamped:
            shown = packets.pts[packets.shown]
            seconds = float(shown.max() - shown.min()) * packets.time_base + 1 / packets.rate
        return [{"height": round(tall), "width": round(wide), "fps": packets.rate, "seconds": seconds}]
    raise ClipError("decode", "not one frame of it can be decoded")


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
    seen = _whole(path, fps, pulse) if span is None else _within(path, spans.parse(span), fps, pulse)
    times, first = seen.line.times, int(seen.numbers[0])
    has = _room(times, first, fps, seen.end)
    if has < frames:
        where = "" if span is None else " in its span"
        raise ClipError("too_short", f"it has {has} frames at {fps:g} frames a second{where}, a segment needs {frames}")
    rows: list[dict[str, Any]] = []
    # A frame on show for long is the nearest of many starts: it is one, and a pause of hours takes no time.
    start_times = times[first] + np.arange(0, has - frames + 1, stride or frames) / fps
    starts = np.unique(seen.numbers[nearest(seen.times, start_times, fps)])
    fits = (seen.end - times[starts]) * fps + _TIE >= frames - 1
    for start in starts[fits].tolist():
        pulse()
        cuts, error = seen.segment(times[start] + np.arange(frames) / fps, fps)
        row = {"start_frame": start, "num_frames": frames, "fps": float(fps)}
        rows.append({**row, "height": seen.height, "width": seen.width, "cuts": cuts, "error": error})
    packets = read_packets(path, pulse)
    if packets.streams > 1:
        rows[0]["note"] = f"it has {packets.streams} video streams; of these the stream {packets.stream} is used"
    if all(row["error"] for row in rows):
        code, _, sentence = str(rows[0]["error"]).partition(": ")
        raise ClipError(code, sentence)
    return rows


class _Pictures:
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
        small = self._thumbnail.reformat(frame, 32, 18, "rgb24", interpolation="AREA").to_ndarray()
        self.changes.add(small.astype(np.uint8, copy=False))
        self.rows.append((number, picture.dts, picture.damaged))

    def table(self) -> npt.NDArray[np.int64]:
        """The rows [3, n]. Raises ClipError where there are none."""
        if not self.rows:
            raise ClipError("decode", "not one frame of it can be decoded")
        return np.array(self.rows, np.int64).T.copy()


@dataclass(frozen=True)
class _Seen:
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
            return cuts, f"decode: {_missing(int(self.numbers[-1]) + 1)}"
        gone = self.lost[(self.lost >= needed[0]) & (self.lost <= needed[-1])]
        if len(gone):
            return cuts, f"decode: {_broken(int(gone[0]))}"
        broken = np.flatnonzero(self.damaged[chosen[0] : chosen[-1] + 1])
        if len(broken):
            return cuts, f"decode: {_broken(int(self.numbers[chosen[0] + broken[0]]))}"
        return cuts, None


def _whole(path: str, fps: float, pulse: Pulse) -> _Seen:
    """What a whole file shows."""
    packets = read_packets(path, pulse)
    seen, lost = _from_start(lambda: _all_pictures(path, packets, pulse))
    ordinals, dts, damaged = seen.table()
    line = _line(packets, ordinals, dts)
    numbers = np.arange(len(ordinals)) if line.ordinals is None else line.number_of[ordinals]
    shown = numbers >= 0
    if not shown.any():
        raise ClipError("decode", "not one of the frames that it shows can be decoded")
    gone = line.number_of[np.array(lost, np.int64)]
    return _Seen(
        line=line,
        numbers=numbers[shown],
        damaged=damaged[shown].astype(bool),
        changes=seen.changes.cuts() - int(np.argmax(shown)),
        lost=np.setdiff1d(gone[gone >= 0], numbers[shown]),
        height=seen.height,
        width=seen.width,
        end=_end(line.times, fps),
    )


def _all_pictures(path: str, packets: Packets, pulse: Pulse) -> tuple[_Pictures, list[int]]:
    """Every frame of a file, and the ordinals of the packets that cannot be decoded."""
    seen, lost = _Pictures(packets), list[int]()
    for picture in pictures(path, packets, 0, pulse, lost):
        seen.add(picture.ordinal, picture)
    return seen, lost


def _within(path: str, span: Span, fps: float, pulse: Pulse) -> _Seen:
    """What a span of a file shows, decoded from the key frame before it. Raises ClipError where it lies outside."""
    packets = read_packets(path, pulse)
    line = read_timeline(path, packets, True, pulse)
    try:
        return _span_of(path, packets, line, span, fps, pulse)
    except DisorderedError:
        line = read_timeline(path, packets, False, pulse)
        return _span_of(path, packets, line, span, fps, pulse)


def _span_of(path: str, packets: Packets, line: Timeline, span: Span, fps: float, pulse: Pulse) -> _Seen:
    if not len(line.times):
        raise ClipError("decode", "not one of the frames that it shows can be decoded")
    try:
        first, last, end = spans.bounds(span, line.times)
    except SpanError as error:
        raise ClipError("too_short", str(error)) from error
    key = line.start_for(packets, first)
    seen: _Pictures | None = None
    if key:
        with contextlib.suppress(ClipError, DisorderedError, DisplacedError):
            seen = _pictures_between(path, packets, line, key, first, last, pulse)
    # As when decoding: from the start of the file it may be whole.
    if seen is None or not _is_whole(seen, first, last):
        seen = _from_start(lambda: _pictures_between(path, packets, line, 0, first, last, pulse))
    numbers, _, damaged = seen.table()
    if last + 1 < len(line.times):  # a time nearer to the next frame would show that one
        end = min(max(end, float(line.times[last])), float(line.times[last] + line.times[last + 1]) / 2)
    else:
        end = min(max(end, float(line.times[last])), _end(line.times, fps))
    return _Seen(
        line=line,
        numbers=numbers,
        damaged=damaged.astype(bool),
        changes=seen.changes.cuts(),
        lost=np.setdiff1d(np.arange(first, last + 1), numbers),
        height=seen.height,
        width=seen.width,
        end=end,
    )


def _pictures_between(
    path: str, packets: Packets, line: Timeline, start: int, first: int, last: int, pulse: Pulse
) -> _Pictures:
    """The frames from number `first` to `last`, decoded from the packet of ordinal `start` on."""
    seen = _Pictures(packets)
    for number, picture in numbered(path, packets, line, start, pulse):
        if number > last:
            break
        if number >= first:
            seen.add(number, picture)
    return seen


def _is_whole(seen: _Pictures, first: int, last: int) -> bool:
    return len(seen.rows) == last - first + 1 and not any(damaged for _, _, damaged in seen.rows)


def _line(packets: Packets, ordinals: npt.NDArray[np.int64], dts: npt.NDArray[np.int64]) -> Timeline:
    """The timeline of a file of which every frame has been decoded: that of its stamps where they tell the truth."""
    if packets.stamped:
        line = stamped(packets)
        if agrees(line, ordinals):
            return line
    return counted(packets, ordinals, dts)


def _missing(number: int) -> str:
    return f"its frames from {number} on cannot be decoded: it is cut off or damaged"


def _broken(number: int) -> str:
    return f"its frame {number} is damaged"


# --- decoding --------------------------------------------------------------------------------------------------------


def decode(
    path: str, start_frame: int, count: int, fps: float, height: int, width: int, pulse: Pulse = no_pulse
) -> Frames:
    """Frames [count, height, width, 3], RGB, of the segment that begins at source frame `start_frame`, at `fps`.

    They are the frames that `segments` saw, as they look on the screen, scaled to cover the size and cropped about the
    centre; count, rate and size may differ from the index's. Decoding begins at the key frame before the segment. Where
    that does not give every frame undamaged, it begins at the start of the file.
    Raises ClipError, too_short where the file ends before the last frame.
    """
    packets = read_packets(path, pulse)
    line = read_timeline(path, packets, True, pulse)
    try:
        return _decode(path, packets, line, start_frame, count, fps, (height, width), pulse)
    except DisorderedError:
        line = read_timeline(path, packets, False, pulse)
        return _decode(path, packets, line, start_frame, count, fps, (height, width), pulse)


def _decode(
    path: str,
    packets: Packets,
    line: Timeline,
    start_frame: int,
    count: int,
    fps: float,
    size: tuple[int, int],
    pulse: Pulse,
) -> Frames:
    has = _room(line.times, start_frame, fps) if start_frame < len(line.times) else 0
    if has < count:
        raise ClipError("too_short", f"from frame {start_frame} it has {has} frames at {fps:g} a second, not {count}")
    target_times = line.times[start_frame] + np.arange(count) / fps
    key = line.start_for(packets, start_frame)
    if key:
        try:
            return _read(path, packets, line, key, target_times, fps, size, pulse)
        except (ClipError, DisorderedError, DisplacedError):
            pass  # from the start of the file it may be whole: some decoders need what the first packets say
    return _from_start(lambda: _read(path, packets, line, 0, target_times, fps, size, pulse))


def _from_start(read: Callable[[], T]) -> T:
    """What is read from the start of a file. A container that went back to its beginning may be elsewhere then; one
    that is opened anew is not."""
    try:
        return read()
    except DisplacedError:
        return read()


def _read(
    path: str,
    packets: Packets,
    line: Timeline,
    start: int,
    target_times: Floats,
    fps: float,
    size: tuple[int, int],
    pulse: Pulse,
) -> Frames:
    """The frames nearest to the wanted times, decoded from the packet of ordinal `start` on."""
    needed = nearest(line.times, target_times, fps)
    out = np.empty((len(target_times), *size, 3), np.uint8)
    before: tuple[float, Picture] | None = None
    picture: Picture | None = None
    done, number, late = 0, -1, False
    for number, picture in numbered(path, packets, line, start, pulse):
        if number < needed[0]:
            continue
        if before is None:
            late = number > needed[0]  # the frame is lost, or comes later: DisorderedError says so when it does
        if picture.damaged and number <= needed[-1]:
            raise ClipError("decode", _broken(number))
        time = float(line.times[number])
        pair = [(time, picture)] if before is None else [before, (time, picture)]
        while done < len(target_times) and time >= target_times[done]:
            index = int(nearest(np.array([t for t, _ in pair]), target_times[done : done + 1], fps)[0])
            out[done] = _fitted(pair[index][1], packets, size)
            done += 1
        before = (time, picture)
        if done == len(target_times):
            break
    if late:
        raise ClipError("decode", _broken(int(needed[0])))
    if picture is None or before is None or needed[-1] > number:
        raise ClipError("decode", _missing(number + 1))
    if done < len(target_times):  # times up to half a frame after the last one, which `_room` counts
        out[done:] = _fitted(picture, packets, size)
    return out


def _fitted(picture: Picture, packets: Packets, size: tuple[int, int]) -> Frames:
    return fit(picture.frame, pose(picture.frame, packets.aspect), *size)


# --- writing ---------------------------------------------------------------------------------------------------------


def write_mp4(path: str, frames: Frames, fps: float) -> None:
    """Write frames [F, H, W, 3] as H.264, local or s3://: a file appears whole; equal frames give equal bytes.

    Raises ValueError for anything but uint8 frames of even height and width.
    """
    from pipeline.storage.stores import (
        write_bytes,  # here, because the decoder's child imports this module and needs no store
    )

    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames: {frames.dtype} {list(frames.shape)}; they must be uint8 [F, H, W, 3], F at least 1")
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(f"frames: {frames.shape[1]} x {frames.shape[2]}; H.264 needs an even height and width")
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, "video.mp4")
        with av.open(local, "w", options={"fflags": "+bitexact", "movflags": "+faststart"}) as container:
            # Threads and x264's macroblock tree make two encodings of the same frames differ.
            options = {"crf": "10", "preset": "medium", "threads": "1", "x264-params": "mbtree=0"}
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(65535), options=options)
            stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
            for picture in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        with open(local, "rb") as file:
            write_bytes(path, file.read())
