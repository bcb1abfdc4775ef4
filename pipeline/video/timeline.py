"""When each frame of a video file is shown, and how to come to it.

A frame's number is its place in the order in which the decoder gives frames out, which is that of presentation whatever
the container's stamps say. Where every packet has a presentation stamp of its own, numbers and times follow from the
packets, and nothing is decoded. Elsewhere (AVI and ASF with B-frames, program streams, raw streams put into mp4) the
file is decoded once from its start; times are then the stamps that FFmpeg takes for best.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from pipeline.errors import ClipError
from pipeline.video.packets import NONE, Flags, Ints, Packets, Pulse, no_pulse, packets_from

Floats = npt.NDArray[np.float64]

_LATE = 16  # frames by which decoding may run ahead of presentation: the most that H.264 and HEVC allow
TIE = 1e-6  # seconds; of two frames equally near, the earlier one is taken whatever the rounding
_AT_ONCE = 1e-4  # seconds between two frames of which the later one is not stamped later
_RESTART = 1.0  # seconds by which a stamp is behind its predecessor where a clock began anew; reordering takes less
_HOLE = 1.5  # times the usual distance between two frames: more than that is a hole


# --- decoding --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """A decoded frame. `ordinal` is that of its packet, -1 where the decoder does not say; `dts` is the decoding stamp
    with which it came out, in ticks. `damaged`: it, or a frame that it may be made from, has data missing."""

    ordinal: int
    dts: int
    damaged: bool
    frame: Any


def pictures(
    path: str, packets: Packets, start: int = 0, pulse: Pulse = no_pulse, lost: list[int] | None = None
) -> Iterator[Picture]:
    """The frames of a file in the order of presentation, decoded from the packet of ordinal `start` on.

    Each packet's stamp is replaced by its ordinal, which decoders pass on to the frame, so that a frame is known
    wherever decoding began. A packet that cannot be decoded damages what follows it up to the next key frame; its
    ordinal is added to `lost`, before any frame that is shown later comes.
    """
    broken = _Damage(len(packets))
    codec: Any = None
    count, most = 0, 2 * len(packets) + _LATE  # interlaced fields and packed frames come two to a packet
    for ordinal, packet, codec in packets_from(path, packets, start, pulse):
        packet.pts = ordinal
        if packet.is_corrupt:
            broken.packet(ordinal)
        try:
            frames = codec.decode(packet)
        except av.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            broken.packet(ordinal)
            if lost is not None:
                lost.append(ordinal)
            continue
        count += len(frames)
        if count > most:
            raise ClipError("refused", f"more than {most} frames come out of its {len(packets)} packets")
        for frame in frames:
            yield broken.picture(frame)
    for frame in codec.decode(None) if codec is not None else ():
        yield broken.picture(frame)


class _Damage:
    """Which frames have data missing, as they come out of a decoder."""

    def __init__(self, packets: int) -> None:
        self._packets = packets
        self._packet = -1  # ordinal of the last packet that is damaged
        self._spreads = False  # whether a damaged frame has come out, and no intact key frame since

    def packet(self, ordinal: int) -> None:
        self._packet = ordinal

    def picture(self, frame: Any) -> Picture:
        ordinal = -1 if frame.pts is None or not 0 <= frame.pts < self._packets else int(frame.pts)
        after = self._packet >= 0 and (ordinal < 0 or ordinal >= self._packet)
        if frame.is_corrupt:
            self._spreads = True
        elif frame.key_frame and (not after or ordinal > self._packet):
            self._spreads = False
            if after:
                self._packet, after = -1, False
        damaged = frame.is_corrupt or self._spreads or after
        return Picture(ordinal, NONE if frame.dts is None else int(frame.dts), damaged, frame)


# --- numbers and times -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timeline:
    """The frames of a file: `times` [n] in seconds, ascending, by number; `ordinals` [n] of their packets, or None
    where frames are counted as they come; `number_of` [packets], -1 for packets without a frame."""

    times: Floats
    ordinals: Ints | None
    number_of: Ints

    def start_for(self, packets: Packets, number: int) -> int:
        """The ordinal of the last key packet from which frame `number` and all later ones can be decoded."""
        if self.ordinals is None:
            return 0
        usable = packets.key & (self.number_of >= 0) & (self.number_of <= number)
        usable[int(self.ordinals[number:].min()) + 1 :] = False
        keys = np.flatnonzero(usable)
        return int(keys[-1]) if len(keys) else 0


def stamped(packets: Packets) -> Timeline:
    """The timeline that the packets' presentation stamps give."""
    decodable = packets.shown & (np.arange(len(packets)) >= packets.first_key)
    ordinals = np.flatnonzero(decodable)
    ordinals = ordinals[np.argsort(packets.pts[ordinals], kind="stable")]
    times: Floats = packets.pts[ordinals] * np.float64(packets.time_base)
    whole = _until_hole(times) if packets.reorders else len(times)
    return _timeline(times[:whole], ordinals[:whole], len(packets))


def _until_hole(times: Floats) -> int:
    """How many frames there are before a hole near the end of a file of a constant rate. Decoding runs ahead of
    presentation: where such a file is cut off, frames between its last ones are missing."""
    gaps = np.diff(times)
    if len(gaps) < 2 * _LATE:
        return len(times)
    usual = float(np.median(gaps))
    steady = gaps[:-_LATE] < _HOLE * usual
    holes = np.flatnonzero(gaps[-_LATE:] > _HOLE * usual)
    return len(gaps) - _LATE + int(holes[0]) + 1 if steady.all() and len(holes) else len(times)


def _timeline(times: Floats, ordinals: Ints, packets: int) -> Timeline:
    number_of = np.full(packets, -1, np.int64)
    number_of[ordinals] = np.arange(len(ordinals))
    for array in (times, ordinals, number_of):
        array.flags.writeable = False
    return Timeline(times, ordinals, number_of)


def counted(packets: Packets, ordinals: Ints, dts: Ints) -> Timeline:
    """The timeline of frames that came out of the decoder in this order, with these ordinals [n] and decoding stamps
    [n]."""
    has_ordinals = len(ordinals) > 0 and bool((ordinals >= 0).all()) and len(np.unique(ordinals)) == len(ordinals)
    times = _sorted_times(packets, ordinals) if has_ordinals else None
    if has_ordinals and times is None:
        times = _times_between(packets, ordinals)
    if times is None:
        times = _best_times(packets, ordinals, dts)
    if has_ordinals:
        return _timeline(times, ordinals.copy(), len(packets))
    times.flags.writeable = False
    return Timeline(times, None, np.full(len(packets), -1, np.int64))


def _sorted_times(packets: Packets, ordinals: Ints) -> Floats | None:
    """Times where every presentation stamp follows the order of decoding, as in a raw stream that was put into mp4:
    they say when a frame is shown, but not which one. None for other files."""
    stamps = np.sort(packets.pts[ordinals])
    in_decoding_order = packets.pts[np.sort(ordinals)]
    if stamps[0] == NONE or not np.array_equal(stamps, in_decoding_order) or len(np.unique(stamps)) < len(stamps):
        return None
    times: Floats = stamps * np.float64(packets.time_base)
    return times


def _times_between(packets: Packets, ordinals: Ints) -> Floats | None:
    """Times where some packets have no stamp at all, as in program streams, of which a packet of the container holds
    several frames: those without a presentation stamp lie evenly between those with one. None for other files."""
    pts = packets.pts[ordinals]
    if not ((pts == NONE) & (packets.dts[ordinals] == NONE)).any():
        return None
    # FFmpeg's parser may give a stamp to two packets that follow each other. It belongs to the second one.
    repeated = np.append(packets.pts[1:] == packets.pts[:-1], False)
    stamped_frames = np.flatnonzero((pts != NONE) & ~repeated[ordinals])
    times = pts[stamped_frames] * packets.time_base
    if len(times) < 2 or (np.diff(times) <= 0).any():
        return None
    gap = float(np.median(np.diff(times) / np.diff(stamped_frames)))
    numbers = np.arange(len(ordinals))
    between: Floats = np.interp(numbers, stamped_frames, times)
    between -= gap * np.maximum(stamped_frames[0] - numbers, 0)
    between += gap * np.maximum(numbers - stamped_frames[-1], 0)
    return between


def _best_times(packets: Packets, ordinals: Ints, dts: Ints) -> Floats:
    """Times of frames with these ordinals [n] and decoding stamps [n].

    A time is the frame's presentation stamp, until more of those than of the decoding stamps have not ascended; then it
    is the decoding stamp, as FFmpeg's best-effort stamp is. A frame without either follows its predecessor by the usual
    distance; one whose stamp does not ascend follows it at once, so that it delays none of the later ones. A stamp far
    behind its predecessor's belongs to a clock that began anew, as where recordings were joined: the film goes on.
    """
    times = np.empty(len(ordinals))
    faults = {"pts": 0, "dts": 0}
    last_stamp = {"pts": NONE, "dts": NONE}
    time, shift, gap = -np.inf, 0.0, 0.0
    for number, (ordinal, decoding) in enumerate(zip(ordinals.tolist(), dts.tolist(), strict=True)):
        stamps = {"pts": int(packets.pts[ordinal]) if ordinal >= 0 else NONE, "dts": decoding}
        for name, other in (("pts", "dts"), ("dts", "pts")):
            if stamps[name] != NONE:
                faults[name] += last_stamp[name] != NONE and stamps[name] <= last_stamp[name]
            if stamps[name] != NONE or stamps[other] != NONE:
                last_stamp[name] = stamps[name] if stamps[name] != NONE else stamps[other]
        by_pts = stamps["pts"] != NONE and (faults["pts"] <= faults["dts"] or decoding == NONE)
        stamp = stamps["pts"] if by_pts else decoding
        if stamp == NONE:
            # The rate that a container names may be that of fields, or a guess.
            gap = gap or (float(np.median(np.diff(times[:number]))) if number > 2 * _LATE else 1.0 / packets.rate)
            time = time + gap if np.isfinite(time) else 0.0
        else:
            seconds = stamp * packets.time_base
            if seconds + shift < time - _RESTART:
                shift = time + 1.0 / packets.rate - seconds
            elif shift and time < seconds < time + _RESTART:  # the first clock again: one stamp was wrong
                shift = 0.0
            time = max(seconds + shift, time + _AT_ONCE)
        times[number] = time
    return times


def agrees(line: Timeline, ordinals: Ints) -> bool:
    """Whether frames that came out of the decoder with these ordinals [n] are in the order of a stamped timeline."""
    if (ordinals < 0).any():
        return False
    numbers = line.number_of[ordinals]
    shown: Flags = numbers >= 0
    return bool((np.diff(numbers[shown]) > 0).all())


@lru_cache(maxsize=8)
def read_timeline(path: str, packets: Packets, trust: bool = True, pulse: Pulse = no_pulse) -> Timeline:
    """A file's timeline: from its packets where they are stamped and `trust` is true, else by decoding all of it."""
    if trust and packets.stamped:
        return stamped(packets)
    rows = [(picture.ordinal, picture.dts) for picture in pictures(path, packets, 0, pulse)]
    ordinals, dts = np.array(rows, np.int64).reshape(-1, 2).T.copy()
    return counted(packets, ordinals, dts)


class DisorderedError(ValueError):
    """Frames came out of the decoder in another order than a timeline says."""


def numbered(
    path: str, packets: Packets, line: Timeline, start: int, pulse: Pulse = no_pulse
) -> Iterator[tuple[int, Picture]]:
    """Number and picture of every frame from the packet of ordinal `start` on. In place of a frame whose packet cannot
    be decoded comes the next one, as damaged. Raises DisorderedError."""
    last = -1
    lost: list[int] = []
    for count, picture in enumerate(pictures(path, packets, start, pulse, lost)):
        if line.ordinals is None:
            yield count, picture
            continue
        if picture.ordinal < 0:
            raise DisorderedError
        number = int(line.number_of[picture.ordinal])
        if number < 0:  # it is decoded and not shown
            continue
        if number <= last:
            raise DisorderedError
        for gone in sorted(int(line.number_of[ordinal]) for ordinal in lost):
            if last < gone < number:
                yield gone, replace(picture, damaged=True)
        last = number
        yield number, picture


# --- times and frames -------------------------------------------------------------------------------------------------


def nearest(times: Floats, moments: Floats, fps: float) -> npt.NDArray[np.int64]:
    """Indices [m] of the times [n] (ascending) nearest to those wanted [m]; the earlier one of two equally near.

    A frame is not shown half a step of `fps` or more before its time: until then its predecessor stays on the screen,
    through a pause or while a slow film is read at a higher rate.
    """
    after = np.clip(np.searchsorted(times, moments), 0, len(times) - 1)
    before = np.maximum(after - 1, 0)
    ahead = times[after] - moments
    earlier = (moments - times[before] <= ahead + TIE) | (ahead > 0.5 / fps - TIE)
    return np.where(earlier, before, after).astype(np.int64)


def end_time(times: Floats, fps: float) -> float:
    """The last time at which a frame may be wanted: half a source frame after the last one."""
    half = float(np.median(np.diff(times))) / 2 if len(times) > 1 else 0.5 / fps
    return float(times[-1]) + half


def room(times: Floats, start: int, fps: float, end: float | None = None) -> int:
    """How many frames at `fps` there are from source frame `start` on, until `end` (None: that of the file)."""
    return int(((end_time(times, fps) if end is None else end) - times[start]) * fps + TIE) + 1
