"""Long videos are indexed in stretches: the same clips as without, also by a job that goes on where one was stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import tables
from pipeline.cluster import streaming
from pipeline.cluster.streaming import Stage
from pipeline.config import Run
from pipeline.inputs.videos import videos
from pipeline.operations import purge
from pipeline.stages import indexing
from pipeline.stages.progress import FilmProgress
from pipeline.synthetic import world
from pipeline.tables import purge_list, schemas
from pipeline.tables.throughput import Figures
from pipeline.video.frames import write_mp4
from pipeline.video.indexing import IndexWorker
from tests.support.numbered import write

MakeRun = Callable[..., Run]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two long films, one of them with a damaged frame, a short one, and one that is no video."""
    folder = tmp_path_factory.mktemp("films")
    shots = [world.render(world.scene(3, f"{i}", "real", "slide", 40, 8), 48, 80) for i in range(12)]
    write_mp4(str(folder / "long.mp4"), np.concatenate(shots), 24.0)
    write_mp4(str(folder / "short.mp4"), shots[0], 24.0)
    path = Path(write(folder / "torn.mkv", "libx264", list(range(600)), rate=24, keys=10))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    path.write_bytes(data)
    (folder / "text.mp4").write_bytes(b"this is no video " * 100)
    return folder


def clips(run: Run) -> list[dict[str, Any]]:
    table = tables.read(f"{run.root}/clips")
    assert table is not None
    return table.sort_by("clip_id").to_pylist()


def whole_clips(run: Run, films: Path) -> list[dict[str, Any]]:
    """The clips of videos that are decoded from start to end, each by one worker."""
    worker = IndexWorker(run, schemas.CLIPS)
    rows = [row for part in worker(videos(str(films))) for row in part["clips"].to_pylist()]
    worker.decoder.close()
    return sorted(rows, key=lambda row: str(row["clip_id"]))


@pytest.mark.slow
def test_stretches_change_no_clip(
    small_run: MakeRun, films: Path, cluster: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pool = {"actors": 2, "cpus": 1, "batch": 2}
    split = small_run(
        tmp_path, data__videos=str(films), data__empty_captions=1.0, data__stretch=100, resources__index_clips=pool
    )
    indexing.index(split, "clips")
    assert clips(split) == whole_clips(split, films)
    said = capfd.readouterr()
    assert "index stretches of clips: " in said.out
    assert "x real time" in said.err
    for folder in ("stretches/clips", "changes/clips"):
        assert tables.parts(f"{split.root}/{folder}") == [], f"{folder} is not empty when its videos have their clips"


@pytest.mark.slow
def test_a_job_that_was_stopped_inside_a_video_goes_on_there(
    small_run: MakeRun, films: Path, cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(tmp_path, data__videos=str(films), data__empty_captions=1.0, data__stretch=100)

    class StoppedError(Exception):
        pass

    def stop(self: FilmProgress, done: int, total: int, errors: dict[str, int]) -> None:
        if done >= 3:
            raise StoppedError

    monkeypatch.setattr(FilmProgress, "__call__", stop)
    with pytest.raises(StoppedError):
        indexing.index(run, "clips")
    monkeypatch.undo()
    noted = tables.read(f"{run.root}/changes/clips", ["stretch"])
    assert noted is not None
    assert noted.num_rows >= 3
    assert not [row for row in clips(run) if row["uri"].endswith("long.mp4")], "a part of a video passes for all of it"
    asked = []
    line = FilmProgress._line

    def note(self: FilmProgress, done: int, total: int, elapsed: float, errors: dict[str, int]) -> str:
        asked.append(total)
        return line(self, done, total, elapsed, errors)

    monkeypatch.setattr(FilmProgress, "_line", note)
    plan = tables.read(f"{run.root}/stretches/clips")
    assert plan is not None
    indexing.index(run, "clips")
    assert asked[0] == plan.num_rows - noted.num_rows, "stretches are decoded again"
    assert clips(run) == whole_clips(run, films)


@pytest.mark.slow
def test_stretches_of_a_video_that_is_gone_go(
    small_run: MakeRun, films: Path, cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("long.mp4", "short.mp4"):
        (folder / name).write_bytes((films / name).read_bytes())
    run = small_run(tmp_path / "run", data__videos=str(folder), data__empty_captions=1.0, data__stretch=100)
    monkeypatch.setattr(indexing, "_index_long", lambda *_: None)
    indexing.index(run, "clips")
    monkeypatch.undo()
    assert tables.parts(f"{run.root}/stretches/clips")
    (folder / "long.mp4").unlink()
    indexing.index(run, "clips")
    assert tables.parts(f"{run.root}/stretches/clips") == []
    assert {Path(row["uri"]).name for row in clips(run)} == {"short.mp4"}


def test_a_video_of_which_every_clip_was_purged_is_fetched_once_more_and_never_again(
    small_run: MakeRun, small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals = list[int]()

    def stream(stage: Stage, blocks: Iterable[pa.Table], total: int, *_: Any) -> Figures:
        totals.append(total)
        worker = stage.worker()
        for name, rows in ((n, rows) for block in blocks for part in worker(block) for n, rows in part.items()):
            tables.append(stage.folders[name], rows, stage.fingerprints[name])
        return Figures()

    monkeypatch.setattr(streaming, "stream", stream)
    folder = tmp_path / "videos"
    shutil.copytree(small_world / "queries", folder)
    run = small_run(tmp_path / "run", data__videos=str(folder), data__empty_captions=1.0)
    indexing.index(run, "clips")
    every = clips(run)
    gone = str(every[0]["uri"])
    purge.purge(run.root, {row["clip_id"] for row in every if row["uri"] == gone})
    for _ in range(3):
        indexing.index(run, "clips")
        assert {row["uri"] for row in clips(run)} == {row["uri"] for row in every} - {gone}
    assert totals == [len({row["uri"] for row in every}), 1, 0, 0]
    assert gone not in Path(run.root, purge_list.FILE).read_text()
    write_mp4(gone, np.zeros((30, 32, 32, 3), np.uint8), 24.0)  # another video in its place
    indexing.index(run, "clips")
    assert totals[-1] == 1


def test_the_rate_and_the_time_left_are_those_of_film() -> None:
    progress = FilmProgress("index stretches of clips", 7200.0, 3600.0)
    progress._first = 10.0, 1
    line = progress._line(4, 10, 40.0, {})
    assert line.startswith("index stretches of clips: 84 of 120 min of film [40 s, ")
    assert "36.0 x real time" in line
    assert "1 min 00 s left" in line
