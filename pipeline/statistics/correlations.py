"""Spearman's rank correlation, of two scores or column by column, and its interval."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
CONFIDENCE = 0.95


def spearman(a: Floats, b: Floats) -> float | None:
    """Rank correlation of scores [N] and [N] with ties averaged. Things without a finite score under both are left out.
    None where fewer than three are left, or where all scores of one side are equal."""
    finite = np.isfinite(a) & np.isfinite(b)
    if np.count_nonzero(finite) < 3:
        return None
    correlation = float(spearman_by_column(a[finite, None], b[finite, None])[0])
    return None if math.isnan(correlation) else correlation


def spearman_by_column(a: Floats, b: Floats) -> Floats:
    """Rank correlation of each column of [N, T] with the same column of [N, T], ties averaged: [T]. All values are
    finite; a column whose values are all equal has no correlation and is NaN."""
    from scipy.stats import rankdata  # takes a second to import

    x, y = rankdata(a, axis=0), rankdata(b, axis=0)
    x, y = x - x.mean(0), y - y.mean(0)
    length = np.sqrt((x * x).sum(0) * (y * y).sum(0))
    correlations = np.full(length.shape, math.nan)
    np.divide((x * y).sum(0), length, out=correlations, where=length > 0)
    return correlations.clip(-1, 1)


def spearman_interval(r: float, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Fisher's transformation with the variance (1 + r^2 / 2) / (n - 3) of Bonett and Wright (2000). The whole range
    where n < 4."""
    if n < 4:
        return -1.0, 1.0
    z = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, r)))
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt((1 + r * r / 2) / (n - 3))
    return math.tanh(z - reach), math.tanh(z + reach)
