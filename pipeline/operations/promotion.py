"""Whether a night's model takes the place of the one in use: a one-sided t interval on losses paired clip by clip.

Both models meet the same held-out clips with the same timesteps and noises, so most of a clip's loss cancels in the
difference. Over many nights, rules of 95 % confidence will pass a model that is no better about once in twenty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from pipeline.config.operations import Promote
from pipeline.statistics.intervals import lower_bound

FEWEST = 2  # pairs that an interval takes

Losses = Mapping[str, float]  # clip_id -> loss


@dataclass(frozen=True)
class Verdict:
    """`improvement` is by how much the candidate's mean loss is lower, relative to the other's; `bound` its lower
    confidence bound. Both are None where too few clips have a loss under both models."""

    better: bool
    reason: str
    pairs: int
    candidate: float | None
    in_use: float | None
    improvement: float | None
    bound: float | None
    plain_change: float | None = None  # of the mean plain loss against the other's, relative; None: not known


def judge(candidate: Losses, in_use: Losses, rule: Promote) -> Verdict:
    """Hold two models' losses (lower is better) against the rule; clips that only one of them has are left out.

    The bound is `lower_bound` of the differences, over the mean of in_use. Where all differences are equal, it is their
    mean.
    """
    shared = sorted(candidate.keys() & in_use.keys())
    new, old = (np.array([losses[i] for i in shared], np.float64) for losses in (candidate, in_use))
    n = len(shared)
    if n < FEWEST or not old.mean() > 0:
        reason = f"{n} held-out clips have a {rule.metric} under both models, too few to judge by; the old one stays."
        return Verdict(False, reason, n, _mean(new), _mean(old), None, None)
    difference, level = old - new, float(old.mean())
    improvement = float(difference.mean()) / level
    bound = lower_bound(difference, rule.confidence) / level
    better = bound > rule.improvement
    requirement = f"more than {100 * rule.improvement:g} % is asked for"
    reason = (
        f"its mean {rule.metric} on {n} held-out clips is {abs(100 * improvement):.2f} % "
        f"{'lower' if improvement >= 0 else 'higher'} than that of the model in use, and with "
        f"{100 * rule.confidence:g} % confidence the improvement is at least {100 * bound:+.2f} %; {requirement}."
    )
    return Verdict(better, reason, n, float(new.mean()), level, improvement, bound)


def spare_the_rest(verdict: Verdict, candidate: Losses, in_use: Losses, rule: Promote) -> Verdict:
    """The verdict with what became of the plain loss: a model whose mean plain loss rises by more than
    `rule.plain_loss_at_most` is not promoted. What moves covers a part of the picture, and a masked loss can fall at
    the price of the rest."""
    shared = sorted(candidate.keys() & in_use.keys())
    level = float(np.mean([in_use[i] for i in shared])) if shared else 0.0
    if not level > 0:
        return verdict
    change = float(np.mean([candidate[i] for i in shared])) / level - 1
    sentence = f" Its mean plain loss is {abs(100 * change):.2f} % {'higher' if change > 0 else 'lower'}"
    most = rule.plain_loss_at_most
    if most is None or change <= most:
        return replace(verdict, reason=f"{verdict.reason}{sentence}.", plain_change=change)
    refusal = f"{sentence}, and nightly.promote.plain_loss_at_most allows {100 * most:+g} %."
    return replace(verdict, better=False, reason=f"{verdict.reason}{refusal}", plain_change=change)


def _mean(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float | None:
    return float(values.mean()) if len(values) else None
