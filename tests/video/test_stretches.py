"""A film that is split is indexed as one that is not, to the bit, wherever it is split; what cannot be split is not."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline.errors import ClipError
from pipeline.synthetic import world
from pipeline.video import frames as video
from pipeline.video import packets, timeline
from pipeline.video.cuts import Changes, cuts
from pipeline.video.stretches import segments_of
from tests.support.numbered import numbers, write
from tests.video.test_frames import CODECS, COUNT, RATE, TABLE, film

LENGTH = 20


def joined(path: str, length: int, frames: int, fps: float, stride: int | None = None) -> list[dict[str, Any]]:
    """The segments of a file by its stretches, each as another process gets it."""
    rows = [
        json.loads(json.dumps(video.stretch(path, row["start_frame"], row["num_frames"])[0]))
        for row in video.plan_stretches(path, length)
    ]
    return segments_of(rows, frames, fps, stride)


@pytest.mark.parametrize(("end", "name"), TABLE, ids=["-".join(row) for row in TABLE])
def test_a_split_film_is_indexed_as_a_whole_one(tmp_path: Path, end: str, name: str) -> None:
    path = film(tmp_path, end, name)
    plan = video.plan_stretches(path, LENGTH)
    if not plan:
        assert end in ("avi", "mpg", "vob", "wmv", "gif") or CODECS[name][1], "packets that are stamped say enough"
        return
    assert [row["start_frame"] for row in plan] == [0, *np.cumsum([row["num_frames"] for row in plan])[:-1]]
    assert sum(row["num_frames"] for row in plan) == COUNT
    assert sum(row["seconds"] for row in plan) == pytest.approx(COUNT / RATE, rel=0.05)
    for frames, fps, stride in ((9, float(RATE), 1), (5, 8.0, None)):
        assert joined(path, LENGTH, frames, fps, stride) == video.segments(path, frames, fps, stride)


def test_most_kinds_of_files_are_split(tmp_path: Path) -> None:
    kinds = [("mp4", "h264-b"), ("mp4", "hevc"), ("mp4", "av1"), ("webm", "vp9"), ("mkv", "h264-b"), ("mov", "mpeg4")]
    for end, name in kinds:
        assert len(video.plan_stretches(film(tmp_path, end, name), LENGTH)) >= 2, f"{name} in {end}"


@pytest.mark.parametrize("open_gop", [False, True], ids=["closed", "open"])
@pytest.mark.parametrize("length", [13, 24, 30, 61])
def test_cuts_are_where_they_are_wherever_a_film_is_split(tmp_path: Path, length: int, open_gop: bool) -> None:
    """Shots of 24 frames, key frames where the encoder wants them, frames that are predicted from both sides."""
    shots = [world.render(world.scene(3, f"{i}", "real", "slide", 24, 24), 48, 80) for i in range(6)]
    pictures = np.concatenate(shots)
    path, options = str(tmp_path / "a.mp4"), {"x264-params": f"open-gop={int(open_gop)}:keyint=12"}
    with av.open(path, "w") as container:
        stream: Any = container.add_stream("libx264", rate=24, options=options)
        stream.height, stream.width, stream.pix_fmt = 48, 80, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    assert len(video.plan_stretches(path, length)) >= 2
    whole = video.segments(path, 40, 24.0, 7)
    assert joined(path, length, 40, 24.0, 7) == whole
    assert any(row["cuts"] for row in whole), "the test's own film has no cut"


def test_a_variable_rate_is_kept(tmp_path: Path) -> None:
    stamps = [*range(30), *range(60, 90), *range(90, 200, 4)]
    path = write(tmp_path / "a.mkv", "libx264", stamps, keys=8)
    assert joined(path, LENGTH, 6, 10.0, 2) == video.segments(path, 6, 10.0, 2)


def test_what_is_damaged_is_not_whole(tmp_path: Path) -> None:
    path = film(tmp_path, "mp4", "h264-b")
    table = packets.read_packets(path)
    hurt = int(np.flatnonzero(table.key)[2]) + 1
    data = bytearray(Path(path).read_bytes())
    at, size = int(table.position[hurt]), int(table.size[hurt])
    data[at + 4 : at + size] = bytes(size - 4)
    Path(path).write_bytes(data)
    states, plan = [], video.plan_stretches(path, LENGTH)
    for row in plan:
        try:
            video.stretch(path, row["start_frame"], row["num_frames"])
            states.append(True)
        except ClipError:
            states.append(False)
    number = int(timeline.stamped(table).number_of[hurt])
    assert states == [not row["start_frame"] <= number < row["start_frame"] + row["num_frames"] for row in plan]


def test_frames_that_are_not_shown_keep_a_film_whole(tmp_path: Path) -> None:
    """An edit list that begins inside the film hides frames, which decide on cuts as well."""

    def delay(packet: Any) -> None:
        packet.pts = packet.dts

    path = film(tmp_path, "mp4", "h264-b", change=delay)
    assert video.plan_stretches(path, LENGTH) == []


def test_changes_are_those_of_the_plain_definition() -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (18, 32, 3)).astype(np.uint8) for _ in range(20)]
    changes = Changes()
    for picture in pictures:
        changes.add(picture)
    for i, (before, after) in enumerate(pairwise(pictures)):
        assert changes.pixels[i] == float(np.abs(after.astype(np.int16) - before).mean() / 255)
        shares = []
        for picture in (before, after):
            code = (picture.reshape(-1, 3).astype(np.int64) * 6) >> 8
            counts = np.bincount(code @ np.array([36, 6, 1]), minlength=216).reshape(6, 6, 6).astype(np.float64)
            for axis in range(3):
                counts = counts + 0.5 * (np.roll(counts, 1, axis) + np.roll(counts, -1, axis))
            shares.append((counts / counts.sum()).reshape(-1))
        assert changes.colours[i] == float(np.abs(shares[1] - shares[0]).sum() / 2)
    assert len(cuts(np.stack(pictures))) == 0


def test_a_file_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And shows the same frames as one that was opened anew."""
    path = film(tmp_path, "mp4", "h264-b")
    opened = []
    open_container = packets.open_container

    def counted(*arguments: Any) -> Any:
        opened.append(arguments)
        return open_container(*arguments)

    monkeypatch.setattr(packets, "open_container", counted)
    first = video.segments(path, 9, float(RATE), 1)
    assert len(opened) == 1
    assert video.segments(path, 9, float(RATE), 1) == first
    assert len(opened) == 2
    assert numbers(video.decode(path, 30, 9, float(RATE), 64, 128)) == list(range(30, 39))
