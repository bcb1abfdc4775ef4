"""Video files as frames: segments by time stamp, cuts, exact decoding of one segment, writing mp4.

`segments` and `decode` read untrusted files and may hang or crash inside a codec: the pipeline calls them through
`pipeline.decoder.Decoder`, in a child process. That child imports this module, so it needs numpy, PyAV and Pillow only.

Frames are chosen by time stamp, the nearest one to each wanted time, so variable rates, GIFs and files without a
duration or frame count need no special case. `start_frame` counts source frames in presentation order.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter
from PIL import Image

from pipeline.cuts import cuts

Frames = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

# Of files that a folder's videos are found by.
EXTENSIONS: tuple[str, ...] = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".gif", ".m4v", ".mpg", ".mpeg", ".vob", ".ts")
EXTENSIONS += (".m2ts", ".mts", ".wmv", ".asf", ".flv", ".f4v", ".3gp", ".3g2", ".ogv")
# Containers of single files. Playlists (hls, concat, dash, ...) can name other files and hosts, so they are not here.
_CONTAINERS = "mov,mp4,matroska,webm,avi,gif,flv,ogg,asf,mpeg,mpegts,apng,webp"
_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": _CONTAINERS, "enable_drefs": "0"}
_PLAYLISTS = (b"#extm3u", b"ffconcat", b"[playlist]", b"v=0\r\n", b"v=0\n", b"[reference]")  # at the beginning
_MARKUP = (b"<mpd", b"<smil", b"<asx", b"<playlist", b"<smoothstreamingmedia")  # after any XML head
_ARCHIVES = (b"PK\3\4", b"\x1f\x8b", b"7z\xbc\xaf", b"\xfd7zXZ", b"BZh", b"Rar!", b"(\xb5/\xfd", b"PAR1")
_TIE = 1e-6  # seconds; of two frames equally near, the earlier one is taken whatever the rounding


class ClipError(Exception):
    """A clip that cannot be used. `code` is decode, too_short, no_motion, not_finite, read, crashed, memory, timeout or
    refused; `sentence` says what happened. `str` of it is the `error` column of the clip's row."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(code, sentence)
        self.code, self.sentence = code, sentence

    def __str__(self) -> str:
        return f"{self.code}: {self.sentence}"


# --- opening and reading ---------------------------------------------------------------------------------------------


def _open(path: str) -> tuple[Any, Any]:
    """The container and its video stream. Raises ClipError: read, refused or decode."""
    if not os.path.isfile(path):
        raise ClipError("read", "there is no such file")
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise ClipError("read", f"it cannot be read: {error.strerror}") from error
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(_PLAYLISTS) or (text[:1] == b"<" and any(mark in text for mark in _MARKUP)):
        raise ClipError("refused", "it is a playlist that names other files; list the videos themselves")
    if head.startswith(_ARCHIVES) or head[257:262] == b"ustar":
        raise ClipError("refused", "it is an archive; list the videos in it, or name tar or Parquet shards")
    # "file:" keeps a name such as "concat:a|b" from being read as another protocol.
    container = av.open(f"file:{os.path.abspath(path)}", options=_OPTIONS, metadata_errors="ignore")
    streams = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
    if not streams:
        container.close()
        raise ClipError("decode", "it has no video stream")
    if streams[0].codec_context is None:
        container.close()
        raise ClipError("decode", "nothing here can decode its kind of video stream")
    streams[0].codec_context.thread_count = 1
    return container, streams[0]


@lru_cache(maxsize=4)
def _packet_times(path: str, size: int, modified: int) -> Floats | None:
    """Times of the source frames [n] (seconds, ascending) from the packets alone, which costs no decoding; None where
    packets do not carry a distinct presentation time each. Size and modification time are there for the cache."""
    container, stream = _open(path)
    with container:
        stamps: list[int] = []
        for packet in container.demux(stream):
            if packet.size == 0 or packet.is_discard:
                continue
            if packet.is_corrupt:
                raise ClipError("decode", f"its packet {len(stamps)} is damaged or cut off")
            if packet.pts is None:
                return None
            stamps.append(packet.pts)
        if len(set(stamps)) != len(stamps) or not stamps:
            return None
        times = np.array([float(stamp * stream.time_base) for stamp in sorted(stamps)])
    times.flags.writeable = False
    return times


def _times(path: str) -> Floats | None:
    if not os.path.isfile(path):
        raise ClipError("read", "there is no such file")
    status = os.stat(path)
    return _packet_times(path, status.st_size, status.st_mtime_ns)


def _pictures(path: str, begin: float | None, stamped: bool) -> Iterator[tuple[float, Any]]:
    """Decoded frames with their times in seconds, from the last key frame at or before `begin` (None: from the start).

    Where packets are not `stamped`, a frame without a later time than its predecessor follows it by 1 / average rate.
    """
    container, stream = _open(path)
    with container:
        if begin is not None:
            container.seek(int(begin / float(stream.time_base)), stream=stream, backward=True)
        last, gap = -np.inf, 1.0 / float(stream.average_rate or stream.guessed_rate or 25)
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise ClipError("decode", "one of its frames is damaged")
            time = None if frame.pts is None else float(frame.pts * stream.time_base)
            if not stamped and (time is None or time <= last):
                time = last + gap if np.isfinite(last) else 0.0
            if time is None:
                raise ClipError("decode", "a decoded frame has no time stamp although its packets have")
            last = time
            yield time, frame


def _from(path: str, begin: float, stamped: bool) -> Iterator[tuple[float, Any]]:
    """As `_pictures`, certain to include whatever is on show at `begin`."""
    if stamped:
        try:
            pictures = _pictures(path, begin, stamped)
            first = next(pictures, None)
        except av.FFmpegError:  # a container that cannot seek is read from its start: the same frames, only slower
            first = None
        if first is not None and first[0] <= begin + _TIE:
            yield first
            yield from pictures
            return
    yield from _pictures(path, None, stamped)


# --- time ------------------------------------------------------------------------------------------------------------


def nearest(times: Floats, wanted: Floats) -> npt.NDArray[np.int64]:
    """Indices [m] of the times [n] (ascending) nearest to those wanted [m]; the earlier one of two equally near."""
    after = np.clip(np.searchsorted(times, wanted), 0, len(times) - 1)
    before = np.maximum(after - 1, 0)
    return np.where(wanted - times[before] <= times[after] - wanted + _TIE, before, after).astype(np.int64)


def _room(times: Floats, start: int, fps: float) -> int:
    """How many frames at `fps` there are from source frame `start` on: up to half a source frame after the last."""
    half = float(np.median(np.diff(times))) / 2 if len(times) > 1 else 0.5 / fps
    return int((times[-1] + half - times[start]) * fps + _TIE) + 1


def segments(path: str, frames: int, fps: float, stride: int | None = None) -> list[dict[str, Any]]:
    """The segments of `frames` frames at `fps` that a file holds, one every `stride` frames (None: `frames`).

    Each is {start_frame, num_frames, fps, height, width, cuts}: start_frame counts source frames, height and width are
    those of the upright picture, cuts are the frames of the segment at which another shot begins.
    Raises ClipError.
    """
    times = _times(path)
    found: list[float] = []
    small: list[Frames] = []
    size = (0, 0)
    thumbnail = VideoReformatter()
    for time, frame in _pictures(path, None, times is not None):
        if not found:
            size = (frame.width, frame.height) if _turns(frame) % 2 else (frame.height, frame.width)
        found.append(time)
        picture = thumbnail.reformat(frame, 32, 18, "rgb24", interpolation="AREA").to_ndarray()
        small.append(picture.astype(np.uint8, copy=False))
    if not found:
        raise ClipError("decode", "not one frame of it can be decoded")
    decoded = np.array(found)
    times = decoded if times is None else times
    has = _room(times, 0, fps)
    if has < frames:
        raise ClipError("too_short", f"it has {has} frames at {fps:g} frames a second, a segment needs {frames}")
    changes = cuts(np.stack(small))
    rows = []
    for k in range(0, has - frames + 1, stride or frames):
        start = int(nearest(times, times[:1] + k / fps)[0])
        if _room(times, start, fps) < frames:
            break
        chosen = nearest(decoded, times[start] + np.arange(frames) / fps)
        within = np.unique(np.searchsorted(chosen, changes[(changes > chosen[0]) & (changes <= chosen[-1])]))
        row = {"start_frame": start, "num_frames": frames, "fps": float(fps), "height": size[0], "width": size[1]}
        rows.append({**row, "cuts": [int(c) for c in within]})
    return rows


# --- decoding --------------------------------------------------------------------------------------------------------


def decode(path: str, start_frame: int, count: int, fps: float, height: int, width: int) -> Frames:
    """Frames [count, height, width, 3], RGB, of the segment that begins at source frame `start_frame`, at `fps`.

    They are the frames that `segments` saw, upright, scaled to cover the size and cropped about the centre; count, rate
    and size may differ from the index's. Only what lies between the key frame before the segment and its end is
    decoded.
    Raises ClipError, too_short where the file ends before the last frame.
    """
    times = _times(path)
    stamped = times is not None
    if times is None:  # no packet times: the frames are counted as they come
        times = np.array([time for time, _ in _pictures(path, None, False)])
    has = _room(times, start_frame, fps) if start_frame < len(times) else 0
    if has < count:
        raise ClipError("too_short", f"from frame {start_frame} it has {has} frames at {fps:g} a second, not {count}")
    wanted = times[start_frame] + np.arange(count) / fps
    out = np.empty((count, height, width, 3), np.uint8)
    done, before, picture = 0, None, None
    for picture in _from(path, float(times[start_frame]), stamped):
        near: list[tuple[float, Any]] = [] if before is None else [before]
        while done < count and picture[0] >= wanted[done]:
            pair = [*near, picture]
            index = int(nearest(np.array([time for time, _ in pair]), wanted[done : done + 1])[0])
            out[done] = _fit(pair[index][1], height, width)
            done += 1
        if done == count:
            break
        before = picture
    if picture is None:
        raise ClipError("decode", "not one frame of it can be decoded")
    for rest in range(done, count):  # wanted up to half a source frame after the last one: `_room` counted them
        out[rest] = _fit(picture[1], height, width)
    return out


def _turns(frame: Any) -> int:
    """Counter-clockwise quarter turns that make a frame upright (its display matrix)."""
    return round(int(frame.rotation) / 90) % 4


def _fit(frame: Any, height: int, width: int) -> Frames:
    """A frame as RGB [height, width, 3]: upright, scaled to cover with antialiasing, cropped about the centre."""
    image = Image.fromarray(np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), _turns(frame))))
    scale = max(height / image.height, width / image.width)
    left, top = (image.width - width / scale) / 2, (image.height - height / scale) / 2
    box = (max(left, 0.0), max(top, 0.0), min(image.width - left, image.width), min(image.height - top, image.height))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box=box))


# --- writing ---------------------------------------------------------------------------------------------------------


def write_mp4(path: str, frames: Frames, fps: float) -> None:
    """Write frames [F, H, W, 3] as H.264, local or s3://: a file appears whole; equal frames give equal bytes.

    Raises ValueError for anything but uint8 frames of even height and width.
    """
    from pipeline.stores import write_bytes  # here, because the decoder's child imports this module and needs no store

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
