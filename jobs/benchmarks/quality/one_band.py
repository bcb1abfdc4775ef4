"""Tenths that are drawn at the times of one band alone, while other clips train at all other times.

A pair of a band and of the clips elsewhere has its own arm `random`, whose tenth stands in the place of an arm's: it
has the same draws, and the same clips elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from jobs.benchmarks.quality import counterfactual, methods, tasks
from jobs.benchmarks.quality.influences import Place
from jobs.benchmarks.quality.retraining import Retraining, at_band
from jobs.benchmarks.quality.studies import MOTIONS, Key, Studies
from pipeline.evaluation.comparison import BANDS

LITTLE, _, MUCH = BANDS
ALL_TIMES = "all times"
RANDOM = "random"
PLACE: Place = (251.0, 0)  # of LOW: where there is less noise than at the settings of the best rule
LOW = "best at 251"  # the best rule at PLACE alone
ARMS = (RANDOM, "caption", "nearest_flow", "own_loss", "best")
ELSEWHERE = (RANDOM, "all")  # whose clips train at the other times
FORMS: Mapping[tuple[str, str], tuple[str, ...]] = {  # arms, by the band of their tenth and the clips elsewhere
    (LITTLE, RANDOM): (*ARMS, "all", LOW),
    (LITTLE, "all"): (*ARMS, "all"),  # the last one is the whole corpus at all times
    (MUCH, RANDOM): (RANDOM, "best"),
}
APART = 1000  # between the seeds of random's tenths in a band, which differ by target, and of those elsewhere

CRITERIA: Mapping[str, str] = {
    "random": "over all times and all worlds the best rule's tenth does not lower the target's masked loss below that "
    "of random's tenth in its place, at 95 %",
    "specific": "against the same the others' masked loss falls as much as the target's, or the target's plain loss "
    "rises by more than 1 %",
    "search": "the target's masked loss falls no more than with caption match's tenth in its place, or than with the "
    "nearest flow's",
    "shifted": "in the shifted world the target's masked loss is above that of random's tenth in its place",
}

Outcomes = dict[str, dict[Key, dict[str, float]]]


def outcomes(study: Studies, band: str, elsewhere: str, seeds: int) -> Outcomes:
    """The changes of held-out losses against the base, by the times of the losses: ALL_TIMES and each of BANDS."""
    by = _scores(study)
    trainings = {
        (arm, target, seed): _training(study, by, arm, band, elsewhere, target, seed)
        for arm in FORMS[band, elsewhere]
        for target in study.plan.targets
        for seed in range(seeds)
    }
    in_bands = study.changed_in_bands("tenths at one band of times", trainings)
    after = study.retrained("tenths at one band of times", list(trainings.values()))
    whole = {
        key: counterfactual.changes(losses, study.base, study.held_out, key[1])
        for key, losses in zip(trainings, after, strict=True)
    }
    return {ALL_TIMES: whole, **in_bands}


def _scores(study: Studies) -> counterfactual.Influences:
    """What arms pick by, LOW among them."""
    (grams,) = tasks.grams(study.folder, study.plan.world, study.plan.recipe, [(*PLACE, "shared")])
    low = methods.combined(replace(study.kernels, shared={PLACE: grams}), study.clips, *methods.BEST)
    return replace(study.picked_by, others={LOW: study.motion_scores(low)})


def _training(
    study: Studies, by: counterfactual.Influences, arm: str, band: str, elsewhere: str, target: str, seed: int
) -> Retraining:
    def rows(of: str, number: int) -> npt.NDArray[np.int64]:
        task = counterfactual.chosen(of, study.clips, study.queries, MOTIONS, target, by, number)
        return np.array([row for row, _ in task.weights])

    # A random tenth for each target: a mean over targets is then one over as many random tenths.
    number = APART * (1 + MOTIONS.index(target)) + seed if arm == RANDOM else seed
    return at_band(band, rows(arm, number), rows(elsewhere, seed), study.plan.recipe, seed)
