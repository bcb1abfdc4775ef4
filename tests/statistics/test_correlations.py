"""Rank correlation is scipy's, ties averaged, and is None where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipeline.statistics.correlations import spearman, spearman_by_column, spearman_interval


@pytest.mark.parametrize("values", [3, 8, 10_000])
def test_spearman_is_scipys_with_and_without_ties(values: int) -> None:
    rng = np.random.default_rng(values)
    a, b = rng.integers(0, values, (2, 60)).astype(float)
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert spearman(a, a) == 1
    assert spearman(a, -a) == -1


def test_things_without_a_score_under_both_are_left_out() -> None:
    a = np.array([1.0, 2.0, np.nan, 4.0, 3.0, 0.0])
    b = np.array([2.0, 1.0, 9.0, np.inf, 5.0, 4.0])
    at = [0, 1, 4, 5]
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a[at], b[at]).statistic)


def test_there_is_none_for_two_things_and_for_equal_scores() -> None:
    assert spearman(np.array([1.0, 2.0]), np.array([1.0, 2.0])) is None
    assert spearman(np.array([1.0, 2.0, 3.0]), np.full(3, 5.0)) is None


def test_columns_are_correlated_one_by_one() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, (2, 40, 3)).astype(float)
    a[:, 2] = 1
    correlations = spearman_by_column(a, b)
    assert correlations[:2] == pytest.approx([spearman(a[:, i], b[:, i]) for i in (0, 1)])
    assert np.isnan(correlations[2])


def test_the_interval_covers_the_true_correlation_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(1), 0
    true = 6 / np.pi * np.arcsin(0.5 / 2)  # Spearman's of a Gaussian pair whose correlation is 0.5
    for _ in range(500):
        x, noise = rng.normal(size=(2, 60))
        correlation = spearman(x, 0.5 * x + 0.75**0.5 * noise)
        assert correlation is not None
        low, high = spearman_interval(correlation, 60)
        covered += low <= true <= high
    assert 0.92 * 500 < covered < 0.985 * 500
    assert spearman_interval(0.5, 3) == (-1, 1)
