"""What a run tells of itself: figures of every stage, and what a stage that stands still waits for."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.cluster.streaming import Stage

ROOT = str(Path(__file__).parents[2])

from pipeline.cluster import journal, streaming, watchdog  # noqa: E402
from pipeline.cluster.attempts import Attempts, standstill  # noqa: E402
from pipeline.config.operations import Pool  # noqa: E402
from pipeline.errors import StageError, StoreError  # noqa: E402
from pipeline.tables import throughput  # noqa: E402
from pipeline.tables.throughput import Figures  # noqa: E402
from pipeline.video.frames import ClipError  # noqa: E402

pytestmark = pytest.mark.slow


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


# --- figures ---------------------------------------------------------------------------------------------------------


def test_the_busy_share_is_of_the_time_that_actors_were_up() -> None:
    clock = Clock()
    attempts = Attempts(clock)
    attempts.expects(2)
    for actor in ("a", "b"):
        attempts.starts(actor, "here")
    clock.now = 10  # loading is not idling
    attempts.is_up("a")
    attempts.is_up("b")
    attempts.begins("a", ["1", "2"])
    clock.now = 16
    attempts.ends("a", ["1", "2"], Figures(rows=2, bytes_read=7, errors={"decode": 1}), False)
    clock.now = 20
    figures = Figures(**attempts.status()["figures"])
    assert (figures.rows, figures.bytes_read, figures.errors, figures.actors) == (2, 7, {"decode": 1}, 2)
    assert figures.busy_share == 6 / 20
    assert figures.rows_per_second == 2 / 20


def test_a_new_pool_adds_to_the_figures_and_forgets_the_old_actors() -> None:
    clock = Clock()
    attempts = Attempts(clock)
    for pool in range(2):
        attempts.expects(1)
        attempts.starts(f"{pool}", "here")
        attempts.is_up(f"{pool}")
        attempts.begins(f"{pool}", [f"{pool}"])
        clock.now += 5
        attempts.ends(f"{pool}", [f"{pool}"], Figures(rows=1), False)
        clock.now += 5
    figures = Figures(**attempts.status()["figures"])
    assert (figures.rows, figures.actor_seconds, figures.busy_seconds, figures.actors) == (2, 20, 10, 1)


def test_figures_of_all_jobs_add_up(tmp_path: Path) -> None:
    one = Figures(seconds=10, rows=5, errors={"read": 1}, actors=2, actor_seconds=20, busy_seconds=10, bytes_read=3)
    two = Figures(seconds=30, rows=15, errors={"read": 1, "decode": 2}, actors=1, actor_seconds=20, busy_seconds=20)
    for figures in (one, two):
        throughput.save(throughput.new_file(str(tmp_path), "motion clips"), "motion clips", figures)
    by_stage = throughput.by_stage(str(tmp_path))
    assert by_stage.keys() == {"motion clips"}
    totals = by_stage["motion clips"]
    assert (totals["rows"], totals["seconds"], totals["rows_per_second"]) == (20, 40, 0.5)
    assert (totals["errors"], totals["busy_share"], totals["bytes_read"]) == ({"read": 2, "decode": 2}, 0.75, 3)
    assert throughput.by_stage(str(tmp_path / "none")) == {}


def test_figures_that_are_not_known_are_none() -> None:
    assert Figures().rows_per_second is None
    assert Figures().busy_share is None


# --- a standstill ----------------------------------------------------------------------------------------------------


def test_a_standstill_names_who_waits_for_what() -> None:
    clock = Clock()
    attempts = Attempts(clock)
    attempts.expects(4)
    for actor, place in (("a", "host 1"), ("b", "host 2"), ("c", "host 3")):
        attempts.starts(actor, place)
    attempts.is_up("a")
    attempts.is_up("b")
    attempts.begins("a", [f"clip{i}" for i in range(5)])
    clock.now = 61
    said = standstill("motion clips", attempts.status(), "2 CPUs", "0 of 6 CPUs free")
    assert said.startswith("motion clips: nothing was finished for 61 s.")
    assert "The actor on host 1 has worked for 61 s on clip0, clip1, clip2 and 2 more." in said
    assert "The actor on host 3 is loading." in said
    assert "1 of 4 actors wait for 2 CPUs each; the cluster has 0 of 6 CPUs free." in said
    attempts.writes("a", ["clip0", "clip1", "clip2", "clip3", "clip4"], ["part"])
    assert attempts.status()["still"] == 0, "a part of a batch is progress"


# --- through Ray -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def metrics() -> Iterator[str]:
    """A cluster of two CPUs; the address of what its dashboard reads."""
    before = dict(os.environ)
    os.environ |= {"PYTHONPATH": ROOT, "RAY_BACKEND_LOG_LEVEL": "fatal"}
    import ray

    ray.shutdown()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _metrics_export_port=port,
        _system_config={"metrics_report_interval_ms": 500},
    )
    streaming.connect()
    yield f"http://127.0.0.1:{port}/metrics"
    ray.shutdown()
    os.environ.clear()
    os.environ.update(before)


class Slow:
    """Half a second for each clip; the name `bad` is an error."""

    def __call__(self, rows: pa.Table) -> Iterator[dict[str, pa.Table]]:
        time.sleep(0.5 * rows.num_rows)
        error = ["decode: it is bad" if name == "bad" else None for name in rows.column("clip_id").to_pylist()]
        yield {"found": pa.table({"clip_id": rows.column("clip_id"), "error": pa.array(error, pa.string())})}

    def refuse(self, rows: pa.Table, error: ClipError) -> dict[str, pa.Table]:
        raise AssertionError


def streamed(root: Path, names: list[str], pool: Pool) -> Figures:
    rows, folder = pa.table({"clip_id": names}), {"found": str(root / "features" / "clips")}
    return streaming.stream(
        Stage("slow clips", str(root), pool, Slow, folder, {"found": {}}), [rows], len(names), lambda *_: None
    )


def test_metrics_reach_the_dashboard_and_figures_the_root(metrics: str, tmp_path: Path) -> None:
    figures = streamed(tmp_path, ["a", "b", "bad", "c", "d", "e"], Pool(actors=2, batch=1))
    assert (figures.rows, figures.errors, figures.actors, figures.deaths) == (6, {"decode": 1}, 2, 0)
    assert 0.3 < (figures.busy_share or 0) <= 1
    assert throughput.by_stage(str(tmp_path))["slow clips"]["rows"] == 6
    deadline, metric_names = time.monotonic() + 30, ("curation_rows_total{", 'code="decode"', "curation_busy_share{")
    said = ""
    while not all(w in said for w in metric_names) and time.monotonic() < deadline:
        time.sleep(0.5)
        with urllib.request.urlopen(metrics, timeout=10) as answer:
            said = answer.read().decode()
    shown = [line for line in said.splitlines() if "curation_" in line and 'stage="slow clips"' in line.lower()]
    assert all(any(w in line for line in shown) for w in metric_names), shown
    rows = [line for line in shown if "curation_rows_total{" in line]
    assert sum(float(line.rsplit(" ", 1)[1]) for line in rows) == 6, "rows are not what was finished"


def test_of_a_stage_its_journal_alone_outlives_it_and_serves_the_next(metrics: str, tmp_path: Path) -> None:
    import ray

    def alive(name: str) -> set[str]:
        actors = ray._private.state.actors().items()
        return {of for of, a in actors if a["State"] != "DEAD" and a["ActorClassName"].startswith(name)}

    streamed(tmp_path, ["a", "b"], Pool(actors=2, batch=1))
    first = alive(Attempts.__name__)
    assert len(first) == 1
    figures = streamed(tmp_path, ["c", "d", "e"], Pool(actors=2, batch=1))
    assert figures.rows == 3, "the journal counts the stage before as well"
    assert alive(Attempts.__name__) == first
    with pytest.raises(ValueError, match="its own"), journal.begun():
        raise ValueError("its own")
    deadline = time.monotonic() + 20
    while (alive("MapWorker") or alive(Attempts.__name__)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert alive("MapWorker") == set(), "an actor outlives its stage"
    assert alive(Attempts.__name__) == set(), "actors of a stage that failed may still tell its journal something"


def test_a_run_that_cannot_start_its_actors_says_so_and_ends(
    metrics: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import ray

    monkeypatch.setattr(watchdog, "QUIET", 1.0)
    monkeypatch.setattr(journal, "LOOK", 0.2)
    monkeypatch.setattr(ray.data.DataContext.get_current(), "execution_no_progress_timeout_s", 4.0)

    @ray.remote(num_cpus=2)
    class Holder:
        def is_up(self) -> bool:
            return True

    holder = Holder.remote()
    assert ray.get(holder.is_up.remote())
    with caplog.at_level(logging.WARNING), pytest.raises(RuntimeError, match="stage slow clips failed") as error:
        streamed(tmp_path, ["a"], Pool(cpus=1.5))
    ray.kill(holder)
    waits = "1 of 1 actors wait for 1.5 CPUs each; the cluster has 0 of 2 CPUs free."
    assert waits in str(error.value)
    assert any("nothing was finished for 1 s" in r.message and waits in r.message for r in caplog.records)


def test_figures_that_cannot_be_saved_leave_a_stage_its_own_error(
    metrics: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: object) -> None:
        raise StoreError("put_object s3://b/k: SlowDown")

    def stage(fails: bool) -> None:
        with journal.begun() as begun, journal.watched(begun, "slow clips", Pool(), str(tmp_path / "figures.json")):
            if fails:
                raise StageError("slow clips", "its own")

    monkeypatch.setattr(throughput, "save", refused)
    with pytest.raises(StageError, match="its own"):
        stage(fails=True)
    assert "slow clips: its figures could not be saved (StoreError: put_object s3://b/k: SlowDown)" in caplog.messages
    with pytest.raises(StoreError, match="SlowDown"):
        stage(fails=False)


def test_figures_are_saved_again_after_a_store_failed_once(
    metrics: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    saves, second = list[str](), threading.Event()

    def failing_once(path: str, stage: str, figures: Figures) -> None:
        saves.append(path)
        if len(saves) == 1:
            raise StoreError("put_object s3://b/k: SlowDown")
        second.set()

    for name, value in (("LOOK", 0.05), ("SAVE", 0.0)):
        monkeypatch.setattr(journal, name, value)
    monkeypatch.setattr(throughput, "save", failing_once)
    with journal.begun() as begun, journal.watched(begun, "slow clips", Pool(), str(tmp_path / "figures.json")):
        assert second.wait(20)
    assert "journal: a look at the work failed (StoreError: put_object s3://b/k: SlowDown)" in caplog.text


def test_workers_that_find_no_place_together_are_told_of(metrics: str) -> None:
    import ray

    pool = Pool(cpus=1.5)
    assert journal.gang(pool) is None
    group = ray.util.placement_group([{"CPU": 1.5}] * 2)
    deadline = time.monotonic() + 20
    while journal.gang(pool) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    said = journal.gang(pool)
    ray.util.remove_placement_group(group)
    assert said is not None
    assert said.startswith("2 workers wait for 1.5 CPUs each, together; the cluster has ")
    assert said.endswith(" of 2 CPUs free.")
