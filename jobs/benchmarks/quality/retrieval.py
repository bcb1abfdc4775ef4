"""What a score finds: clips of the same motion, and real clips before their cartoons. With its controls, because most
of it can be had without a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from jobs.benchmarks.quality.influences import Floats
from jobs.benchmarks.quality.problem import Clips
from pipeline.statistics.intervals import Interval, bootstrap_mean


def auc(above: Floats, below: Floats) -> float:
    """The chance that one of `above` is larger than one of `below`, ties counting half (Mann and Whitney 1947)."""
    ranks = rankdata(np.concatenate([above, below]))[: len(above)]
    return float((ranks.sum() - len(above) * (len(above) + 1) / 2) / (len(above) * len(below)))


def same_motion(scores: Floats, clips: Clips, motions: Sequence[str]) -> Interval:
    """AUC of a motion's real clips over all other clips that move; the interval is over the motions."""
    real, areas = clips.kinds == "real", []
    for column, motion in enumerate(motions):
        own = (clips.motions == motion) & real & clips.moving
        areas.append(auc(scores[own, column], scores[(clips.motions != motion) & clips.moving, column]))
    return bootstrap_mean(areas, list(motions))


def real_over_cartoon(scores: Floats, clips: Clips, motions: Sequence[str]) -> Interval:
    """AUC of a motion's real clips over its cartoons, for motions that have cartoons; the interval is over them."""
    areas, named = [], []
    for column, motion in enumerate(motions):
        real, cartoon = (_of(clips, motion, kind) for kind in ("real", "cartoon"))
        if cartoon.any():
            areas.append(auc(scores[real, column], scores[cartoon, column]))
            named.append(motion)
    return bootstrap_mean(areas, named)


def short_over_long(scores: Floats, cut: npt.NDArray[np.bool_], motions: Sequence[str]) -> Interval:
    """AUC of clips that were cut short over the others, in a corpus of both: .5 where length does not matter. NaN rows
    have no score; the interval is over the motions."""
    has = np.isfinite(scores).all(1)
    areas = [auc(column[has & cut], column[has & ~cut]) for column in scores.T]
    return bootstrap_mean(areas, list(motions))


def _of(clips: Clips, motion: str, kind: str) -> npt.NDArray[np.bool_]:
    members: npt.NDArray[np.bool_] = (clips.motions == motion) & (clips.kinds == kind) & clips.moving
    return members
