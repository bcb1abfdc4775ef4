"""Promotion and drift: the rule's statistics."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline import drift, promotion
from pipeline.config import Promote


def losses(values: np.ndarray) -> dict[str, float]:
    return {f"clip-{i:03d}": float(v) for i, v in enumerate(values)}


def test_pairing_finds_what_means_alone_would_not() -> None:
    rng = np.random.default_rng(0)
    old = rng.uniform(0.5, 5.0, 40)  # clips differ far more than models
    new = old - 0.02 + rng.normal(0, 0.01, 40)
    found = promotion.judge(losses(new), losses(old), Promote())
    assert found.better
    assert found.improvement == pytest.approx((old - new).mean() / old.mean())
    assert 0 < found.bound < found.improvement
    assert not promotion.judge(losses(old), losses(new), Promote()).better, "a worse model passed"


def test_a_model_that_is_no_better_passes_as_seldom_as_the_rule_says() -> None:
    rng = np.random.default_rng(1)
    passed = 0
    for _ in range(2000):
        old = rng.uniform(1, 2, 12)
        passed += promotion.judge(losses(old + rng.normal(0, 0.1, 12)), losses(old), Promote(confidence=0.9)).better
    assert 160 < passed < 240, f"{passed} of 2000 passed at 90 % confidence"


def test_a_small_improvement_does_not_pass_where_more_is_asked_for() -> None:
    old = np.linspace(1, 2, 20)
    new = 0.99 * old
    assert promotion.judge(losses(new), losses(old), Promote()).better
    asked = promotion.judge(losses(new), losses(old), Promote(improvement=0.02))
    assert not asked.better
    assert "2 % is asked for" in asked.reason


def test_clips_of_one_model_only_are_left_out_and_too_few_keep_the_old_one() -> None:
    old, new = {"a": 1.0, "b": 2.0, "c": 3.0}, {"b": 1.9, "c": 2.9, "d": 0.1}
    assert promotion.judge(new, old, Promote()).pairs == 2
    few = promotion.judge({"a": 0.5}, old, Promote())
    assert not few.better
    assert "too few" in few.reason
    assert few.bound is None


def test_drift_of_equal_and_opposite_rankings() -> None:
    score = np.random.default_rng(2).normal(size=100)
    same = drift.compare(score, 3 * score + 1)
    assert (same.spearman, same.overlap) == (pytest.approx(1), 1)
    assert same.overlap_interval is not None
    assert same.overlap_interval[0] < 1, "ten clips of ten are no certainty"
    opposite = drift.compare(score, -score)
    assert (opposite.spearman, opposite.overlap) == (pytest.approx(-1), 0)
    assert drift.compare(score[:2], score[:2]).spearman is None


def test_drift_interval_covers_the_true_correlation() -> None:
    rng, inside, rho = np.random.default_rng(3), 0, 0.8
    true = 6 / np.pi * np.arcsin(rho / 2)  # Spearman's of a normal pair with correlation rho
    for _ in range(400):
        pair = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], 80)
        low, high = drift.compare(pair[:, 0], pair[:, 1]).spearman_interval
        inside += low < true < high
    assert 368 <= inside <= 395, f"the 95 % interval held the true value {inside} times of 400"


def test_the_drawn_clips_stay_when_others_come() -> None:
    ids = [f"clip-{i}" for i in range(500)]
    before, after = set(drift.drawn(0, ids, 50)), set(drift.drawn(0, [*ids, "new-1", "new-2"], 50))
    assert len(before) == 50
    assert len(before & after) >= 48
    assert drift.drawn(1, ids, 50) != drift.drawn(0, ids, 50)
