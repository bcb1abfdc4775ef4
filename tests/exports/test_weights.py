"""Weights as repeats: never less than once, as near to the wished shares as the scale allows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.exports import weights

positive = st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=40).map(np.array)


def test_equal_weights_are_one_data_set_without_repeats() -> None:
    shares = np.full(7, 1 / 7)
    places = weights.bins(shares, 4)
    assert places.tolist() == [0] * 7
    assert weights.repeats(shares, places).tolist() == [1]
    assert weights.deviation(shares, np.ones(7)) == pytest.approx(0)


def test_whole_ratios_are_met_exactly() -> None:
    shares = np.array([1, 1, 2, 5], float) / 9
    places = weights.bins(shares, 4)
    assert places.tolist() == [0, 0, 1, 2]
    assert weights.repeats(shares, places).tolist() == [1, 2, 5]
    assert weights.deviation(shares, np.array([1, 1, 2, 5])) == pytest.approx(0)
    assert weights.deviation(shares, np.array([1, 1, 1, 1])) == pytest.approx(9 / 4 - 1)


@given(positive, st.integers(1, 6))
def test_data_sets_are_few_and_each_is_of_near_weights(shares: np.ndarray, count: int) -> None:
    places = weights.bins(shares, count)
    assert 1 <= len(np.unique(places)) <= count
    assert places.max() + 1 == len(np.unique(places)), "a data set is empty"
    ratio = (shares.max() / shares.min()) ** (1 / count)
    for place in np.unique(places):
        inside = shares[places == place]
        assert inside.max() / inside.min() <= ratio * (1 + 1e-9)
    order = np.argsort(shares, kind="stable")
    assert (np.diff(places[order]) >= 0).all(), "a heavier clip is in a lighter data set"


@given(positive)
def test_repeats_are_never_worse_than_none(shares: np.ndarray) -> None:
    places = np.unique(shares, return_inverse=True)[1]
    counts = weights.repeats(shares, places)[places]
    assert counts.min() >= 1
    assert counts.max() <= weights.MOST
    assert weights.deviation(shares, counts) <= weights.deviation(shares, np.ones(len(shares))) + 1e-9


def test_a_weight_that_is_none_is_refused() -> None:
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="positive and finite"):
            weights.bins(np.array([1.0, bad]), 2)
