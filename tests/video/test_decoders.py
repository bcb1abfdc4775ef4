"""Clips decode ahead of the caller, as many at once as there are decoders, and in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import Run
from pipeline.errors import ClipError
from pipeline.synthetic import world
from pipeline.video.decoder import Decoder
from pipeline.video.decoders import Decoders, Frames, Row, decoded, decoders_for
from pipeline.video.frames import write_mp4
from tests.support.numbered import numbers, write

CLIPS = 5


@pytest.fixture(scope="module")
def run(small_run: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(tmp_path_factory.mktemp("decoding") / "run")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Clips of one file each, and one file that is no video."""
    folder: Path = tmp_path_factory.mktemp("clips")
    clip_rows = []
    for i in range(CLIPS):
        write_mp4(str(folder / f"{i}.mp4"), world.render(world.scene(0, f"{i}", "real", "slide"), 32, 32), 8.0)
        clip_rows.append({"clip_id": f"{i}", "uri": str(folder / f"{i}.mp4"), "start_frame": 0})
    (folder / "2.mp4").write_bytes(b"no video")
    return clip_rows


@pytest.fixture
def several() -> Iterator[Decoders]:
    made = Decoders(3, 30.0)
    yield made
    made.close()


def test_any_number_of_decoders_gives_the_same_rows_in_the_same_order(
    run: Run, rows: list[Row], several: Decoders
) -> None:
    with Decoder(timeout=30) as one:
        expected = list(decoded(one, run, rows))
    results = list(decoded(several, run, rows))
    assert [row["clip_id"] for row, _ in results] == [row["clip_id"] for row in rows]
    for (row, frames), (_, alone) in zip(results, expected, strict=True):
        if row["clip_id"] == "2":
            assert isinstance(frames, ClipError)
            assert str(frames) == str(alone)
        else:
            assert np.array_equal(np.asarray(frames), np.asarray(alone)), f"clip {row['clip_id']} has other pixels"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_segments_of_a_large_video_one_after_another_take_one_segment_s_memory(tmp_path: Path) -> None:
    """The scaler's threads and frames that refer to themselves stayed from frame to frame, until none could begin."""
    path = write(tmp_path / "large.mp4", "libx264", list(range(70)), size=(1080, 1920), options={"preset": "ultrafast"})
    with Decoder(timeout=120) as decoder:
        for start in (0, 5, 9):
            assert numbers(decoder.frames(path, start, 60, 25.0, 54, 96)) == list(range(start, start + 60))
        assert decoder._child is not None
        lines = Path(f"/proc/{decoder._child.pid}/status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines)
        assert int(status["VmPeak"].split()[0]) < 700_000
        assert int(status["Threads"]) <= 2


class Watched(Decoders):
    """Counts the clips that are asked for and not yet taken."""

    def __init__(self, count: int) -> None:
        super().__init__(count, 1.0)
        self.asked = 0

    def submit_frames(self, *_: object) -> Future[Frames]:  # type: ignore[override]
        self.asked += 1
        done: Future[Frames] = Future()
        done.set_result(np.zeros((1, 2, 2, 3), np.uint8))
        return done


@pytest.mark.parametrize("count", [1, 3, 9])
def test_as_many_clips_are_ahead_as_there_are_decoders(run: Run, rows: list[Row], count: int) -> None:
    watched = Watched(count)
    for place, _ in enumerate(decoded(watched, run, rows), start=1):
        assert watched.asked == min(CLIPS, place + count), f"{watched.asked} of {CLIPS} clips asked for at clip {place}"


@pytest.mark.parametrize(("cpus", "count"), [(0.5, 1), (1, 1), (2, 1), (4, 3)])
def test_an_actor_has_a_decoder_for_each_cpu_but_its_own(run: Run, cpus: float, count: int) -> None:
    assert len(decoders_for(run, cpus)) == count
