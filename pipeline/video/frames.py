"""Video files as frames: exact decoding of one segment, a look at a file, writing mp4.

What a decoder's child can be asked for is here: `segments`, `segments_or_stretches`, `stretch`, `decode`, `look` and
`clip_file` read untrusted files and may hang or crash inside a codec. The pipeline calls them through
`decoder.Decoder`, in a child process. That child imports this module, so it needs numpy, PyAV and Pillow only.

Frames are chosen by time stamp, the nearest one to each wanted time or, in a pause, the one that is on the screen, so
variable rates, GIFs and files without a duration or frame count need no special case. `start_frame` counts source
frames in presentation order.
"""

from __future__ import annotations

import gc
from typing import Any

import numpy as np

from pipeline.errors import ClipError
from pipeline.video.cut_clips import clip_file, encode_mp4
from pipeline.video.orientation import SCALERS, Frames, Scale, pose
from pipeline.video.packets import DisplacedError, Packets, Pulse, no_pulse, read_packets
from pipeline.video.segments import broken_sentence, from_start, missing_sentence, segments
from pipeline.video.stretches import plan_stretches, segments_or_stretches, stretch
from pipeline.video.timeline import (
    DisorderedError,
    Floats,
    Picture,
    Timeline,
    nearest,
    numbered,
    pictures,
    read_timeline,
    room,
)

_GARBAGE = 16  # frames that may be in memory and not in use any more

__all__ = ["clip_file", "decode", "look", "plan_stretches", "segments", "segments_or_stretches", "stretch", "write_mp4"]


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


# --- decoding --------------------------------------------------------------------------------------------------------


def decode(
    path: str,
    start_frame: int,
    count: int,
    fps: float,
    height: int,
    width: int,
    pulse: Pulse = no_pulse,
    scaler: str = "pillow",
) -> Frames:
    """Frames [count, height, width, 3], RGB, of the segment that begins at source frame `start_frame`, at `fps`.

    They are the frames that `segments` saw, as they look on the screen, scaled to cover the size and cropped about the
    centre; count, rate and size may differ from the index's. `scaler` is one of `orientation.SCALERS`.
    Decoding begins at the key frame before the segment. Where that does not give every frame undamaged, it begins at
    the start of the file. Raises ClipError, too_short where the file ends before the last frame.
    """
    scale = SCALERS[scaler]()
    packets = read_packets(path, pulse)
    line = read_timeline(path, packets, True, pulse)
    try:
        return _decode(path, packets, line, start_frame, count, fps, (height, width), scale, pulse)
    except DisorderedError:
        line = read_timeline(path, packets, False, pulse)
        return _decode(path, packets, line, start_frame, count, fps, (height, width), scale, pulse)


def _decode(
    path: str,
    packets: Packets,
    line: Timeline,
    start_frame: int,
    count: int,
    fps: float,
    size: tuple[int, int],
    scale: Scale,
    pulse: Pulse,
) -> Frames:
    has = room(line.times, start_frame, fps) if start_frame < len(line.times) else 0
    if has < count:
        raise ClipError("too_short", f"from frame {start_frame} it has {has} frames at {fps:g} a second, not {count}")
    target_times = line.times[start_frame] + np.arange(count) / fps
    key = line.start_for(packets, start_frame)
    if key:
        try:
            return _read(path, packets, line, key, target_times, fps, size, scale, pulse)
        except (ClipError, DisorderedError, DisplacedError):
            pass  # from the start of the file it may be whole: some decoders need what the first packets say
    return from_start(lambda: _read(path, packets, line, 0, target_times, fps, size, scale, pulse))


def _read(
    path: str,
    packets: Packets,
    line: Timeline,
    start: int,
    target_times: Floats,
    fps: float,
    size: tuple[int, int],
    scale: Scale,
    pulse: Pulse,
) -> Frames:
    """The frames nearest to the wanted times, decoded from the packet of ordinal `start` on."""
    needed = nearest(line.times, target_times, fps)
    out = np.empty((len(target_times), *size, 3), np.uint8)
    before: tuple[float, Picture] | None = None
    picture: Picture | None = None
    done, number, late = 0, -1, False
    for count, (number, picture) in enumerate(numbered(path, packets, line, start, pulse)):
        if count % _GARBAGE == _GARBAGE - 1:
            gc.collect(1)  # a frame that was asked how it is turned refers to itself: its memory is not freed otherwise
        if number < needed[0]:
            continue
        if before is None:
            late = number > needed[0]  # the frame is lost, or comes later: DisorderedError says so when it does
        if picture.damaged and number <= needed[-1]:
            raise ClipError("decode", broken_sentence(number))
        time = float(line.times[number])
        pair = [(time, picture)] if before is None else [before, (time, picture)]
        while done < len(target_times) and time >= target_times[done]:
            index = int(nearest(np.array([t for t, _ in pair]), target_times[done : done + 1], fps)[0])
            _draw(pair[index][1], packets, scale, out[done])
            done += 1
        before = (time, picture)
        if done == len(target_times):
            break
    if late:
        raise ClipError("decode", broken_sentence(int(needed[0])))
    if picture is None or before is None or needed[-1] > number:
        raise ClipError("decode", missing_sentence(number + 1))
    if done < len(target_times):  # times up to half a frame after the last one, which `room` counts
        _draw(picture, packets, scale, out[done])
        out[done + 1 :] = out[done]
    return out


def _draw(picture: Picture, packets: Packets, scale: Scale, out: Frames) -> None:
    scale(picture.frame, pose(picture.frame, packets.aspect), out)


# --- writing ---------------------------------------------------------------------------------------------------------


def write_mp4(path: str, frames: Frames, fps: float) -> None:
    """Write frames [F, H, W, 3] as H.264, local or s3://: a file appears whole; equal frames give equal bytes.

    Raises ValueError for anything but uint8 frames of even height and width.
    """
    from pipeline.storage.stores import (
        write_bytes,  # here, because the decoder's child imports this module and needs no store
    )

    write_bytes(path, encode_mp4(frames, fps, crf=10, preset="medium", plain=False))
