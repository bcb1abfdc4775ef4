"""The order of choice against a plain loop, and what a selection by rules is like."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Ranking
from pipeline.ranking import scores, selection_blocks
from pipeline.ranking.rules import choice as choosing
from pipeline.ranking.rules.choice import CAP, DUPLICATE, HARMFUL, OPEN, Cap, Pairs, Rules, choose

N = 40
CODES = st.lists(st.integers(0, 3), min_size=N, max_size=N)


def pairs_of(linked: set[tuple[int, int]]) -> Pairs:
    ends = np.array(sorted(linked), np.int64).reshape(-1, 2)
    similarity = np.linspace(0.95, 0.99, len(ends), dtype=np.float32)
    return Pairs(ends[:, 0], ends[:, 1], similarity, np.arange(len(ends)) % 2 == 1)


def cap(column: str, most: int, codes: list[int]) -> Cap:
    return Cap(column, most, np.array(codes, np.int32), pa.array(["a", "b", "c", None], pa.string()))


def plainly(order: list[int], harmful: set[int], linked: set[tuple[int, int]], caps: tuple[Cap, ...]) -> dict[int, Any]:
    """Row -> what bars it and who stands for it, by the definition."""
    chosen, barred = list[int](), dict[int, Any]()
    for row in order:
        twins = [other for other in chosen if (min(row, other), max(row, other)) in linked]
        full = [n for n, c in enumerate(caps) if sum(c.codes[o] == c.codes[row] for o in chosen) >= c.most]
        if row in harmful:
            barred[row] = (HARMFUL, -1)
        elif twins:
            barred[row] = (DUPLICATE, twins[0])
        elif full:
            barred[row] = (CAP + full[0], -1)
        else:
            chosen.append(row)
    return {**dict.fromkeys(chosen, (OPEN, -1)), **barred}


def test_no_cap_bars_clips_whose_value_is_not_known() -> None:
    """Those without a row in clips/."""
    rules = Rules(None, (cap("source", 1, [0, -1, 0, -1, -1, 1]),))
    chosen = choose(np.arange(6), np.zeros(6, bool), rules)
    assert chosen.barred_by.tolist() == [OPEN, OPEN, CAP, OPEN, OPEN, OPEN]


@given(
    order=st.permutations(range(N)),
    harmful=st.sets(st.integers(0, N - 1), max_size=8),
    linked=st.sets(st.tuples(st.integers(0, N - 2), st.integers(0, N - 1)).filter(lambda p: p[0] < p[1]), max_size=30),
    caps=st.lists(st.tuples(st.integers(1, 6), CODES), max_size=2),
)
def test_the_walk_is_the_definition(
    order: list[int], harmful: set[int], linked: set[tuple[int, int]], caps: list[tuple[int, list[int]]]
) -> None:
    rules = Rules(pairs_of(linked), tuple(cap(f"column {n}", *one) for n, one in enumerate(caps)))
    flags = np.isin(np.arange(N), list(harmful))
    chosen = choose(np.array(order), flags, rules)
    expected = plainly(order, harmful, linked, rules.caps)
    for row in range(N):
        assert (chosen.barred_by[row], chosen.stands_for[row]) == expected[row], f"row {row}"
    first = [row for row in order if expected[row][0] == OPEN]
    assert [int(chosen.place[row]) for row in first] == list(range(len(first)))
    assert (chosen.place[chosen.barred_by != OPEN] == -1).all()


def test_one_chunk_is_as_good_as_several(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    order, codes = rng.permutation(500), rng.integers(0, 3, 500).tolist()
    linked = {tuple(sorted(pair)) for pair in rng.integers(0, 500, (200, 2)).tolist() if pair[0] != pair[1]}
    rules = Rules(pairs_of(linked), (cap("source", 20, codes),))  # type: ignore[arg-type]
    whole = choose(order, np.zeros(500, bool), rules)
    monkeypatch.setattr(choosing, "CHUNK", 7)
    assert np.array_equal(choose(order, np.zeros(500, bool), rules).place, whole.place)


def table(rule: Ranking, rules: Rules | None = None, unlawful: dict[str, str] | None = None) -> pa.Table:
    """A selection of 40 clips; clip 0 is the best."""
    mean = np.linspace(1, -1, N, dtype=np.float32)
    ids = pa.array([f"c{n:02d}" for n in range(N)], pa.large_string())
    unlawful = unlawful or {}
    names = {"clip_id": list(unlawful), "reason": list(unlawful.values())}
    harm = pa.table(names, schema=pa.schema([("clip_id", pa.string()), ("reason", pa.string())]))
    return pa.concat_tables(selection_blocks(mean, np.zeros(N, np.int32), ids, 4, rule, None, harm, rules))


def test_every_clip_says_which_rule_decided() -> None:
    rules = Rules(pairs_of({(1, 2), (2, 5), (3, 9)}), (cap("licence", 3, [3] * 10 + [0] * 30),))
    rows = table(Ranking(fraction=0.1, harmful=0.5), rules, {"c00": "frozen"}).to_pylist()
    reasons = {row["clip_id"]: (row["decision"], row["rule"], row["reason"].split(": rank ")[0]) for row in rows}
    assert reasons["c00"] == ("harmful", "lawfulness", "frozen")
    assert reasons["c01"] == ("selected", "fraction", "first 4 of 40 by mean")
    assert reasons["c02"] == ("neutral", "duplicate", "near-duplicate of c01 by its features, cosine 0.950")
    assert reasons["c09"] == ("neutral", "duplicate", "near-duplicate of c03 by its features, cosine 0.990")
    assert reasons["c04"] == ("selected", "fraction", "first 4 of 40 by mean")
    assert reasons["c05"] == ("neutral", "cap licence", "licence none has 3 better clips"), "c02 bars nobody"
    assert reasons["c11"] == ("neutral", "fraction", "not selected")
    assert {row["duplicate_of"] for row in rows} == {None, "c01", "c03"}
    assert sum(row["decision"] == "selected" for row in rows) == 4


def test_of_one_ranking_a_smaller_selection_is_the_beginning_of_a_larger_one() -> None:
    rng = np.random.default_rng(3)
    rules = Rules(pairs_of({(0, 3), (4, 7), (7, 8), (20, 30)}), (cap("source", 7, rng.integers(0, 4, N).tolist()),))
    whole = table(Ranking(fraction=1.0), rules)
    open_to = whole.filter(pa.compute.is_valid(whole.column("choice")))
    by_choice = open_to.sort_by("choice").column("clip_id").to_pylist()
    for fraction in (0.01, 0.05, 0.1, 0.3, 0.5):
        rows = table(Ranking(fraction=fraction), rules)
        selected = rows.filter(pa.compute.equal(rows.column("decision"), "selected")).column("clip_id").to_pylist()
        assert selected == by_choice[: scores.share(fraction, N)], f"fraction {fraction}"


def test_nothing_asked_changes_nothing() -> None:
    plain, ruled = (table(Ranking(), rules, {"c01": "odd"}) for rules in (None, Rules()))
    assert plain.equals(ruled)
    assert set(plain.column("rule").to_pylist()) == {"fraction", "lawfulness"}
    assert Ranking().rule.keys() == Ranking().model_dump().keys() - {"duplicates", "caps", "interval", "roots"}


def test_above_a_threshold_rules_count_too() -> None:
    rows = table(Ranking(above=0.5), Rules(pairs_of({(0, 1)}))).to_pylist()
    selected = [row["clip_id"] for row in rows if row["decision"] == "selected"]
    assert selected == ["c00", *(f"c{n:02d}" for n in range(2, 10))]
    assert {row["rule"] for row in rows} == {"above", "duplicate"}
