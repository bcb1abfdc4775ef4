"""Intervals of means: Student's, bootstrapped over one or two crossed clusters, and Wilson's of a share."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtrit

Floats = npt.NDArray[np.float64]

DRAWS = 4000
FEW = 10  # clusters below which a percentile bootstrap is too narrow


class Interval(NamedTuple):
    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2

    def columns(self, name: str) -> dict[str, float]:
        """As columns of a table: the mean as `name`, and its ends beside it."""
        return {name: self.mean, f"{name}_low": self.low, f"{name}_high": self.high}


def bootstrap_mean(
    values: Sequence[float] | Floats,
    *clusters: Sequence[Hashable],
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of the mean of values [n], each value weighing the same.

    `clusters`, labels [n] each: none resamples the values; one resamples whole clusters (Davison and Hinkley 1997,
    3.8); two, crossed (people x videos), resample both independently, and a value weighs the product of the two counts:
    the pigeonhole bootstrap (Owen 2007, Annals of Applied Statistics 1, 386-411), which is too wide rather than too
    narrow, most so (up to sqrt(3)) where the noise of the single values outweighs both clusters. Cells may be empty or
    hold several values. A draw that holds no value at all is left out.

    The resamples belong to the seed and the sorted labels, not to the order of the values; equal clusters and seeds
    give equal resamples, so that shares which add up to one do so in every draw. With fewer than FEW clusters a
    percentile interval is too narrow: take `student` of the clusters' means.

    Raises ValueError for no values, values that are not finite, labels of another length, more than two labellings, and
    a labelling with one cluster, which says nothing about how clusters differ.
    """
    x = _checked(values)
    if len(clusters) > 2:
        raise ValueError(f"{len(clusters)} labellings: at most two crossed ones can be resampled")
    if any(len(labels) != len(x) for labels in clusters):
        raise ValueError(f"labels of {[len(labels) for labels in clusters]} for {len(x)} values")
    codes = [_codes(labels) for labels in clusters or (range(len(x)),)]
    rng = np.random.default_rng(seed)
    counts = [_resampled(rng, int(code.max()) + 1, draws) for code in codes]
    if len(codes) == 1:
        size = counts[0].shape[1]
        totals = counts[0] @ np.bincount(codes[0], x, size)
        weights = counts[0] @ np.bincount(codes[0], minlength=size).astype(np.float64)
    else:
        shape = counts[0].shape[1], counts[1].shape[1]
        cells = np.ravel_multi_index((codes[0], codes[1]), shape)
        sums, cell_counts = (np.bincount(cells, w, math.prod(shape)).reshape(shape) for w in (x, np.ones_like(x)))
        totals, weights = (np.einsum("bc,bc->b", counts[0] @ cell, counts[1]) for cell in (sums, cell_counts))
    means = totals[weights > 0] / weights[weights > 0]
    low, high = np.quantile(means, _tails(confidence)).tolist()
    return Interval(float(x.mean()), low, high)


def student(
    values: Sequence[float] | Floats, clusters: Sequence[Hashable] | None = None, confidence: float = 0.95
) -> Interval:
    """Student's t interval of the mean of values [n] (Student 1908, Biometrika 6, 1-25).

    The values are independent, or hang together within `clusters`, labels [n], which are independent: then there are as
    many degrees of freedom as clusters less one. It is the one interval of a mean by which pages, decisions and logs
    tell whether a model is better. Raises ValueError for a single value or cluster.
    """
    x = _checked(values)
    half = _quantile_of_t(x, clusters, _tails(confidence)[1]) * standard_error(x, clusters)
    return Interval(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half)


def lower_bound(values: Sequence[float] | Floats, confidence: float = 0.95) -> float:
    """The one-sided bound of `student`: with this confidence the mean of independent values [n] is at least that."""
    x = _checked(values)
    return float(x.mean()) - _quantile_of_t(x, None, confidence) * standard_error(x)


def standard_error(values: Sequence[float] | Floats, clusters: Sequence[Hashable] | None = None) -> float:
    """The standard error of the mean of values [n], independent or within independent `clusters`, labels [n].

    With G clusters of which the deviations from the mean add up to e: sqrt(G / (G - 1) sum e^2) / n (Liang and Zeger
    1986, Biometrika 73, 13-22). With clusters of one size it is that of the clusters' means. Raises ValueError for a
    single value or cluster.
    """
    x = _checked(values)
    sums = x - x.mean()
    if clusters is not None:
        sums = np.bincount(_codes(clusters), sums)
    if len(sums) < 2:
        raise ValueError("one value says nothing about how values differ")
    return math.sqrt(len(sums) / (len(sums) - 1) * float((sums * sums).sum())) / len(x)


def _quantile_of_t(x: Floats, clusters: Sequence[Hashable] | None, share: float) -> float:
    """How many standard errors the mean of values is from the true one at most, with the chance `share`."""
    independent = len(x) if clusters is None else len(set(clusters))
    return float(stdtrit(independent - 1, share))


def wilson(successes: float, trials: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a share of independent trials (Wilson 1927, JASA 22, 209-212): within [0, 1], and of
    some width also at 0 and 1. `successes` may be a fraction, where a trial is several that hang together. Raises
    ValueError where there were no trials."""
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes of {trials} trials")
    z, share = float(ndtri(_tails(confidence)[1])), successes / trials
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def _checked(values: Sequence[float] | Floats) -> Floats:
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise ValueError(f"values of shape {list(x.shape)}: at least one is needed, and all must be finite")
    return x


def _codes(labels: Sequence[Hashable]) -> npt.NDArray[np.int64]:
    """Labels as numbers 0 ... in the order of their texts."""
    numbers = {label: i for i, label in enumerate(sorted(set(labels), key=repr))}
    if len(numbers) < 2:
        raise ValueError("one cluster says nothing about how clusters differ: at least two are needed")
    return np.array([numbers[label] for label in labels], np.int64)


def _resampled(rng: np.random.Generator, size: int, draws: int) -> Floats:
    """How often each of `size` clusters is drawn [draws, size]."""
    return rng.multinomial(size, np.full(size, 1 / size), draws).astype(np.float64)


def _tails(confidence: float) -> tuple[float, float]:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: it lies between 0 and 1")
    return (1 - confidence) / 2, (1 + confidence) / 2
