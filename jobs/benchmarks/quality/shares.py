"""How much to select: the first 1, 5, 10, 30 and 50 % by an arm, all fine-tuned on for equally many steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jobs.benchmarks.quality import counterfactual
from jobs.benchmarks.quality.studies import Studies

ARMS = ("random", "caption", "nearest_flow", "best")
SHARES = (0.01, 0.05, 0.10, 0.30, 0.50)


def changes(study: Studies, shares: Sequence[float], arms: Sequence[str] = ARMS) -> dict[str, dict[str, float]]:
    """By share and arm, as "30 % by best": the relative change of each held-out loss (`counterfactual.LOSSES`) against
    the base, mean over targets and seeds."""
    seeds = range(study.plan.seeds)
    targets = study.plan.targets
    keys = [(part, arm, target, seed) for part in shares for arm in arms for target in targets for seed in seeds]
    tasks = [study.chosen(arm, target, seed, part) for part, arm, target, seed in keys]
    after = study.retrained("shares", tasks)
    measured = {
        key: counterfactual.changes(losses, study.base, study.held_out, key[2])
        for key, losses in zip(keys, after, strict=True)
    }
    return {
        f"{part:.0%} by {arm}".replace("%", " %"): {
            loss: float(np.mean([of[loss] for key, of in measured.items() if key[:2] == (part, arm)]))
            for loss in counterfactual.LOSSES
        }
        for part in shares
        for arm in arms
    }
