"""FFmpeg's scaler shows the same frames at the same places as Pillow, in the colours that the stream means; without
the key everything is as it was, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from av.video.reformatter import ColorRange, Colorspace

from pipeline.attribution import fingerprints
from pipeline.config import Run
from pipeline.errors import ClipError
from pipeline.training import training_set
from pipeline.video import frames as video
from pipeline.video.decoder import Decoder
from pipeline.video.decoders import decoder_for
from pipeline.video.orientation import SCALERS, FFmpegScaler, Frames, Pose, fit
from tests.support.numbered import numbers, write

KINDS = [
    ("mp4", "libx264", "yuv420p"),
    ("mp4", "libx265", "yuv420p10le"),
    ("mp4", "libsvtav1", "yuv420p"),
    ("webm", "libvpx-vp9", "yuv420p"),
    ("m4v", "mpeg4", "yuv420p"),
    ("gif", "gif", "rgb8"),
]
POSES = {
    "upright": Pose(False, False, False, 1.0),
    "a quarter to the right": Pose(True, False, True, 1.0),
    "upside down": Pose(False, True, True, 1.0),
    "a quarter, mirrored": Pose(True, False, False, 1.0),
    "wide pixels": Pose(False, False, False, 4 / 3),
    "tall pixels, a quarter": Pose(True, True, False, 0.75),
}
MARKERS = [(row, column) for row in (0.3, 0.5, 0.66) for column in (0.36, 0.5, 0.61)]  # shares of height and width


def _scaled(scaler: str, frame: Any, seen: Pose, height: int, width: int) -> Frames:
    picture = np.zeros((height, width, 3), np.uint8)
    SCALERS[scaler]()(frame, seen, picture)
    return picture


def _marked(height: int, width: int, row: float, column: float) -> Any:
    """A frame with one soft white marker on black."""
    y, x = np.mgrid[:height, :width]
    away = np.hypot(y - row * height, x - column * width) / (min(height, width) / 24)
    grey = (235 * np.exp(-(away**2))).astype(np.uint8)
    return av.VideoFrame.from_ndarray(np.stack([grey] * 3, -1), format="rgb24").reformat(format="yuv420p")


def _centre(picture: Frames) -> npt.NDArray[np.float64]:
    weight = picture.mean(-1) * (picture.mean(-1) > 8)
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    return np.array([(weight * y).sum(), (weight * x).sum()]) / weight.sum()


@pytest.mark.parametrize("pose", POSES)
@pytest.mark.parametrize("size", [(96, 166), (100, 101), (150, 90), (420, 500)], ids=str)
def test_a_marker_lands_within_half_a_pixel_of_where_pillow_puts_it(pose: str, size: tuple[int, int]) -> None:
    compared = 0
    for row, column in MARKERS:
        frame = _marked(202, 358, row, column)
        old, new = (_scaled(scaler, frame, POSES[pose], *size) for scaler in ("pillow", "ffmpeg"))
        if old.max() < 128 or max(old[0].max(), old[-1].max(), old[:, 0].max(), old[:, -1].max()) > 8:
            continue  # it is cut off
        compared += 1
        away = np.abs(_centre(old) - _centre(new)).max()
        assert away <= 0.5, f"the marker at {row}, {column} is {away:.2f} pixels off"
    assert compared >= 3


@pytest.mark.parametrize("kind", KINDS, ids=[kind[1] for kind in KINDS])
def test_the_frames_that_are_asked_for_in_every_format(tmp_path: Path, kind: tuple[str, str, str]) -> None:
    if kind[1] not in av.codec.codecs_available:
        pytest.skip(f"PyAV here has no {kind[1]}")
    path = write(tmp_path / f"a.{kind[0]}", kind[1], list(range(60)), rate=25, keys=10, pix_fmt=kind[2], size=(64, 128))
    for start in (0, 3, 17, 33, 47):
        shown = [numbers(video.decode(path, start, 9, 25.0, 32, 64, scaler=scaler)) for scaler in SCALERS]
        assert shown[0] == shown[1] == list(range(start, start + 9))
    assert numbers(video.decode(path, 4, 6, 5.0, 32, 64, scaler="ffmpeg")) == [4, 9, 14, 19, 24, 29]


def _yuv(rgb: npt.NDArray[np.float64], matrix: str, full: bool) -> npt.NDArray[np.float64]:
    """The 8 bit Y, Cb, Cr of a colour, by ITU-R BT.601 and BT.709."""
    red, blue = {"601": (0.299, 0.114), "709": (0.2126, 0.0722)}[matrix]
    y = red * rgb[0] + (1 - red - blue) * rgb[1] + blue * rgb[2]
    cb, cr = (rgb[2] - y) / (2 - 2 * blue), (rgb[0] - y) / (2 - 2 * red)
    if full:
        return np.array([y, cb + 128, cr + 128])
    return np.array([16 + y * 219 / 255, 128 + cb * 224 / 255, 128 + cr * 224 / 255])


def _plain(yuv: npt.NDArray[np.float64], size: tuple[int, int], ten_bit: bool) -> Any:
    """A frame of one colour."""
    height, width = size
    kind = np.uint16 if ten_bit else np.uint8
    levels = np.rint(yuv * (4 if ten_bit else 1)).astype(kind)
    frame = av.VideoFrame(width, height, "yuv420p10le" if ten_bit else "yuv420p")
    for plane, level in zip(frame.planes, levels, strict=True):
        plane.update(np.full(plane.buffer_size // np.dtype(kind).itemsize, level, kind).tobytes())
    return frame


@pytest.mark.parametrize("ten_bit", [False, True], ids=["8 bit", "10 bit"])
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize(
    ("size", "said", "matrix"),
    [
        ((1080, 1920), Colorspace.ITU709, "709"),
        ((1080, 1920), Colorspace.ITU601, "601"),
        ((480, 640), Colorspace.ITU709, "709"),
        ((480, 640), Colorspace.ITU601, "601"),
        ((1080, 1920), None, "709"),
        ((720, 960), None, "709"),
        ((576, 720), None, "601"),
        ((480, 640), None, "601"),
    ],
)
def test_colours_are_what_the_stream_means(
    size: tuple[int, int], said: Colorspace | None, matrix: str, full: bool, ten_bit: bool
) -> None:
    for rgb in ([200, 40, 30], [30, 180, 60], [40, 60, 220], [255, 255, 255], [0, 0, 0]):
        frame = _plain(_yuv(np.array(rgb, float), matrix, full), size, ten_bit)
        if said is not None:
            frame.colorspace = said
        frame.color_range = ColorRange.JPEG if full else ColorRange.MPEG
        picture = _scaled("ffmpeg", frame, POSES["upright"], 48, 64)
        assert np.abs(picture.astype(int) - rgb).max() <= 3, f"{rgb} became {picture[24, 32]}"


def test_an_rgb_frame_keeps_its_colours() -> None:
    for size in ((96, 160), (720, 1280)):
        frame = av.VideoFrame.from_ndarray(np.full((*size, 3), (200, 40, 30), np.uint8), format="rgb24")
        assert np.abs(_scaled("ffmpeg", frame, POSES["upright"], 48, 64).astype(int) - (200, 40, 30)).max() <= 1


def test_a_picture_that_would_be_scaled_beyond_measure_is_refused() -> None:
    with pytest.raises(ClipError, match=r"refused: to cover 832 x 480 it would be scaled to 983040 x 480, .* pillow"):
        _scaled("ffmpeg", av.VideoFrame(16384, 8, "yuv420p"), POSES["upright"], 480, 832)


def test_shrinking_is_antialiased() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    frame = av.VideoFrame.from_ndarray(noise, format="rgb24").reformat(format="yuv420p")
    old, new = (_scaled(scaler, frame, POSES["upright"], 16, 16).astype(float) for scaler in ("pillow", "ffmpeg"))
    assert new.std() < 20
    assert np.abs(old - new).mean() < 4


def test_a_scaler_that_has_scaled_other_frames_gives_the_same_pixels() -> None:
    first, second = _marked(202, 358, 0.5, 0.5), _marked(96, 96, 0.4, 0.6)
    used = FFmpegScaler()
    for frame, size in ((first, (48, 64)), (second, (64, 48)), (first, (48, 64))):
        picture = np.zeros((*size, 3), np.uint8)
        used(frame, POSES["upright"], picture)
        assert np.array_equal(picture, _scaled("ffmpeg", frame, POSES["upright"], *size))


# --- without the key -------------------------------------------------------------------------------------------------


def test_the_default_gives_the_pixels_of_pillow_to_the_bit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", "libx264", list(range(20)), size=(96, 160))
    with av.open(path) as container:
        expected = [fit(frame, POSES["upright"], 33, 61) for frame in container.decode(video=0)][4:13]
    assert np.array_equal(video.decode(path, 4, 9, 25.0, 33, 61), expected)
    with Decoder() as plain, Decoder(scaler="ffmpeg") as other:
        assert np.array_equal(plain.frames(path, 4, 9, 25.0, 33, 61), expected)
        assert not np.array_equal(other.frames(path, 4, 9, 25.0, 33, 61), expected)


def test_a_fingerprint_has_the_scaler_only_where_it_is_not_the_default(
    small_run: Callable[..., Run], tmp_path: Path
) -> None:
    run, other = small_run(tmp_path / "a"), small_run(tmp_path / "a", data__scaler="ffmpeg")
    for of in (fingerprints.motion, fingerprints.movement, fingerprints.pictures, fingerprints.features):
        assert set(of(other)) - set(of(run)) == {"data.scaler"}
        assert {**of(run), "data.scaler": "ffmpeg"} == of(other)
    assert fingerprints.clips(run) == fingerprints.clips(other), "the index scales nothing"
    assert [*training_set.encoded_as(run, "m"), "data.scaler=ffmpeg"] == training_set.encoded_as(other, "m")
    with decoder_for(run) as plain, decoder_for(other) as ffmpeg:
        assert (plain._scaler, ffmpeg._scaler) == ("pillow", "ffmpeg")


# --- threads and memory ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_fifty_segments_take_the_memory_of_one_and_one_thread(tmp_path: Path) -> None:
    path = write(tmp_path / "large.mp4", "libx264", list(range(40)), size=(1080, 1920), options={"preset": "ultrafast"})

    def status(decoder: Decoder) -> tuple[int, int, int]:
        lines = Path(f"/proc/{decoder.pid}/status").read_text().splitlines()
        values = dict(line.split(":", 1) for line in lines)
        return tuple(int(values[name].split()[0]) for name in ("VmPeak", "VmHWM", "Threads"))  # type: ignore[return-value]

    with Decoder(timeout=120, scaler="ffmpeg") as decoder:
        for number in range(50):
            start = number % 30
            assert numbers(decoder.frames(path, start, 9, 25.0, 54, 96)) == list(range(start, start + 9))
            if number == 14:
                early = status(decoder)
        late = status(decoder)
    assert late[2] == 1, "the scaler began threads"
    more = 16 << 10  # KiB; a frame of 3 MB that each of 35 segments left behind would be six times as much
    assert late[0] <= early[0] + more, "its address space grows"
    assert late[1] <= early[1] + more, "its memory grows"


def test_pixels_that_are_not_square_and_a_turned_file(tmp_path: Path) -> None:
    def stretch(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(8, 3)

    path = write(tmp_path / "a.mp4", "libx264", [0, 1, 2, 3], stream_changes=stretch)
    for height, width in ((32, 171), (32, 32), (64, 100)):
        old, new = (video.decode(path, 0, 4, 25.0, height, width, scaler=scaler) for scaler in SCALERS)
        assert np.abs(old.astype(int) - new).mean() < 8
