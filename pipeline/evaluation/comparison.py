"""Fine-tuned models against the base: every metric of ``evaluation/`` by arm, with differences paired by clip and
seed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.statistics import intervals
from pipeline.video.looks import TWINS

BASE = "base"
LOWER = "lower is better"
HIGHER = "higher is better"
LOSSES = ("masked_loss", "plain_loss")
BANDS = ("little noise", "some noise", "much noise")  # thirds of the timesteps that training draws
MARGINS = {twin: f"preference_margin_{twin}" for twin in TWINS}  # metrics of evaluation/
ACCURACIES = {twin: f"preference_accuracy_{twin}" for twin in TWINS}  # what `comparison` makes of them
PREFERENCE = (
    "Of a held-out clip and its twin, the same frames in another order, a model prefers the one with the lower plain "
    "loss. Accuracy is the share of clips that are preferred to their twins. The margin is the twin's loss less the "
    "clip's, as a share of the clip's."
)
DIRECTION = {
    "masked_loss": LOWER,
    "plain_loss": LOWER,
    "vbench_dynamic_degree": "higher means more motion",
    **dict.fromkeys((*ACCURACIES.values(), *MARGINS.values()), HIGHER),
}
ORDER = (
    "masked_loss",
    "plain_loss",
    *(metrics[twin] for twin in TWINS for metrics in (ACCURACIES, MARGINS)),
    "vbench_dynamic_degree",
    "vbench_dynamic_margin",
    "temporal_flickering",
)
ARMS = (
    "base",
    "motive_whitened",
    "selected",
    "timed",
    "little_noise",
    "curated",
    "motive",
    "no_mask",
    "mask_overlap",
    "lawful",
    "caption",
    "own_loss",
    "embedding",
    "magnitude",
    "random",
    "timed_random",
    "little_noise_random",
    "all",
    "all_minus_harmful",
    "weighted",
    "oracle",
)

Values = Mapping[tuple[str, int | None], float]  # one value for each clip and seed


def comparison(table: pa.Table) -> list[dict[str, Any]]:
    """One record for each metric and arm: metric, arm, n, missing, mean, standard_error, and against base pairs,
    difference, difference_standard_error, relative (the difference over base's mean of the same pairs).

    mean, difference and relative each have a 95 % interval, `low` and `high` with their name before it but for the
    mean's. It is Student's over clips: several seeds of one clip hang together. Values that are null or not finite are
    counted as `missing`. What cannot be computed is None, such as an interval of a single clip.

    Each of MARGINS has its accuracy as well: the share of clips whose margin is above 0. Its interval is Wilson's where
    all clips or none are preferred, for Student's would have no width. Margins and accuracies are shares already, and
    have no `relative`.
    """
    by_metric: dict[str, dict[str, dict[tuple[str, int | None], list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    missing: dict[tuple[str, str], int] = defaultdict(int)
    for row in table.select(["metric", "arm", "clip_id", "seed", "value"]).to_pylist():
        values = by_metric[row["metric"]][row["arm"]]
        if row["value"] is None or not math.isfinite(row["value"]):
            missing[row["metric"], row["arm"]] += 1
        else:
            values[row["clip_id"], row["seed"]].append(row["value"])
    means: dict[str, dict[str, dict[tuple[str, int | None], float]]] = {
        metric: {arm: {key: float(np.mean(v)) for key, v in values.items()} for arm, values in arms.items()}
        for metric, arms in by_metric.items()
    }
    for twin, metric in MARGINS.items():
        for arm, margins in means.get(metric, {}).items():
            is_above = {key: float(value > 0) for key, value in margins.items()}
            means.setdefault(ACCURACIES[twin], {})[arm] = is_above
            missing[ACCURACIES[twin], arm] = missing[metric, arm]
    records = []
    for metric in sorted(means, key=lambda m: (_of_a_band(m), _place(m, ORDER), m)):
        arms = means[metric]
        for arm in sorted(arms, key=lambda a: (_place(a, ARMS), a)):
            against = _difference(arms[arm], arms.get(BASE, {})) if arm != BASE else _difference({}, {})
            if is_preference(metric):
                against |= dict.fromkeys(("relative", "relative_low", "relative_high"))
            stats = _share(arms[arm]) if metric in ACCURACIES.values() else _mean(arms[arm])
            records.append({"metric": metric, "arm": arm, **stats, "missing": missing[metric, arm], **against})
    return records


def banded(metric: str, band: str) -> str:
    """The name of a loss at the timesteps of one band alone."""
    return f"{metric} ({band})"


def _of_a_band(metric: str) -> bool:
    return metric in {banded(loss, band) for loss in LOSSES for band in BANDS}


def is_held_out(metric: str) -> bool:
    """Whether a metric is of held-out clips; the others are of generated videos."""
    return plain(metric) in LOSSES or is_preference(metric)


def is_preference(metric: str) -> bool:
    """Whether a metric says how a model prefers held-out clips to a twin of theirs."""
    return metric in MARGINS.values() or metric in ACCURACIES.values()


def plain(metric: str) -> str:
    """A metric's name without a remark such as "(not comparable)"."""
    return metric.split(" (")[0]


def direction(metric: str) -> str:
    """Which way a metric should go, in words; empty where that is not settled."""
    return DIRECTION.get(plain(metric), "")


def ordered(arms: Iterable[str]) -> list[str]:
    """Arms as contests name them, each once: the base last, so that others are held against it."""
    return sorted(set(arms), key=lambda a: (a == BASE, _place(a, ARMS), a))


def _place(name: str, order: Sequence[str]) -> int:
    name = plain(name)
    return order.index(name) if name in order else len(order)


def _mean(values: Values) -> dict[str, Any]:
    """n, mean, standard_error, low and high of one value for each clip and seed."""
    numbers, clips = list(values.values()), [clip for clip, _ in values]
    record: dict[str, Any] = {"n": len(numbers), "mean": float(np.mean(numbers)) if numbers else None}
    if len(set(clips)) < 2:
        return record | {"standard_error": None, "low": None, "high": None}
    interval = intervals.student(numbers, clips)
    error = intervals.standard_error(numbers, clips)
    return record | {"standard_error": error, "low": interval.low, "high": interval.high}


def _share(values: Values) -> dict[str, Any]:
    """As `_mean`, of values that are 0 or 1 each: the interval is within [0, 1] and has a width."""
    record = _mean(values)
    if record["low"] is None:
        return record
    if record["mean"] in (0, 1):
        interval = intervals.wilson(record["mean"] * record["n"], record["n"])
        return record | {"low": interval.low, "high": interval.high}
    return record | {"low": max(0.0, record["low"]), "high": min(1.0, record["high"])}


def _difference(values: Values, base: Values) -> dict[str, Any]:
    """The mean of the differences to base over the clips and seeds that both have."""
    pairs = sorted(values.keys() & base.keys(), key=str)
    stats = _mean({p: values[p] - base[p] for p in pairs})
    level = abs(float(np.mean([base[p] for p in pairs]))) if pairs else 0.0
    record = {"pairs": stats["n"], "difference": stats["mean"], "difference_standard_error": stats["standard_error"]}
    for end, value in (("", stats["mean"]), ("_low", stats["low"]), ("_high", stats["high"])):
        record[f"difference{end}"] = value
        record[f"relative{end}"] = value / level if value is not None and level else None
    return record


def videos(table: pa.Table, clips: int = 6) -> tuple[list[str], list[tuple[str, dict[str, str]]]]:
    """The generated videos of the first seed: the arms, and (clip_id, arm -> uri) for up to `clips` captions."""
    offers: dict[str, dict[str, tuple[int, str]]] = defaultdict(dict)
    for row in table.select(["arm", "clip_id", "seed", "uri", "metric"]).to_pylist():
        if row["uri"] and not is_held_out(row["metric"]):
            offer = (row["seed"] if row["seed"] is not None else -1, row["uri"])
            offers[row["clip_id"]][row["arm"]] = min(offer, offers[row["clip_id"]].get(row["arm"], offer))
    shown = sorted(offers)[:: max(1, len(offers) // clips)][:clips]
    arms = sorted({a for c in shown for a in offers[c]}, key=lambda a: (_place(a, ARMS), a))
    return arms, [(c, {a: uri for a, (_, uri) in offers[c].items()}) for c in shown]


def mixtures(table: pa.Table) -> list[str]:
    """A sentence for every arm whose rows come from more than one training: their mean would be a mixture."""
    counts = table.group_by("arm").aggregate([("version", "count_distinct")]).to_pylist()
    return [
        f"evaluation: the rows of arm {row['arm']} come from {row['version_count_distinct']} trainings."
        for row in sorted(counts, key=lambda r: str(r["arm"]))
        if row["version_count_distinct"] > 1
    ]
