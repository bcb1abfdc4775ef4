"""Intervals of means: they cover what they should as often as they say, and nothing depends on the order of rows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipeline.statistics import intervals
from pipeline.statistics.intervals import bootstrap_mean, lower_bound, standard_error, student, wilson


def _crossed(rng: np.random.Generator, people: int, videos: int, a: float, b: float, noise: float) -> np.ndarray:
    return rng.normal(0, a, (people, 1)) + rng.normal(0, b, (1, videos)) + rng.normal(0, noise, (people, videos))


def _labels(people: int, videos: int) -> tuple[list[str], list[str]]:
    return [f"p{i}" for i in range(people) for _ in range(videos)], [
        f"v{j}" for _ in range(people) for j in range(videos)
    ]


@pytest.mark.parametrize(("a", "b", "noise"), [(1.0, 1.0, 1.0), (1.0, 0.0, 1.0), (0.0, 1.0, 1.0), (0.0, 0.0, 1.0)])
def test_the_crossed_bootstrap_covers_the_mean_whichever_cluster_carries_the_variance(
    a: float, b: float, noise: float
) -> None:
    rng, labels = np.random.default_rng(3), _labels(17, 50)
    covered = 0
    for trial in range(200):
        interval = bootstrap_mean(_crossed(rng, 17, 50, a, b, noise).ravel(), *labels, draws=400, seed=trial)
        covered += interval.low <= 0 <= interval.high
    assert covered >= 0.89 * 200, "the interval is too narrow"  # 95 % less three standard errors and 17 clusters' bias


def test_resampling_values_as_if_independent_covers_too_seldom_where_people_differ() -> None:
    """The control of the test above: this is what clustering is for."""
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(100):
        interval = bootstrap_mean(_crossed(rng, 17, 50, 1.0, 0.0, 1.0).ravel(), draws=400, seed=trial)
        covered += interval.low <= 0 <= interval.high
    assert covered < 50


def test_one_cluster_equals_resampling_the_means_of_equal_clusters() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(12, 5))
    labels = [f"{i:02d}" for i in range(12) for _ in range(5)]
    clustered = bootstrap_mean(values.ravel(), labels, seed=1)
    means = bootstrap_mean(values.mean(1), [f"{i:02d}" for i in range(12)], seed=1)
    np.testing.assert_allclose(clustered, means)


def test_the_pigeonhole_weights_are_products_of_counts() -> None:
    """Against the definition, with cells that are empty and cells that hold two values."""
    values = [1.0, 2.0, 4.0, 8.0, 16.0]
    rows, columns = ["a", "a", "b", "c", "c"], ["x", "y", "y", "x", "x"]
    rng = np.random.default_rng(5)
    people = rng.multinomial(3, [1 / 3] * 3, 500)
    videos = rng.multinomial(2, [1 / 2] * 2, 500)
    means = []
    for p, v in zip(people, videos, strict=True):
        w = [p["abc".index(r)] * v["xy".index(c)] for r, c in zip(rows, columns, strict=True)]
        if sum(w):
            means.append(np.dot(w, values) / sum(w))
    interval = bootstrap_mean(values, rows, columns, draws=500, seed=5)
    assert interval == pytest.approx((np.mean(values), *np.quantile(means, [0.025, 0.975])))


def test_the_order_of_rows_is_of_no_account_and_shares_add_up() -> None:
    rng = np.random.default_rng(1)
    people, videos = _labels(6, 9)
    outcome = rng.integers(0, 3, 54)
    order = rng.permutation(54)
    shares = []
    for kind in range(3):
        x = (outcome == kind).astype(float)
        interval = bootstrap_mean(x, people, videos)
        again = bootstrap_mean(x[order], [people[i] for i in order], [videos[i] for i in order])
        assert interval == pytest.approx(again)
        shares.append(interval.mean)
    assert sum(shares) == pytest.approx(1)
    assert bootstrap_mean(rng.normal(size=54), people, videos, seed=1) != bootstrap_mean(x, people, videos, seed=2)


def test_student_and_its_bound_are_scipys() -> None:
    values = np.random.default_rng(7).normal(0.3, 1, 9)
    test = stats.ttest_1samp(values, 0)
    known = test.confidence_interval(0.9)
    assert student(values, confidence=0.9) == pytest.approx((values.mean(), known.low, known.high))
    assert standard_error(values) == pytest.approx(stats.sem(values))
    above = stats.ttest_1samp(values, 0, alternative="greater").confidence_interval(0.8)
    assert lower_bound(values, 0.8) == pytest.approx(above.low)


def test_clusters_of_one_size_count_as_their_means() -> None:
    values = np.random.default_rng(8).normal(size=(7, 4))
    clips = [f"c{i}" for i in range(7) for _ in range(4)]
    assert student(values.ravel(), clips) == pytest.approx(student(values.mean(1)))
    again = np.random.default_rng(9).permutation(28)
    assert student(values.ravel()[again], [clips[i] for i in again]) == pytest.approx(student(values.mean(1)))


def test_clusters_of_several_sizes_have_the_robust_standard_error() -> None:
    values, clips = np.array([1.0, 3.0, 8.0]), ["a", "a", "b"]
    # Their mean is 4; the deviations add up to -4 in a and 4 in b: sqrt(2 / 1 * 32) / 3.
    assert standard_error(values, clips) == pytest.approx(8 / 3)
    assert student(values, clips).mean == 4


def test_values_taken_for_independent_cover_too_seldom_where_clips_differ() -> None:
    rng = np.random.default_rng(10)
    clips = [f"c{i}" for i in range(15) for _ in range(6)]
    covered = {"clustered": 0, "naive": 0}
    for _ in range(300):
        values = (rng.normal(0, 1, (15, 1)) + rng.normal(0, 0.3, (15, 6))).ravel()
        clustered, naive = student(values, clips), student(values)
        covered["clustered"] += clustered.low <= 0 <= clustered.high
        covered["naive"] += naive.low <= 0 <= naive.high
    assert covered["clustered"] >= 0.92 * 300
    assert covered["naive"] < 0.75 * 300


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (74, 100)])
def test_wilson_is_scipys(successes: int, trials: int) -> None:
    known = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    interval = wilson(successes, trials)
    assert (interval.low, interval.high) == pytest.approx((known.low, known.high))


def test_what_has_no_interval_is_refused() -> None:
    for wrong in (
        lambda: bootstrap_mean([]),
        lambda: bootstrap_mean([1.0, float("nan")]),
        lambda: bootstrap_mean([1.0, 2.0], ["a"]),
        lambda: bootstrap_mean([1.0, 2.0], ["a", "a"]),
        lambda: bootstrap_mean([1.0, 2.0], ["a", "b"], ["a", "b"], ["a", "b"]),
        lambda: bootstrap_mean([1.0, 2.0], confidence=1.0),
        lambda: student([1.0]),
        lambda: wilson(1, 0),
        lambda: wilson(3, 2),
        lambda: lower_bound([1.0]),
        lambda: student([1.0, 2.0], ["a", "a"]),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            wrong()
    assert intervals.bootstrap_mean([2.0, 2.0]) == (2.0, 2.0, 2.0)
