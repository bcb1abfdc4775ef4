"""Intervals of ranks against plain definitions, and against draws of queries."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from scipy import stats

from pipeline.config import Ranking
from pipeline.ranking import select, selection_blocks, votes
from pipeline.ranking.column_file import Columns
from pipeline.ranking.influence_table import BySetting
from pipeline.ranking.rules.intervals import (
    half_width,
    half_width_of_parts,
    half_width_of_votes,
    rank_intervals,
    squared_error,
)
from pipeline.ranking.selection import Ranked, selection_tables

N, Q = 400, 12


def influence(seed: int, noise: float = 0.3, queries: int = Q) -> npt.NDArray[np.float32]:
    """Clips of a true worth, seen by queries that err, each with a liking of its own for all of them."""
    rng = np.random.default_rng(seed)
    worth = np.linspace(1, -1, N)[:, None]
    liking = 3 * rng.standard_normal((1, queries))
    return (worth + liking + noise * rng.standard_normal((N, queries))).astype(np.float32)


def names() -> list[str]:
    return [f"c{n:03d}" for n in range(N)]


def test_the_error_is_the_jackknifes_whatever_all_clips_are_liked() -> None:
    values = influence(0).astype(np.float64)
    values -= values.mean(0)
    left_out = np.stack([np.delete(values, q, 1).mean(1) for q in range(Q)], 1)
    jackknife = (Q - 1) / Q * ((left_out - left_out.mean(1, keepdims=True)) ** 2).sum(1)
    error = squared_error(influence(0).T)
    assert error is not None
    np.testing.assert_allclose(error[0], jackknife, rtol=1e-4)
    assert squared_error(influence(0)[:, :1].T) is None, "one query says nothing of others"
    assert half_width(np.array([4.0]), 5, 0.9)[0] == pytest.approx(2 * stats.t.ppf(0.95, 4))


def test_an_interval_of_ranks_is_counted() -> None:
    scores = np.random.default_rng(1).integers(-20, 20, 100).astype(np.float32)  # full of ties
    half = np.random.default_rng(2).random(100).astype(np.float32) * 5
    low, high = rank_intervals(np.sort(scores), scores, half)
    for n in range(100):
        assert low[n] == (scores > scores[n] + half[n]).sum()
        assert high[n] == (scores >= scores[n] - half[n]).sum() - 1
    ranks = np.empty(100, np.int64)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(100)
    assert ((low <= ranks) & (ranks <= high)).all(), "a clip's own rank is not in its interval"


def test_nine_in_ten_intervals_hold_the_true_rank() -> None:
    hits = [
        (np.array(table.column("rank_low")) <= n) & (n <= np.array(table.column("rank_high")))
        for seed in range(6)
        for table, n in [by_clip(select(influence(seed), names()))]
    ]
    assert 0.86 < np.mean(hits) < 0.94


def by_clip(table: pa.Table) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    return table.sort_by("clip_id"), np.arange(N)


def test_clips_whose_interval_holds_the_cut_are_on_the_edge() -> None:
    rows = select(influence(3), names(), fraction=0.25).to_pylist()
    for row in rows:
        edge = row["rank_low"] < 100 <= row["rank_high"]
        assert (", on the edge: rank" in row["reason"]) == edge, row
        assert row["rank_low"] <= row["rank"] <= row["rank_high"]
    assert rows[0]["reason"].startswith("first 100 of 400 by mean: rank 0")
    assert 20 < sum("on the edge" in row["reason"] for row in rows) < 200


def test_what_is_not_known_is_null_and_no_edge() -> None:
    for table in (
        select(influence(0)[:, :1], names()),
        pa.concat_tables(
            selection_blocks(
                influence(0).mean(1), np.zeros(N, np.int32), pa.array(names(), pa.large_string()), Q, Ranking()
            )
        ),
    ):
        assert table.column("rank_low").null_count == table.column("rank_high").null_count == N
        assert not any("edge" in reason for reason in table.column("reason").to_pylist())


def test_by_votes_and_above_a_threshold() -> None:
    values = influence(4)
    given = votes(values, 0.1)
    half = half_width_of_votes(given, Q, 0.9)
    table = select(values, names(), by="votes").sort_by("clip_id")
    assert half is not None
    low, high = rank_intervals(np.sort(given), given, half)
    assert table.column("rank_low").to_pylist() == low.tolist()
    assert table.column("rank_high").to_pylist() == high.tolist()
    assert half_width_of_votes(given, 1, 0.9) is None
    error = squared_error(values.T)
    assert error is not None
    width, mean = half_width(*error, 0.9), values.mean(1, dtype=np.float64).astype(np.float32)
    for n, row in enumerate(select(values, names(), above=0.0).sort_by("clip_id").to_pylist()):
        assert ("on the edge" in row["reason"]) == (mean[n] - width[n] <= 0 < mean[n] + width[n])


def test_a_streamed_ranking_has_the_same_and_spare_adds_its_own_error() -> None:
    values = influence(5)
    columns = Columns(N, Q)
    columns.add(values)
    groups = ["spin"] * 7 + ["roll"] * 5
    ranked = Ranked(pa.array(names(), pa.large_string()), [f"q{n}" for n in range(Q)], groups, columns)
    spin, roll = squared_error(values[:, :7].T), squared_error(values[:, 7:].T)
    assert spin is not None
    assert roll is not None
    assert np.array_equal(ranked.half_widths("spin", 0.9), half_width(*spin, 0.9))  # type: ignore[arg-type]
    spared = ranked.half_widths("spin", 0.9, 0.5)
    np.testing.assert_allclose(spared, half_width(spin[0] + 0.25 * roll[0], 7, 0.9))  # type: ignore[arg-type]
    assert ranked.half_widths("spin", None) is None


# --- settings ---------------------------------------------------------------------------------------------------------


def of_settings(seed: int, settings: int, noise: float, spread: float = 0.0, queries: int = Q) -> Ranked:
    """The same worth, seen by queries and by settings that err, each for itself and both together; clip 100 by settings
    that differ by so much more."""
    rng = np.random.default_rng(seed)
    by_query, by_setting = (noise * rng.standard_normal((N, count)) for count in (queries, settings))
    by_setting[100] += spread * np.linspace(-1, 1, settings)
    cells = by_query[:, :, None] + by_setting[:, None] + 0.1 * rng.standard_normal((N, queries, settings))
    cells += np.linspace(1, -1, N)[:, None, None] + 3 * rng.standard_normal((queries, settings))
    influence, parts = Columns(N, queries), Columns(N, settings)
    influence.add(cells.mean(2).astype(np.float32))
    parts.add(cells.mean(1).astype(np.float32))
    query_ids = [f"q{n}" for n in range(queries)]
    by_each = BySetting(("all",), (queries,), settings, parts)
    return Ranked(pa.array(names(), pa.large_string()), query_ids, ["all"] * queries, influence, None, by_each)


def decided(ranked: Ranked) -> pa.Table:
    others = pa.table({"clip_id": pa.array([], pa.string()), "error": pa.array([], pa.string())})
    rule = Ranking(fraction=0.1)
    return pa.concat_tables(selection_tables(ranked, rule, ranked.marks(0.1), others)).sort_by("clip_id")


def test_parts_of_an_error_are_added_with_degrees_of_freedom_of_their_own() -> None:
    error = np.array([4.0, 1.0, 0.0])
    assert np.array_equal(half_width_of_parts([(error, 5)], 0.9), half_width(error, 5, 0.9)), "one part is as it was"
    none = np.zeros(3)
    np.testing.assert_allclose(half_width_of_parts([(error, 5), (none, 2)], 0.9), half_width(error, 5, 0.9))
    width = half_width_of_parts([(error, 5), (2 * error, 3)], 0.9)
    degrees = 3**2 / (1 / 4 + 2**2 / 2)
    np.testing.assert_allclose(width, np.sqrt(3 * error) * stats.t.ppf(0.95, degrees), rtol=1e-6)


def test_nine_in_ten_intervals_hold_the_true_rank_where_settings_err_too() -> None:
    """Queries alone would be too sure."""
    both, alone = list[float](), list[float]()
    for seed in range(6):
        ranked = of_settings(seed, 6, 0.3)
        for shares, one in ((both, ranked), (alone, replace(ranked, by_setting=None))):
            table, n = by_clip(decided(one))
            shares.append(
                np.mean((np.array(table.column("rank_low")) <= n) & (n <= np.array(table.column("rank_high"))))
            )
    assert 0.86 < np.mean(both) < 0.94
    assert np.mean(alone) < 0.8


def test_a_clip_whose_settings_disagree_is_on_the_edge() -> None:
    """It has the same place in both rankings, far from the cut, and all queries agree on it."""
    agree, disagree = (decided(of_settings(0, 4, 0.01, spread)).to_pylist()[100] for spread in (0.0, 2.0))
    assert agree["rank"] == disagree["rank"]
    assert agree["rank_low"] > 40
    assert "on the edge" not in agree["reason"]
    assert disagree["rank_low"] < agree["rank_low"]
    assert disagree["rank_high"] > agree["rank_high"]
    assert disagree["reason"].startswith("not selected, on the edge: rank")


def test_of_a_single_query_nothing_is_known_whatever_the_settings() -> None:
    assert of_settings(0, 4, 0.3, queries=1).half_widths("all", 0.9) is None
