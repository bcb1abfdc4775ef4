"""Versions of the queries and of the held-out clips, in other looks and as spoiled twins, and the product's rule that
is made of them (`queries.looks`, `queries.twins`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from jobs.benchmarks.quality import influences
from jobs.benchmarks.real.footage import Footage, Segment
from pipeline.attribution.functionals import query_feature
from pipeline.config.attribution import Setting
from pipeline.ranking import influence

Array = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

LOOKS = 8
TWINS = ("backwards", "slow_start")
SETTING = Setting(timestep=501.0, mask="motion")  # that of the looks benchmark's best rule, under empty captions
DIM = 512
WHITEN = 0.01


def in_looks(queries: Sequence[Segment]) -> list[Segment]:
    """Every query and each of its twins in every look; a twin's looks are those of its query."""
    return [
        replace(query, clip_id=f"{query.clip_id}:{twin or 'itself'} in look {look}", twin=twin, look=look,
                source=query.clip_id)
        for query in queries for twin in ("", *TWINS) for look in range(LOOKS)
    ]  # fmt: skip


def twins(held_out: Sequence[Segment]) -> list[Segment]:
    """The twins of every held-out clip."""
    return [
        replace(clip, clip_id=f"{clip.clip_id}:{twin}", twin=twin, source=clip.clip_id)
        for clip in held_out
        for twin in TWINS
    ]


@dataclass(frozen=True)
class Directions:
    """Projected gradients under SETTING: those of clips [M, k], zero without motion, and what each query asks for by
    both functionals [Q, k]."""

    clips: Array
    queries: Array

    def of(self, rows: npt.NDArray[np.int64]) -> Directions:
        """The same of some of the clips."""
        return Directions(self.clips[rows], self.queries)


def asked(gradients: Array, of: Footage, queries: Footage) -> Array:
    """What each query asks for, out of the gradients [V, k] of its versions `of`: [Q, k]. A twin that stands still has
    no part in it, and a query that does asks for nothing: zeros."""
    rows = []
    for clip_id in queries.clips.clip_ids:
        real, *spoiled = (gradients[(of.sources == clip_id) & (of.twins == twin)] for twin in ("", *TWINS))
        spoiled = [twin for twin in spoiled if twin.any()]
        asks = real.any() and spoiled
        rows.append(query_feature(real, np.stack(spoiled), "both") if asks else np.zeros(DIM, np.float32))
    return np.stack(rows)


def scores(directions: Directions, of: Footage, queries: Footage, targets: Sequence[str]) -> Floats:
    """Whitened influence on the queries' directions, mean over a target's queries: [N, T]; NaN of a still clip."""
    moving, asking = of.clips.moving, queries.clips.moving
    values = np.full((len(of), len(queries)), np.nan)
    values[np.ix_(moving, asking)] = influence(directions.clips[moving], directions.queries[asking], WHITEN)
    return influences.by_motion(values, queries.clips, targets)
