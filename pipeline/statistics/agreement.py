"""Agreement between people on nominal values: Krippendorff's alpha."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

DRAWS = 2000


class Agreement(NamedTuple):
    """`agreed`: the share of pairs of people who said the same of the same thing. `alpha`: that share above what chance
    gives, 1 for perfect agreement, 0 for none but by chance; None where all values are equal, so that there is nothing
    to agree on. `low` and `high`: alpha's 95 % interval, None where there is no alpha or one thing alone."""

    agreed: float
    alpha: float | None
    low: float | None
    high: float | None


def nominal(counts: npt.ArrayLike, seed: int = 0) -> Agreement | None:
    """Agreement of `counts` [things, values]: how many people said which value of which thing. None where nothing was
    judged twice.

    alpha = 1 - D_o / D_e of the coincidence matrix, for any number of people and missing judgements (Krippendorff
    2011, Computing Krippendorff's Alpha-Reliability, section C). The interval is a percentile bootstrap over the
    things; people are taken as they are.
    """
    tallies = np.asarray(counts, np.float64)
    tallies = tallies[tallies.sum(1) >= 2]  # a single judgement has nothing to agree with
    if not len(tallies):
        return None
    whole = np.ones((1, len(tallies)))
    draws = np.random.default_rng(seed).multinomial(len(tallies), np.full(len(tallies), 1 / len(tallies)), DRAWS)
    observed = float(_disagreement(tallies, whole)[0])
    alpha = _alpha(tallies, whole)
    alphas = _alpha(tallies, draws.astype(np.float64))
    if not len(alpha):
        return Agreement(1 - observed, None, None, None)
    low, high = np.quantile(alphas, (0.025, 0.975)).tolist() if len(tallies) > 1 else (None, None)
    return Agreement(1 - observed, float(alpha[0]), low, high)


def _disagreement(counts: Floats, weights: Floats) -> Floats:
    """D_o for each weighting [draws, things] of the things."""
    people = counts.sum(1)
    unequal = (people**2 - (counts**2).sum(1)) / (people - 1)
    disagreement: Floats = (weights @ unequal) / (weights @ people)
    return disagreement


def _alpha(counts: Floats, weights: Floats) -> Floats:
    """Alpha for each weighting; those under which all values are equal are left out."""
    totals = weights @ counts
    n = totals.sum(1)
    expected = (n**2 - (totals**2).sum(1)) / (n * (n - 1))
    varied = expected > 0
    alpha: Floats = 1 - _disagreement(counts, weights)[varied] / expected[varied]
    return alpha
