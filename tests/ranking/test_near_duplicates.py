"""Pairs by random tables against all pairs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.ranking.rules import near_duplicates
from pipeline.ranking.rules.near_duplicates import Blocks, similar_pairs

Array = npt.NDArray[np.float32]


def rows_of(count: int, dim: int, noise: float) -> Array:
    """Every tenth row has a copy beside it."""
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((count, dim)).astype(np.float32)
    rows[1::10] = rows[::10] + noise * rng.standard_normal((count // 10, dim))
    unit: Array = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


def blocks_of(rows: Array, among: npt.NDArray[np.int64] | None = None, size: int = 700) -> Blocks:
    places = np.arange(len(rows)) if among is None else among

    def blocks() -> Iterator[tuple[npt.NDArray[np.int64], Array]]:
        for start in range(0, len(places), size):
            here = places[start : start + size]
            yield here, rows[here]

    return blocks


def pairs_of(rows: Array, threshold: float, among: npt.NDArray[np.int64] | None = None) -> dict[tuple[int, int], float]:
    order = np.random.default_rng(2).permutation(len(rows))
    first, second, cosine = similar_pairs(blocks_of(rows, among), order, threshold)
    assert (first < second).all()
    pairs = list(zip(first.tolist(), second.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs), "a pair is there twice"
    return dict(zip(pairs, cosine.tolist(), strict=True))


@pytest.mark.parametrize("few", [1 << 17, 100], ids=["two bytes", "three bytes"])
@pytest.mark.parametrize(("noise", "threshold", "least"), [(0.15, 0.97, 0.99), (0.3, 0.94, 0.9)])
def test_random_tables_find_the_pairs_that_comparing_all_finds(
    monkeypatch: pytest.MonkeyPatch, noise: float, threshold: float, least: float, few: int
) -> None:
    rows = rows_of(3000, 64, noise)
    every = pairs_of(rows, threshold)
    monkeypatch.setattr(near_duplicates, "EXACT", 10)
    monkeypatch.setattr(near_duplicates, "FEW", few)
    hashed = pairs_of(rows, threshold)
    assert len(every) > 200
    assert hashed.keys() <= every.keys()
    assert len(hashed) >= least * len(every)
    assert all(abs(hashed[pair] - every[pair]) < 1e-5 for pair in hashed)


def test_rows_that_are_missing_are_in_no_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(400, 32, 0.05)
    among = np.flatnonzero(np.arange(400) % 20 != 1)
    every = pairs_of(rows, 0.97, among)
    monkeypatch.setattr(near_duplicates, "EXACT", 10)
    assert pairs_of(rows, 0.97, among).keys() == every.keys()
    assert len(every) == 20
    assert pairs_of(rows, 0.97, among[:0]) == {}


def test_very_many_copies_are_compared_with_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """300 copies of one row: memory does not grow with their square, and one is left."""
    monkeypatch.setattr(near_duplicates, "EXACT", 10)
    rows = np.tile(rows_of(10, 32, 0.1)[:1], (300, 1))
    order = np.random.default_rng(2).permutation(300)
    first, second, _ = similar_pairs(blocks_of(rows), order, 0.95)
    best = int(order[0])
    assert len(set(first[second == best].tolist()) | set(second[first == best].tolist())) == 299
    assert len(first) < 300 * (near_duplicates.NEXT + near_duplicates.FIRST)


def test_a_threshold_of_one_finds_what_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "EXACT", 10)
    rows = rows_of(200, 16, 0.0)
    assert len(pairs_of(rows, 0.999999)) == 20
