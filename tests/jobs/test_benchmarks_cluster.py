"""The cluster benchmark: its simulation on cases with a known outcome, and its short form."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from jobs.benchmarks.cluster import __main__ as cluster
from jobs.benchmarks.cluster.here import Spent
from jobs.benchmarks.cluster.simulation import AHEAD, CALLS, Batch, Cluster, Costs, simulate

FREE = Costs(0.0, 0.0, 0.0)


def test_actors_that_wait_for_nobody_do_all_they_can() -> None:
    outcome = simulate(Cluster(4, lost=0.0), Batch(), FREE, 2.0)
    assert outcome.share == pytest.approx(1.0, abs=0.01)
    assert outcome.rows_per_second == pytest.approx(4 * 8 * 8 / 40, rel=0.01)
    assert outcome.objects_per_second == pytest.approx(outcome.rows_per_second / 8 * 4)
    assert (outcome.driver, outcome.journal, outcome.again, outcome.recovery) == (0.0, 0.0, 0.0, None)
    assert outcome.idle < 0.01


@pytest.mark.parametrize(
    ("costs", "busy"),
    [(Costs(0.5, 0.0, 0.0), "driver"), (Costs(0.25, 0.25 / 32, 0.0), "driver"), (Costs(0, 0, 0.5 / CALLS), "journal")],
)
def test_a_driver_or_journal_that_all_wait_for_sets_the_pace(costs: Costs, busy: str) -> None:
    outcome = simulate(Cluster(4, lost=0.0), Batch(seconds=8.0), costs, 1.0)
    assert outcome.rows_per_second == pytest.approx(2 * 8, rel=0.02), "a batch each half second"
    assert getattr(outcome, busy) > 0.99
    assert outcome.share == pytest.approx(0.5, abs=0.01)
    assert outcome.idle == pytest.approx(0.5, abs=0.02)


def test_roots_share_nothing_and_are_as_fast_together_as_they_are_many() -> None:
    costs, batch = Costs(0.5, 0.0, 0.0), Batch(seconds=8.0)
    one = simulate(Cluster(4, lost=0.0), batch, costs, 1.0)
    four = simulate(Cluster(16, lost=0.0, roots=4), batch, costs, 1.0)
    assert four.rows_per_second == pytest.approx(4 * one.rows_per_second)
    assert four.share == one.share


@pytest.mark.benchmark
def test_lost_nodes_cost_what_they_are_away_and_what_they_had_begun() -> None:
    batch = Batch()
    outcome = simulate(Cluster(20, lost=1.0, away=360.0), batch, FREE, 50.0)
    assert outcome.share == pytest.approx(1 / (1 + 360 / 3600), abs=0.02), "a node is away 6 min in an hour and 6 min"
    assert outcome.again == pytest.approx(0.5 * batch.seconds / 3600, rel=0.2), "half a batch in an hour of an actor"
    assert outcome.recovery is not None
    assert batch.seconds < outcome.recovery < (AHEAD + 2) * batch.seconds
    assert simulate(Cluster(20, lost=1.0, away=360.0), batch, FREE, 50.0) == outcome, "it belongs to its seed"


def test_costs_rise_with_the_actors_or_not_at_all() -> None:
    rising = [Spent(n, 0.004 + 0.001 * n, 0.003, 0.0, 0.0, 100.0) for n in (1, 4, 16)]
    prices = cluster.costs(rising)
    assert (prices.batch, prices.batch_of_actors, prices.call) == pytest.approx((0.004, 0.001, 0.001))
    falling = [Spent(n, driver, 0.003, 0.0, 0.0, 100.0) for n, driver in ((1, 0.006), (4, 0.004), (16, 0.003))]
    assert cluster.costs(falling) == Costs(0.004, 0.0, 0.001)
    assert cluster.limit(Costs(0.004, 0.0, 0.001), Batch(seconds=40.0)) == 10_000


@pytest.mark.benchmark
def test_the_short_form(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["cluster", "--quick"])
    cluster.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    seconds = [*figures["stage"].values(), *figures["finetune"].values()]
    assert len(seconds) == 8
    assert np.isfinite(seconds).all(), "of so few clips and steps their sign may be anything"
    assert [one["actors"] for one in figures["idle"]] == [1, 2]
    assert all(one["driver"] > 0 and one["journal"] > 0 for one in figures["idle"])
    assert [one["nodes"] for one in figures["simulated"]] == [2, 4, 4, 4, 4, 4]
    assert all(0 < one["share"] <= 1.01 for one in figures["simulated"])
