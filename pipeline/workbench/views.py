"""A view: which clips somebody looks at, and in which order. The server holds its rows, so that any part is at once.

A view is a snapshot: what is said meanwhile moves nothing under the hand. The page asks for a new one by a new stamp.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from pipeline.workbench.index import (
    BINS,
    DECISIONS,
    NOT_RANKED,
    STEP,
    Codes,
    Flags,
    Floats,
    Index,
    Places,
    Standing,
    count,
    count_each,
    facet,
)
from pipeline.workbench.people import WORDS, People
from pipeline.workbench.search import Search

MOST = 16  # views and orders that the server holds
WORD_LENGTH = 200


class Spec(BaseModel):
    """What a view asks for. `where` maps a facet's name to the values that it keeps; `low` and `high` bound the mean
    influence for the group; `like` are clips to be like, or not like (-1)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    group: str = Field("all", max_length=WORD_LENGTH)
    sort: str = Field("influence", max_length=40)
    down: bool = True
    text: str = Field("", max_length=WORD_LENGTH)
    where: dict[str, list[str]] = Field(default_factory=dict)
    low: float | None = None
    high: float | None = None
    by: str = Field("", max_length=60)  # whose words "mine" means
    like: dict[str, int] = Field(default_factory=dict)
    ids: list[str] = Field(default_factory=list, max_length=20_000)
    limit: int | None = Field(None, ge=1)
    seed: int = 0
    stamp: int = 0


@dataclass(frozen=True)
class View:
    """`places` [n] of the clips in their order; `facets`: name -> value -> count, of clips that all other filters keep;
    `histogram`: the ranked clips' mean influence, of those that pass every filter but its own bounds."""

    key: str
    spec: Spec
    places: Places
    facets: dict[str, dict[str, int]]
    histogram: dict[str, Any]


Score: TypeAlias = Callable[[Spec], Floats]


class Views:
    """Views of an index. Threads share it."""

    def __init__(self, index: Index, people: People, scores: Mapping[str, Score]) -> None:
        self._index, self._people, self._scores = index, people, scores
        self._search = Search(index)
        self._views = OrderedDict[str, View]()
        self._orders = OrderedDict[tuple[Any, ...], Places]()
        self._lock = threading.Lock()

    def view(self, spec: Spec) -> View:
        """Raises ValueError for a group, sort or facet that is none."""
        key = hashlib.blake2b(spec.model_dump_json().encode(), digest_size=12).hexdigest()
        with self._lock:
            if key in self._views:
                self._views.move_to_end(key)
                return self._views[key]
        view = self._made(spec, key)
        with self._lock:
            self._views[key] = view
            while len(self._views) > MOST:
                self._views.popitem(last=False)
        return view

    def _made(self, spec: Spec, key: str) -> View:
        if spec.group not in self._index.groups and spec.group != "all":
            raise ValueError(f"no motion is called {spec.group!r}")
        masks, base = self._masks(spec), self._base(spec)
        shown = _all_of(base, masks)
        counts = self._counts(spec, base, masks, shown)
        histogram = _histogram(self._index.standing(spec.group), _all_of(base, masks, "influence"))
        order = self._order(spec)
        places = order if spec.sort == "given" else _those_of(order, shown, spec.limit)
        return View(key, spec, places[: spec.limit], counts, histogram)

    def _counts(
        self, spec: Spec, base: Flags | None, masks: Mapping[str, Flags], shown: Flags | None
    ) -> dict[str, dict[str, int]]:
        """Every facet's counts, its own filter aside. Those that filter nothing are counted at once."""
        coded = self._coded(spec)
        free = [(values, codes) for name, values, codes in coded if name not in masks]
        of_free = iter(count_each([codes for _, codes in free], [len(values) for values, _ in free], shown))
        counts = {}
        for name, values, codes in coded:
            tally = next(of_free) if name not in masks else count(codes, len(values), _all_of(base, masks, name))
            counts[name] = {value: n for value, n in zip(values, tally.tolist(), strict=True) if n}
        return counts

    def _coded(self, spec: Spec) -> list[tuple[str, tuple[str, ...], Codes]]:
        """Every facet: its name, its values and each clip's place among them."""
        standing = self._index.standing(spec.group)
        own = [
            ("decision", DECISIONS, standing.decision),
            ("people", WORDS, self._people.codes(spec.group)),
        ]
        return own + [(one.name, one.values, one.codes) for one in self._index.facets]

    def _masks(self, spec: Spec) -> dict[str, Flags]:
        coded = {name: (values, codes) for name, values, codes in self._coded(spec)}
        masks = {}
        for name, chosen in spec.where.items():
            if name == "mine":
                spoken = self._people.spoken_by(spec.by, spec.group)
                masks[name] = spoken if chosen == ["said"] else ~spoken
                continue
            if name not in coded:
                raise ValueError(f"clips cannot be filtered by {name!r}")
            values, codes = coded[name]
            mask = np.zeros(len(codes), bool)
            for value in set(chosen) & set(values):
                mask |= codes == values.index(value)
            masks[name] = mask
        if spec.low is not None or spec.high is not None:
            influence = self._index.standing(spec.group).influence
            low, high = (-np.inf if spec.low is None else spec.low), (np.inf if spec.high is None else spec.high)
            masks["influence"] = (influence >= low) & (influence <= high)
        return masks

    def _base(self, spec: Spec) -> Flags | None:
        """Clips that have every word of a search [N], and that are among `ids`, where some are named; None: all."""
        flags = self._search.flags(spec.text)
        if spec.ids:
            named = np.zeros(len(self._index), bool)
            places = self._index.places(spec.ids)
            named[places[places >= 0]] = True
            flags = named if flags is None else flags & named
        return flags

    # --- orders ---

    def _order(self, spec: Spec) -> Places:
        if spec.sort == "given":
            places = self._index.places(spec.ids)
            return places[places >= 0]
        if spec.sort in self._scores:  # of what people said, which changes
            return from_best(self._scores[spec.sort](spec), spec.down)
        name = (spec.sort, spec.group if spec.sort in GROUPED else "", spec.seed if spec.sort == "random" else 0)
        with self._lock:
            order = self._orders.get(name)
        if order is None:
            order = self._computed(spec)
            with self._lock:
                self._orders[name] = order
                while len(self._orders) > MOST:
                    self._orders.popitem(last=False)
        return order if spec.down else order[::-1]

    def _computed(self, spec: Spec) -> Places:
        index, standing = self._index, self._index.standing(spec.group)
        if spec.sort == "influence":
            return standing.order
        if spec.sort == "cut":
            return from_best(-np.abs(cut_distance(standing)), True)
        if spec.sort == "disagreement":
            return from_best(disagreement(index), True)
        if spec.sort == "harmful source":
            return from_best(popular_harm(index, standing), True)
        if spec.sort in ("motion_mean", "camera_share", "num_frames"):
            return from_best(index.numbers(spec.sort), True)
        if spec.sort == "distance":
            return from_best(_distances(index), True)
        if spec.sort == "name":
            return np.asarray(pc.sort_indices(index.clips.column("file")).to_numpy(), np.int32)
        if spec.sort == "random":
            return _drawn(index, spec.seed)
        raise ValueError(f"clips cannot be sorted by {spec.sort!r}")


GROUPED = ("influence", "cut", "harmful source")
SORTS = (*GROUPED, "disagreement", "motion_mean", "camera_share", "num_frames", "distance", "name", "random")


def _all_of(base: Flags | None, masks: Mapping[str, Flags], but: str = "") -> Flags | None:
    """Which clips `base` and all masks keep, save the mask of one name [N]; None: all of them."""
    shown = base
    for name, mask in masks.items():
        if name != but:
            shown = mask if shown is None else shown & mask
    return shown


def _those_of(order: Places, shown: Flags | None, limit: int | None) -> Places:
    """The places of an order that are shown, or the first of them."""
    if shown is None:
        return order
    blocks, enough = [order[:0]], len(order) if limit is None else limit
    for start in range(0, len(order), STEP):
        block = order[start : start + STEP]
        blocks.append(block[shown[block]])
        enough -= len(blocks[-1])
        if enough <= 0:
            break
    return np.concatenate(blocks)


def _histogram(standing: Standing, shown: Flags | None) -> dict[str, Any]:
    histogram = standing.histogram
    if histogram is None:
        return {"edges": [], "counts": [], "cut": None, "harmful": None}
    return {
        "edges": [float(histogram.edges[0]), float(histogram.edges[-1])],
        "counts": count(histogram.codes, BINS, shown).tolist(),
        "cut": histogram.cut,
        "harmful": histogram.harmful,
    }


def from_best(score: Floats, down: bool) -> Places:
    """Places by score; NaN, which is not known, comes last either way. Ties are in the order of ids.

    Whole numbers are sorted, which takes a fifth of the time: the score in the upper half, the place in the lower.
    """
    values = np.where(np.isnan(score), np.float32(np.inf), -score if down else score)
    values += 0  # -0 is 0
    bits = values.view(np.uint32)
    keys = np.where(bits >> 31, ~bits, bits | 1 << 31).astype(np.uint64)  # in the order of the values
    keys <<= 32
    keys |= np.arange(len(keys), dtype=np.uint64)
    keys.sort()
    keys &= (1 << 32) - 1
    return keys.astype(np.int32)


def cut_distance(standing: Standing) -> Floats:
    """How many places a clip is above (positive) or below the last selected; NaN where it is not ranked."""
    rank = np.where(standing.rank == NOT_RANKED, np.nan, standing.rank.astype(np.float64))
    return (standing.selected - 0.5 - rank).astype(np.float32)


def disagreement(index: Index) -> Floats:
    """How far the motions differ on a clip: its highest less its lowest place, as a share of the ranked clips [N]."""
    low, high = np.full(len(index), np.inf, np.float32), np.full(len(index), -np.inf, np.float32)
    for name, standing in index.standings.items():
        if name == "all":
            continue
        share = np.where(standing.rank == NOT_RANKED, np.nan, standing.rank / max(1, standing.ranked))
        low, high = np.fmin(low, share), np.fmax(high, share)
    spread: Floats = np.where(np.isfinite(low) & np.isfinite(high), high - low, np.nan).astype(np.float32)
    return spread


def popular_harm(index: Index, standing: Standing) -> Floats:
    """Harmful clips of the sources of which most is selected: that source's share of selected clips; NaN elsewhere."""
    sources, score = facet(index.facets, "source"), np.full(len(index), np.nan, np.float32)
    harmful = standing.decision == 2
    if sources is None:
        score[harmful] = 0
        return score
    codes = sources.codes.astype(np.int64) + 1
    chosen, every = np.bincount(codes, standing.decision == 0), np.bincount(codes)
    score[harmful] = (chosen / np.maximum(every, 1))[codes[harmful]]
    return score


def _distances(index: Index) -> Floats:
    """How far each clip moves from the queries of its motion [N]: the farther, the lower its quantile, which many clips
    may share; NaN where its flow is not known."""
    return np.full(len(index), np.nan, np.float32) if index.lawfulness is None else index.lawfulness.distance


def _drawn(index: Index, seed: int) -> Places:
    """An order that belongs to the seed and the clips' ids."""
    start = f"{seed} ".encode()
    drawn = [hashlib.blake2b(start + i.encode(), digest_size=8).digest() for i in index.ids.to_pylist()]
    return np.argsort(np.frombuffer(b"".join(drawn), ">u8"), kind="stable").astype(np.int32)
