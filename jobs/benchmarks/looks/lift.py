"""Whether the clips that stand first show the query's motion, or its looks: each share over what chance gives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from jobs.benchmarks.looks.gradients import Corpus, Video
from jobs.benchmarks.looks.rules import Scores
from jobs.benchmarks.quality.retrieval import auc
from pipeline.synthetic import world

NEAREST, FIRST = 5, 10
LOOKS = ("colour", "outline", "background", "place")
LIFTS = ("motion", *LOOKS)
YARDSTICKS = (
    *LIFTS,
    *(f"{name}_lift" for name in LIFTS),
    "looks_lift",
    "first_ten",
    "group_auc",
    "real_over_cartoon",
)

Names = npt.NDArray[np.str_]


def yardsticks(scores: Scores, corpus: Corpus) -> dict[str, float]:
    """Of scores [N, Q]: the share of a query's nearest five clips that have its motion, and each of its LOOKS, each
    also over its share among all clips, and the mean of the looks' lifts; the share of a motion's first ten that show
    it, and the area under its curve; the area of real clips over cartoons of one motion, NaN where no motion has both.
    A motion's score is the mean over its queries."""
    of_clips, of_queries = ({key: _names(side, key) for key in _NAMES} for side in (corpus.clips, corpus.queries))
    figures: dict[str, float] = {}
    nearest = np.argsort(-scores, axis=0, kind="stable")[:NEAREST]
    for key in LIFTS:
        same = of_clips[key][:, None] == of_queries[key][None]
        figures[key] = float(np.take_along_axis(same, nearest, 0).mean())
        figures[f"{key}_lift"] = figures[key] / float(same.mean())
    figures["looks_lift"] = float(np.mean([figures[f"{key}_lift"] for key in LOOKS]))
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


def together(scores: Scores, corpus: Corpus, spare: float = 0.0) -> Scores:
    """Every query scored as its motion is: the mean over the motion's queries, less `spare` times that over all others,
    as `ranking.spare` has it."""
    motions = _names(corpus.queries, "motion")
    columns = []
    for name in motions:
        own = scores[:, motions == name].mean(1)
        columns.append(own - spare * scores[:, motions != name].mean(1) if spare else own)
    return np.stack(columns, 1)


def _names(videos: Sequence[Video], key: str) -> Names:
    return np.array([_NAMES[key](video) for video in videos])


def _colour(video: Video) -> str:
    """Whose of the world's colours the body's is nearest to; it is one of them."""
    base = video.scene.bodies[0].texture.base
    return min(world.COLOURS, key=lambda name: float(np.abs(np.array(world.COLOURS[name]) - base).sum()))


def _outline(video: Video) -> str:
    """What explodes is in round pieces from the first frame on."""
    body = video.scene.bodies[0]
    return f"{body.power} {body.lobes} {body.depth}"


def _background(video: Video) -> str:
    """Which of red, green and blue are more than half in its mean colour: eight kinds."""
    return "".join("x" if share > 0.5 else "-" for share in video.scene.background.base)


def _place(video: Video) -> str:
    """The quarter of the picture in which the middle of its mask lies."""
    mask = video.mask.sum(0).numpy()
    shares = (mask.sum(1 - axis) / mask.sum() for axis in range(2))
    middles = [float((share * np.linspace(0, 1, len(share))).sum()) for share in shares]
    return "".join("x" if middle > 0.5 else "-" for middle in middles)


_NAMES = {
    "motion": lambda video: video.scene.motion,
    "kind": lambda video: video.scene.kind,
    "colour": _colour,
    "outline": _outline,
    "background": _background,
    "place": _place,
}
