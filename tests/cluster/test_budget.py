"""A budget ends a job between two batches; what is finished stays, and the same command goes on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import yaml

from jobs import command, curate
from pipeline import tables
from pipeline.config import Run
from pipeline.config.operations import Budget, Pool
from pipeline.errors import SpentError
from pipeline.stages import budget
from pipeline.stages.budget import Spending


def test_every_actor_counts_while_it_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(budget.time, "monotonic", lambda: now)
    check = Spending(Budget(gpu_hours=1)).checkpoint("x", Pool(actors=4, gpus=0.5))
    check(0, 100)
    now += 1700  # of 2 GPUs: 0.94 hours
    check(50, 100)
    now += 200
    with pytest.raises(SpentError, match=r"x: budget\.gpu_hours=1 is spent .* after 60 of 100"):
        check(60, 100)
    check(100, 100)  # a stage that is done has nothing to stop


def test_nothing_is_begun_with_nothing_left() -> None:
    spending = Spending(Budget(cpu_hours=2))
    with spending.holding("f", Pool(cpus=2), 3):
        pass
    assert 0 < spending.cpu_hours < 2
    spending.count(Pool(cpus=1), 3, 3600)
    with pytest.raises(SpentError, match="not begun"), spending.holding("f", Pool(), 1):
        pytest.fail("it was begun")


def test_the_stages_of_a_job_share_a_budget_and_two_jobs_do_not() -> None:
    """Two jobs in one process, as in a notebook: what the first has spent is not the second's."""
    cap = Budget(cpu_hours=1)
    for _ in range(2):
        with budget.one_job(cap) as job:
            assert budget.spending(cap) is job
            budget.spending(cap).count(Pool(), 1, 7200)
            assert budget.spending(cap).over() == "budget.cpu_hours=1 is spent (2)"
    assert budget.spending(cap).over() is None


@pytest.mark.parametrize("where", ["attribute", "finetune", "evaluate"])
def test_curate_ranks_and_shows_what_a_spent_budget_leaves(
    small_run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    calls = list[str]()

    def recorder(name: str) -> Callable[..., None]:
        def called(*_: object) -> None:
            calls.append(name)
            if name == where:
                raise SpentError("x: budget.gpu_hours=1 is spent")

        return called

    for name in ("rank_clips", "evaluate", "report"):
        monkeypatch.setattr(curate, name, recorder(name))
    monkeypatch.setattr(curate, "finetune_arms", recorder("finetune"))
    for name in ("attribute_queries", "index_data"):
        monkeypatch.setattr(curate.curation, name, recorder(name))
    monkeypatch.setattr(curate.two_stages, "clips", recorder("attribute"))
    monkeypatch.setattr(curate.two_stages, "rankable", lambda run: True)
    for module, name in ((curate.attribution, "check"), (curate.streaming, "connect"), (curate.resources, "check")):
        monkeypatch.setattr(module, name, lambda *_: None)
    with pytest.raises(SpentError):
        curate.curate(small_run(tmp_path))
    shown = ["report"] if where == "attribute" else ["report", "report"]  # after the ranking, and at the end
    assert [name for name in calls if name in ("rank_clips", "report")] == ["rank_clips", *shown]
    assert calls[-1] == "report"


def test_a_job_stops_and_the_same_command_goes_on(
    small_run: Callable[..., Run],
    clips_of_world: Callable[[Iterable[int]], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cluster: None,
) -> None:
    from jobs.estimate_motion import estimate_motion
    from jobs.extract_features import extract_features
    from jobs.index_clips import index_clips

    pool, videos = {"actors": 1, "cpus": 1, "batch": 5}, clips_of_world(range(12))
    run = small_run(tmp_path / "run", data__videos=videos, resources__extract_features=pool)
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

    assert 5 <= call(1e-6) < 12  # the four queries are one batch, then one of clips
    assert call(None) == 12
