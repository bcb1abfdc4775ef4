"""Processes that die: whatever a clip does to its process, the stage ends, and the other clips have their results."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cluster.streaming import Stage
from pipeline.stages import attribution, indexing

ROOT = str(Path(__file__).parents[2])

from jobs.curate import curate  # noqa: E402
from pipeline import models, tables  # noqa: E402
from pipeline.attribution.workers import AttributionWorker  # noqa: E402
from pipeline.cluster import journal, streaming  # noqa: E402
from pipeline.cluster.attempts import LIMIT, STARTS, Attempts  # noqa: E402
from pipeline.config import Run  # noqa: E402
from pipeline.config.operations import Pool  # noqa: E402
from pipeline.errors import ClipError, LostError, StageError, store_failure  # noqa: E402
from pipeline.stages.finetuning import finetune  # noqa: E402
from pipeline.storage import lease  # noqa: E402
from pipeline.tables import scanning, schemas  # noqa: E402
from pipeline.tables.throughput import Figures  # noqa: E402
from pipeline.video.indexing import IndexWorker  # noqa: E402
from tests.support.fragile_motion import CODEC, FragileMotion  # noqa: E402
from tests.support.stage_workers import Hog, Mortal, RenamedError  # noqa: E402

pytestmark = pytest.mark.slow

# --- the attempts, without Ray ---------------------------------------------------------------------------------------


class KilledError(Exception):
    """The process is gone."""


def worked(attempts: Attempts, names: Sequence[str], deadly: Callable[[Sequence[str]], bool]) -> tuple[int, list[str]]:
    """Work a batch as an actor does, until it ends; returns how many processes died and which clips were given up."""
    given_up: list[str] = []

    def attempt(batch: Sequence[str], of_batch: bool) -> None:
        begun = attempts.begins("a", batch)
        if begun is None:
            return
        deaths, _ = begun
        if deaths and len(batch) > 1:
            for name in batch:
                attempt([name], True)
        elif deaths < LIMIT:
            if deadly(batch):
                raise KilledError
        else:
            given_up.extend(batch)
        attempts.ends("a", batch, Figures(rows=len(batch)), of_batch)

    died = 0
    while True:
        attempts.starts("a", "here")
        attempts.is_up("a")
        try:
            attempt(names, False)
        except KilledError:
            died += 1
            assert died <= 1 + LIMIT * len(names), "the batch does not end"
        else:
            return died, given_up


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_clip_that_kills_its_process_is_given_up_and_no_other(size: int) -> None:
    names = [f"c{i}" for i in range(size)]
    died, given_up = worked(Attempts(), names, lambda batch: "c0" in batch)
    assert given_up == ["c0"]
    assert died == (LIMIT if size == 1 else 1 + LIMIT)


@pytest.mark.parametrize("seed", range(20))
def test_every_batch_ends_however_its_processes_die(seed: int) -> None:
    chance = random.Random(seed)
    attempts = Attempts()
    for batch in range(5):
        worked(attempts, [f"{batch}-{i}" for i in range(6)], lambda _: chance.random() < 0.7)
    assert not attempts._entries, "the journal grows with the clips"


def test_a_finished_clip_of_a_torn_batch_is_not_worked_again() -> None:
    attempts, tried = Attempts(), list[str]()

    def deadly(batch: Sequence[str]) -> bool:
        tried.extend(batch if len(batch) == 1 else ())
        return "c3" in batch

    worked(attempts, ["c0", "c1", "c2", "c3", "c4"], deadly)
    assert sorted(tried) == ["c0", "c1", "c2", *["c3"] * LIMIT, "c4"]


def test_two_tasks_on_one_clip_are_two_batches() -> None:
    attempts = Attempts()
    attempts.starts("a", "here")
    assert attempts.begins("a", ["base loss 0 c1"]) == (0, [])
    assert attempts.begins("a", ["random loss 0 c1"]) == (0, [])


def test_two_rows_of_one_file_are_two_names() -> None:
    """Else a torn batch would take the second for the first, which is done, and work it no more."""
    names = streaming._names(pa.table({"relative": ["a.mp4"] * 3, "id": ["x", "y", None], "uri": ["s3://b/a.mp4"] * 3}))
    assert names == ["x a.mp4", "y a.mp4", "a.mp4"]


# --- through Ray -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two CPUs, as Ray counts them, and workers that can import this file."""
    before, scratch = dict(os.environ), tempfile.mkdtemp()
    path = os.pathsep.join([scratch, ROOT])
    os.environ |= {"PYTHONPATH": path, "RAY_BACKEND_LOG_LEVEL": "fatal"}
    import ray

    ray.shutdown()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    streaming.connect()
    yield
    ray.shutdown()
    os.environ.clear()
    os.environ.update(before)
    shutil.rmtree(scratch)


def streamed(
    root: Path, names: list[str], start: str = "", tried: Collection[str] = (), **pool: float
) -> dict[str, str | None]:
    """The error of every row, each row being there once in the table's files."""
    table, heard = str(root / "features" / "clips"), list[int]()
    stage = Stage(
        title="test",
        root=str(root),
        pool=Pool.model_validate({"actors": 2, "batch": 4, **pool}),
        worker=partial(Mortal, str(root), start),
        folders={"found": table},
        fingerprints={"found": {}},
    )
    rows = [pa.table({"clip_id": names})]
    streaming.stream(stage, rows, len(names), lambda done, total, errors: heard.append(done), tried)
    assert heard[-1] == len(names)
    rows = [row for part in Path(table).glob("part-*") for row in pq.ParquetFile(part).read().to_pylist()]
    assert sorted(r["clip_id"] for r in rows) == sorted(names), "a row is missing or there twice"
    return {r["clip_id"]: r["error"] for r in rows}


def test_deadly_clips_become_error_rows_and_others_have_results(cluster: None, tmp_path: Path) -> None:
    names = ["segfault-1", *(f"c{i}" for i in range(9)), "once-1", "segfault-2"]
    errors = streamed(tmp_path, names, tried=["segfault-2", "c1"])
    codes = {name: error.split(":")[0] for name, error in errors.items() if error}
    assert codes == {"segfault-1": "crashed", "segfault-2": "crashed again"}


def test_an_actor_that_dies_once_while_it_starts_costs_nothing(cluster: None, tmp_path: Path) -> None:
    assert set(streamed(tmp_path, [f"c{i}" for i in range(8)], "dies_once").values()) == {None}


def test_an_actor_that_dies_whenever_it_starts_ends_the_stage(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=rf"stage test failed: .*died {STARTS} times in a row"):
        streamed(tmp_path, ["c0"], "dies")


def test_an_error_while_starting_ends_the_stage(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"stage test failed: .*no such weights"):
        streamed(tmp_path, ["c0"], "raises")


def test_a_mistake_of_ours_ends_the_stage_with_its_text(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stage test failed: ValueError: this is a mistake of ours\n"):
        streamed(tmp_path, ["c0", "raises"])


@pytest.mark.parametrize(("names", "start"), [(["c0", "full"], ""), (["c0"], "full")])
def test_a_stores_failure_reaches_the_driver_as_it_is(
    cluster: None, tmp_path: Path, names: list[str], start: str
) -> None:
    """Also one of a module that nobody knows, and behind another error, for of those Ray keeps the text alone."""
    with pytest.raises(StageError, match="stage test failed: /a: it cannot be written") as error:
        streamed(tmp_path, names, start)
    assert type(store_failure(error.value)) is RenamedError


def test_a_lost_lease_ends_a_stage_between_two_batches(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver stops at the next batch, and the actors write nothing any more."""
    monkeypatch.setattr(lease, "RENEWAL", 0.05)
    monkeypatch.setattr(journal, "SAVE", 3600.0)  # else there may be figures from before
    root, heard = str(tmp_path / "run"), list[int]()
    rows = pa.table({"clip_id": [f"c{i:03d}" for i in range(200)]})
    folders = {"found": f"{root}/features/clips"}
    pool = Pool(actors=1, batch=4)
    stage = streaming.Stage("test", root, pool, partial(Mortal, root, ""), folders, {"found": {}})

    def run_until_it_is_lost() -> None:
        with lease.hold(root, "test") as mine:

            def report(done: int, total: int, errors: dict[str, int]) -> None:
                heard.append(done)
                if done:
                    for path in Path(root).glob(".lease-*"):
                        path.unlink(missing_ok=True)
                    assert mine.lost.wait(10)

            streaming.stream(stage, [rows], rows.num_rows, report)

    with pytest.raises(LostError):
        run_until_it_is_lost()
    assert len(heard) == 2, "it went on after the batch in which the lease was lost"
    time.sleep(3)  # an actor hears of it within a second, on a busy machine a little later
    written = sorted(Path(root, "features", "clips").iterdir())
    time.sleep(2)
    assert sorted(Path(root, "features", "clips").iterdir()) == written, "an actor went on"
    assert not list(Path(root).glob("stats/*")), "figures were written to a run that another may hold"


def test_an_actor_writes_nothing_once_the_stage_is_stopped() -> None:
    attempts = Attempts()
    attempts.starts("a", "here")
    attempts.begins("a", ["c0"])
    attempts.writes("a", ["c0"], ["part"])
    attempts.stops()
    with pytest.raises(LostError):
        attempts.writes("a", ["c0"], ["another"])


def test_rows_that_are_given_up_have_the_schema_of_their_table(small_run: Callable[..., Run], tmp_path: Path) -> None:
    run, error = small_run(tmp_path), ClipError("crashed", "it died")
    clip = {"clip_id": "a", "uri": "a.mp4", "version": "1", "start_frame": 0, "num_frames": 9, "fps": 8.0}
    clips = pa.Table.from_pylist([{**clip, "height": 32, "width": 32}], schema=schemas.CLIPS)
    video = {"uri": "a.mp4", "relative": "a.mp4", "version": "1", "size": 3, "source": "s", "caption": "c", "id": None}
    worker = AttributionWorker(run, models.grid(run), {"of": "this test"})
    motion = worker.refuse(clips, error)["motion"]
    features = worker.features.refuse(motion, error)["features"]
    indexed = IndexWorker(run, schemas.CLIPS).refuse(pa.Table.from_pylist([{**video, "error": None}]), error)["clips"]
    assert worker.features.finish([]).schema == features.schema, "a batch of which no clip goes on to features"
    assert motion.schema == schemas.motion_schema(schemas.CLIPS)
    assert features.schema == schemas.features_schema(len(run.attribution.settings), run.attribution.projection.dim)
    assert indexed.schema == schemas.CLIPS
    for table in (motion, features, indexed):
        assert table.column("error").to_pylist() == ["crashed: it died"]


# --- the real stages -------------------------------------------------------------------------------------------------


def test_deadly_files_are_rows_of_the_motion_table(
    cluster: None, small_run: Callable[..., Run], small_world: Path, tmp_path: Path
) -> None:
    (Path(os.environ["PYTHONPATH"].split(os.pathsep)[0]) / "deadly_codec.py").write_text(CODEC)
    run, videos = small_run(tmp_path), []
    for source, name in zip(
        sorted((small_world / "clips").rglob("*.mp4")), ("good", "deadly", "fatal", "fine"), strict=False
    ):
        shutil.copy(source, tmp_path / f"{name}.mp4")
        video = {"clip_id": name, "uri": str(tmp_path / f"{name}.mp4"), "version": "1", "start_frame": 0}
        videos.append({**video, "num_frames": 9, "fps": 8.0, "height": 32, "width": 32})
    table = str(tmp_path / "motion" / "clips")
    pool = Pool(actors=1, batch=4)
    folders = {name: str(tmp_path / name / "clips") for name in ("pictures", "movement")} | {"motion": table}
    prints: dict[str, Any] = {name: {} for name in folders}
    stage = Stage("motion clips", run.root, pool, partial(FragileMotion, run), folders, prints)
    rows = [pa.Table.from_pylist(videos, schema=schemas.CLIPS)]
    figures = streaming.stream(stage, rows, len(videos), lambda *_: None)
    motion_table = tables.read(table)
    assert motion_table is not None
    assert motion_table.schema.remove_metadata() == schemas.motion_schema(schemas.CLIPS)
    rows = {row["clip_id"]: row for row in motion_table.to_pylist()}
    assert rows["deadly"]["error"].startswith("crashed: the decoder ended with SIGSEGV")
    assert rows["fatal"]["error"].startswith("crashed: the process that worked on this clip alone died 2 times")
    assert not [name for name in ("good", "fine") if (rows[name]["error"] or "no_motion").split(":")[0] != "no_motion"]
    assert (figures.deaths, figures.errors["crashed"]) == (1 + LIMIT, 2)
    assert figures.bytes_read > 0


def test_a_crashed_clip_is_tried_once_more_by_each_stage(
    cluster: None, small_run: Callable[..., Run], small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "videos").mkdir()
    for source in sorted((small_world / "clips").rglob("*.mp4"))[:2]:
        shutil.copy(source, tmp_path / "videos")
    run, stream, retried_ids = (
        small_run(tmp_path / "run", data__videos=str(tmp_path / "videos")),
        streaming.stream,
        list[Any](),
    )

    def watched(stage: Any, blocks: Any, total: int, report: Any, tried: Collection[str] = (), *given: Any) -> Any:
        retried_ids.append(set(tried))
        return stream(stage, blocks, total, report, tried, *given)

    for stage, folder in ((indexing.index, "clips"), (attribution.estimate_motion, "motion/clips")):
        stage(run, "clips")
        table = tables.read(f"{run.root}/{folder}")
        assert table is not None
        ids = table.column("clip_id").to_pylist()
        fingerprint = tables.metadata(f"{run.root}/{folder}")["fingerprint"]  # a table without rows has none
        tables.drop(f"{run.root}/{folder}", ids)
        error = pa.array(["crashed: killed"] * len(ids))
        failed = table.set_column(table.schema.get_field_index("error"), "error", error)
        tables.append(f"{run.root}/{folder}", failed, fingerprint)
        with monkeypatch.context() as patch:
            patch.setattr(streaming, "stream", watched)
            stage(run, "clips")
        left = [row for block in scanning.blocks(f"{run.root}/{folder}", ["error"]) for row in block.to_pylist()]
        assert [row["error"] for row in left] == [None, None], "an error stays beside what came of the second try"
        assert retried_ids.pop() == set(ids)


@pytest.mark.soak
def test_two_cpus_are_enough_for_every_stage(
    cluster: None, small_run: Callable[..., Run], small_world: Path, tmp_path: Path
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for path in sorted((small_world / "clips").rglob("*.mp4"))[:6]:
        shutil.copy(path, videos)
    run = small_run(
        tmp_path / "run",
        data__videos=str(videos),
        finetune__steps=2,
        finetune__batch=1,
        finetune__workers=2,
        finetune__arm="random",
        evaluate__arms=["base"],
        evaluate__generate=0,
        evaluate__noises=1,
    )
    curate(run)
    finetune(run.model_copy(update={"finetune": run.finetune.model_copy(update={"workers": 1})}))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["problems"] == []
    assert summary["throughput"]["attribute clips"]["rows"] == 6
    assert summary["throughput"]["attribute clips"]["bytes_read"] == sum(p.stat().st_size for p in videos.iterdir())
    assert {"index clips", "attribute queries", "evaluate"} <= summary["throughput"].keys()


# --- out of memory ---------------------------------------------------------------------------------------------------


@pytest.mark.soak  # what else this machine does counts as well, and may trip Ray's memory monitor
def test_a_clip_that_takes_all_memory_is_given_up(tmp_path: Path) -> None:
    import ray

    with open("/proc/meminfo") as file:
        memory = {line.split(":")[0]: int(line.split()[1]) for line in file}
    used = 1 - memory["MemAvailable"] / memory["MemTotal"]
    limit = used + 2 * (1 << 20) / memory["MemTotal"]  # 2 GiB above what is in use
    ray.shutdown()
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": ROOT}},
        _system_config={"memory_usage_threshold": limit, "memory_monitor_refresh_ms": 100},
    )
    streaming.connect()
    rows, table = pa.table({"clip_id": ["a", "hog", "b", "c"]}), str(tmp_path / "features" / "clips")
    pool = Pool(actors=1, batch=4)
    stage = Stage("hog", str(tmp_path), pool, Hog, {"found": table}, {"found": {}})
    figures = streaming.stream(stage, [rows], 4, lambda *_: None)
    ray.shutdown()
    result_table = tables.read(table)
    assert result_table is not None
    errors = {row["clip_id"]: row["error"] for row in result_table.to_pylist()}
    assert {name: bool(error) for name, error in errors.items()} == {"a": False, "b": False, "c": False, "hog": True}
    assert figures.deaths == 1 + LIMIT
