"""Arms against one another: win, tie and loss of each pair of them, and every metric by arm, with 95 % intervals.

What is compared is paired: the same held-out clip, or the same caption and seed. Clips (and captions) are what the
intervals resample; several seeds of one caption hang together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.statistics.intervals import FEW, Interval, bootstrap_mean, student, wilson
from pipeline.tables import schemas

Key = tuple[str, int]  # clip_id and seed
Scores = Mapping[str, Mapping[Key, float]]  # arm -> one score for each clip and seed; lower is better
Record = dict[str, Any]

LOSS_MARGIN = 0.005  # of the smaller loss
LOSS_RULE = f"of two arms, the one with the lower motion-masked loss on a held-out clip wins; within {LOSS_MARGIN:.1%}"
LOSS_RULE += " it is a tie"

VIDEO_MARGIN = 0.1  # of the smaller distance
VIDEO_RULE = (
    "of two videos of one caption and seed, the one whose motion (from optical flow: its amount and course, "
    "acceleration, jerk, spreading and turning) is nearer to the nearest query of the caption's group wins; within "
    f"{VIDEO_MARGIN:.0%} it is a tie"
)

VERDICTS, TALLIES, METRICS = schemas.VERDICTS, schemas.CONTESTS, schemas.METRICS


def shared(table: pa.Table, arms: Iterable[str]) -> pa.Table:
    """The rows of evaluation/ on what all of these arms were evaluated on: earlier runs may have asked some of them for
    more captions, seeds or clips, and means over different ones cannot be held against each other."""
    arm_set = set(arms)
    rows = table.select(["arm", "metric", "clip_id", "seed"]).to_pylist()
    arms_by_task: dict[tuple[str, str, int], set[str]] = defaultdict(set)
    for row in rows:
        arms_by_task[row["metric"], row["clip_id"], row["seed"]].add(row["arm"])
    mask = [r["arm"] in arm_set and arm_set <= arms_by_task[r["metric"], r["clip_id"], r["seed"]] for r in rows]
    return table.filter(pa.array(mask, pa.bool_()))


def losses(table: pa.Table, arms: Iterable[str]) -> dict[str, dict[Key, float]]:
    """Every arm's motion-masked losses on held-out clips. One that is not finite is missing, as it is in `metrics`."""
    by_arm: dict[str, dict[Key, float]] = {arm: {} for arm in arms}
    for row in table.to_pylist():
        if row["metric"] == "masked_loss" and row["value"] is not None and np.isfinite(row["value"]):
            by_arm[row["arm"]][row["clip_id"], row["seed"]] = row["value"]
    return by_arm


def verdict(ours: float, theirs: float, margin: float) -> int:
    """1 where ours is lower by more than `margin` of the lower one, -1 where theirs is, 0 for a tie. Lower is better;
    neither is negative."""
    if abs(ours - theirs) <= margin * min(ours, theirs):
        return 0
    return 1 if ours < theirs else -1


def verdicts(judge: str, scores: Scores, margin: float) -> list[Record]:
    """Each pair of arms on each clip and seed that both have: judge, ours, theirs, clip_id, seed, their scores, and the
    verdict, 1 where `ours` wins, 0 for a tie, -1."""
    records = []
    for ours, theirs in combinations(scores, 2):
        for key in sorted(scores[ours].keys() & scores[theirs].keys()):
            a, b = scores[ours][key], scores[theirs][key]
            place = {"judge": judge, "ours": ours, "theirs": theirs, "clip_id": key[0], "seed": key[1]}
            records.append({**place, "score_ours": a, "score_theirs": b, "verdict": verdict(a, b, margin)})
    return records


def tallies(judged: Iterable[Record]) -> list[Record]:
    """For each judge and pair of arms: how many wins, ties and losses, and each one's share with its interval."""
    groups: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for row in judged:
        groups[row["judge"], row["ours"], row["theirs"]].append(row)
    return [{"judge": j, "ours": a, "theirs": b, **_tally(rows)} for (j, a, b), rows in groups.items()]


def _tally(rows: Sequence[Record]) -> Record:
    clips = [row["clip_id"] for row in rows]
    record: Record = {"pairs": len(rows), "clips": len(set(clips))}
    for name, count, value in (("win", "wins", 1), ("tie", "ties", 0), ("loss", "losses", -1)):
        hits = [float(row["verdict"] == value) for row in rows]
        share, low, high = interval(hits, clips)
        if share in (0, 1) and low is not None:  # resampling what never differs would leave an interval of no width
            _, low, high = wilson(share * record["clips"], record["clips"])
        bounds = (None, None) if low is None or high is None else (max(0.0, low), min(1.0, high))
        record |= {count: int(sum(hits)), name: share, f"{name}_low": bounds[0], f"{name}_high": bounds[1]}
    return record


def interval(values: Sequence[float], clips: Sequence[str]) -> tuple[float, float | None, float | None]:
    """The mean of values and its interval over their clips, bootstrapped, or Student's where the clips are few; no
    interval for a single clip."""
    clusters = len(set(clips))
    if clusters < 2:
        return float(np.mean(values)), None, None
    bounds: Interval = student(values, clips) if clusters < FEW else bootstrap_mean(values, clips)
    return float(np.mean(values)), bounds.low, bounds.high
