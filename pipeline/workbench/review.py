"""Which clips a person is asked about, and how far people agree with one another and with the ranking."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.compute as pc

from pipeline.ranking import decisions
from pipeline.statistics import agreement
from pipeline.statistics.intervals import wilson
from pipeline.workbench.index import NOT_RANKED, Index
from pipeline.workbench.people import People
from pipeline.workbench.views import Spec

QUEUES = {
    "near": "Near the cut: a word there changes who is in",
    "motions": "The motions differ: first for one, last for another",
    "disputed": "Two people differ",
    "harmful": "Called harmful, of a source that is selected often",
    "audit": "Drawn at random, to see whether the ranking is right at all",
}


def spec(queue: str, group: str, by: str, count: int, seed: int, stamp: int) -> Spec:
    """The view of a queue: clips of which this person has said nothing. Raises ValueError for a queue that is none."""
    mine = {"mine": ["not said"]}
    common: dict[str, Any] = {"group": group, "by": by, "limit": count, "stamp": stamp}
    if queue == "near":
        return Spec(sort="cut", where={**mine, "decision": ["selected", "neutral"]}, **common)
    if queue == "motions":
        return Spec(sort="disagreement", where={**mine, "decision": ["selected", "neutral", "harmful"]}, **common)
    if queue == "disputed":
        return Spec(sort="influence", where={"people": ["disputed"]}, **common)
    if queue == "harmful":
        return Spec(sort="harmful source", where={**mine, "decision": ["harmful"]}, **common)
    if queue == "audit":
        return Spec(sort="random", seed=seed, where=mine, **common)
    raise ValueError(f"no queue is called {queue!r}; there are {', '.join(QUEUES)}")


def agreements(index: Index, people: People, group: str) -> dict[str, Any]:
    """Agreement of people with one another (Krippendorff's alpha), and with the ranking, over blind words and all.

    With the ranking agrees who keeps what it selects or drops what it does not.
    """
    words = decisions.latest_words(people.decisions.rows, group, index.clips.select(["clip_id", "version"]))
    words = words.filter(pc.not_equal(words.column("say"), "clear"))
    return {
        "blind": _agreement(index, words.filter(pc.fill_null(words.column("blind"), False)), group),
        "all": _agreement(index, words, group),
    }


def _agreement(index: Index, words: Any, group: str) -> dict[str, Any]:
    counts: dict[str, list[int]] = {}
    clips, says = words.column("clip_id").to_pylist(), words.column("say").to_pylist()
    for clip_id, say in zip(clips, says, strict=True):
        counts.setdefault(clip_id, [0, 0])[say == "drop"] += 1
    between = agreement.nominal(list(counts.values())) if counts else None
    places = index.places(clips)
    standing = index.standing(group)
    ranked = (places >= 0) & (standing.rank[places] != NOT_RANKED)
    selected = standing.decision[places[ranked]] == 0
    keeps = np.array([say == "keep" for say in says], bool)[ranked]
    same, every = int((selected == keeps).sum()), int(ranked.sum())
    interval = wilson(same, every) if every else None
    return {
        "words": len(says),
        "clips": len(counts),
        "people": len(set(words.column("by").to_pylist())),
        "twice": sum(sum(pair) > 1 for pair in counts.values()),
        "agreed": None if between is None else round(between.agreed, 4),
        "alpha": None if between is None or between.alpha is None else round(between.alpha, 4),
        "low": None if between is None or between.low is None else round(between.low, 4),
        "high": None if between is None or between.high is None else round(between.high, 4),
        "with_ranking": None if interval is None else round(same / every, 4),
        "with_ranking_low": None if interval is None else round(interval.low, 4),
        "with_ranking_high": None if interval is None else round(interval.high, 4),
        "compared": every,
    }
