"""What happens if the selection is fine-tuned on: every arm for every target motion, under several seeds.

All arms take the same steps. Arms that pick take a tenth of the clips. Losses are held out, masked and plain, on the
target motion and on the others, and told relative to the base model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from jobs.benchmarks.quality.influences import Floats
from jobs.benchmarks.quality.problem import Clips
from jobs.benchmarks.quality.retraining import Losses, Retraining, on
from pipeline.ranking import order, share
from pipeline.statistics.intervals import bootstrap_mean
from pipeline.training.arms import by_hash

TENTH = 0.1
SAME_FOR_ALL = ("all", "random", "magnitude", "own_loss", "gradient_length")  # arms that know no target


@dataclass(frozen=True)
class Influences:
    """What arms pick by: influence on every query, [N, Q], where nothing else is said."""

    plain: Floats
    no_mask: Floats
    whitened: Floats
    best: Floats
    overlap: Floats  # [N, T]
    caption: Floats  # [N, T]
    flow: Floats  # [N, T]
    own_loss: Floats  # [N]
    length: Floats  # [N]
    others: Mapping[str, Floats] = field(default_factory=dict)  # of further arms, by their names: [N, T]


def chosen(
    arm: str,
    clips: Clips,
    queries: Clips,
    motions: Sequence[str],
    target: str,
    by: Influences,
    seed: int,
    part: float = TENTH,
) -> Retraining:
    """What an arm fine-tunes on for a target. `random` draws anew for every seed; no other choice depends on it. Arms
    that pick take this part of the clips that move."""
    count, ids, columns = share(part, int(clips.moving.sum())), clips.clip_ids, queries.of(target)
    everything = np.arange(len(clips))

    def top(values: Floats, rule: str) -> Retraining:
        ranked = np.flatnonzero(np.isfinite(values).all(1))
        placed = order(values[ranked].astype(np.float32), [ids[n] for n in ranked], rule)  # type: ignore[arg-type]
        return on(ranked[placed[:count]], seed)

    if arm == "all":
        return on(everything, seed)
    if arm == "random":
        place = {clip_id: n for n, clip_id in enumerate(ids)}
        return on(np.array([place[i] for i in _by_hash(seed, ids)[:count]]), seed)
    of_clips: dict[str, Floats] = {
        "magnitude": clips.magnitude.astype(np.float64),
        "own_loss": by.own_loss,
        "gradient_length": by.length,
    }
    if arm in of_clips:
        return on(np.argsort(-of_clips[arm], kind="stable")[:count], seed)
    of_targets = {"mask_overlap": by.overlap, "caption": by.caption, "nearest_flow": by.flow, **by.others}
    if arm in of_targets:
        return top(of_targets[arm][:, [list(motions).index(target)]], "mean")
    if arm == "no_mask":
        return top(by.no_mask[:, columns], "votes")
    if arm == "motive":
        return top(by.plain[:, columns], "votes")
    if arm == "motive_whitened":
        return top(by.whitened[:, columns], "mean")
    if arm == "best":
        return top(by.best[:, columns], "mean")
    mean = by.whitened[:, columns].mean(1)
    if arm == "all_minus_negative":
        last = np.argsort(np.where(np.isfinite(mean), mean, np.inf), kind="stable")[:count]
        return on(np.setdiff1d(everything, last[mean[last] < 0]), seed)
    if arm == "weighted":
        # Rounded, because a result is kept under its weights and BLAS's last digits depend on the number of threads.
        positive = [
            (n, round(value, 4)) for n, value in enumerate(mean.tolist()) if np.isfinite(value) and value > 5e-5
        ]
        return Retraining(tuple(positive), seed)
    if arm == "oracle":
        right = np.flatnonzero((clips.motions == target) & (clips.kinds == "real"))
        place = {ids[n]: int(n) for n in right}
        return on(np.array([place[i] for i in _by_hash(0, list(place))[:count]]), seed)
    raise ValueError(f"arm {arm!r}: the benchmark knows no such arm")


ARMS = ("all", "all_minus_negative", "weighted", "random", "magnitude", "gradient_length", "own_loss", "mask_overlap",
        "caption", "no_mask", "motive", "motive_whitened", "best", "oracle")  # fmt: skip
LOSSES = ("masked_target", "plain_target", "masked_others", "plain_others")


def _by_hash(seed: int, clip_ids: Sequence[str]) -> list[str]:
    ids: list[str] = by_hash(seed, pa.array(clip_ids, pa.string())).to_pylist()
    return ids


def changes(after: Losses, before: Losses, held_out: Clips, target: str) -> dict[str, float]:
    """Relative change of mean losses: masked and plain, on the target and on the other motions."""
    relative = {}
    own = held_out.motions == target
    for place, rows in (("target", own), ("others", ~own)):
        for column, name in enumerate(("masked", "plain")):
            relative[f"{name}_{place}"] = float(after[rows, column].mean() / before[rows, column].mean() - 1)
    return relative


def shares(task: Retraining, clips: Clips, target: str, best: Retraining) -> dict[str, float]:
    """Which share of a selection shows the target's motion, lawfully or as a cartoon, which are camera moves, and which
    are in the best rule's selection too."""
    rows = [row for row, _ in task.weights]
    return {
        "own_motion": float(np.mean(clips.motions[rows] == target)),
        "camera_moves": float(np.mean(clips.kinds[rows] == "camera")),
        "of_best": float(np.mean(np.isin(rows, [row for row, _ in best.weights]))),
    }


def table(by_arm: Mapping[tuple[str, str, int], dict[str, float]]) -> list[dict[str, float | str]]:
    """A row an arm: the mean change of each loss and each share with its 95 % interval over targets and seeds, and the
    changes paired with random's."""
    rows: list[dict[str, float | str]] = []
    for arm in dict.fromkeys(arm for arm, _, _ in by_arm):
        mine = {(target, seed): values for (a, target, seed), values in by_arm.items() if a == arm}
        random = {(target, seed): values for (a, target, seed), values in by_arm.items() if a == "random"}
        targets, seeds = ([key[place] for key in mine] for place in (0, 1))
        row: dict[str, float | str] = {"arm": arm}
        for name in next(iter(mine.values())):
            row |= bootstrap_mean([values[name] for values in mine.values()], targets, seeds).columns(name)
        for name in LOSSES:
            less = [values[name] - random[key][name] for key, values in mine.items()]
            row |= bootstrap_mean(less, targets, seeds).columns(f"{name}_over_random")
        rows.append(row)
    return rows
