"""Subsets and halves of the corpus, and what their composition alone predicts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from jobs.benchmarks.real.people import by_hash

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

SHARE = 0.3  # of the corpus in a subset
FOLDS = 5
RIDGE = 0.1  # of the largest eigenvalue


def matched_halves(score: Floats, cells: Sequence[tuple[str, str]], clip_ids: Sequence[str]) -> tuple[Rows, Rows]:
    """The rows of the upper and of the lower half by a score, within every cell, as (action, person).

    A cell's middle clip is in neither half, nor is a clip without a score. Equal scores go by the clips' ids.
    """
    order = {clip_id: place for place, clip_id in enumerate(by_hash(0, clip_ids))}
    members: dict[tuple[str, str], list[int]] = {}
    for row, cell in enumerate(cells):
        if np.isfinite(score[row]):
            members.setdefault(cell, []).append(row)
    upper: list[int] = []
    lower: list[int] = []
    for rows in members.values():
        ranked = sorted(rows, key=lambda row: (-score[row], order[clip_ids[row]]))
        half = len(ranked) // 2
        upper += ranked[:half]
        lower += ranked[len(ranked) - half :]
    return np.array(sorted(upper), np.int64), np.array(sorted(lower), np.int64)


def composition(labels: Sequence[npt.NDArray[np.str_]], members: Sequence[Rows]) -> Floats:
    """What share of each subset has each label, of each kind of label: [S, labels]."""
    columns = [kind == label for kind in labels for label in np.unique(kind)]
    shares = [[float(column[rows].mean()) for column in columns] for rows in members]
    return np.array(shares, np.float64)


def ridge(features: Floats, gains: Floats) -> Floats:
    """What a ridge on features [S, F] predicts of gains [S, T], less their mean: each subset by one that was fitted to
    others. What is the same for all subsets predicts zeros."""
    subsets = len(gains)
    predicted = np.zeros_like(gains)
    for fold in range(min(FOLDS, subsets)):
        out = np.arange(subsets) % min(FOLDS, subsets) == fold
        x, y = features[~out], gains[~out]
        centre = x - x.mean(0)
        square = centre.T @ centre
        penalty = RIDGE * max(float(np.linalg.eigvalsh(square)[-1]), 1e-9)
        weights = np.linalg.solve(square + penalty * np.eye(len(square)), centre.T @ (y - y.mean(0)))
        # Without the other subsets' mean, which is low where this fold's is high.
        predicted[out] = (features[out] - x.mean(0)) @ weights
    return predicted
