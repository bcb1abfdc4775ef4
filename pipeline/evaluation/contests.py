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

from pipeline.evaluation.comparison import BASE, comparison
from pipeline.evaluation.judge import verdict
from pipeline.statistics.intervals import FEW, Interval, bootstrap_mean, student, wilson
from pipeline.tables import schemas

Key = tuple[str, int]  # clip_id and seed
Scores = Mapping[str, Mapping[Key, float]]  # arm -> one score for each clip and seed; lower is better
Record = dict[str, Any]

LOSS_MARGIN = 0.005  # of the smaller loss
LOSS_RULE = f"of two arms, the one with the lower motion-masked loss on a held-out clip wins; within {LOSS_MARGIN:.1%}"
LOSS_RULE += " it is a tie"

VERDICTS, TALLIES, METRICS = schemas.VERDICTS, schemas.CONTESTS, schemas.METRICS


def shared(table: pa.Table, arms: Iterable[str]) -> pa.Table:
    """The rows of evaluation/ on what all of these arms were evaluated on: earlier runs may have asked some of them for
    more captions, seeds or clips, and means over different ones cannot be held against each other."""
    wanted = set(arms)
    rows = table.select(["arm", "metric", "clip_id", "seed"]).to_pylist()
    found: dict[tuple[str, str, int], set[str]] = defaultdict(set)
    for row in rows:
        found[row["metric"], row["clip_id"], row["seed"]].add(row["arm"])
    held = [r["arm"] in wanted and wanted <= found[r["metric"], r["clip_id"], r["seed"]] for r in rows]
    return table.filter(pa.array(held, pa.bool_()))


def losses(table: pa.Table, arms: Iterable[str]) -> dict[str, dict[Key, float]]:
    """Every arm's motion-masked losses on held-out clips. One that is not finite is missing, as it is in `metrics`."""
    found: dict[str, dict[Key, float]] = {arm: {} for arm in arms}
    for row in table.to_pylist():
        if row["metric"] == "masked_loss" and row["value"] is not None and np.isfinite(row["value"]):
            found[row["arm"]][row["clip_id"], row["seed"]] = row["value"]
    return found


def verdicts(judge: str, scores: Scores, margin: float) -> list[Record]:
    """Each pair of arms on each clip and seed that both have: judge, ours, theirs, clip_id, seed, their scores, and the
    verdict, 1 where `ours` wins, 0 for a tie, -1."""
    found = []
    for ours, theirs in combinations(scores, 2):
        for key in sorted(scores[ours].keys() & scores[theirs].keys()):
            a, b = scores[ours][key], scores[theirs][key]
            place = {"judge": judge, "ours": ours, "theirs": theirs, "clip_id": key[0], "seed": key[1]}
            found.append({**place, "score_ours": a, "score_theirs": b, "verdict": verdict(a, b, margin)})
    return found


def tallies(judged: Iterable[Record]) -> list[Record]:
    """For each judge and pair of arms: how many wins, ties and losses, and each one's share with its interval."""
    groups: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for row in judged:
        groups[row["judge"], row["ours"], row["theirs"]].append(row)
    return [{"judge": j, "ours": a, "theirs": b, **_tally(rows)} for (j, a, b), rows in groups.items()]


def _tally(rows: Sequence[Record]) -> Record:
    clips = [row["clip_id"] for row in rows]
    found: Record = {"pairs": len(rows), "clips": len(set(clips))}
    for name, count, value in (("win", "wins", 1), ("tie", "ties", 0), ("loss", "losses", -1)):
        hits = [float(row["verdict"] == value) for row in rows]
        share, low, high = interval(hits, clips)
        if share in (0, 1) and low is not None:  # resampling what never differs would leave an interval of no width
            _, low, high = wilson(share * found["clips"], found["clips"])
        bounds = (None, None) if low is None or high is None else (max(0.0, low), min(1.0, high))
        found |= {count: int(sum(hits)), name: share, f"{name}_low": bounds[0], f"{name}_high": bounds[1]}
    return found


def interval(values: Sequence[float], clips: Sequence[str]) -> tuple[float, float | None, float | None]:
    """The mean of values and its interval over their clips; no interval for a single clip."""
    members: dict[str, list[float]] = defaultdict(list)
    for value, clip in zip(values, clips, strict=True):
        members[clip].append(value)
    mean = float(np.mean(values))
    if len(members) < 2:
        return mean, None, None
    few = len(members) < FEW
    found: Interval = student([float(np.mean(v)) for v in members.values()]) if few else bootstrap_mean(values, clips)
    return mean, found.low, found.high


def metrics(table: pa.Table) -> list[Record]:
    """The records of `comparison.comparison`, with `low` and `high` of the mean, of its `difference` to base and of
    `relative`, that difference over base's mean; None where there are too few clips to tell, or that mean is zero."""
    held: dict[tuple[str, str], dict[Key, float]] = defaultdict(dict)
    for row in table.select(["metric", "arm", "clip_id", "seed", "value"]).to_pylist():
        if row["value"] is not None and np.isfinite(row["value"]):
            held[row["metric"], row["arm"]][row["clip_id"], row["seed"]] = row["value"]
    found = []
    for record in comparison(table):
        ours, base = held[record["metric"], record["arm"]], held[record["metric"], BASE]
        keys = sorted(ours.keys() & base.keys()) if record["arm"] != BASE else []
        _, low, high = _of([ours[k] for k in ours], list(ours))
        _, down, up = _of([ours[k] - base[k] for k in keys], keys)
        level = abs(float(np.mean([base[k] for k in keys]))) if keys else 0.0
        ends = (None, None) if down is None or up is None or not level else (down / level, up / level)
        about = {"low": low, "high": high, "difference_low": down, "difference_high": up}
        found.append({**record, **about, "relative_low": ends[0], "relative_high": ends[1]})
    return found


def _of(values: Sequence[float], keys: Sequence[Key]) -> tuple[float | None, float | None, float | None]:
    return interval(values, [clip for clip, _ in keys]) if values else (None, None, None)
