"""The frame asked for is the frame given, at its time, whatever the container, the codec and its stamps."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline.errors import ClipError
from pipeline.video import frames as video
from pipeline.video import packets, timeline
from tests.support.numbered import numbers, write

DATA = Path(__file__).parents[1] / "data"
SIZE = (64, 128)
COUNT, RATE = 70, 25

# Name: encoder, B-frames.
CODECS = {
    "h264": ("libx264", 0),
    "h264-b": ("libx264", 3),
    "hevc": ("libx265", 3),
    "vp9": ("libvpx-vp9", 0),
    "av1": ("libsvtav1", 0),
    "mpeg4": ("mpeg4", 0),
    "mpeg4-b": ("mpeg4", 2),
    "mpeg2": ("mpeg2video", 2),
    "wmv": ("wmv2", 0),
    "flv": ("flv", 0),
    "gif": ("gif", 0),
}
# The combinations that exist: what muxers write and players play.
CONTAINERS = {
    "mp4": ("h264", "h264-b", "hevc", "vp9", "av1", "mpeg4", "mpeg4-b", "mpeg2"),
    "mov": ("h264", "h264-b", "hevc", "mpeg4", "mpeg4-b", "mpeg2"),
    "m4v": ("h264-b", "mpeg4-b"),
    "3gp": ("h264-b", "mpeg4"),
    "mkv": ("h264", "h264-b", "hevc", "vp9", "av1", "mpeg4", "mpeg4-b", "mpeg2"),
    "webm": ("vp9", "av1"),
    "avi": ("h264", "h264-b", "mpeg4", "mpeg4-b", "mpeg2"),
    "mpg": ("h264-b", "mpeg2"),
    "vob": ("mpeg2",),
    "ts": ("h264", "h264-b", "hevc", "mpeg2", "mpeg4-b"),
    "flv": ("h264", "h264-b", "flv"),
    "wmv": ("h264-b", "wmv", "mpeg4"),
    "gif": ("gif",),
}
TABLE = [(end, name) for end, names in CONTAINERS.items() for name in names]


needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs FFmpeg: apt-get install ffmpeg")


def film(folder: Path, end: str, name: str, **more: Any) -> str:
    encoder, b_frames = CODECS[name]
    stamps = [4 * i for i in range(COUNT)] if end == "gif" else list(range(COUNT))  # a GIF counts hundredths
    rate = 100 if end == "gif" else RATE
    pix_fmt = "rgb8" if end == "gif" else "yuv420p"
    path = folder / f"film.{end}"
    return write(path, encoder, stamps, rate=rate, keys=12, b_frames=b_frames, size=SIZE, pix_fmt=pix_fmt, **more)


def as_ffmpeg_shows(path: str, rate: int = RATE) -> list[int]:
    """The numbers that FFmpeg's frames at a constant rate show."""
    command = ["ffmpeg", "-loglevel", "error", "-i", path, "-vf", f"fps={rate}", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    raw = subprocess.run([*command, "-"], capture_output=True, check=True).stdout
    return numbers(np.frombuffer(raw, np.uint8).reshape(-1, *SIZE, 3))


@pytest.mark.parametrize(("end", "name"), TABLE, ids=["-".join(row) for row in TABLE])
def test_the_frame_asked_for_is_the_frame_given(tmp_path: Path, end: str, name: str) -> None:
    path = film(tmp_path, end, name)
    rows = video.segments(path, 9, float(RATE), 1)
    assert [row["start_frame"] for row in rows] == list(range(COUNT - 8)), (
        "the index counts other frames than there are"
    )
    assert not any(row["error"] for row in rows)
    for start in (0, 1, 11, 12, 13, 30, 35, COUNT - 9):
        shown = numbers(video.decode(path, start, 9, float(RATE), *SIZE))
        assert shown == list(range(start, start + 9)), f"the segment at frame {start} shows others"


@needs_ffmpeg
@pytest.mark.parametrize(("end", "name"), TABLE, ids=["-".join(row) for row in TABLE])
def test_ffmpeg_gives_the_same_frames(tmp_path: Path, end: str, name: str) -> None:
    path = film(tmp_path, end, name)
    shown = numbers(video.decode(path, 0, COUNT, float(RATE), *SIZE))
    assert shown == as_ffmpeg_shows(path)[:COUNT]


def test_stamps_in_the_order_of_decoding_are_no_times(tmp_path: Path) -> None:
    """A raw stream with B-frames that was put into mp4 or Matroska: each packet's stamp is its place in the file."""

    def forget(packet: Any) -> None:
        packet.pts = packet.dts

    for end in ("mp4", "mkv"):
        path = film(tmp_path, end, "h264-b", change=forget)
        table = packets.read_packets(path)
        ordinals = [picture.ordinal for picture in timeline.pictures(path, table)]
        assert ordinals != sorted(ordinals), "the test's own file has no B-frames"
        starts = [row["start_frame"] for row in video.segments(path, 9, float(RATE), 1)]
        decoded = [numbers(video.decode(path, start, 9, float(RATE), *SIZE)) for start in starts]
        for start, frames in zip(starts, decoded, strict=True):
            assert frames == sorted(frames), f"{end}: frames from {start} on are out of order: {frames}"


@needs_ffmpeg
def test_ffmpeg_shows_a_raw_stream_in_mp4_as_we_do(tmp_path: Path) -> None:
    """But for the first frames: of two at one time, FFmpeg shows the later one."""

    def forget(packet: Any) -> None:
        packet.pts = packet.dts

    path = film(tmp_path, "mp4", "h264-b", change=forget)
    shown = numbers(video.decode(path, 9, 40, float(RATE), *SIZE))
    as_ffmpeg = as_ffmpeg_shows(path)
    first = as_ffmpeg.index(shown[0])
    assert shown == as_ffmpeg[first : first + 40]


def test_packed_b_frames_are_timed_as_ffmpeg_times_them() -> None:
    """Xvid packs a P- and a B-frame into one packet of an AVI, whose slots are then empty. The values are FFmpeg's."""
    path = str(DATA / "xvid.avi")
    shown = [numbers(video.decode(path, start, 17, 30.0, *SIZE)[:, :28]) for start in (0, 16, 33)]
    assert shown == [[0, 1, 1, *range(2, 16)], list(range(16, 33)), list(range(33, 50))]


def test_a_program_stream_is_read_from_its_start_where_a_seek_goes_astray(tmp_path: Path) -> None:
    path = film(tmp_path, "mpg", "mpeg2")
    table = packets.read_packets(path)
    assert len(np.unique(table.position)) < len(table), "every packet can be recognised: the test shows nothing"
    keys = [int(key) for key in np.flatnonzero(table.key)[1:]]
    for key in keys:
        assert next(packets.packets_from(path, table, key))[0] == key


def test_a_frame_that_only_a_seek_damages_is_decoded_from_the_start() -> None:
    """An old encoder's text is in the first packet alone; a decoder that has not seen it flags every frame."""
    path = str(DATA / "old_x264_444.mp4")
    table = packets.read_packets(path)
    key = int(np.flatnonzero(table.key)[1])
    assert all(picture.damaged for picture in timeline.pictures(path, table, key)), "the file is not as it was"
    whole = [picture.frame.to_ndarray(format="rgb24") for picture in timeline.pictures(path, table)]
    rows = video.segments(path, 4, 30.0, 3)
    assert len(rows) > 2
    for row in rows:
        assert row["error"] is None
        height, width = whole[0].shape[:2]
        frames = video.decode(path, row["start_frame"], 1, 30.0, height, width)
        assert np.array_equal(frames[0], whole[row["start_frame"]])


def test_a_damaged_frame_costs_the_segments_that_hold_it(tmp_path: Path) -> None:
    path = film(tmp_path, "mp4", "h264-b")
    table = packets.read_packets(path)
    keys = [int(key) for key in np.flatnonzero(table.key)]
    hurt = keys[2] + 1
    data = bytearray(Path(path).read_bytes())
    at = int(table.position[hurt])
    data[at + 4 : at + int(table.size[hurt])] = bytes(int(table.size[hurt]) - 4)
    Path(path).write_bytes(data)
    errors = {row["start_frame"]: row["error"] for row in video.segments(path, 5, float(RATE), 5)}
    broken = [start for start, error in errors.items() if error]
    assert broken, "lost data goes unnoticed"
    assert keys[2] - 5 < broken[0], f"what is before it suffers: {broken}"
    assert broken[-1] < keys[3], f"it spreads beyond its group of pictures: {broken}"
    assert all(str(errors[start]).startswith("decode: its frame ") for start in broken)
    for start, error in errors.items():
        if error is None:
            assert numbers(video.decode(path, start, 5, float(RATE), *SIZE)) == list(range(start, start + 5))
        else:
            with pytest.raises(ClipError, match=r"its frame \d+ is damaged"):
                video.decode(path, start, 5, float(RATE), *SIZE)


@pytest.mark.parametrize(("end", "name"), TABLE, ids=["-".join(row) for row in TABLE])
def test_a_truncated_file_shows_no_frame_twice(tmp_path: Path, end: str, name: str) -> None:
    """It ends as an error where the container says how long it was, and else before its first missing frame."""
    path = film(tmp_path, end, name)
    whole = Path(path).read_bytes()
    for share in (0.5, 0.66, 0.9):
        Path(path).write_bytes(whole[: int(len(whole) * share)])
        try:
            rows = video.segments(path, 5, float(RATE), 1)
        except (ClipError, av.FFmpegError):
            continue
        if end in ("mp4", "mov", "m4v", "3gp", "mkv", "webm", "wmv", "gif", "avi"):
            assert end == "avi", "it passes as whole"
            assert len(rows) == COUNT - 4, "only an AVI's index may be missing"
        for row in rows:
            if row["error"] is None:
                shown = numbers(video.decode(path, row["start_frame"], 5, float(RATE), *SIZE))
                assert shown == list(range(shown[0], shown[0] + 5)), f"{share}: {shown}"


def test_a_live_stream_claims_no_length(tmp_path: Path) -> None:
    path = Path(film(tmp_path, "mkv", "h264"))
    data = bytearray(path.read_bytes())
    segment = data.index(bytes.fromhex("18538067"))
    data[segment + 4 : segment + 12] = b"\x01" + b"\xff" * 7  # a length of ones: not known
    path.write_bytes(data)
    assert len(video.segments(str(path), 9, float(RATE))) == COUNT // 9


def test_no_frame_of_a_raw_stream_in_mp4_is_hidden_or_shown_twice(tmp_path: Path) -> None:
    """Its stamps are in the order of decoding and begin before zero, and its edit list hides what is before zero."""

    def delay(packet: Any) -> None:
        packet.pts = packet.dts

    path = film(tmp_path, "mp4", "h264-b", change=delay)
    with av.open(path) as container:
        hidden = [packet.is_discard for packet in container.demux(video=0) if packet.size]
    assert any(hidden), "the test's own file hides nothing"
    rows = video.segments(path, 9, float(RATE), 1)
    assert [row["start_frame"] for row in rows] == list(range(COUNT - 8))
    for row in rows:
        start = row["start_frame"]
        assert numbers(video.decode(path, start, 9, float(RATE), *SIZE)) == list(range(start, start + 9))


@pytest.mark.parametrize("rate", [25.0, 50.0])
def test_the_last_frames_of_an_avi_are_as_far_apart_as_the_others(rate: float) -> None:
    """Those that leave the decoder at its end have no stamp, and an AVI of H.264 is said to have the rate of fields."""
    count = 40
    pts, none = np.full(count, packets.NONE), np.zeros(count, bool)
    table = packets.Packets(0, True, 0.02, rate, True, 1.0, pts, np.arange(count) * 2, pts, pts, ~none, ~none)
    dts = np.arange(count) * 2 + 4
    dts[-2:] = packets.NONE
    assert np.allclose(np.diff(timeline.counted(table, np.arange(count), dts).times), 0.04)


def test_frames_without_a_stamp_lie_evenly_between_those_with_one() -> None:
    """As in a program stream; the parser gives the stamp of packet 6 to packet 5 too."""
    none, far = packets.NONE, np.zeros(12, np.int64)
    pts = np.array([0, none, none, none, none, 24000, 24000, none, none, none, none, none])
    dts = np.array([0, none, none, none, none, 18000, 18000, none, none, none, none, none])
    flags = np.ones(12, bool)
    table = packets.Packets(0, True, 1 / 90000, 50.0, True, 1.0, pts, dts, far, far, flags, flags)
    order = np.array([0, 2, 3, 1, 5, 4, 7, 6, 8, 10, 9, 11])
    times = timeline.counted(table, order, np.full(12, none)).times
    assert np.allclose(times, np.arange(12) * 24000 / 90000 / 7)


def test_joined_recordings_go_on_where_the_clock_begins_anew(tmp_path: Path) -> None:
    path = Path(film(tmp_path, "ts", "mpeg2"))
    path.write_bytes(path.read_bytes() * 2)
    rows = video.segments(str(path), 9, float(RATE), 1)
    assert len(rows) >= 2 * COUNT - 10, "the second recording is lost"
    usable = [row["start_frame"] for row in rows if not row["error"]]
    assert COUNT + 12 in usable, "only what is near the joint may be damaged"
    for start in (0, COUNT + 12, usable[-1]):
        expected = [number % COUNT for number in range(start, start + 9)]
        assert numbers(video.decode(str(path), start, 9, float(RATE), *SIZE)) == expected


def test_a_frame_that_is_lost_is_not_made_up_for_by_its_neighbour(tmp_path: Path) -> None:
    """Every frame of this codec stands alone: the next one is intact, and nothing else tells of the lost one."""
    path = Path(write(tmp_path / "a.avi", "mjpeg", list(range(30)), size=SIZE, pix_fmt="yuvj420p"))
    table = packets.read_packets(str(path))
    data = bytearray(path.read_bytes())
    at = int(table.position[10])
    data[at : at + int(table.size[10])] = bytes(int(table.size[10]))
    path.write_bytes(data)
    errors = {row["start_frame"]: row["error"] for row in video.segments(str(path), 4, float(RATE), 1)}
    for start in range(27):
        if 7 <= start <= 10:
            assert errors.get(start, "decode: its frame 10 is damaged") == "decode: its frame 10 is damaged"
            with pytest.raises(ClipError, match="its frame 10 is damaged"):
                video.decode(str(path), start, 4, float(RATE), *SIZE)
        else:
            assert errors[start] is None
            shown = numbers(video.decode(str(path), start, 4, float(RATE), *SIZE))
            assert shown == list(range(start, start + 4))
