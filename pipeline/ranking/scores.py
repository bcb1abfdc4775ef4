"""From features to influence, votes and a selection: pure functions on arrays.

What is here for all clips at once, `selection` does for as many as a bucket holds, with the same pieces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import Ranking
from pipeline.ranking.rules.choice import Rules, barred_words, choose
from pipeline.ranking.rules.intervals import half_width, half_width_of_votes, rank_intervals, squared_error
from pipeline.storage.parallel import in_order, one_thread

Array = npt.NDArray[np.float32]
Sums = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int32]

BLOCK = 4096  # rows whose scores BLAS computes at a time
COLUMNS = 16  # queries are filled up to a multiple of it
GRID = 2.0**-20  # unit rows are rounded to multiples of it in their second moment
MOST_ROWS = 1 << 13  # rows whose moment float64 holds: 2^13 times (1 / GRID)^2 is 2^53
SPLIT = 1 << 26  # where a whole number below 2^53 is cut in two
SMALL = 2048  # rows of a system that BLAS solves sooner on one thread
CHUNK = 1 << 18  # rows of a selection that are put into words at a time


LEAST, MOST = np.float32(1e-16), np.float32(1e16)  # lengths whose squares float32 holds with all their digits


# --- what is given ----------------------------------------------------------------------------------------------------


def matrix(values: npt.ArrayLike, name: str, columns: str) -> Array:
    """The values as a matrix of finite numbers [N, columns], with a column at least.

    ValueError says which row and column is not; a NaN would else be sorted among the best.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name}: it holds {array.dtype}, not numbers")
    if array.ndim != 2:
        raise ValueError(f"{name}: its shape is {list(array.shape)}; give a matrix [N, {columns}]")
    if not array.shape[1]:
        raise ValueError(f"{name}: it has {len(array)} rows without a column; give {columns}, one at least")
    if array.dtype != np.float64:
        array = array.astype(np.float32, copy=False)
    for start in range(0, len(array), CHUNK):
        finite = np.isfinite(array[start : start + CHUNK])
        if not finite.all():
            row, column = np.argwhere(~finite)[0].tolist()
            raise ValueError(f"{name}: row {start + row}, column {column} is {array[start + row, column]}, not finite")
    return array


def directions(features: npt.ArrayLike, name: str) -> Array:
    """Rows [N, k] that each have a direction; ValueError names the first that is not finite or zero."""
    rows = matrix(features, name, "k")
    nonzero = rows.any(1)
    if not nonzero.all():
        raise ValueError(f"{name}: row {int(np.argmin(nonzero))} is zero in every column; it has no direction")
    return rows


def check_whiten(whiten: float | None) -> None:
    """Raise ValueError unless `whiten` is None, or finite and above zero."""
    if whiten is not None and not 0 < whiten < np.inf:
        raise ValueError(f"whiten={whiten}: it must be None, for the plain cosine, or a finite number above 0")


def check_share(fraction: float, name: str = "fraction") -> None:
    """Raise ValueError unless a fraction is above 0 and at most 1."""
    if not 0 < fraction <= 1:
        raise ValueError(f"{name}={fraction}: it must be above 0 and at most 1")


def scores(influence: npt.ArrayLike) -> Array:
    """Influence of clips on queries, [N, Q]. Raises ValueError."""
    values = np.asarray(influence)
    if values.ndim == 2 and values.shape[1] == 0:
        raise ValueError(f"influence: its {len(values)} rows have no column: without a query no clip can be ranked")
    values = matrix(values, "influence", "queries")
    if not len(values):
        raise ValueError("influence: there is no clip with a feature, so there is nothing to select from")
    return values


def clip_names(clip_ids: Sequence[str] | pa.Array, count: int) -> pa.LargeStringArray:
    """The ids of so many rows. Raises ValueError where they are others, or repeat."""
    ids = clip_ids.to_pylist() if isinstance(clip_ids, pa.Array | pa.ChunkedArray) else list(clip_ids)
    if isinstance(clip_ids, str) or len(ids) != count:
        raise ValueError(f"clip_ids: {count} rows of influence need as many ids, and there are {len(ids)}")
    seen: dict[str, int] = {}
    for row, clip_id in enumerate(ids):
        if not isinstance(clip_id, str):
            raise ValueError(f"clip_ids: the id of row {row} is {clip_id!r}, and an id is text")
        if clip_id in seen:
            raise ValueError(f"clip_ids: rows {seen[clip_id]} and {row} have one id, {clip_id!r}")
        seen[clip_id] = row
    return pa.array(ids, pa.large_string())


# --- influence --------------------------------------------------------------------------------------------------------


def unit_settings(features: Array, settings: int) -> Array:
    """Normalise each setting's part of the rows [N, settings * k] and divide by sqrt(settings).

    The cosine of two rows is then the mean of their settings' cosines. A part of zeros stays zeros, and one that is not
    finite stays so; `directions` refuses such rows.
    """
    if settings < 1 or features.ndim != 2 or features.shape[1] % settings:
        raise ValueError(f"features: rows of shape {list(features.shape)} cannot be shared out to {settings} settings")
    parts = features.reshape(len(features), settings, features.shape[1] // settings)
    with np.errstate(over="ignore"):  # such rows are computed again below
        length = np.sqrt(np.vecdot(parts, parts) * np.float32(settings))
    extreme = (length < LEAST) | (length > MOST)
    if extreme.any():  # squares of its numbers over- or underflow: they are divided by the largest first
        largest = np.abs(parts[extreme]).max(1, keepdims=True)
        parts = parts.copy()
        parts[extreme] /= np.where((largest > 0) & np.isfinite(largest), largest, np.float32(1))
        length[extreme] = np.sqrt(np.vecdot(parts[extreme], parts[extreme]) * np.float32(settings))
    with np.errstate(invalid="ignore"):  # 0 times infinity
        unit = parts * (1 / np.where(length == 0, np.float32(1), length))[..., None]
    return unit.reshape(features.shape).astype(np.float32, copy=False)


def products(phi: Array, queries: Array) -> Array:
    """``phi @ queries.T``: [n, k], [Q, k] -> [n, Q], where a row's numbers do not depend on the rows around it.

    BLAS takes another kernel, which adds in another order, for a few rows or queries and for those at an edge. Both
    are filled up with zeros, so that every product that it computes has one shape.
    """
    wide: Array = np.zeros((-(-len(queries) // COLUMNS) * COLUMNS, queries.shape[1]), np.float32)
    wide[: len(queries)] = queries
    values: Array = np.empty((len(phi), len(queries)), np.float32)
    for start in range(0, len(phi), BLOCK):
        rows = phi[start : start + BLOCK]
        full = rows
        if len(rows) < BLOCK:
            full = np.zeros((BLOCK, phi.shape[1]), np.float32)
            full[: len(rows)] = rows
        values[start : start + len(rows)] = (full @ wide.T)[: len(rows), : len(queries)]
    return values


def second_moment(phi: Array) -> Sums:
    """Phi^T Phi of unit rows: [N, k] -> [k, k]. Sums of parts of the rows add up to that of all.

    The rows are rounded to multiples of GRID. The sums of up to MOST_ROWS of their products are then multiples of
    GRID^2 that float64 holds without rounding, so that their order does not matter.
    """
    total = np.zeros((phi.shape[1], phi.shape[1]))
    for start in range(0, len(phi), MOST_ROWS):
        rows = phi[start : start + MOST_ROWS].astype(np.float64)
        rows /= GRID
        np.rint(rows, out=rows)
        total += rows.T @ rows  # one array twice: BLAS computes half of the product
    total *= GRID**2
    return total


class Moment:
    """The sum of second moments of up to MOST_ROWS unit rows each, the same to the bit however rows are shared out.

    Each is split into a high and a low part, which integers of 64 bits hold for 10^12 rows and more.
    """

    def __init__(self, size: int) -> None:
        self._high, self._low = (np.zeros((size, size), np.int64) for _ in range(2))

    def add(self, moment: Sums) -> None:
        whole = moment / GRID**2
        high = np.floor(whole / SPLIT)
        self._low += (whole - high * SPLIT).astype(np.int64)
        self._high += high.astype(np.int64)

    @property
    def total(self) -> Sums:
        """Phi^T Phi [k, k]."""
        high = self._high + self._low // SPLIT
        total: Sums = high.astype(np.float64) * SPLIT + (self._low % SPLIT).astype(np.float64)
        total *= GRID**2
        return total


def whitened(queries: Array, moment: Sums, count: float, whiten: float) -> Array:
    """TRAK's preconditioner on unit rows: ``phi_q (moment / count + whiten * I)^-1``; [Q, k] -> [Q, k]."""
    check_whiten(whiten)
    covariance = moment / count + whiten * np.eye(len(moment))
    with one_thread() if len(moment) < SMALL else nullcontext():
        return np.ascontiguousarray(np.linalg.solve(covariance, queries.T.astype(np.float64)).T, np.float32)


def own_part(phi: Array, weights: Sums, inverse: Array, total: float) -> Sums:
    """What divides rows' scores, whitened by a weighted second moment, to make them those of the same moment with the
    row's own weight as one; [n, k], [n], [k, k] -> [n].

    A row that stands for many would shrink its own score, and no other's: it could not be held against the rest. By
    Sherman and Morrison ``phi^T (A + c phi phi^T)^-1 q = phi^T A^-1 q / (1 + c phi^T A^-1 phi)``, here with
    c = (1 - weight) / total, `inverse` A^-1, A = moment / total + whiten * I, and the moment's weights adding up to
    `total`.
    """
    divisor: Sums = 1 + (1 - weights) / total * np.vecdot(phi @ inverse, phi)
    return divisor


def influence(clips: npt.ArrayLike, queries: npt.ArrayLike, whiten: float | None = None) -> Array:
    """How much training on each clip lowers each query's loss: [N, k], [Q, k] -> [N, Q].

    Without `whiten` the cosine (Wu et al. 2026). With it, on unit rows phi, TRAK's preconditioned product
    ``phi_n^T (Phi^T Phi / N + whiten * I)^-1 phi_q`` (Park et al. 2023), Phi the clips' rows; not normalised
    afterwards. ValueError names a row that is not finite or zero, which has no cosine with any other.
    """
    check_whiten(whiten)
    clips, queries = directions(clips, "clips"), directions(queries, "queries")
    if not len(queries):
        raise ValueError("queries: there is no row; without a query no clip has influence")
    if clips.shape[1] != queries.shape[1]:
        raise ValueError(f"clips have {clips.shape[1]} columns and queries {queries.shape[1]}; give both the same")
    blocks = [slice(start, start + BLOCK) for start in range(0, len(clips), BLOCK)]
    phi: Array = np.empty(clips.shape, np.float32)
    q = unit_settings(queries, 1)

    def moment_of(rows: slice) -> Sums | None:
        phi[rows] = unit_settings(clips[rows], 1)
        return None if whiten is None else second_moment(phi[rows])

    moment = Moment(phi.shape[1])
    for part_moment in in_order(moment_of, blocks):
        if part_moment is not None:
            moment.add(part_moment)
    if whiten is not None:
        q = whitened(q, moment.total, len(phi), whiten)
    none: Array = np.empty((0, len(q)), np.float32)
    return np.concatenate([none, *in_order(lambda rows: products(phi[rows], q), blocks)])


# --- the clips that a ranking stands for ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Population:
    """The clips that a ranking's rows stand for: `count` in all, `weights` [N] for each row, or one each where None.

    With a shortlist (`shortlist`) the rows are some of the clips, chosen with different chances; a sum over
    the rows times their weights estimates the sum over all clips (Horvitz and Thompson 1952).
    """

    count: int
    weights: Sums | None = None


# --- votes and order --------------------------------------------------------------------------------------------------


def share(fraction: float, count: int) -> int:
    """How many a fraction of `count` clips is: one at least."""
    check_share(fraction)
    return max(1, round(fraction * count))


def votes(influence: npt.ArrayLike, fraction: float = 0.1) -> Counts:
    """How many queries have each clip above their own cutoff: [N, Q] -> [N].

    A query's cutoff leaves exactly max(1, round(fraction * N)) clips at or above it, ties aside. ValueError for a value
    that is not finite.
    """
    return _votes(scores(influence), fraction)


def _votes(influence: Array, fraction: float) -> Counts:
    last = len(influence) - share(fraction, len(influence))
    columns = np.ascontiguousarray(influence.T)
    cutoff = np.partition(columns, last, axis=1)[:, last]
    counts: Counts = (columns >= cutoff[:, None]).sum(0, dtype=np.int32)
    return counts


def mean_influence(influence: npt.ArrayLike) -> Array:
    """[N, Q] -> [N], summed in float64. ValueError for a value that is not finite."""
    return _mean(scores(influence))


def _mean(influence: Array) -> Array:
    mean: Array = influence.mean(1, dtype=np.float64).astype(np.float32)
    return mean


def placed(mean: Array, votes: Counts | None, clip_ids: pa.Array) -> Rows:
    """The rows from best to worst: by votes where given, then mean influence, then clip_id. [N]"""
    rows = np.lexsort((-mean,) if votes is None else (-mean, -votes))
    same = mean[rows[1:]] == mean[rows[:-1]]
    if votes is not None:
        same &= votes[rows[1:]] == votes[rows[:-1]]
    if same.any():  # ids are compared within a tie alone: to sort all of them takes longer than all else
        tied = np.append(False, same) | np.append(same, False)
        run = np.cumsum(np.append(True, ~same))[tied]
        names = pa.table({"run": run, "clip_id": clip_ids.take(pa.array(rows[tied]))})
        by = pc.sort_indices(names, sort_keys=[("run", "ascending"), ("clip_id", "ascending")])
        rows[tied] = rows[tied][by.to_numpy()]
    return rows


def order(
    influence: npt.ArrayLike,
    clip_ids: Sequence[str] | pa.Array,
    by: Literal["mean", "votes"],
    vote_fraction: float = 0.1,
) -> Rows:
    """The clips from best to worst: by votes (or not), then mean influence, then clip_id. [N]

    ValueError for what `select` refuses.
    """
    values = scores(influence)
    _check_by(by)
    ids = clip_names(clip_ids, len(values))
    return placed(_mean(values), _votes(values, vote_fraction) if by == "votes" else None, ids)


def _check_by(by: str) -> None:
    if by not in ("mean", "votes"):
        raise ValueError(f"by={by!r}: it must be 'mean' or 'votes'")


# --- selection --------------------------------------------------------------------------------------------------------


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
    _check_by(by)
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
    votes_of = _votes(values, vote_fraction)
    error, half = squared_error(np.ascontiguousarray(values.T)), None
    if error is not None and rule.interval is not None:
        half = half_width(*error, rule.interval)
    blocks = selection_blocks(_mean(values), votes_of, ids, values.shape[1], rule, unlawful=spoiled, half=half)
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
