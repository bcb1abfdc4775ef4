"""From features to influence, votes and a selection: pure functions on arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Array = npt.NDArray[np.float32]


def unit_settings(features: Array, settings: int) -> Array:
    """Normalise each setting's part of the rows [N, settings * k] and divide by sqrt(settings).

    The cosine of two rows is then the mean of their settings' cosines. A part of zeros stays zeros.
    """
    parts = features.reshape(len(features), settings, features.shape[1] // settings)
    length = np.linalg.norm(parts, axis=2, keepdims=True)
    unit = parts / np.where(length > 0, length, 1) / np.float32(np.sqrt(settings))
    return unit.reshape(features.shape).astype(np.float32)


def influence(clips: Array, queries: Array, whiten: float | None = None) -> Array:
    """How much training on each clip lowers each query's loss: [N, k], [Q, k] -> [N, Q].

    Without `whiten` the cosine (Wu et al. 2026). With it, on unit rows phi, TRAK's preconditioned product
    ``phi_n^T (Phi^T Phi / N + whiten * I)^-1 phi_q`` (Park et al. 2023), Phi the clips' rows; not normalised
    afterwards.
    """
    phi, q = unit_settings(clips, 1), unit_settings(queries, 1)
    if whiten is not None:
        covariance = phi.T.astype(np.float64) @ phi / len(phi)
        q = np.linalg.solve(covariance + whiten * np.eye(phi.shape[1]), q.T.astype(np.float64)).T
    found: Array = phi @ q.T.astype(np.float32)
    return found


def votes(influence: Array, fraction: float = 0.1) -> npt.NDArray[np.int32]:
    """How many queries have each clip above their own cutoff: [N, Q] -> [N].

    A query's cutoff leaves exactly max(1, round(fraction * N)) clips at or above it, ties aside.
    """
    count = max(1, round(fraction * len(influence)))
    cutoff = np.partition(influence, len(influence) - count, axis=0)[len(influence) - count]
    found: npt.NDArray[np.int32] = (influence >= cutoff).sum(1, dtype=np.int32)
    return found


def order(
    influence: Array, clip_ids: Sequence[str], by: Literal["mean", "votes"], vote_fraction: float = 0.1
) -> npt.NDArray[np.int64]:
    """The clips from best to worst: by votes (or not), then mean influence, then clip_id. [N]"""
    mean = influence.mean(1)
    first = votes(influence, vote_fraction) if by == "votes" else np.zeros(len(mean), np.int32)
    found: npt.NDArray[np.int64] = np.lexsort((np.asarray(clip_ids), -mean, -first))
    return found


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
    placed = order(influence, clip_ids, by, vote_fraction)
    mean, given = influence.mean(1)[placed], votes(influence, vote_fraction)[placed]
    rank, n = np.arange(len(placed)), len(placed)
    chosen = rank < max(1, round(fraction * n)) if above is None else mean > above
    bad = (rank >= n - round(harmful * n)) & (mean < 0) if below is None else mean < below
    bad &= ~chosen
    positive = np.maximum(mean, 0)
    weight = positive / max(float(positive.sum()), 1e-12)
    rule = f"first {int(chosen.sum())} of {n} by {by}" if above is None else f"mean influence above {above:g}"
    worst = f"last {round(harmful * n)} of {n} and negative" if below is None else f"mean influence below {below:g}"
    reasons = np.select([chosen, bad], [rule, worst], "between the cuts")
    queries = influence.shape[1]
    return pa.table(
        {
            "clip_id": pa.array([clip_ids[i] for i in placed], pa.string()),
            "votes": pa.array(given, pa.int32()),
            "mean_influence": pa.array(mean, pa.float32()),
            "rank": pa.array(rank, pa.int64()),
            "decision": pa.array(np.select([chosen, bad], ["selected", "harmful"], "neutral").tolist(), pa.string()),
            "weight": pa.array(weight, pa.float32()),
            "reason": pa.array(
                [
                    f"{reason}: rank {r}, mean influence {m:+.4f}, {v} of {queries} votes"
                    for reason, r, m, v in zip(reasons.tolist(), rank, mean, given, strict=True)
                ],
                pa.string(),
            ),
        }
    )
