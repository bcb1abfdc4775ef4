"""What every test shares: no network, one thread, a small run of the synthetic world."""

from __future__ import annotations

import json
import os
import signal

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from pipeline import config
from pipeline.config import Run
from pipeline.synthetic import world
from tests.support.s3_store import Store

# The same examples on every machine and in every run: what Hypothesis finds by luck fails somebody else's change.
# HYPOTHESIS_PROFILE=searching draws others.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.register_profile("searching", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


SETTINGS = [{"timestep": 751, "noise": 0, "mask": mask} for mask in ("motion", "none")]  # for every arm


MARKS = {"three": "slow", "curated": "slow", "compared": "whole", "undivided": "whole"}  # of fixtures that take minutes

# Files whose slow tests take longest, in this order: one that begins last keeps one process busy when others are done.
LONG = (
    "jobs/test_curate.py",
    "jobs/test_two_stages.py",
    "cluster/test_training.py",
    "stages/test_finetuning.py",
    "operations/test_nightly.py",
    "jobs/test_completion.py",
    "evaluation/test_compare.py",
    "jobs/test_motion_sample.py",
    "jobs/test_attribute_requests.py",
    "cluster/test_faults.py",
    "models/test_compiling.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests have the marks of their fixtures. Long files come first."""
    for item in items:
        for name in MARKS.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(MARKS[name])
    places = {str(Path(__file__).parent / name): place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(str(item.path), len(LONG)))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_counts() -> None:
    """A shell that starts the tests in the background has them, and the jobs that they stop by Ctrl-C, ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 clips, 4 queries and 4 held-out clips as mp4 files with manifests."""
    from jobs.demo import write_world

    folder = tmp_path_factory.mktemp("world")
    run = config.load("demo")
    write_world(folder / "clips", world.corpus(11, 30), run)
    write_world(folder / "queries", [s for s in world.queries(12, 2) if s.motion in ("roll", "spin")], run)
    write_world(folder / "held_out", [s for s in world.queries(13, 2) if s.motion in ("roll", "spin")], run)
    return folder


@pytest.fixture(scope="session")
def small_run(small_world: Path) -> Callable[..., Run]:
    """``small_run(root, **overrides)``: the demo recipe on the small world, with double underscores for dots."""

    def make(root: Path | str, **overrides: Any) -> Run:
        values = {
            "root": str(root),
            "data.videos": str(small_world / "clips"),
            "data.empty_captions": 1.0,  # some tests copy videos without their captions
            "queries.videos": str(small_world / "queries"),
            "evaluate.videos": str(small_world / "held_out"),
            "attribution.settings": SETTINGS,
            "motion.of": "all",
            "finetune.steps": 4,
            "finetune.checkpoint_every": 2,
            "evaluate.arms": ["base", "random", "selected"],
            "evaluate.generate": 2,
            "evaluate.steps": 3,
            "resources.extract_features.batch": 5,
            "resources.estimate_motion.batch": 5,
            **{key.replace("__", "."): value for key, value in overrides.items()},
        }
        return config.load("demo", values)

    return make


@pytest.fixture(scope="session")
def clips_of_world(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Iterable[int]], str]:
    """``clips_of_world(numbers)``: a manifest of some of the small world's clips. Number 24 has no motion, every other
    one has some."""
    listed = list(map(json.loads, (small_world / "clips" / "metadata.jsonl").read_text().splitlines()))

    def write(numbers: Iterable[int]) -> str:
        rows = [listed[number] for number in numbers]
        named = [{**row, "file_name": str(small_world / "clips" / row["file_name"])} for row in rows]
        path = tmp_path_factory.mktemp("some") / "clips.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in named))
        return str(path)

    return write


@pytest.fixture(scope="session")
def tiny_run(small_run: Callable[..., Run], clips_of_world: Callable[[Iterable[int]], str]) -> Any:
    """``tiny_run(root)``: the small run on 12 clips, two at a time, with one arm of four steps."""
    clips = clips_of_world(range(12))

    def make(root: Path | str) -> Run:
        pool = {"actors": 1, "cpus": 1, "batch": 2}
        return small_run(
            root,
            data__videos=clips,
            evaluate__arms=["base"],
            evaluate__generate=1,
            resources__evaluate=pool,
            resources__extract_features=pool,
        )

    return make


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    from pipeline.cluster import streaming

    streaming.connect()
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def s3_server() -> Iterator[Store]:
    from tests.support.s3_store import served

    with served() as store:
        yield store


@pytest.fixture
def store(s3_server: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty bucket on loopback, which this process takes for S3."""
    from tests.support.s3_store import seen_by

    seen_by(monkeypatch, s3_server)
    s3_server.clear()
    return s3_server
