"""Orders that follow people at once: by their weights of queries, and by the clips that they like.

The ranking itself is not touched: these are orders of a view, and what the arm `curated` would take under weights.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import UsageError
from pipeline.ranking import query_weights, share, shortlist
from pipeline.ranking.feature_table import FeatureTable, under_mask
from pipeline.tables.part_files import opened
from pipeline.workbench.index import NOT_RANKED, Floats, Index, Places
from pipeline.workbench.people import NOBODY, People
from pipeline.workbench.views import Spec

LIKE_BYTES = 1 << 30  # of features in memory; of more clips a sample is compared
FILMS = 24  # clips that come in or go out, which are shown
LEAVE_ONE_OUT = 60  # queries of which it is shown what each alone changes

Flags = npt.NDArray[np.bool_]


class Scores:
    """Scores [N] of an index's clips, NaN where there is none. Threads share it."""

    def __init__(self, index: Index, people: People) -> None:
        self._index, self._people = index, people
        self._features: Features | None = None
        self._sizes: dict[str, int] = {}
        self._lock = threading.Lock()

    def weighted(self, group: str, weights: Mapping[str, float]) -> Floats:
        """Mean influence on a group's queries as they are weighed: the sum of weight times influence over the sum of
        the weights' sizes; the ranking's own mean where each counts 1. Raises ConfigError where none counts."""
        queries = self._index.of_group(group)
        ids = [self._index.query_ids[query] for query in queries]
        values = query_weights.of_queries(weights, ids, group)
        if values is None or not queries:
            return self._index.standing(group).influence
        total = self._index.weighted_sum(dict(zip(queries, values.tolist(), strict=True)))
        mean: Floats = (total / np.abs(values).sum()).astype(np.float32)
        return mean

    def choice(self, group: str, weights: Mapping[str, float]) -> Floats:
        """What the arm `curated` chooses by: `weighted`, or the place in the ranking where each query counts 1."""
        ids = [self._index.query_ids[query] for query in self._index.of_group(group)]
        if query_weights.of_queries(weights, ids, group) is not None:
            return self.weighted(group, weights)
        rank = self._index.standing(group).rank
        place: Floats = np.where(rank == NOT_RANKED, np.nan, -rank).astype(np.float32)
        return place

    def of_people(self, spec: Spec) -> Floats:
        return self.weighted(spec.group, self._people.query_weights())

    def liked(self, spec: Spec) -> Floats:
        """Mean over `spec.like` of sign times likeness. Exact: influence on each of these clips as a query. Else
        approximate: the cosine of the clips' own features, where a clip's plain feature stands for the masked one of a
        query."""
        if not spec.like:
            raise ValueError("name a clip to be like (L) or not like (N)")
        return self._exact(spec.like) if self.is_exact(spec.like) else self.features().like(spec.like)

    def is_exact(self, like: Mapping[str, int]) -> bool:
        """Whether each of these clips was attributed as a query, and held against every ranked clip. The two kinds of
        likeness have other scales, so they are never mixed."""
        index = self._index
        if not like or index.liked is None or index.liked_row is None or not set(like) <= set(index.liked_ids):
            return False
        ranked = index.standing("all").rank != NOT_RANKED
        return bool((index.liked_row[ranked] >= 0).all())

    def _exact(self, like: Mapping[str, int]) -> Floats:
        index, score = self._index, np.full(len(self._index), np.nan, np.float32)
        assert index.liked is not None
        assert index.liked_row is not None
        total = np.zeros(index.liked.rows)
        for clip_id, sign in like.items():
            total += sign * index.liked[index.liked_ids.index(clip_id)]
        has = index.liked_row >= 0
        score[has] = (total / len(like))[index.liked_row[has]]
        return score

    def features(self) -> Features:
        with self._lock:
            if self._features is None:
                self._features = Features(self._index)
            return self._features

    # --- what weights change ---

    def changes(self, group: str, weights: Mapping[str, float]) -> dict[str, Any]:
        """What the arm `curated` would gain and lose if queries had these weights and not those that count now: counts,
        and the first clips of each."""
        before = self.curated(group, self._people.query_weights())
        after_score = self.choice(group, weights)
        after = self._curated(group, after_score)
        came, went = np.flatnonzero(after & ~before), np.flatnonzero(before & ~after)
        return {
            "size": int(after.sum()),
            "in": len(came),
            "out": len(went),
            "came": self._shown(came, after_score),
            "went": self._shown(went, after_score),
        }

    def _shown(self, places: npt.NDArray[np.int64], score: Floats) -> list[str]:
        best = places[np.argsort(-score[places], kind="stable")][:FILMS]
        return [self._index.ids[int(at)].as_py() for at in best]

    def alone(self, group: str, weights: Mapping[str, float]) -> dict[str, int]:
        """For each query, how many clips the arm `curated` loses without it; nothing where there are too many."""
        queries = self._index.of_group(group)
        if not 1 < len(queries) <= LEAVE_ONE_OUT:
            return {}
        of_each = np.array([weights.get(self._index.query_ids[query], 1.0) for query in queries])
        total = self._index.weighted_sum(dict(zip(queries, of_each.tolist(), strict=True)))
        now, changed = self.curated(group, weights), {}
        for query, weight in zip(queries, of_each.tolist(), strict=True):
            rest = np.abs(of_each).sum() - abs(weight)
            if not weight or not rest:
                continue
            without = ((total - self._index.weighted_sum({query: weight})) / rest).astype(np.float32)
            changed[self._index.query_ids[query]] = int((now & ~self._curated(group, without)).sum())
        return changed

    def curated(self, group: str, weights: Mapping[str, float]) -> Flags:
        """Which clips the arm `curated` takes under some weights [N]."""
        return self._curated(group, self.choice(group, weights))

    def _curated(self, group: str, score: Floats) -> Flags:
        """Which clips the arm `curated` takes by a score, as `decisions.curated_order` has it."""
        index, codes = self._index, self._people.codes(group)
        standing = index.standing(group)
        size = self.size(group)
        chosen = np.zeros(len(index), bool)
        first = _best(score, np.flatnonzero(codes == 0), size)
        chosen[first] = True
        open_to = (codes == NOBODY) & ~standing.barred & (standing.rank != NOT_RANKED)
        chosen[_best(score, np.flatnonzero(open_to), size - len(first))] = True
        return chosen

    def size(self, group: str) -> int:
        """How many clips an arm that picks gets."""
        if group not in self._sizes:
            self._sizes[group] = self._size(group)
        return self._sizes[group]

    def _size(self, group: str) -> int:
        standing = self._index.standing(group)
        if not standing.ranked:
            return 0
        if self._index.run.attribution.shortlist is None:
            return share(self._index.run.ranking.fraction, standing.ranked)
        ranked = self._index.ids.filter(pa.array(standing.rank != NOT_RANKED)).cast(pa.large_string())
        population = shortlist.population(self._index.run, ranked)
        return share(self._index.run.ranking.fraction, standing.ranked if population is None else population.count)


def _best(score: Floats, places: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """The places of the highest scores, ties by id; a clip without a score comes after all that have one."""
    if count <= 0:
        return places[:0]
    values = np.where(np.isnan(score[places]), -np.inf, score[places])
    if len(places) > count:  # to sort all of them takes longer than to find where the best begin
        at_least = np.partition(values, len(values) - count)[len(values) - count]
        candidates = np.flatnonzero(values >= at_least)
        places, values = places[candidates], values[candidates]
    best: npt.NDArray[np.int64] = places[np.argsort(-values, kind="stable")][:count]
    return best


class Features:
    """The clips' own features as unit rows in memory, half precision; a part of the clips where all are too many."""

    def __init__(self, index: Index) -> None:
        """Raises UsageError where no clip of the index has a feature under the ranking's mask."""
        self._index = index
        table = under_mask(index.run.root, "clips", index.run.ranking.mask)
        # A job may index anew while the workbench opens: then features/ has clips that the index does not have.
        table = _sampled(table.among(index.ids))
        self.complete = len(table.clip_ids) == index.standing("all").ranked
        at = index.places(table.clip_ids.to_pylist())
        rows, width = 0, None
        for phi in table.map(lambda phi: phi.astype(np.float16)):
            if width is None:
                width = phi.shape[1]
                self.rows = np.empty((len(table.clip_ids), width), np.float16)
            self.rows[rows : rows + len(phi)] = phi
            rows += len(phi)
        if width is None:
            raise UsageError("no clip has a feature under the ranking's mask, so nothing can be like another")
        self.places: Places = at
        self._row_of = np.full(len(index), -1, np.int32)
        self._row_of[at] = np.arange(len(at))

    def like(self, signs: Mapping[str, int]) -> Floats:
        """Mean over some clips of sign times cosine [N]. Raises ValueError where none of them has a feature."""
        chosen = self._index.places(list(signs))
        pairs = [
            (int(self._row_of[at]), sign)
            for at, sign in zip(chosen.tolist(), signs.values(), strict=True)
            if at >= 0 and self._row_of[at] >= 0
        ]
        if not pairs:
            raise ValueError("none of these clips has a feature (or it is not in the part that is in memory)")
        direction = np.mean([sign * self.rows[row].astype(np.float32) for row, sign in pairs], axis=0)
        score = np.full(len(self._index), np.nan, np.float32)
        score[self.places] = self.times(direction[None])[:, 0]
        return score

    def times(self, vectors: Floats) -> Floats:
        """Products of every row with vectors [m, k]: [n, m]."""
        step = max(1, (64 << 20) // (4 * self.rows.shape[1]))
        blocks = [
            self.rows[start : start + step].astype(np.float32) @ vectors.T for start in range(0, len(self.rows), step)
        ]
        product: Floats = np.concatenate(blocks)
        return product


def _sampled(table: FeatureTable) -> FeatureTable:
    """So many of a table's parts as memory has room for. Parts are in the order of hashes, so they are a sample."""
    if not table.parts:
        return table
    most = LIKE_BYTES // (2 * _width(table))
    return table.split(most)[0] if len(table.clip_ids) > most else table


def _width(table: FeatureTable) -> int:
    part = table.parts[0]
    with opened(part.path, part.fs) as file:
        size = file.schema_arrow.field("feature").type.list_size
    return int(size) // table.settings * len(table.members)
