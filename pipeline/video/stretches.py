"""A long film in stretches, which several processes decode: joined, they are what one process sees of the whole film.

A stretch begins at a key frame and ends before the next one's. What is noted of its frames is a few numbers each, and
the thumbnails of its first and last frame, by which the change from one stretch to the next is known. Only films whose
packets say when every frame is shown are split. A stretch with a frame that is damaged, lost or out of order is not
whole, and its film is indexed by one process then.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.errors import ClipError
from pipeline.video.cuts import Changes
from pipeline.video.packets import Packets, Pulse, no_pulse, read_packets
from pipeline.video.segments import Footage, cut, is_whole, pictures_between, segments, stream_note
from pipeline.video.timeline import Timeline, end_time, read_timeline, stamped

THUMBNAIL = (18, 32, 3)

Row = dict[str, Any]


def plan_stretches(path: str, length: int, pulse: Pulse = no_pulse) -> list[Row]:
    """The stretches of about `length` frames of a film: {start_frame, num_frames, seconds}, in order; the first may
    have a `note`, as a segment's. None where the film is shorter than two of them, or cannot be split. Nothing is
    decoded. Raises ClipError.
    """
    packets = read_packets(path, pulse)
    if len(packets) < 2 * length or not packets.stamped:
        return []
    line = stamped(packets)
    if (line.number_of < 0).any():  # frames that are decoded and not shown
        return []
    starts = _starts(packets, line, length)
    if len(starts) < 2:
        return []
    ends = [*starts[1:], len(line.times)]
    times = np.append(line.times, end_time(line.times, packets.rate))
    rows: list[Row] = [
        {"start_frame": start, "num_frames": end - start, "seconds": float(times[end] - times[start])}
        for start, end in zip(starts, ends, strict=True)
    ]
    if packets.streams > 1:
        rows[0]["note"] = stream_note(packets)
    return rows


def _starts(packets: Packets, line: Timeline, length: int) -> list[int]:
    """Numbers of the frames at which stretches begin: key frames, from which all later ones can be decoded."""
    keys = np.sort(line.number_of[np.flatnonzero(packets.key)])
    starts = [0]
    for aim in range(length, len(line.times) - length // 2, length):
        place = int(np.searchsorted(keys, max(aim, starts[-1] + 1)))
        if place == len(keys):
            break
        start = int(keys[place])
        if line.ordinals is not None and line.start_for(packets, start) == line.ordinals[start]:
            starts.append(start)
    return starts


def segments_or_stretches(
    path: str, frames: int, fps: float, stride: int | None, length: int, pulse: Pulse = no_pulse
) -> list[dict[str, list[Row]]]:
    """What `plan_stretches` says of a file, and where that is nothing, its segments: {stretches, segments}, a list of
    one. Asked for together, a short file costs one call of a decoder's child. Raises ClipError."""
    planned = plan_stretches(path, length, pulse)
    return [{"stretches": planned, "segments": [] if planned else segments(path, frames, fps, stride, pulse)}]


def stretch(path: str, start_frame: int, num_frames: int, pulse: Pulse = no_pulse) -> list[Row]:
    """What is noted of so many frames of a film, as a list of one: {height, width, times, pixels, colours, first,
    last}. The times [n] are in seconds; pixels and colours [n - 1] are `Changes`', first and last its thumbnails in
    base64. Raises ClipError (decode) where not every frame comes, in order and undamaged."""
    packets = read_packets(path, pulse)
    line = read_timeline(path, packets, True, pulse)
    last = start_frame + num_frames - 1
    notes = pictures_between(path, packets, line, line.start_for(packets, start_frame), start_frame, last, pulse)
    changes = notes.changes
    if not is_whole(notes, start_frame, last) or changes.first is None or changes.last is None:
        raise ClipError("decode", "some of its frames are damaged or missing")
    numbers = {"times": line.times[start_frame : last + 1].tolist(), "pixels": changes.pixels}
    pictures = {"first": _text(changes.first), "last": _text(changes.last)}
    return [{"height": notes.height, "width": notes.width, **numbers, "colours": changes.colours, **pictures}]


def _text(thumbnail: Any) -> str:
    return base64.b64encode(thumbnail.tobytes()).decode()


def _thumbnail(text: str) -> Any:
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(THUMBNAIL)


def segments_of(rows: Sequence[Mapping[str, Any]], frames: int, fps: float, stride: int | None) -> list[Row]:
    """The segments of the film whose stretches these are, all of them in order, as `segments` of the file has them.
    Raises ClipError."""
    changes = Changes()
    for row in rows:
        pictures = _thumbnail(row["first"]), _thumbnail(row["last"])
        changes.extend(Changes.noted(*pictures, row["pixels"], row["colours"]))
    times = np.concatenate([np.array(row["times"], np.float64) for row in rows])
    none = np.empty(0, np.int64)
    footage = Footage(
        line=Timeline(times, None, none),
        numbers=np.arange(len(times)),
        damaged=np.zeros(len(times), bool),
        changes=changes.cuts(),
        lost=none,
        height=rows[0]["height"],
        width=rows[0]["width"],
        end=end_time(times, fps),
    )
    return cut(footage, frames, fps, stride)
