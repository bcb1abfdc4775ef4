"""Features taken with other weights: what it would cost to take all of them, and how far a few say that ranks move.

Promoting a model changes no feature. Features are of the model that the recipe pins (model.id, and attribution.weights
where it is set); when the rankings have drifted too far, naming the promoted model there is asked for explicitly.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pipeline import tables
from pipeline.attribution import fingerprints
from pipeline.config import Run
from pipeline.ranking import influence, shortlist
from pipeline.ranking.feature_table import under_mask
from pipeline.statistics import rank_drift
from pipeline.statistics.rank_drift import Drift
from pipeline.storage import stores
from pipeline.tables.part_files import opened
from pipeline.tables.registry import LIKED

SETS = ("queries", "clips")
FIELD = "attribution.weights"


def stale_parts(run: Run) -> dict[str, int]:
    """The parts of features/ that were computed with other attribution.weights than this run's, and their rows."""
    weights, row_counts = fingerprints.features(run)[FIELD], dict[str, int]()
    roots = [one.root for one in (shortlist.variant(run), run) if one is not None]
    for root, name in itertools.product(roots, (*SETS, LIKED)):
        folder = stores.join(root, "features", name)
        fs, _ = stores.place(folder)
        for path in tables.parts(folder):
            with opened(path, fs) as file:
                fingerprint = json.loads((file.schema_arrow.metadata or {}).get(b"fingerprint", b"{}"))
                if fingerprint.get(FIELD) != weights:
                    row_counts[path] = file.metadata.num_rows
    return row_counts


def remove(run: Run, parts: Iterable[str]) -> None:
    """Let parts of features give way."""
    fs, _ = stores.place(run.root)
    for path in parts:
        fs.rm_file(path)


def price(clips: int, measured: Iterable[Mapping[str, Any] | None]) -> dict[str, Any]:
    """What features of so many clips and queries take, from the largest number of clips that was measured: `clips`,
    `seconds_a_clip`, `seconds`, `measured_on`; None where nothing was measured."""
    measurements = [m for m in measured if m is not None and m["clips"] > 0]
    best = max(measurements, key=lambda m: m["clips"], default=None)
    each = None if best is None else best["seconds"] / best["clips"]
    return {
        "clips": clips,
        "seconds_a_clip": each,
        "seconds": None if each is None else each * clips,
        "measured_on": None if best is None else best["clips"],
    }


def sentence(price: Mapping[str, Any]) -> str:
    what = f"Taking the features of {price['clips']:,} clips and queries anew"
    if price["seconds"] is None:
        return f"{what} costs what they cost the first time; no night has measured it yet."
    return (
        f"{what} takes about {price['seconds'] / 3600:,.2f} hours of the pool resources.extract_features "
        f"({price['seconds_a_clip']:.2f} s a clip, its actors' start included, measured on {price['measured_on']:,})."
    )


def with_weights(run: Run, weights: str | None, root: str) -> Run:
    """The same run with features of other weights, in a root of its own, of the full setting alone."""
    attribution = run.attribution.model_copy(update={"weights": weights, "shortlist": None})
    return run.model_copy(update={"root": root, "attribution": attribution})


def measure(run: Run, other: Run, clip_ids: list[str]) -> Drift:
    """How the ranking of a few clips by `run`'s features and by `other`'s agree: mean influence over the queries that
    have features under both, computed among these clips alone (whitening included)."""
    mask = run.ranking.mask
    pairs = []
    for name, ids in (("clips", clip_ids), ("queries", None)):
        feature_tables = [under_mask(root, name, mask) for root in (run.root, other.root)]
        rows = [(table if ids is None else table.among(ids)).rows() for table in feature_tables]
        shared = sorted(rows[0].keys() & rows[1].keys())
        pairs.append([np.stack([r[i] for i in shared]) if shared else np.zeros((0, 1), np.float32) for r in rows])
    if not len(pairs[0][0]) or not len(pairs[1][0]):
        return rank_drift.compare(np.zeros(0), np.zeros(0))
    scores = [influence(clips, queries, run.ranking.whiten).mean(1) for clips, queries in zip(*pairs, strict=True)]
    return rank_drift.compare(*scores)
