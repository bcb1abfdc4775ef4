"""Whether the clips that stand first show the query's motion, or its colour: each share over what chance gives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from jobs.benchmarks.looks.gradients import Corpus, Video
from jobs.benchmarks.looks.rules import Scores
from jobs.benchmarks.quality.retrieval import auc

NEAREST, FIRST = 5, 10
YARDSTICKS = ("motion", "colour", "motion_lift", "colour_lift", "first_ten", "group_auc", "real_over_cartoon")

Names = npt.NDArray[np.str_]


def yardsticks(scores: Scores, corpus: Corpus) -> dict[str, float]:
    """Of scores [N, Q]: the share of a query's nearest five clips that have its motion, and its colour, each also over
    its share among all clips; the share of a motion's first ten that show it, and the area under its curve; the area of
    real clips over cartoons of one motion, NaN where no motion has both. A motion's score is the mean over its
    queries."""
    of_clips, of_queries = ({key: _names(side, key) for key in _NAMES} for side in (corpus.clips, corpus.queries))
    figures: dict[str, float] = {}
    for key in ("motion", "colour"):
        same = of_clips[key][:, None] == of_queries[key][None]
        nearest = np.argsort(-scores, axis=0, kind="stable")[:NEAREST]
        figures[key] = float(np.take_along_axis(same, nearest, 0).mean())
        figures[f"{key}_lift"] = figures[key] / float(same.mean())
    firsts, areas, lawful = [], [], []
    for name in sorted(set(of_queries["motion"])):
        mean = scores[:, of_queries["motion"] == name].mean(1)
        shows = of_clips["motion"] == name
        firsts.append(float(shows[np.argsort(-mean, kind="stable")[:FIRST]].mean()))
        areas.append(auc(mean[shows], mean[~shows]))
        real, cartoon = (mean[shows & (of_clips["kind"] == kind)] for kind in ("real", "cartoon"))
        lawful += [auc(real, cartoon)] if len(real) and len(cartoon) else []
    named = zip(("first_ten", "group_auc", "real_over_cartoon"), (firsts, areas, lawful), strict=True)
    return figures | {key: float(np.mean(values)) if values else np.nan for key, values in named}


def _names(videos: Sequence[Video], key: str) -> Names:
    return np.array([_NAMES[key](video) for video in videos])


_NAMES = {
    "motion": lambda video: video.scene.motion,
    "kind": lambda video: video.scene.kind,
    "colour": lambda video: video.scene.caption.split()[1],  # "a red ball rolling"
}
