"""What a rule that was chosen by its LDS is worth on subsets that took no part in the choice."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jobs.benchmarks.quality import datamodel
from jobs.benchmarks.quality.datamodel import Floats, Rows


def cross_fitted(scores: Mapping[str, Floats], members: list[Rows], gains: Floats) -> tuple[list[str], Floats]:
    """The rule with the best target-specific LDS on each half of the subsets, and what it predicts of the other half:
    two names, [S, T]. `scores` are [N, T] by rule. Each half of the prediction is in units of its own spread."""
    predicted = {name: datamodel.predicted(values, members) for name, values in scores.items()}
    halves = [np.arange(len(members)) % 2 == fold for fold in (0, 1)]
    found, named = np.zeros_like(gains), []
    for half in halves:
        best = max(predicted, key=lambda name: _score(predicted[name][half], gains[half]))
        named.append(best)
        values = predicted[best][~half]
        found[~half] = (values - values.mean(0)) / np.maximum(values.std(0), 1e-12)
    return named, found


def _score(values: Floats, gains: Floats) -> float:
    return float(datamodel.correlations(datamodel.specific(values), datamodel.specific(gains)).mean())
