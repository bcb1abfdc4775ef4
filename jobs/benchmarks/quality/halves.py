"""Within classes: what the upper half by a score teaches more than the lower half, where both show the same.

The halves are taken within every (motion, kind), so that neither has more clips of a motion, and neither more cartoons.
A score that only names the class of a clip cannot tell them apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jobs.benchmarks.matching import matched_halves
from jobs.benchmarks.quality import counterfactual, methods
from jobs.benchmarks.quality.retraining import Retraining, on
from jobs.benchmarks.quality.studies import MOTIONS, Studies

SCORES = ("best", "motive", methods.FLOW, methods.OWN_LOSS, methods.RANDOM)

Key = tuple[str, str, str, int]  # score, target, which half, seed


def differences(study: Studies, names: Sequence[str] = SCORES) -> dict[str, dict[str, float]]:
    """By score: the relative change of each held-out loss (`counterfactual.LOSSES`) by the upper half less that by the
    lower half, mean over targets and seeds. Below zero the upper half teaches more."""
    tasks = dict(_halves(study, names))
    after = dict(zip(tasks, study.retrained("matched halves", list(tasks.values())), strict=True))
    changes = {key: counterfactual.changes(losses, study.base, study.held_out, key[1]) for key, losses in after.items()}
    by_score: dict[str, dict[str, float]] = {}
    for name in names:
        pairs = [
            (of, changes[name, target, "lower", seed])
            for (score, target, half, seed), of in changes.items()
            if (score, half) == (name, "upper")
        ]
        by_score[name] = {
            loss: float(np.mean([upper[loss] - lower[loss] for upper, lower in pairs]))
            for loss in counterfactual.LOSSES
        }
    return by_score


def _halves(study: Studies, names: Sequence[str]) -> list[tuple[Key, Retraining]]:
    clips = study.clips
    cells = list(zip(clips.motions.tolist(), clips.kinds.tolist(), strict=True))
    tasks: list[tuple[Key, Retraining]] = []
    for name in names:
        values = study.motion_scores(study.scored[name])
        for target in study.plan.targets:
            upper, lower = matched_halves(values[:, MOTIONS.index(target)], cells, clips.clip_ids)
            for seed in range(study.plan.seeds):
                tasks.append(((name, target, "upper", seed), on(upper, seed)))
                tasks.append(((name, target, "lower", seed), on(lower, seed)))
    return tasks
