"""Arms that are trained side by side: how many at a time, and what a failure leaves."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import pyarrow.compute as pc
import pytest

from jobs.curate import curate
from pipeline import config, tables
from pipeline.config import Run
from pipeline.errors import ConfigError, SpentError
from pipeline.stages.finetuning import _each_in_a_thread, check_shares
from tests.support import tiny_pipelines
from tests.support.registered import unregistered


def test_no_more_arms_than_have_room_are_trained_at_a_time() -> None:
    active, most, names, lock = 0, 0, list[str](), threading.Lock()
    pair = threading.Barrier(2)

    def train(name: str) -> None:
        nonlocal active, most
        with lock:
            active += 1
            most = max(most, active)
            names.append(name)
        pair.wait(timeout=30)  # two are under way together, or this test fails
        with lock:
            active -= 1

    _each_in_a_thread([partial(train, name) for name in "abcd"], 2)
    assert most == 2
    assert sorted(names) == list("abcd")


def _fail() -> None:
    raise SpentError("the budget is spent")


def test_after_a_failure_no_arm_is_begun() -> None:
    def never() -> None:
        raise AssertionError("an arm was begun after another one had failed")

    with pytest.raises(SpentError, match="the budget is spent"):
        _each_in_a_thread([_fail, never, never], 1)


def test_an_arm_that_has_begun_goes_on_to_its_end_where_another_fails() -> None:
    begun, ended = threading.Event(), list[str]()

    def train() -> None:
        begun.set()
        ended.append("trained")

    def fail() -> None:
        assert begun.wait(30)
        _fail()

    with pytest.raises(SpentError, match="the budget is spent"):
        _each_in_a_thread([train, fail], 2)
    assert ended == ["trained"]


@pytest.mark.whole
def test_arms_with_times_of_their_own_are_trained_written_down_and_held_out(
    small_run: Callable[..., Run], clips_of_world: Callable[[Iterable[int]], str], cluster: None, tmp_path: Path
) -> None:
    settings = [{"timestep": t, "noise": 0, "mask": mask} for t in (251, 751) for mask in ("motion", "none")]
    arms = ["base", "selected", "timed", "random", "timed_random", "all", "little_noise", "little_noise_random"]
    run = small_run(
        tmp_path / "run",
        data__videos=clips_of_world(range(12)),
        attribution__settings=settings,
        evaluate__arms=arms,
        evaluate__generate=0,
        resources__extract_features={"actors": 1, "cpus": 1, "batch": 12},
        resources__evaluate={"actors": 1, "cpus": 1, "batch": 20},
    )
    curate(run)
    assert unregistered(run.root) == [], "a purge knows nothing of it"
    likes = {"timed": "selected", "timed_random": "random", "little_noise": "all", "little_noise_random": "all"}
    for arm, like in likes.items():
        times = tables.read(f"{run.root}/finetuned/{arm}/times")
        assert times is not None
        folders = [Path(run.root, "finetuned", name) for name in (arm, like)]
        segments, of_like = ((folder / "curated" / "segments.jsonl").read_text() for folder in folders)
        clips, of_like = ([json.loads(line)["clip_id"] for line in text.splitlines()] for text in (segments, of_like))
        assert clips == of_like, "an arm with times has other clips than its like"
        assert times.num_rows == 2 * segments.count("\n")
        assert pc.all(pc.is_finite(times.column("weight"))).as_py()
        losses, of_like = ((folder / "metrics.jsonl").read_text() for folder in folders)
        assert losses != of_like, "times change nothing"
    evaluation = tables.read(f"{run.root}/evaluation")
    assert evaluation is not None
    assert set(evaluation.column("arm").to_pylist()) == set(arms)
    assert "timed_random" in Path(run.root, "report", "index.html").read_text()


def test_a_model_that_computes_clip_by_clip_needs_all_its_sharded_workers(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Else one worker calls its transformer more often than another, and the two wait for each other's rows."""

    def run(family: str, **finetune: object) -> Run:
        values = {f"finetune.{key}": value for key, value in finetune.items()}
        return config.load("demo", {"model.id": str(tiny_pipelines.folder(tmp_path_factory, family)), **values})

    with pytest.raises(ConfigError, match=r"finetune\.min_workers=2: Kandinsky 5 .*clip by clip"):
        check_shares(run("kandinsky-5", sharding="fsdp", workers=4, min_workers=2))
    check_shares(run("kandinsky-5", sharding="fsdp", workers=4))
    check_shares(run("kandinsky-5", workers=4, min_workers=2))
    check_shares(run("wan2.1", sharding="fsdp", workers=4, min_workers=2))
