"""What the packets of a video file say, without decoding one: which stream is the video, and which packets are key.

A container is asked for the stamps that it holds and no others: FFmpeg's option to make up missing ones (`genpts`)
gives frames the times of other frames wherever B-frames are stored without presentation stamps, as in AVI and ASF.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from pipeline.errors import ClipError
from pipeline.video.lengths import missing_bytes

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Pulse = Callable[[], None]  # called again and again while a file is read, so that a caller sees that it goes on

NONE = np.iinfo(np.int64).min  # a stamp that a packet does not have
_DELAY = 4  # frames by which encoders decode ahead of presentation
# What a file may make a reader do, however it is written: a table may name the same bytes a million times.
_MOST_PACKETS = 4_000_000  # 18 hours at 60 frames a second
_MOST_BYTES = 16  # times the file's size, which packets are together; more than 1 only where a container compresses
# Containers of single files. Playlists (hls, concat, dash, ...) can name other files and hosts, so they are not here.
_CONTAINERS = "mov,mp4,matroska,webm,avi,gif,flv,ogg,asf,mpeg,mpegts,apng,webp"
_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": _CONTAINERS, "enable_drefs": "0"}
_PLAYLISTS = (b"#extm3u", b"ffconcat", b"[playlist]", b"v=0\r\n", b"v=0\n", b"[reference]")  # at the beginning
_MARKUP = (b"<mpd", b"<smil", b"<asx", b"<playlist", b"<smoothstreamingmedia")  # after any XML head
_ARCHIVES = (b"PK\3\4", b"\x1f\x8b", b"7z\xbc\xaf", b"\xfd7zXZ", b"BZh", b"Rar!", b"(\xb5/\xfd", b"PAR1")


def no_pulse() -> None:
    """The pulse of a caller that does not watch."""


# --- opening ---------------------------------------------------------------------------------------------------------


def open_container(path: str, edits: bool = True) -> Any:
    """The container of a video file; the caller closes it. Raises ClipError (read, refused) and PyAV's errors.
    `edits`: whether an mp4's edit list says which frames are shown."""
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
    options = _OPTIONS if edits else {**_OPTIONS, "ignore_editlist": "1"}
    container = av.open(f"file:{os.path.abspath(path)}", options=options, metadata_errors="ignore")
    container.flags &= ~av.container.Flags.gen_pts.value
    return container


def open_stream(path: str, index: int, edits: bool = True) -> tuple[Any, Any]:
    """The container and its stream of that index, with a decoder of one thread. Raises ClipError."""
    container = open_container(path, edits)
    return container, _stream(container, index)


def _stream(container: Any, index: int) -> Any:
    """The stream of that index, with a decoder of one thread. ClipError, and the container is closed, where there is no
    decoder."""
    stream = container.streams[index]
    if stream.codec_context is None:
        container.close()
        raise ClipError("decode", "nothing here can decode its kind of video stream")
    stream.codec_context.thread_count = 1
    return stream


class _Amount:
    """Counts packets and their bytes. Raises ClipError (refused) for more than a file of `size` bytes can have."""

    def __init__(self, size: int) -> None:
        self._most, self._bytes, self._packets = _MOST_BYTES * size, 0, 0

    def add(self, packet: Any) -> None:
        self._packets += 1
        self._bytes += packet.size
        if self._packets > _MOST_PACKETS:
            raise ClipError("refused", f"it has more than {_MOST_PACKETS} packets; cut it into shorter videos")
        if self._bytes > self._most:
            raise ClipError("refused", f"its packets are more than {_MOST_BYTES} times as large as the file itself")


def _video_stream(container: Any, size: int, pulse: Pulse) -> tuple[int, int, bool]:
    """The index of the stream that a player shows, how many there are, and whether packets were read to tell. It is one
    with more than a single picture before a still, then the one flagged as default, then the largest, then the first.
    Cover pictures and thumbnail tracks are no videos."""
    hidden = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & hidden]
    if not streams:
        raise ClipError("decode", "it has no video stream")
    if len(streams) == 1:
        return int(streams[0].index), 1, False
    pictures, amount = Counter[int](), _Amount(size)
    for packet in container.demux(streams):
        pulse()
        amount.add(packet)
        pictures[packet.stream_index] += packet.size > 0

    def preference(stream: Any) -> tuple[bool, bool, int, int]:
        default = bool(stream.disposition & av.stream.Disposition.default)
        area = int(stream.width or 0) * int(stream.height or 0)
        return pictures[stream.index] > 1, default, area, -int(stream.index)

    return int(max(streams, key=preference).index), len(streams), True


# --- the table of packets --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Packets:
    """The packets of a file's video stream in decoding order; an index into these arrays [n] is a packet's ordinal.

    `pts` and `dts` are in ticks of `time_base` seconds, NONE where the container has none. `shown` is False for packets
    that only help to decode others: those before an edit list's start, and VP8's hidden frames.
    """

    stream: int
    edits: bool  # whether the container's edit list is obeyed
    time_base: float
    rate: float  # frames a second, as the container says or guesses
    reorders: bool  # whether the codec shows frames in another order than that of decoding
    aspect: float  # width of a pixel over its height
    pts: Ints
    dts: Ints
    size: Ints
    position: Ints  # byte in the file, or of the page that holds several packets; -1: not known
    key: Flags
    shown: Flags
    streams: int = 1  # how many streams of videos the file has

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def first_key(self) -> int:
        """The ordinal of the first packet that can be decoded without others; 0 where none is flagged so."""
        return int(np.argmax(self.key)) if self.key.any() else 0

    @property
    def stamped(self) -> bool:
        """Whether the packets alone say when frames are shown: each shown one has a presentation stamp of its own, and
        in a stream that reorders they are not in the order of decoding, which is what writers of raw streams put there.
        """
        pts = self.pts[self.shown]
        if not len(pts) or (pts == NONE).any() or len(np.unique(pts)) < len(pts):
            return False
        return not self.reorders or bool((np.diff(pts) < 0).any())

    def ordinal(self, packet: Any) -> int | None:
        """The ordinal of a packet that was read after a seek; None where it cannot be told for certain."""
        if packet.pos is None or packet.pos < 0:
            return None
        same = np.flatnonzero((self.position == packet.pos) & (self.size == packet.size))
        return int(same[0]) if len(same) == 1 and np.count_nonzero(self.position == packet.pos) == 1 else None


def read_packets(path: str, pulse: Pulse = no_pulse) -> Packets:
    """The packets of a file, kept for the next call. Raises ClipError where the file is cut off."""
    if not os.path.isfile(path):
        raise ClipError("read", "there is no such file")
    status = os.stat(path)
    return _read_packets(path, status.st_size, status.st_mtime_ns, pulse)


@lru_cache(maxsize=4)
def _read_packets(path: str, size: int, modified: int, pulse: Pulse) -> Packets:
    """Size and modification time are there for the cache."""
    container = open_container(path)
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: container.close())
        index, count, is_read = _video_stream(container, size, pulse)
        if is_read:  # its packets have been read; they are read once more from the first one
            container.close()
            container = open_container(path)
        packets = _table(container, path, size, index, True, pulse)
        # Stamps in the order of decoding begin before zero by the decoder's delay, and writers hide what is before
        # zero. That hides frames of the film from between others. An edit list that somebody made leaves out more.
        hidden = int(np.count_nonzero(~packets.shown))
        in_decoding_order = bool((packets.pts == packets.dts).all() and (np.diff(packets.pts) > 0).all())
        if packets.reorders and in_decoding_order and 0 < hidden <= _DELAY and not packets.shown[:hidden].any():
            container.close()
            container = open_container(path, False)
            packets = _table(container, path, size, index, False, pulse)
        packets = replace(packets, streams=count)
        if packets.stamped:
            stack.pop_all()
            _spare.keep(packets, container)
    return packets


def _table(container: Any, path: str, size: int, index: int, edits: bool, pulse: Pulse) -> Packets:
    """The packets of the container's stream of that index."""
    stream = _stream(container, index)
    missing = missing_bytes(path, container.format.name, size)
    if missing:
        raise ClipError("decode", f"it is cut off: at least {missing} bytes before its end are missing")
    hides = stream.codec_context.name == "vp8"
    rows, amount, last_is_damaged = [], _Amount(size), False
    for packet in container.demux(stream):
        pulse()
        amount.add(packet)
        if packet.size == 0:
            continue
        # Bit 4 of VP8's first byte says whether the frame is shown (RFC 6386, section 9.1).
        shown = not packet.is_discard and not (hides and not memoryview(packet)[0] & 0x10)
        stamps = (NONE if stamp is None else stamp for stamp in (packet.pts, packet.dts))
        position = -1 if packet.pos is None else packet.pos
        rows.append((*stamps, packet.size, position, packet.is_keyframe, shown))
        last_is_damaged = packet.is_corrupt
    if last_is_damaged:
        raise ClipError("decode", f"its packet {len(rows) - 1}, the last one, is damaged or cut off")
    columns = np.array(rows, np.int64).reshape(-1, 6).T.copy()
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    aspect = float(stream.sample_aspect_ratio or 1)
    reorders = bool(stream.codec_context.has_b_frames)
    numbers, flags = columns[:4], columns[4:].astype(bool)
    time_base = float(stream.time_base)
    return Packets(stream.index, edits, time_base, rate, reorders, aspect, *numbers, *flags)


class _Spare:
    """The container in which a table of packets was read, for the first who decodes from that table.

    To open a file costs as much as decoding ten of its frames, of which FFmpeg decodes some to know what it holds. Only
    where all frames are stamped: some demuxers make up other decoding stamps after a seek, and only untimed frames need
    those. Its decoder has not been used, so that decoding begins as in a file that was just opened.
    """

    def __init__(self) -> None:
        self._packets: Packets | None = None
        self._container: Any = None

    def keep(self, packets: Packets, container: Any) -> None:
        if self._container is not None:
            self._container.close()
        self._packets, self._container = packets, container

    def take(self, packets: Packets) -> Any:
        """The container of this table, once; else None."""
        if self._packets is not packets:
            return None
        container, self._packets, self._container = self._container, None, None
        return container


_spare = _Spare()


# --- packets from a place on -----------------------------------------------------------------------------------------


class DisplacedError(ValueError):
    """After a seek, other packets came than those that lie there."""


def packets_from(path: str, packets: Packets, start: int, pulse: Pulse = no_pulse) -> Iterator[tuple[int, Any, Any]]:
    """Ordinal, packet and decoder of every packet from ordinal `start` on.

    The container seeks if the packet that it comes to can be recognised. Else it is read from its beginning, which
    costs reading but no decoding. Raises DisplacedError if a recognised packet is followed by others than its own.
    """
    container = _spare.take(packets)
    if start or container is not None:
        container = container or open_container(path, packets.edits)
        with container:
            stream = _stream(container, packets.stream)
            cue = _cue(container, stream, packets, start)
            if cue is not None:
                yield from _numbered(*cue, packets, start, pulse)
                return
    container, stream = open_stream(path, packets.stream, packets.edits)
    with container:
        yield from _numbered(0, container.demux(stream), packets, start, pulse)


def _cue(container: Any, stream: Any, packets: Packets, start: int) -> tuple[int, Iterator[Any]] | None:
    """Seek to the packet `start` or one before it: its ordinal, and the packets from there on. None: it cannot be told
    where the seek led. Some containers seek by presentation stamps and others by decoding stamps."""
    for stamp in (packets.pts[start], packets.dts[start]):
        if stamp == NONE:
            continue
        try:
            container.seek(int(stamp), stream=stream, backward=True)
            demuxed = container.demux(stream)
            first = next(packet for packet in demuxed if packet.size)
        except (av.FFmpegError, StopIteration):
            continue
        ordinal = packets.ordinal(first)
        if ordinal is not None and ordinal <= start:
            return ordinal, chain([first], demuxed)
    return None


def _numbered(
    ordinal: int, demuxed: Iterator[Any], packets: Packets, start: int, pulse: Pulse
) -> Iterator[tuple[int, Any, Any]]:
    for packet in demuxed:
        pulse()
        if packet.size == 0:  # the end of the stream
            continue
        if ordinal >= len(packets) or packet.size != packets.size[ordinal]:
            raise DisplacedError
        if ordinal >= start:
            yield ordinal, packet, packet.stream.codec_context
        ordinal += 1
