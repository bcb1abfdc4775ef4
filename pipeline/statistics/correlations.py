"""Rank correlation, and its interval."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
CONFIDENCE = 0.95


def spearman(a: Floats, b: Floats) -> float | None:
    """Rank correlation with ties averaged; None where it is not defined."""
    finite = np.isfinite(a) & np.isfinite(b)
    a, b = _ranks(a[finite]), _ranks(b[finite])
    if len(a) < 3 or a.std() == 0 or b.std() == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: Floats) -> Floats:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Floats = (ends - (counts - 1) / 2)[place]
    return ranks


def spearman_interval(r: float, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Fisher's transformation with the variance (1 + r^2 / 2) / (n - 3) of Bonett and Wright (2000). The whole range
    where n < 4."""
    if n < 4:
        return -1.0, 1.0
    z = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, r)))
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt((1 + r * r / 2) / (n - 3))
    return math.tanh(z - reach), math.tanh(z + reach)
