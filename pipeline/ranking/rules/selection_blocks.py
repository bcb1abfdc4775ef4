"""From influence and votes to a decision on every clip: pure functions on arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import Ranking
from pipeline.ranking.rules.choice import Rules, barred_words, choose
from pipeline.ranking.rules.intervals import half_width, half_width_of_votes, rank_intervals, squared_error
from pipeline.ranking.scores import (
    CHUNK,
    Array,
    Counts,
    Population,
    Rows,
    check_by,
    check_share,
    clip_names,
    mean_influence,
    placed,
    scores,
    share,
    votes,
)


def select(
    influence: npt.ArrayLike,
    clip_ids: Sequence[str] | pa.Array,
    by: Literal["mean", "votes"] = "mean",
    fraction: float = 0.1,
    harmful: float = 0.1,
    vote_fraction: float = 0.1,
    above: float | None = None,
    unlawful: Mapping[str, str] | None = None,
) -> pa.Table:
    """Decide on every clip: columns clip_id, votes, mean_influence, rank, decision, weight, reason, rule, choice,
    duplicate_of, rank_low, rank_high; by rank.

    Selected are the first max(1, round(fraction * N)), or those whose mean influence is above `above`. Influence alone
    calls no clip harmful: those are the `unlawful` ones, clip_id -> why, the first round(harmful * N) of them in their
    order, and none of them is selected. The weight is the mean influence, none below zero, over its sum.

    Raises ValueError for influence that is no matrix, is empty or not finite, for ids that repeat or are of another
    count, and for a rule that cannot be.
    """
    check_by(by)
    check_share(fraction)
    check_share(vote_fraction, "vote_fraction")
    if not 0 <= harmful < 1:
        raise ValueError(f"harmful={harmful}: it must be at least 0 and below 1")
    if above is not None and not np.isfinite(above):
        raise ValueError(f"above={above}: it must be None or a finite number")
    values = scores(influence)
    ids = clip_names(clip_ids, len(values))
    rule = Ranking(by=by, fraction=fraction, harmful=harmful, vote_fraction=vote_fraction, above=above)
    names = {"clip_id": list(unlawful or {}), "reason": list((unlawful or {}).values())}
    spoiled = pa.table(names, schema=pa.schema([("clip_id", pa.string()), ("reason", pa.string())]))
    votes_of = votes(values, vote_fraction)
    error, half = squared_error(np.ascontiguousarray(values.T)), None
    if error is not None and rule.interval is not None:
        half = half_width(*error, rule.interval)
    blocks = selection_blocks(mean_influence(values), votes_of, ids, values.shape[1], rule, unlawful=spoiled, half=half)
    return pa.concat_tables(blocks)


def selection_blocks(
    mean: Array,
    votes: Counts,
    clip_ids: pa.Array,
    queries: int,
    rule: Ranking,
    population: Population | None = None,
    unlawful: pa.Table | None = None,
    rules: Rules | None = None,
    half: Array | None = None,
) -> Iterator[pa.Table]:
    """The tables of `select`, one after the other by rank, at most CHUNK rows each.

    `unlawful` has columns clip_id and reason, the least lawful first. Where the rows stand for a larger `population`,
    both shares are of its count. `rules` bar near-duplicates and what is above a cap; the next best take their places.
    `half` [N] is how far a mean influence may be off: it makes intervals of ranks, and names clips on the edge.
    """
    rows, n = placed(mean, votes if rule.by == "votes" else None, clip_ids), len(mean)
    whole = n if population is None else population.count
    rules = rules or Rules()
    total = max(_exact_sum(np.maximum(mean, 0)), 1e-12)
    count = min(n, share(rule.fraction, whole)) if rule.above is None else int((mean > rule.above).sum())
    first = f"first {count} of {whole} by {rule.by}" if rule.above is None else f"mean influence above {rule.above:g}"
    harmful, reasons = _harmful(clip_ids, unlawful, round(rule.harmful * whole))
    choice = choose(rows, harmful, rules)
    intervals = _intervals(mean, votes, rows, rule, queries, half)
    order = choice.place[rows]
    cut = int(np.flatnonzero((order >= 0) & (order < count)).max(initial=-1))  # the last rank of the selection
    names = ["fraction" if rule.above is None else "above", "lawfulness", "duplicate"]
    names += [f"cap {cap.column}" for cap in rules.caps]
    for start in range(0, n, CHUNK):
        here = rows[start : start + CHUNK]
        rank, m, v = np.arange(start, start + len(here)), mean[here], votes[here]
        bad, place = harmful[here], choice.place[here]
        chosen = (place >= 0) & (place < count if rule.above is None else m > rule.above)
        decided = np.where(chosen, 0, np.where(bad, 1, 2)).astype(np.int8)
        low, high = intervals(here)
        edge = _on_edge(low, high, cut) if rule.above is None else _near(m, half, here, rule.above)
        edged = (decided + 3 * (edge & (place >= 0))).astype(np.int8)
        why = _words(edged, [first, "", "not selected", f"{first}, on the edge", "", "not selected, on the edge"])
        why = pc.if_else(pa.array(bad), reasons.take(pa.array(np.where(bad, here, 0))), why) if bad.any() else why
        why, stand_ins = barred_words(choice, here, rules, clip_ids, why)
        yield pa.table(
            {
                "clip_id": clip_ids.take(pa.array(here)).cast(pa.string()),
                "votes": pa.array(v, pa.int32()),
                "mean_influence": pa.array(m, pa.float32()),
                "rank": pa.array(rank, pa.int64()),
                "decision": _words(decided, ["selected", "harmful", "neutral"]),
                "weight": pa.array(np.maximum(m, 0) / total, pa.float32()),
                "reason": _reasons(why, rank, m, v, queries),
                "rule": _words(choice.barred_by[here], names),
                "choice": pa.array(place, pa.int64(), mask=place < 0),
                "duplicate_of": stand_ins,
                "rank_low": low,
                "rank_high": high,
            }
        )


def _intervals(
    mean: Array, votes: Counts, rows: Rows, rule: Ranking, queries: int, half: Array | None
) -> Callable[[Rows], tuple[pa.Array, pa.Array]]:
    """Some rows -> the first and the last rank that each may have; nulls where nothing is known."""
    scores: npt.NDArray[np.number] = votes if rule.by == "votes" else mean
    width = half
    if rule.by == "votes":
        width = None if rule.interval is None else half_width_of_votes(votes, queries, rule.interval)
    ascending = scores[rows][::-1]

    def of(some: Rows) -> tuple[pa.Array, pa.Array]:
        if width is None:
            return pa.nulls(len(some), pa.int64()), pa.nulls(len(some), pa.int64())
        low, high = rank_intervals(ascending, scores[some], width[some])
        return pa.array(low, pa.int64()), pa.array(high, pa.int64())

    return of


def _on_edge(low: pa.Array, high: pa.Array, cut: int) -> npt.NDArray[np.bool_]:
    """Which intervals of ranks hold ranks of the selection, up to `cut`, and others."""
    inside = pc.and_(pc.less_equal(low, cut), pc.greater(high, cut))
    edge: npt.NDArray[np.bool_] = pc.fill_null(inside, False).to_numpy(zero_copy_only=False)
    return edge


def _near(mean: Array, half: Array | None, rows: Rows, above: float) -> npt.NDArray[np.bool_]:
    """Which mean influences of these rows may be on either side of a threshold."""
    if half is None:
        return np.zeros(len(mean), bool)
    edge: npt.NDArray[np.bool_] = (mean - half[rows] <= above) & (mean + half[rows] > above)
    return edge


def _exact_sum(values: Array) -> float:
    """Their sum, rounded once: it does not depend on their order."""
    blocks = (values[start : start + CHUNK].tolist() for start in range(0, len(values), CHUNK))
    return math.fsum(value for block in blocks for value in block)


def _harmful(clip_ids: pa.Array, unlawful: pa.Table | None, most: int) -> tuple[npt.NDArray[np.bool_], pa.Array]:
    """Which clips are harmful, at most so many, and why: [N], null where not."""
    flags = np.zeros(len(clip_ids), bool)
    if unlawful is None or not unlawful.num_rows:
        return flags, pa.nulls(len(clip_ids), pa.string())
    ranked = unlawful.filter(pc.is_in(unlawful.column("clip_id").cast(clip_ids.type), clip_ids)).slice(0, most)
    places = pc.index_in(clip_ids, ranked.column("clip_id").cast(clip_ids.type).combine_chunks())
    flags[pc.is_valid(places).to_numpy(zero_copy_only=False)] = True
    return flags, ranked.column("reason").combine_chunks().take(places)


def _words(index: npt.NDArray[np.integer], words: list[str]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(index), pa.array(words, pa.string())).cast(pa.string())


def _reasons(rule: pa.Array, rank: Rows, mean: Array, votes: Counts, queries: int) -> pa.Array:
    """``RULE: rank 7, mean influence +0.1234, 3 of 50 votes`` for every row."""
    parts = np.rint(np.abs(mean.astype(np.float64)) * 1e4).astype(np.int64)
    sign = _words(np.signbit(mean).astype(np.int8), [", mean influence +", ", mean influence -"])
    return pc.binary_join_element_wise(
        rule, ": rank ", pa.array(rank).cast(pa.string()),
        sign, pa.array(parts // 10000).cast(pa.string()), ".",
        pc.ascii_lpad(pa.array(parts % 10000).cast(pa.string()), 4, "0"),
        ", ", pa.array(votes).cast(pa.string()), f" of {queries} votes", "",
    )  # fmt: skip
