"""A budget ends a job between two batches; what is finished stays, and the same command goes on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from jobs import command, curate
from pipeline import tables
from pipeline.config import Run
from pipeline.config.operations import Budget, Pool
from pipeline.errors import SpentError
from pipeline.stages import budget


@pytest.fixture(autouse=True)
def _nothing_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "_held", {"gpu_hours": 0.0, "cpu_hours": 0.0})


def test_every_actor_counts_while_it_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(budget.time, "monotonic", lambda: now)
    told: list[int] = []
    capped = budget.Capped(lambda done, *_: told.append(done), "x", Budget(gpu_hours=1), Pool(actors=4, gpus=0.5))
    capped(0, 100, {})
    now += 1700  # of 2 GPUs: 0.94 hours
    capped(50, 100, {})
    now += 200
    with pytest.raises(SpentError, match=r"x: budget\.gpu_hours=1 is spent .* after 60 of 100"):
        capped(60, 100, {})
    capped(100, 100, {})  # a stage that is done has nothing to stop
    assert told == [0, 50, 60, 100]


def test_nothing_is_begun_with_nothing_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "_held", {"gpu_hours": 0.0, "cpu_hours": 3.0})
    with pytest.raises(SpentError, match="not begun"), budget.holding("f", Budget(cpu_hours=2), Pool(), 1):
        pytest.fail("it was begun")
    with budget.holding("f", Budget(cpu_hours=4), Pool(cpus=2), 3):
        pass
    assert budget._held["cpu_hours"] > 3


@pytest.mark.parametrize("where", ["attribute", "finetune", "evaluate"])
def test_curate_ranks_and_shows_what_a_spent_budget_leaves(
    small_run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    told = list[str]()

    def told_of(name: str) -> Callable[..., None]:
        def called(*_: object) -> None:
            told.append(name)
            if name == where:
                raise SpentError("x: budget.gpu_hours=1 is spent")

        return called

    for name in ("rank_clips", "finetune", "evaluate", "report"):
        monkeypatch.setattr(curate, name, told_of(name))
    for name in ("attribute_queries", "index_data"):
        monkeypatch.setattr(curate.curation, name, told_of(name))
    monkeypatch.setattr(curate.two_stages, "clips", told_of("attribute"))
    monkeypatch.setattr(curate.two_stages, "rankable", lambda run: True)
    for module, name in ((curate.attribution, "check"), (curate.streaming, "connect"), (curate.resources, "check")):
        monkeypatch.setattr(module, name, lambda *_: None)
    with pytest.raises(SpentError):
        curate.curate(small_run(tmp_path))
    assert [name for name in told if name in ("rank_clips", "report")] == ["rank_clips", "report"]
    assert told[-1] == "report"


def test_a_job_stops_and_the_same_command_goes_on(
    small_run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: None
) -> None:
    from jobs.estimate_motion import estimate_motion
    from jobs.extract_features import extract_features
    from jobs.index_clips import index_clips

    run = small_run(tmp_path / "run", resources__extract_features__actors=1, resources__extract_features__batch=5)
    index_clips(run)
    estimate_motion(run)

    def call(cap: float | None) -> int:
        values = run.model_copy(update={"budget": Budget(cpu_hours=cap)}).model_dump(mode="json")
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(values))
        monkeypatch.setattr(sys, "argv", ["job", "--config", str(path)])
        command.main(extract_features, "")
        table = tables.read(str(tmp_path / "run" / "features" / "clips"))
        return 0 if table is None else table.num_rows

    monkeypatch.setattr(budget, "_held", {"gpu_hours": 0.0, "cpu_hours": 0.0})
    assert 5 <= call(1e-6) < 30  # the four queries are one batch, then one of clips
    monkeypatch.setattr(budget, "_held", {"gpu_hours": 0.0, "cpu_hours": 0.0})
    assert call(None) == 30
