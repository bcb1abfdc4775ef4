"""How well a sum of scores tells the loss after fine-tuning: the linear datamodelling score (Park et al. 2023, eq. 3).

Subsets of the corpus are fine-tuned on; a subset's predicted value for a motion is the mean score of its clips, and the
LDS is Spearman's correlation over the subsets of predicted with measured values (the loss, its sign turned), mean over
the motions. *Target-specific* is the same after each subset's mean over the motions was taken away from both: it asks
which motion a subset teaches, not whether it teaches at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from jobs.benchmarks.quality.problem import Clips
from pipeline.statistics.correlations import spearman_by_column

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Design = Literal["skewed", "uniform"]

DRAWS = 400  # of a bootstrap
CONCENTRATION = 0.15  # of the Dirichlet distribution that the motions' shares are drawn from
FOLDS = 5
RIDGE = 0.1  # of the largest eigenvalue
SHARE = {"skewed": 0.25, "uniform": 0.5}  # of the corpus in a subset


def subsets(clips: Clips, design: Design, count: int, share: float | None = None) -> list[Rows]:
    """`uniform`: halves of the corpus. `skewed`: quarters in which some motions are many and others hardly there.
    Another `share` of the corpus may be asked for. Subset n does not depend on `count`."""
    size = round((SHARE[design] if share is None else share) * len(clips))
    named = sorted(set(clips.motions.tolist()) - {""})
    members = []
    for number in range(count):
        rng = np.random.default_rng([5, number, design == "skewed"])
        chances = np.ones(len(clips))
        if design == "skewed":
            shares = dict(zip(named, rng.dirichlet(np.full(len(named), CONCENTRATION)), strict=True))
            counts = Counter(clips.motions.tolist())
            chances = np.array([shares.get(m, 1 / len(named)) / counts[m] for m in clips.motions.tolist()]) + 1e-9
        members.append(np.sort(rng.choice(len(clips), size, replace=False, p=chances / chances.sum())))
    return members


def predicted(scores: Floats, members: list[Rows]) -> Floats:
    """Mean score of each subset's clips: [N, T] -> [S, T]. A clip that a method cannot score counts 0."""
    return np.stack([np.nan_to_num(scores[rows]).mean(0) for rows in members])


def specific(values: Floats) -> Floats:
    """[S, T] without each row's mean, columns standardised first: motions whose losses are large must not rule it."""
    scaled = (values - values.mean(0)) / np.maximum(values.std(0), 1e-12)
    centred: Floats = scaled - scaled.mean(1, keepdims=True)
    return centred


def correlations(a: Floats, b: Floats) -> Floats:
    """Spearman's correlation of the columns of [S, T] and [S, T]: [T]. What is the same for all subsets tells nothing
    about them: 0."""
    return np.nan_to_num(spearman_by_column(a, b))


def agreement(values: Floats, gain: Floats, target_specific: bool) -> float:
    """The LDS of predicted values [S, T] for the measured gain [S, T] (base loss less loss)."""
    if target_specific:
        values, gain = specific(values), specific(gain)
    return float(correlations(values, gain).mean())


@dataclass(frozen=True)
class Score:
    """An LDS with its 90 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def lds(values: Floats, gain: Floats, target_specific: bool) -> Score:
    """`agreement`, with its interval over subsets and motions."""
    mean, drawn = _bootstrapped(values, gain, target_specific)
    return Score(mean, *np.quantile(drawn, (0.05, 0.95)).tolist())


def difference(ours: Floats, theirs: Floats, gain: Floats, target_specific: bool) -> Score:
    """How much larger the LDS of our prediction is than that of theirs, paired by subset and motion."""
    (a, drawn_a), (b, drawn_b) = (_bootstrapped(values, gain, target_specific) for values in (ours, theirs))
    return Score(a - b, *np.quantile(drawn_a - drawn_b, (0.05, 0.95)).tolist())


def _bootstrapped(values: Floats, gain: Floats, target_specific: bool) -> tuple[float, Floats]:
    """An LDS, and that of resampled subsets and motions: [DRAWS], the same draws for every method."""
    if target_specific:
        values, gain = specific(values), specific(gain)
    rng, draws = np.random.default_rng(0), []
    subsets, motions = gain.shape
    for _ in range(DRAWS):
        rows, columns = rng.integers(0, subsets, subsets), rng.integers(0, motions, motions)
        draws.append(correlations(values[rows][:, columns], gain[rows][:, columns]).mean())
    return float(correlations(values, gain).mean()), np.array(draws)


def both_lds(predicted: Floats, gains: Floats) -> dict[str, float]:
    columns: dict[str, float] = {}
    for name, target_specific in (("plain", False), ("specific", True)):
        score = lds(predicted, gains, target_specific)
        columns |= {name: score.value, f"{name}_low": score.low, f"{name}_high": score.high}
    return columns


# --- a rule that was chosen by its LDS, on subsets that took no part in the choice ------------------------------------


def cross_fitted(scores: Mapping[str, Floats], members: list[Rows], gains: Floats) -> tuple[list[str], Floats]:
    """The rule with the best target-specific LDS on each half of the subsets, and what it predicts of the other half:
    two names, [S, T]. `scores` are [N, T] by rule. Each half of the prediction is in units of its own spread."""
    predictions = {name: predicted(values, members) for name, values in scores.items()}
    halves = [np.arange(len(members)) % 2 == fold for fold in (0, 1)]
    fitted, named = np.zeros_like(gains), []
    for half in halves:
        best = max(predictions, key=lambda name: agreement(predictions[name][half], gains[half], True))
        named.append(best)
        values = predictions[best][~half]
        fitted[~half] = (values - values.mean(0)) / np.maximum(values.std(0), 1e-12)
    return named, fitted


# --- what a subset's composition tells --------------------------------------------------------------------------------


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
