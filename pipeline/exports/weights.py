"""Weights as trainers can have them: whole repeats of a clip, or a probability for each of a few data sets."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MOST = 20  # times that a clip is repeated: an epoch is no longer than so many


def bins(weights: Floats, count: int) -> Ints:
    """Which of at most `count` data sets each clip [N] belongs to, the lightest one first, none of them empty.

    Where weights have as few values, each value has a data set of its own. More values are divided into ranges of one
    ratio: the largest ratio of two weights in one data set is then the same wherever between the extremes they lie.
    Raises ValueError for a weight that is not positive and finite.
    """
    if not np.isfinite(weights).all() or (weights <= 0).any():
        raise ValueError("every weight must be positive and finite")
    values, places = np.unique(weights, return_inverse=True)
    if len(values) > count:
        edges = np.geomspace(values[0], values[-1], count + 1)[1:-1]
        places = np.searchsorted(edges, weights, side="right")
    order: Ints = np.unique(places, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return order


def repeats(weights: Floats, places: Ints, most: int = MOST) -> Ints:
    """How often to repeat the clips of each data set [bins], 1 to `most`, for clips [N] of these weights and data sets:
    of all scales the one with the least `deviation`, of equally good ones the shortest epoch."""
    means: Floats = np.bincount(places, weights) / np.bincount(places)
    best = np.ones(len(means), np.int64)
    least = deviation(weights, best[places])
    for scale in range(2, most + 1):
        if least < 1e-9:
            break
        counts = np.maximum(1, np.floor(means / means.max() * scale + 0.5)).astype(np.int64)
        off = deviation(weights, counts[places])
        if off < least - 1e-9:
            best, least = counts, off
    return best


def deviation(weights: Floats, drawn: Floats | Ints) -> float:
    """The largest relative difference between the share of training that a clip gets and the one it should have: 0.25
    is a quarter too much or too little. `drawn` [N] is how often each clip is drawn, in any unit."""
    if not len(weights):
        return 0.0
    wished, actual = weights / weights.sum(), drawn / drawn.sum()
    return float(np.abs(actual / wished - 1).max())
