"""Several nodes: stages spread over them, and one that goes away in the middle costs no row and doubles none."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cluster.streaming import Stage
from pipeline.errors import ConfigError
from pipeline.stages import attribution, indexing

ROOT = str(Path(__file__).parents[2])
from pipeline import models, tables  # noqa: E402
from pipeline.attribution.workers import AttributionWorker  # noqa: E402
from pipeline.cluster import resources, streaming  # noqa: E402
from pipeline.cluster import training as ray_train  # noqa: E402
from pipeline.cluster.nodes import Nodes  # noqa: E402
from pipeline.cluster.resources import beyond  # noqa: E402
from pipeline.config import Run  # noqa: E402
from pipeline.config.operations import Pool  # noqa: E402
from pipeline.tables import throughput  # noqa: E402
from tests.cluster import test_training as training  # noqa: E402
from tests.support.stage_workers import Placed  # noqa: E402
from tests.training import test_loop as tiny  # noqa: E402

pytestmark = pytest.mark.slow

CLIPS = 6


@pytest.mark.parametrize(
    ("stage", "asked", "nodes", "lacks"),
    [
        ("estimate_motion", {"cpus": 4}, [Nodes(2, 0, 2)], True),  # four CPUs, but on no one node
        ("estimate_motion", {"cpus": 2, "actors": 9}, [Nodes(2, 0, 2)], False),  # the others wait for the first
        ("extract_features", {"cpus": 4, "gpus": 1}, [Nodes(8, 0), Nodes(2, 1)], True),  # never both together
        ("extract_features", {"cpus": 1, "gpus": 1, "actors": 3}, [Nodes(8, 1, 2)], True),
        ("extract_features", {"cpus": 1, "gpus": 1, "actors": 2}, [Nodes(8, 1, 2)], False),
        ("extract_features", {"cpus": 0.5, "gpus": 0.5, "actors": 4}, [Nodes(1, 1, 2)], False),
        ("finetune", {"cpus": 3, "actors": 2}, [Nodes(4, 0), Nodes(2, 0)], True),  # six CPUs, but room for one worker
        ("finetune", {"cpus": 2, "actors": 3}, [Nodes(4, 0), Nodes(2, 0)], False),
    ],
)
def test_an_actor_needs_its_resources_on_one_node(
    stage: str, asked: dict[str, float], nodes: list[Nodes], lacks: bool
) -> None:
    assert (stage in beyond({stage: Pool.model_validate(asked)}, [], nodes)) is lacks
    assert (stage in beyond({stage: Pool.model_validate(asked)}, nodes, [Nodes(1, 0)])) is lacks, "as the autoscaler's"


# --- a cluster of several raylets ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def head() -> Iterator[Any]:
    """A head without CPUs, where the driver is. Nodes of one CPU join it and go."""
    before, scratch = dict(os.environ), tempfile.mkdtemp(prefix="r", dir="/tmp")  # sockets' paths have to be short
    os.environ |= {"PYTHONPATH": ROOT, "RAY_BACKEND_LOG_LEVEL": "fatal"}
    os.environ["RAY_TMPDIR"] = scratch  # else other programs of this machine would take this cluster for theirs
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()
    # A dead node is missed after ten seconds; sooner, and a busy machine's live ones would be too.
    soon = {"health_check_period_ms": 1000, "health_check_failure_threshold": 10}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": soon}
    )
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    streaming.connect()
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    os.environ.clear()
    os.environ.update(before)
    shutil.rmtree(scratch, ignore_errors=True)


@pytest.fixture
def two_nodes(head: Any) -> Iterator[list[Any]]:
    """Two nodes of one CPU each; whatever is there at the end goes."""
    yield [head.add_node(num_cpus=1, object_store_memory=80 << 20) for _ in range(2)]
    for node in list(head.worker_nodes):
        remove(head, node)


def remove(head: Any, node: Any) -> None:
    """Kill a node's processes. On a busy machine some of them are not reaped at once, which Ray takes for an error."""
    with contextlib.suppress(AssertionError):
        head.remove_node(node, allow_graceful=False)


class Holder:
    """Holds a CPU until it is killed."""

    def holds(self) -> bool:
        return True


@contextmanager
def removed(head: Any, node: Any, when: Callable[[], bool]) -> Iterator[None]:
    """While the body runs, take a node away as soon as `when` holds, and give another one free."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Only the main thread can start a node, so that the other one is there already, with its CPU held.
    spare = head.add_node(num_cpus=1, object_store_memory=80 << 20)
    there = NodeAffinitySchedulingStrategy(spare.node_id, soft=False)
    holder = ray.remote(num_cpus=1, scheduling_strategy=there)(Holder).remote()
    assert ray.get(holder.holds.remote())
    over = threading.Event()

    def watch() -> None:
        while not when():
            if over.wait(0.01):
                raise AssertionError("the node was to go while the stage was at work")
        remove(head, node)
        ray.kill(holder)

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            yield
        finally:
            over.set()
    watching.result()


def test_a_stage_spreads_over_the_nodes(head: Any, two_nodes: list[Any], tmp_path: Path) -> None:
    rows, folder = pa.table({"clip_id": [str(i) for i in range(12)]}), str(tmp_path / "influence")
    pool = Pool(actors=2, batch=1)
    where = (str(tmp_path),)
    stage = Stage("s", str(tmp_path), pool, partial(Placed, *where), {"placed": folder}, {"placed": {}})
    streaming.stream(stage, [rows], 12, no_report)
    placements = tables.read(folder)
    assert placements is not None
    assert set(placements.column("node").to_pylist()) == {node.node_id for node in two_nodes}


def no_report(done: int, total: int, errors: dict[str, int]) -> None:
    pass


def test_more_than_one_node_has_is_refused_at_once(
    head: Any, two_nodes: list[Any], small_run: Callable[..., Run], tmp_path: Path
) -> None:
    run = small_run(tmp_path, resources__estimate_motion={"actors": 1, "cpus": 2})
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"resources\.estimate_motion") as error:
        resources.check(run, ["index_clips", "estimate_motion"])
    assert time.monotonic() - began < 5
    assert "1 x (2 CPUs, 0 GPUs)   <- more than any one node has" in str(error.value)
    # Ray counts nodes that a test before removed until their health checks fail.
    assert re.search(r"[2-9] nodes of 1 CPUs, 0 GPUs", str(error.value))
    resources.check(small_run(tmp_path), ["index_clips", "estimate_motion", "extract_features"])


@pytest.fixture(scope="module")
def videos(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Some of the small world's clips."""
    folder = tmp_path_factory.mktemp("some")
    for path in sorted((small_world / "clips").rglob("*.mp4"))[:CLIPS]:
        shutil.copy(path, folder)
    return str(folder)


@pytest.mark.soak
def test_a_node_that_goes_costs_no_row_and_doubles_none(
    head: Any, two_nodes: list[Any], small_run: Callable[..., Run], videos: str, tmp_path: Path
) -> None:
    pool = {"actors": 2, "cpus": 1, "batch": 1}
    run = small_run(tmp_path, data__videos=videos, resources__estimate_motion=pool, resources__extract_features=pool)
    indexing.index(run, "clips")
    clips = tables.read(str(tmp_path / "clips"))
    assert clips is not None
    for stage, node, work in (
        ("motion", two_nodes[0], attribution.estimate_motion),
        ("features", two_nodes[1], attribution.extract_features),
    ):
        parts = tmp_path / stage / "clips"
        with removed(head, node, lambda parts=parts: any(parts.glob("part-*"))):  # type: ignore[misc]
            work(run, "clips")
        clip_ids = [i for p in parts.glob("part-*") for i in pq.ParquetFile(p).read(["clip_id"]).column(0).to_pylist()]
        assert sorted(clip_ids) == sorted(clips.column("clip_id").to_pylist()), f"{stage}: a row is lost or doubled"
        assert throughput.by_stage(str(tmp_path))[f"{stage} clips"]["deaths"] >= 1, "no actor was on the node"
    assert stored(tmp_path) == undisturbed(run, clips)


def stored(root: Path) -> dict[str, tuple[Any, Any]]:
    """Every clip's mask and feature."""
    stage_tables = [tables.read(str(root / name / "clips")) for name in ("motion", "features")]
    by_id = [{row["clip_id"]: row for row in table.to_pylist()} for table in stage_tables if table is not None]
    return {i: (by_id[0][i]["mask"], by_id[1][i]["feature"]) for i in by_id[0]}


def undisturbed(run: Run, clips: pa.Table) -> dict[str, tuple[Any, Any]]:
    """The same from one worker in this process."""
    worker = AttributionWorker(run, models.grid(run), {"of": "this test"})
    masks, features = {}, {}
    for outputs in worker(clips):
        masks |= {row["clip_id"]: row["mask"] for row in outputs["motion"].to_pylist()}
        features |= {row["clip_id"]: row["feature"] for row in outputs["features"].to_pylist()}
    return {i: (masks[i], features[i]) for i in masks}


@pytest.mark.soak
def test_fine_tuning_goes_on_when_a_node_of_it_goes(head: Any, two_nodes: list[Any], tmp_path: Path) -> None:
    checkpoint = tmp_path / "wan"
    checkpoint.mkdir()
    tiny.write_pipeline(checkpoint)
    run = training.configured(tmp_path / "run", str(checkpoint), workers=2, batch=1)
    written = tmp_path / "run" / "finetuned" / ".train"
    with removed(head, two_nodes[0], lambda: any(written.glob("*/checkpoint_*"))):
        folder = ray_train.finetune(run, training.training_rows(), training.frames)
    assert [line["step"] for line in training.lines(folder)] == list(range(1, training.STEPS + 1))
    assert json.loads((Path(folder) / "done.json").read_text())["name"] == ray_train.finished(run, "motive")
