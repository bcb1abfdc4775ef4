"""A ridge regression that tells queries from their twins, and what it says of those that its lesson left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.synthetic.world import Scene

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

PARTS = 10  # that clips are left out in, where neither motion nor look is


class Probe:
    """A ridge regression, with a free constant, of labels on states that are standardised without regard to labels.

    `ridge` is a share of the number of a state's entries, so it means the same for states of any width. Without the
    constant a left-out motion would leak: the mean over all states has a part of it, and the lesson would lean on that
    part in place of a constant.
    """

    def __init__(self, states: Floats, labels: Floats, ridge: float) -> None:
        self.mean, self.spread = states.mean(0), np.maximum(states.std(0), 1e-6)
        self.x = (states - self.mean) / self.spread
        self.labels, self.weight = labels, ridge * states.shape[1]
        inverse = np.linalg.inv(self.x @ self.x.T + self.weight * np.eye(len(self.x)))
        sums = inverse.sum(1)
        self.constant = float(sums @ labels / sums.sum())
        self.inverse = inverse - np.outer(sums, sums) / sums.sum()
        self.coefficients = self.inverse @ labels

    def scores(self, states: Floats) -> Floats:
        """Of other states [N, D]."""
        scores: Floats = ((states - self.mean) / self.spread) @ (self.x.T @ self.coefficients) + self.constant
        return scores

    def scores_without(self, left_out: Bools) -> Floats:
        """Of its own states, what the probe says that is taught on the rest of them: [left out].

        Where the residuals of a ridge regression are a multiple of A y, those of rows G that it leaves out are
        A_GG^-1 (A y)_G (Rifkin and Lippert 2007, MIT-CSAIL-TR-2007-025, of one row; of several the same by blocks).
        """
        rows = np.flatnonzero(left_out)
        residuals = np.linalg.solve(self.inverse[np.ix_(rows, rows)], self.coefficients[rows])
        scores: Floats = self.labels[rows] - residuals
        return scores

    def scores_of_its_own(self) -> Floats:
        """Of its own states, with none left out."""
        scores: Floats = self.labels - self.weight * self.coefficients
        return scores


@dataclass(frozen=True)
class Fold:
    """Which queries, with their twins, a lesson leaves out, and about which of them the probe is asked then: [Q]."""

    left_out: Bools
    asked: Bools


def folds(queries: Sequence[Scene]) -> dict[str, list[Fold]]:
    """By what is left out. The first, of nothing, is no test: its probe has been taught what it is asked about."""
    motions = np.array([scene.motion for scene in queries])
    colours, outlines = (np.array([scene.caption.split()[place] for scene in queries]) for place in (1, 2))
    places = np.array([int(scene.name.rsplit("-", 1)[1]) % PARTS for scene in queries])
    nothing, everything = np.zeros(len(queries), bool), np.ones(len(queries), bool)
    both = [
        Fold((motions == motion) | (colours == colour), (motions == motion) & (colours == colour))
        for motion in np.unique(motions)
        for colour in np.unique(colours)
    ]
    return {
        "nothing": [Fold(nothing, everything)],
        "clips": _by(places),
        "motion": _by(motions),
        "colour": _by(colours),
        "outline": _by(outlines),
        "motion and colour": [fold for fold in both if fold.asked.any()],
    }


def _by(labels: npt.NDArray[np.str_] | npt.NDArray[np.int64]) -> list[Fold]:
    return [Fold(labels == label, labels == label) for label in np.unique(labels)]
