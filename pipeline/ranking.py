"""From features to influence, votes and a selection: pure functions on arrays.

What is here for all clips at once, `selection` does for as many as a bucket holds, with the same pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import Ranking
from pipeline.parallel import in_order, one_thread

Array = npt.NDArray[np.float32]
Sums = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int32]

BLOCK = 2048  # rows whose products are summed in float32 before they join a sum in float64
SMALL = 2048  # rows of a system that BLAS solves sooner on one thread
CHUNK = 1 << 18  # rows of a selection that are put into words at a time


# --- influence --------------------------------------------------------------------------------------------------------


def unit_settings(features: Array, settings: int) -> Array:
    """Normalise each setting's part of the rows [N, settings * k] and divide by sqrt(settings).

    The cosine of two rows is then the mean of their settings' cosines. A part of zeros stays zeros.
    """
    parts = features.reshape(len(features), settings, features.shape[1] // settings)
    length = np.sqrt(np.vecdot(parts, parts) * np.float32(settings))
    unit = parts * (1 / np.where(length > 0, length, np.float32(1)))[..., None]
    return unit.reshape(features.shape).astype(np.float32, copy=False)


def second_moment(phi: Array) -> Sums:
    """Phi^T Phi of unit rows: [N, k] -> [k, k]. Sums of parts of the rows add up to that of all."""
    total = np.zeros((phi.shape[1], phi.shape[1]))
    for start in range(0, len(phi), BLOCK):
        rows = phi[start : start + BLOCK]
        total += rows.T @ rows  # one array twice: BLAS computes half of the product
    return total


def whitened(queries: Array, moment: Sums, count: float, whiten: float) -> Array:
    """TRAK's preconditioner on unit rows: ``phi_q (moment / count + whiten * I)^-1``; [Q, k] -> [Q, k]."""
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
    found: Sums = 1 + (1 - weights) / total * np.vecdot(phi @ inverse, phi)
    return found


def influence(clips: Array, queries: Array, whiten: float | None = None) -> Array:
    """How much training on each clip lowers each query's loss: [N, k], [Q, k] -> [N, Q].

    Without `whiten` the cosine (Wu et al. 2026). With it, on unit rows phi, TRAK's preconditioned product
    ``phi_n^T (Phi^T Phi / N + whiten * I)^-1 phi_q`` (Park et al. 2023), Phi the clips' rows; not normalised
    afterwards.
    """
    blocks = [slice(start, start + BLOCK) for start in range(0, len(clips), BLOCK)]
    phi: Array = np.empty(clips.shape, np.float32)
    q = unit_settings(queries, 1)

    def moment_of(rows: slice) -> Sums | float:
        phi[rows] = unit_settings(clips[rows], 1)
        return 0.0 if whiten is None else second_moment(phi[rows])

    moment = np.zeros((phi.shape[1], phi.shape[1]))
    for found in in_order(moment_of, blocks):
        moment += found
    if whiten is not None:
        q = whitened(q, moment, len(phi), whiten)
    none: Array = np.empty((0, len(q)), np.float32)
    return np.concatenate([none, *in_order(lambda rows: phi[rows] @ q.T, blocks)])


# --- the clips that a ranking stands for ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Population:
    """The clips that a ranking's rows stand for: `count` in all, `weights` [N] for each row, or one each where None.

    With a shortlist (`pipeline.shortlist`) the rows are some of the clips, chosen with different chances; a sum over
    the rows times their weights estimates the sum over all clips (Horvitz and Thompson 1952).
    """

    count: int
    weights: Sums | None = None

    def behind(self, rows: Rows) -> Sums:
        """How many clips lie behind each of these rows, which are all of them from first to last: [N]."""
        if self.weights is None:
            return np.arange(len(rows) - 1, -1, -1, dtype=np.float64)
        found: Sums = np.append(np.cumsum(self.weights[rows][::-1])[::-1][1:], 0.0)
        return found


# --- votes and order --------------------------------------------------------------------------------------------------


def share(fraction: float, count: int) -> int:
    """How many a fraction of `count` clips is: one at least."""
    return max(1, round(fraction * count))


def votes(influence: Array, fraction: float = 0.1) -> Counts:
    """How many queries have each clip above their own cutoff: [N, Q] -> [N].

    A query's cutoff leaves exactly max(1, round(fraction * N)) clips at or above it, ties aside.
    """
    last = len(influence) - share(fraction, len(influence))
    columns = np.ascontiguousarray(influence.T)
    cutoff = np.partition(columns, last, axis=1)[:, last]
    found: Counts = (columns >= cutoff[:, None]).sum(0, dtype=np.int32)
    return found


def mean_influence(influence: Array) -> Array:
    """[N, Q] -> [N], summed in float64."""
    found: Array = influence.mean(1, dtype=np.float64).astype(np.float32)
    return found


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


def order(influence: Array, clip_ids: Sequence[str], by: Literal["mean", "votes"], vote_fraction: float = 0.1) -> Rows:
    """The clips from best to worst: by votes (or not), then mean influence, then clip_id. [N]"""
    first = votes(influence, vote_fraction) if by == "votes" else None
    return placed(mean_influence(influence), first, pa.array(clip_ids, pa.large_string()))


# --- selection --------------------------------------------------------------------------------------------------------


def select(
    influence: Array,
    clip_ids: Sequence[str],
    by: Literal["mean", "votes"] = "mean",
    fraction: float = 0.1,
    harmful: float = 0.1,
    vote_fraction: float = 0.1,
    above: float | None = None,
    below: float | None = None,
) -> pa.Table:
    """Decide on every clip: columns clip_id, votes, mean_influence, rank, decision, weight, reason; by rank.

    Selected are the first max(1, round(fraction * N)), or those whose mean influence is above `above`; harmful the last
    round(harmful * N) as far as their mean influence is negative, or those below `below`. The weight is the mean
    influence, none below zero, over its sum.
    """
    if not len(influence):
        raise ValueError("influence: there is no clip with a feature, so there is nothing to select from")
    rule = Ranking(by=by, fraction=fraction, harmful=harmful, vote_fraction=vote_fraction, above=above, below=below)
    given, ids = votes(influence, vote_fraction), pa.array(clip_ids, pa.large_string())
    tables = decisions(mean_influence(influence), given, ids, influence.shape[1], rule)
    return pa.concat_tables(tables)


def decisions(
    mean: Array, votes: Counts, clip_ids: pa.Array, queries: int, rule: Ranking, population: Population | None = None
) -> Iterator[pa.Table]:
    """The tables of `select`, one after the other by rank, at most CHUNK rows each.

    Where the rows stand for a larger `population`, both shares are of its count: selected are that many of the rows,
    harmful those with fewer clips behind them than the share holds, by the weights.
    """
    rows, n = placed(mean, votes if rule.by == "votes" else None, clip_ids), len(mean)
    population = population or Population(n)
    whole = population.count
    total = max(float(np.maximum(mean, 0).sum(dtype=np.float64)), 1e-12)
    count = min(n, share(rule.fraction, whole)) if rule.above is None else int((mean > rule.above).sum())
    first = f"first {count} of {whole} by {rule.by}" if rule.above is None else f"mean influence above {rule.above:g}"
    last, behind = round(rule.harmful * whole), population.behind(rows)
    worst = f"last {last} of {whole} and negative" if rule.below is None else f"mean influence below {rule.below:g}"
    for start in range(0, n, CHUNK):
        here = rows[start : start + CHUNK]
        rank, m, v = np.arange(start, start + len(here)), mean[here], votes[here]
        chosen = rank < count if rule.above is None else m > rule.above
        bad = (behind[start : start + CHUNK] < last) & (m < 0) if rule.below is None else m < rule.below
        decided = np.where(chosen, 0, np.where(bad, 1, 2)).astype(np.int8)
        yield pa.table(
            {
                "clip_id": clip_ids.take(pa.array(here)).cast(pa.string()),
                "votes": pa.array(v, pa.int32()),
                "mean_influence": pa.array(m, pa.float32()),
                "rank": pa.array(rank, pa.int64()),
                "decision": _words(decided, ["selected", "harmful", "neutral"]),
                "weight": pa.array(np.maximum(m, 0) / total, pa.float32()),
                "reason": _reasons(_words(decided, [first, worst, "between the cuts"]), rank, m, v, queries),
            }
        )


def _words(index: npt.NDArray[np.int8], words: list[str]) -> pa.Array:
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
