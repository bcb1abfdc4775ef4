"""Files become exact segments; bad and hostile files become rows, and the next call works."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import fsspec
import numpy as np
import pytest

from pipeline.config import Data
from pipeline.errors import ClipError
from pipeline.synthetic import world
from pipeline.tables import schemas
from pipeline.video import frames as video
from pipeline.video import packets
from pipeline.video.cuts import cuts
from pipeline.video.decoder import Decoder
from pipeline.video.indexing import clip_id, index
from pipeline.video.orientation import Frames, pose
from tests.support.numbered import numbers, picture, write

KINDS = [
    ("mp4", "libx264", "yuv420p"),
    ("mkv", "libx264", "yuv420p"),
    ("mov", "libx264", "yuv420p"),
    ("m4v", "mpeg4", "yuv420p"),
    ("webm", "libvpx", "yuv420p"),
    ("avi", "mpeg4", "yuv420p"),
    ("gif", "gif", "rgb8"),
]


def _write(path: Path, kind: tuple[str, str, str], stamps: list[int], rate: int = 25, keys: int = 10) -> str:
    return write(path, kind[1], stamps, rate=rate, keys=keys, pix_fmt=kind[2])


def _audio(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = container.add_stream("aac", rate=16000, layout="mono")
        for i in range(8):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            sound.sample_rate, sound.pts = 16000, 1024 * i
            container.mux(stream.encode(sound))
        container.mux(stream.encode(None))


def _row(uri: str, **more: Any) -> dict[str, Any]:
    own = {"relative": os.path.basename(uri), "version": "v", "size": 7, "source": ".", "caption": "", "id": None}
    return {"uri": uri, **own, "group": ".", "error": None, **more}


def _data(**more: Any) -> Data:
    return Data.model_validate({"videos": ".", "frames": 5, "fps": 5.0, "height": 32, "width": 64, **more})


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(timeout=30) as running_decoder:
        yield running_decoder


# --- which frames ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=[kind[0] for kind in KINDS])
def test_every_container(tmp_path: Path, kind: tuple[str, str, str]) -> None:
    path = _write(tmp_path / f"a.{kind[0]}", kind, list(range(60)))
    rows = video.segments(path, frames=6, fps=5.0, stride=3)
    assert [row["start_frame"] for row in rows] == [0, 15, 30], "segments do not start every stride frames"
    assert {(row["height"], row["width"], row["num_frames"], row["fps"]) for row in rows} == {(32, 64, 6, 5.0)}
    for row in rows:
        got = numbers(video.decode(path, row["start_frame"], 6, 5.0, 32, 64))
        assert got == [row["start_frame"] + 5 * j for j in range(6)], "decoding gives other frames than the index saw"


def test_a_segment_is_frame_exact_wherever_it_starts(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.mp4", KINDS[0], list(range(200)), keys=50)
    for start in (0, 1, 49, 50, 51, 99, 130, 196):
        assert numbers(video.decode(path, start, 4, 25.0, 32, 64)) == [start + j for j in range(4)], "seek is off"


def test_seeking_decodes_only_the_neighbourhood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path / "a.mp4", KINDS[0], list(range(200)))
    seen = []
    numbered = video.numbered

    def noted(*arguments: Any) -> Iterator[tuple[int, Any]]:
        for number, decoded in numbered(*arguments):
            seen.append(number)
            yield number, decoded

    monkeypatch.setattr(video, "numbered", noted)
    video.decode(path, 150, 5, 25.0, 32, 64)
    assert 0 < len(seen) < 30, "a late segment is decoded from the start of the file"


def test_variable_frame_rate_goes_by_time(tmp_path: Path) -> None:
    stamps = [0, 1, 2, 3, 10, 11, 20, 30, 31, 40]  # tenths of a second
    path = _write(tmp_path / "a.mkv", KINDS[1], stamps, rate=10)
    row = video.segments(path, frames=5, fps=1.0)[0]
    assert row["num_frames"] == 5
    assert numbers(video.decode(path, 0, 5, 1.0, 32, 64)) == [0, 4, 6, 7, 9], "frames are counted, not timed"
    assert numbers(video.decode(path, 0, 4, 10.0, 32, 64)) == [0, 1, 2, 3]
    assert numbers(video.decode(path, 4, 3, 1.0, 32, 64)) == [4, 6, 7]


def test_a_pause_holds_the_frame_that_is_on_the_screen(tmp_path: Path) -> None:
    """Up to half a step before the next frame, as FFmpeg's `-vf fps=` has it, and not from half of the pause on."""
    path = _write(tmp_path / "a.mkv", KINDS[1], [0, 1, 2, 3, 13, 14, 15], rate=10)
    shown = numbers(video.decode(path, 0, 16, 10.0, 32, 64))
    assert shown == [0, 1, 2, *[3] * 10, 4, 5, 6]
    assert numbers(video.decode(path, 0, 4, 2.5, 32, 64)) == [0, 3, 3, 4], "1.2 s is nearer to 1.3 than half a step"
    slow = _write(tmp_path / "slow.mp4", KINDS[0], list(range(6)), rate=4)
    assert numbers(video.decode(slow, 0, 9, 12.0, 32, 64)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_upsampling_repeats_frames(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.mp4", KINDS[0], list(range(10)), rate=10)
    assert numbers(video.decode(path, 0, 8, 20.0, 32, 64)) == [0, 0, 1, 1, 2, 2, 3, 3], "ties do not go to the earlier"


def test_another_geometry_of_the_same_segment(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.mp4", KINDS[0], list(range(60)))
    full = video.decode(path, 20, 9, 12.5, 32, 64)
    half = video.decode(path, 20, 5, 6.25, 16, 32)
    assert half.shape == (5, 16, 32, 3)
    assert numbers(half) == numbers(full)[::2]


def test_an_unknown_duration_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "a.webm"  # written to a pipe, so that the muxer cannot go back for duration and index
    with open(path, "wb") as file:
        live = _write(tmp_path / "b.webm", KINDS[4], list(range(30)))
        with av.open(live) as source, av.open(_Pipe(file), "w", format="webm") as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(source.streams.video[0]):
                if packet.size:
                    packet.stream = stream
                    target.mux(packet)
    with av.open(str(path)) as container:
        assert container.duration is None, "the test's own file has a duration"
    assert len(video.segments(str(path), 5, 5.0)) == 1
    assert numbers(video.decode(str(path), 10, 3, 25.0, 32, 64)) == [10, 11, 12]


class _Pipe:
    """A file that cannot seek."""

    def __init__(self, file: Any) -> None:
        self.write = file.write


# a b c d of the display matrix: the stored pixel (x, y) goes to (a x + c y, b x + d y).
ORIENTATIONS = {
    "upright": (1, 0, 0, 1),
    "mirrored": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "half a turn": (-1, 0, 0, -1),
    "a quarter clockwise": (0, 1, -1, 0),
    "a quarter counter-clockwise": (0, -1, 1, 0),
    "transposed": (0, 1, 1, 0),
    "transposed about the other diagonal": (0, -1, -1, 0),
}


needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs FFmpeg: apt-get install ffmpeg")


def _turned(path: str, orientation: str) -> str:
    """A copy of an mp4 file with another display matrix."""
    a, b, c, d = ORIENTATIONS[orientation]
    data = bytearray(Path(path).read_bytes())
    matrix = data.index(b"tkhd") + 44
    data[matrix : matrix + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    turned = Path(path).with_name("turned.mp4")
    turned.write_bytes(data)
    return str(turned)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_all_eight_orientations(tmp_path: Path, orientation: str) -> None:
    path = _write(tmp_path / "a.mp4", KINDS[0], [7, 8, 9, 10])
    stored = video.decode(path, 0, 4, 25.0, 32, 64)
    a, b, c, d = ORIENTATIONS[orientation]
    # Where each corner of the stored picture goes, by the matrix alone.
    expected = np.zeros((4, *(reversed(stored.shape[1:3]) if b else stored.shape[1:3]), 3), np.uint8)
    rows, columns = np.mgrid[:32, :64]
    x, y = a * columns + c * rows, b * columns + d * rows
    expected[:, y - y.min(), x - x.min()] = stored
    path = _turned(path, orientation)
    row = video.segments(path, 4, 25.0)[0]
    assert (row["height"], row["width"]) == expected.shape[1:3], "height and width are those of the stored picture"
    shown = video.decode(path, 0, 4, 25.0, *expected.shape[1:3])
    assert np.array_equal(shown, expected), "the picture lies another way than its matrix says"


@needs_ffmpeg
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_ffmpeg_shows_the_same_orientation(tmp_path: Path, orientation: str) -> None:
    path = _turned(_write(tmp_path / "a.mp4", KINDS[0], [7, 8, 9, 10]), orientation)
    row = video.segments(path, 4, 25.0)[0]
    shown = video.decode(path, 0, 4, 25.0, row["height"], row["width"])
    command = ["ffmpeg", "-loglevel", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    as_ffmpeg = np.frombuffer(raw, np.uint8).reshape(shown.shape)
    assert np.abs(as_ffmpeg.astype(int) - shown).mean() < 3


@pytest.mark.parametrize(("pixel", "shape"), [(Fraction(8, 3), (32, 171)), (Fraction(1, 2), (32, 32))])
def test_pixels_that_are_not_square(tmp_path: Path, pixel: Fraction, shape: tuple[int, int]) -> None:
    def stretch(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = pixel

    for end in ("mp4", "mkv"):
        path = write(tmp_path / f"a.{end}", "libx264", [0, 1, 2, 3], stream_changes=stretch)
        row = video.segments(path, 4, 25.0)[0]
        assert (row["height"], row["width"]) == shape, "the shape is that of the stored picture"
        shown = video.decode(path, 0, 4, 25.0, *shape)
        assert numbers(shown[:, :, : shape[1] // 8 * 8]) == [0, 1, 2, 3]
        square = video.decode(path, 3, 1, 25.0, 32, 32)[0]
        if pixel > 1:  # 32 of 171 columns are left, about the centre: 12 of 64 stored ones, which show stripes 3 and 4
            assert square.max() < 60, "the crop is of the stored picture, not of what is shown"
        else:
            assert np.array_equal(square, shown[3]), "all of it fits"


def test_pixels_of_an_impossible_shape_are_an_error() -> None:
    with pytest.raises(ClipError, match="pixels are said to be 1000 times as wide as high"):
        pose(av.VideoFrame(64, 32, "rgb24"), 1000.0)


def _two_tracks(path: Path, first: list[int], default: int) -> str:
    """A Matroska file with a track of the first stamps, 32 x 64 and with numbers from 100 on, and then the video of
    48 x 64; the track of this index is flagged as default."""
    with av.open(str(path), "w", format="matroska") as container:
        streams: list[Any] = [container.add_stream("libx264", rate=25) for _ in range(2)]
        for index, (stream, height) in enumerate(zip(streams, (32, 48), strict=True)):
            stream.height, stream.width, stream.pix_fmt = height, 64, "yuv420p"
            stream.disposition = av.stream.Disposition.default if index == default else 0
        for stamp in range(20):
            for stream, height, start in zip(streams, (32, 48), (100, 0), strict=True):
                if start == 0 or stamp in first:
                    frame = av.VideoFrame.from_ndarray(picture(start + stamp, height), format="rgb24")
                    frame.pts, frame.time_base = stamp, Fraction(1, 25)
                    container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    return str(path)


@pytest.mark.parametrize(
    ("first", "default", "height", "why"),
    [
        (list(range(20)), 1, 48, "a preview comes first, the video is the default"),
        (list(range(20)), 0, 32, "the first one is the default, and smaller"),
        ([0], 1, 48, "a still picture comes first"),
        ([0], 0, 48, "a still picture is the default"),
    ],
)
def test_the_track_that_a_player_shows(tmp_path: Path, first: list[int], default: int, height: int, why: str) -> None:
    path = _two_tracks(tmp_path / "two.mkv", first, default)
    rows = video.segments(path, 5, 25.0)
    used = 0 if height == 32 else 1
    assert rows[0]["height"] == height, why
    assert rows[0]["note"] == f"it has 2 video streams; of these the stream {used} is used"
    assert all("note" not in row for row in rows[1:])
    assert numbers(video.decode(path, 3, 2, 25.0, height, 64)) == [3 + 100 * (height == 32), 4 + 100 * (height == 32)]


def test_no_two_segments_begin_at_one_frame(tmp_path: Path, decoder: Decoder) -> None:
    """A frame that a GIF holds for seconds, a pause of a variable-rate video, more segments a second than frames."""
    gif = _write(tmp_path / "held.gif", ("gif", "gif", "rgb8"), [*range(0, 100, 10), *range(700, 800, 10)], rate=100)
    pause = _write(tmp_path / "pause.mkv", KINDS[1], [*range(10), *range(300, 310)])
    slow = _write(tmp_path / "slow.mp4", KINDS[0], list(range(20)), rate=5)
    for path, stride in ((gif, None), (pause, None), (slow, 1)):
        starts = [row["start_frame"] for row in video.segments(path, 5, 8.0, stride)]
        assert len(starts) > 1
        assert starts == sorted(set(starts)), f"{path}: {starts}"
        ids = [row["clip_id"] for row in index(_row(path), _data(fps=8.0, stride=stride), decoder)]
        assert len(ids) == len(set(ids)), "two clips of one id"


def test_resizing_covers_and_crops_about_the_centre(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.mp4", KINDS[0], [0, 1, 2])
    full = video.decode(path, 2, 1, 25.0, 32, 64).astype(int)
    assert np.array_equal(video.decode(path, 2, 1, 25.0, 32, 32), full[:, :, 16:48]), "the crop is not central"
    noise = np.random.default_rng(0).integers(0, 256, (1, 256, 256, 3), dtype=np.uint8)
    video.write_mp4(str(tmp_path / "noise.mp4"), noise, 8)
    small = video.decode(str(tmp_path / "noise.mp4"), 0, 1, 8.0, 16, 16)
    assert small.std() < 20, "shrinking is not antialiased"


# --- cuts ------------------------------------------------------------------------------------------------------------


def _film(names: list[str], frames: int, fps: int = 8) -> Frames:
    made = [world.render(world.scene(3, name, "real", "slide", frames, fps), 48, 80) for name in names]
    return np.concatenate(made)


def test_cuts_are_found_where_they_are(tmp_path: Path) -> None:
    video.write_mp4(str(tmp_path / "a.mp4"), _film(["a", "b", "c"], 12), 24)
    rows = video.segments(str(tmp_path / "a.mp4"), frames=18, fps=12.0)
    assert [row["cuts"] for row in rows] == [[6, 12]], "cuts are not counted in the segment's own frames"
    later = video.segments(str(tmp_path / "a.mp4"), frames=8, fps=12.0)
    assert [row["cuts"] for row in later] == [[6], [4]], "a cut is counted from the file's start, or one is lost"


def test_motion_is_no_cut() -> None:
    for scene in [*world.queries(0, 2), *world.corpus(1, 20)]:
        assert len(cuts(world.render(scene, 18, 32))) == 0, f"{scene.kind} {scene.motion} is taken for a cut"


# --- bad files -------------------------------------------------------------------------------------------------------


def test_bad_files_are_rows_with_the_right_code(tmp_path: Path, decoder: Decoder) -> None:
    good = _write(tmp_path / "good.mp4", KINDS[0], list(range(60)))
    whole = Path(good).read_bytes()
    files = {
        "zero.mp4": (b"", "decode"),
        "text.mp4": (b"this is not a video\n" * 200, "decode"),
        "noise.mkv": (np.random.default_rng(0).bytes(50_000), "decode"),
        "cut_off.mp4": (whole[: len(whole) // 2], "decode"),
        "playlist.mp4": (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n", "refused"),
        "list.mp4": (f"ffconcat version 1.0\nfile {good}\n".encode(), "refused"),
    }
    for name, (content, _) in files.items():
        (tmp_path / name).write_bytes(content)
    _audio(tmp_path / "audio.mp4")
    _write(tmp_path / "short.mp4", KINDS[0], list(range(12)))
    codes = {name: code for name, (_, code) in files.items()}
    for name, code in {**codes, "audio.mp4": "decode", "short.mp4": "too_short", "gone.mp4": "read"}.items():
        rows = index(_row(str(tmp_path / name)), _data(), decoder)
        assert [str(row["error"]).split(": ")[0] for row in rows] == [code], f"{name}: {rows[0]['error']}"
        assert str(tmp_path) not in rows[0]["error"], "an error tells of a place that may be a temporary one"
        assert set(schemas.CLIPS.names) <= set(rows[0])
    assert "3 frames" in index(_row(str(tmp_path / "short.mp4")), _data(), decoder)[0]["error"]
    assert index(_row(good), _data(), decoder)[0]["error"] is None


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[1], KINDS[4]], ids=["mp4", "mkv", "webm"])
def test_truncated_files_never_pass_as_whole(tmp_path: Path, decoder: Decoder, kind: tuple[str, str, str]) -> None:
    path = tmp_path / f"a.{kind[0]}"
    whole = Path(_write(path, kind, list(range(60)))).read_bytes()
    if kind[0] == "mp4":
        video.write_mp4(str(path), _film(["a"], 60), 25)  # its index comes first: a truncated one still opens
        whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 6 // 10])
    errors = [row["error"] for row in index(_row(str(path)), _data(frames=11), decoder)]
    codes = [str(error).split(":")[0] for error in errors]
    assert codes in (["decode"], ["too_short"]), f"lost frames go unnoticed: {errors}"


def test_a_missing_file_of_the_manifest_keeps_its_error(decoder: Decoder) -> None:
    rows = index(_row("/nowhere/a.mp4", error="read: the manifest names this file"), _data(), decoder)
    assert [row["error"] for row in rows] == ["read: the manifest names this file"]


# --- rows ------------------------------------------------------------------------------------------------------------


def test_rows_and_ids(tmp_path: Path, decoder: Decoder) -> None:
    path = _write(tmp_path / "a.mp4", KINDS[0], list(range(60)))
    rows = index(_row(path, score=0.5), _data(), decoder)
    assert [row["start_frame"] for row in rows] == [0, 25]
    assert {row["score"] for row in rows} == {0.5}
    assert not {"relative", "size", "id"} & set(rows[0]), "columns of the video leak into the clips"
    assert rows[0]["clip_id"] == clip_id({"relative": "a.mp4", "size": 7, "id": None}, 0), "the place enters the id"
    assert len({row["clip_id"] for row in rows}) == 2
    assert len(rows[0]["clip_id"]) == 16
    one = index(_row(path), _data(frames=10), decoder)
    assert [row["clip_id"] for row in one] == [rows[0]["clip_id"]], "the id depends on the number of segments"
    named = index(_row(path, id="mine"), _data(), decoder)
    assert [row["clip_id"] for row in named] == ["mine", "mine-25"]


def test_remote_files_are_fetched_by_the_parent(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.mp4", KINDS[0], list(range(30)))
    fs = fsspec.filesystem("memory")
    fs.put(path, "/bucket/a.mp4")
    with Decoder(timeout=30) as remote:
        assert index(_row("memory://bucket/a.mp4"), _data(), remote)[0]["error"] is None
        copy = remote._local("memory://bucket/a.mp4")
        assert numbers(remote.frames("memory://bucket/a.mp4", 3, 2, 25.0, 32, 64)) == [3, 4]
        assert index(_row("memory://bucket/no.mp4"), _data(), remote)[0]["error"].startswith("read: ")
        assert not os.path.exists(copy), "fetched files pile up"
    fs.rm("/bucket", recursive=True)


@pytest.mark.parametrize("end", ["", "raise KeyError", "os.kill(os.getpid(), signal.SIGTERM)", "del it"])
def test_a_process_leaves_no_remote_file_behind_whose_decoder_nobody_closed(tmp_path: Path, end: str) -> None:
    lines = [
        "import os, signal, sys, tempfile, fsspec",
        "from pipeline.video.decoder import Decoder",
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as Ray's workers do",
        "fsspec.filesystem('memory').pipe_file('/bucket/a.mp4', b'bytes')",
        "it = Decoder(timeout=30)",
        "it._local('memory://bucket/a.mp4')",
        "print(sum(len(files) for _, _, files in os.walk(tempfile.gettempdir())), flush=True)",
        end,
        "print(len(os.listdir(tempfile.gettempdir())), flush=True)",
    ]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch)}
    process = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], env=environment, capture_output=True, text=True, timeout=300
    )
    counts = process.stdout.split()
    assert counts[0] == "1", process.stderr
    assert list(scratch.iterdir()) == []
    if end == "del it":
        assert counts[1] == "0", "what nobody uses any more stays until the process exits"


# --- the child -------------------------------------------------------------------------------------------------------

HOSTILE = """
import os, signal, threading, time
import numpy as np
from pipeline import errors
from pipeline.video import frames as video

def _kill_soon():
    time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)

def segments(path, frames, fps, stride, pulse):
    name = os.path.basename(path)
    if name == "segfault.mp4":
        signal.raise_signal(signal.SIGSEGV)
    if name == "hang.mp4":
        time.sleep(100)
    if name == "long.mp4":  # twice the time limit, but it goes on all the while
        for _ in range(40):
            time.sleep(0.1)
            pulse()
    if name == "memory.mp4":
        np.ones(1 << 34)
    if name == "secrets.mp4":
        raise errors.ClipError("decode", " ".join(os.environ))
    if name == "owned.mp4":  # native code that was taken over answers what it likes
        error = errors.ClipError("decode", "x")
        error.code = "owned"
        raise error
    return video.segments(path, frames, fps, stride, pulse)

def decode(path, start_frame, count, fps, height, width, scaler, pulse):
    if os.path.basename(path) == "midway.mp4":  # dies with half of its answer in the pipe
        threading.Thread(target=_kill_soon).start()
        return np.zeros((count, height, width, 3), np.uint8)
    return video.decode(path, start_frame, count, fps, height, width, pulse, scaler)
"""


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Decoder]:
    (tmp_path / "hostile_codec.py").write_text(HOSTILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("HF_TOKEN", "x")
    with Decoder(timeout=2, functions="hostile_codec") as running_decoder:
        yield running_decoder


def test_a_hostile_file_is_a_row_and_the_next_call_works(tmp_path: Path, hostile: Decoder) -> None:
    good = _write(tmp_path / "good.mp4", KINDS[0], list(range(30)))
    codes = {"segfault.mp4": "crashed", "hang.mp4": "timeout", "memory.mp4": "memory", "owned.mp4": "crashed"}
    for name, code in codes.items():
        began = time.monotonic()
        error = index(_row(str(tmp_path / name)), _data(), hostile)[0]["error"]
        assert error.startswith(f"{code}: "), f"{name}: {error}"
        assert time.monotonic() - began < 10, f"{name} does not end in time"
        assert index(_row(good), _data(), hostile)[0]["error"] is None, f"no decoding after {name}"
    Path(good).rename(tmp_path / "long.mp4")
    assert index(_row(str(tmp_path / "long.mp4")), _data(), hostile)[0]["error"] is None, "length is taken for a hang"
    error = index(_row(str(tmp_path / "secrets.mp4")), _data(), hostile)[0]["error"]
    assert "PATH" in error
    assert not {"AWS_SECRET_ACCESS_KEY", "HF_TOKEN"} & set(error.split()), "the child has credentials"


def test_a_child_that_dies_answering_or_idle_is_replaced(tmp_path: Path, hostile: Decoder) -> None:
    good = _write(tmp_path / "good.mp4", KINDS[0], list(range(30)))
    first = hostile.submit_frames(str(tmp_path / "midway.mp4"), 0, 300, 25.0, 1024, 1024)
    after = hostile.submit_frames(good, 0, 3, 25.0, 32, 64)
    with pytest.raises(ClipError, match="crashed: "):
        first.result(timeout=20)
    assert numbers(after.result(timeout=20)) == [0, 1, 2], "the call that waited behind a crash is lost"
    assert hostile._child is not None
    hostile._child.kill()
    assert numbers(hostile.frames(good, 5, 2, 25.0, 32, 64)) == [5, 6], "a child killed while idle stays dead"


def test_the_child_imports_little(decoder: Decoder, tmp_path: Path) -> None:
    decoder.frames(_write(tmp_path / "a.mp4", KINDS[0], [0, 1, 2]), 0, 2, 25.0, 32, 64)
    assert decoder._child is not None
    mapped = Path(f"/proc/{decoder._child.pid}/maps")
    if mapped.exists():
        assert not [name for name in ("libtorch", "libarrow", "_raylet") if name in mapped.read_text()]


def test_a_child_that_cannot_start_is_no_clip_error() -> None:
    with Decoder(functions="no_such_module") as broken, pytest.raises(RuntimeError, match="did not start"):
        broken.index("/nowhere.mp4", 5, 5.0)


# --- writing ---------------------------------------------------------------------------------------------------------


def test_write_mp4(tmp_path: Path) -> None:
    film = _film(["a"], 9)
    for name in ("a.mp4", "b.mp4"):
        video.write_mp4(str(tmp_path / name), film, 8.0)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes(), "the same frames give other bytes"
    assert sorted(os.listdir(tmp_path)) == ["a.mp4", "b.mp4"], "temporary files stay"
    row = video.segments(str(tmp_path / "a.mp4"), 9, 8.0)[0]
    assert (row["height"], row["width"], row["fps"]) == (48, 80, 8.0)
    again = video.decode(str(tmp_path / "a.mp4"), 0, 9, 8.0, 48, 80)
    assert np.abs(again.astype(int) - film).mean() < 4, "colours do not survive writing and reading"
    video.write_mp4("memory://bucket/c.mp4", film, 8.0)
    assert fsspec.filesystem("memory").cat("/bucket/c.mp4") == (tmp_path / "a.mp4").read_bytes()
    with pytest.raises(ValueError, match="even"):
        video.write_mp4(str(tmp_path / "c.mp4"), film[:, :47], 8.0)


def test_a_table_that_names_the_same_bytes_again_and_again_is_refused(tmp_path: Path) -> None:
    """An mp4 of a few kB with a hundred thousand samples, all of them its first one."""
    path = tmp_path / "a.mp4"
    _write(path, KINDS[0], list(range(10)), keys=1)
    table = packets.read_packets(str(path))
    repeats = 100_000
    replaced = {
        b"stsz": struct.pack(">III", 0, int(table.size[0]), repeats),
        b"stts": struct.pack(">IIII", 0, 1, repeats, 512),
        b"stsc": struct.pack(">IIIII", 0, 1, 1, 1, 1),
        b"stco": struct.pack(">II", 0, repeats) + struct.pack(">I", int(table.position[0])) * repeats,
        b"stss": b"\0" * 8,
        b"edts": b"",
    }

    def rewritten(data: bytes) -> bytes:
        out, at = b"", 0
        while at < len(data):
            length, name = struct.unpack(">I4s", data[at : at + 8])
            body = replaced.get(name, data[at + 8 : at + length])
            if name in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
                body = rewritten(body)
            if body or name == b"mdat":
                out += struct.pack(">I4s", len(body) + 8, name) + body
            at += length
        return out

    whole = path.read_bytes()
    path.write_bytes(rewritten(whole))
    # Offsets hold: the table lies behind the data.
    assert whole.index(b"mdat") < whole.index(b"moov")
    with pytest.raises(ClipError, match="refused: its packets are more than 16 times as large as the file itself"):
        video.segments(str(path), 5, 25.0)
    with pytest.raises(ClipError, match="refused"):
        video.decode(str(path), 0, 5, 25.0, 32, 64)


def test_a_film_of_endless_packets_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path / "a.mp4", KINDS[0], list(range(60)))
    monkeypatch.setattr(packets, "_MOST_PACKETS", 50)
    with pytest.raises(ClipError, match="refused: it has more than 50 packets; cut it into shorter videos"):
        video.segments(path, 5, 25.0)


def test_a_pause_of_hours_takes_no_time(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.mkv", KINDS[1], [*range(20), *range(20 + 25 * 36000, 40 + 25 * 36000)])
    begin = time.monotonic()
    starts = [row["start_frame"] for row in video.segments(path, 5, 25.0, 1)]
    assert starts == list(range(36))
    assert time.monotonic() - begin < 5
    assert numbers(video.decode(path, 30, 5, 25.0, 32, 64)) == list(range(30, 35))


@pytest.mark.parametrize(("degrees", "usable"), [(2, True), (45, False), (-30, False), (91, True)])
def test_a_picture_that_lies_aslant_is_an_error(tmp_path: Path, degrees: int, usable: bool) -> None:
    path = Path(_write(tmp_path / "a.mp4", KINDS[0], [0, 1, 2, 3]))
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44
    cosine, sine = (int(65536 * f(np.deg2rad(degrees))) for f in (np.cos, np.sin))
    data[matrix : matrix + 36] = struct.pack(">9i", cosine, sine, 0, -sine, cosine, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    if usable:
        assert len(video.segments(str(path), 4, 25.0)) == 1
    else:
        with pytest.raises(ClipError, match="decode: its display matrix turns it by no quarter"):
            video.segments(str(path), 4, 25.0)


def test_which_of_two_tracks_is_used_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = _two_tracks(tmp_path / "two.mkv", list(range(20)), 1)
    listed = {"uri": path, "relative": "two.mkv", "size": 1, "caption": "c", "error": None}
    with Decoder() as decoder:
        rows = index(listed, _data(frames=5, fps=25.0), decoder)
    assert f"{path}: it has 2 video streams; of these the stream 1 is used." in caplog.text
    assert all("note" not in row for row in rows)
