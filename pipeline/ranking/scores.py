"""From features to influence, votes and an order: pure functions on arrays.

What is here for all clips at once, `selection` does for as many as memory holds, with the same pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

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
    first_rows: dict[str, int] = {}
    for row, clip_id in enumerate(ids):
        if not isinstance(clip_id, str):
            raise ValueError(f"clip_ids: the id of row {row} is {clip_id!r}, and an id is text")
        if clip_id in first_rows:
            raise ValueError(f"clip_ids: rows {first_rows[clip_id]} and {row} have one id, {clip_id!r}")
        first_rows[clip_id] = row
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
    check_by(by)
    ids = clip_names(clip_ids, len(values))
    return placed(_mean(values), _votes(values, vote_fraction) if by == "votes" else None, ids)


def check_by(by: str) -> None:
    """Raise ValueError unless clips are ordered by "mean" or by "votes"."""
    if by not in ("mean", "votes"):
        raise ValueError(f"by={by!r}: it must be 'mean' or 'votes'")
