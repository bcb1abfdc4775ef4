"""Selections that weigh a motion's masked loss against its plain loss, or against other motions: scores [N, T]."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from jobs.benchmarks.quality.influences import Floats

Rows = npt.NDArray[np.int64]

CLOSE = 1e-3  # to the smallest weight


def mixed(masked: Floats, plain: Floats, weight: Floats) -> Floats:
    """(1 - weight) masked + weight plain influence, each in units of its spread over the clips; a weight a motion [T].
    A clip that lacks one of the two is NaN."""
    scaled = [(values - np.nanmean(values, 0)) / np.nanstd(values, 0) for values in (masked, plain)]
    mean: Floats = (1 - weight) * scaled[0] + weight * scaled[1]
    return mean


def weights(masked: Floats, plain: Floats, count: int, budget: float = 0.0) -> Floats:
    """The smallest weight of the plain influence with which the first `count` clips by `mixed` have a mean plain
    influence that is at most `budget` below the corpus' mean: what they are predicted to cost in plain loss: [T].

    That mean never falls as the weight grows, so the weight is bisected. 1 where not even the plain influence alone
    keeps to the budget, as a negative one may ask.
    """
    smallest = np.zeros(masked.shape[1])
    for column in range(masked.shape[1]):
        a, b = masked[:, [column]], plain[:, [column]]
        least = float(np.nanmean(b)) - budget

        def keeps(weight: float, a: Floats = a, b: Floats = b, least: float = least) -> bool:
            return float(b[_first(mixed(a, b, np.array([weight]))[:, 0], count)].mean()) >= least

        low, high = 0.0, 0.0 if keeps(0.0) else 1.0
        while high - low > CLOSE:
            middle = (low + high) / 2
            low, high = (low, middle) if keeps(middle) else (middle, high)
        smallest[column] = high
    return smallest


def _first(score: Floats, count: int) -> Rows:
    """The rows of the highest scores."""
    return np.argsort(np.where(np.isfinite(score), -score, np.inf), kind="stable")[:count]


def spared(scores: Floats) -> Floats:
    """The influence on a motion less the mean of that on the others, as `ranking.spare: 1` has it."""
    others = (scores.sum(1, keepdims=True) - scores) / (scores.shape[1] - 1)
    less: Floats = scores - others
    return less
