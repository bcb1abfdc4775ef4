"""How sure a clip's place in the ranking is: between which ranks it would lie with other queries of the same kind, and
with other settings of attribution, each a timestep and a noise.

A clip's mean influence is a mean over queries. What another draw of queries would change is the jackknife's standard
error of that mean (Efron and Stein 1981: of a mean, the spread over sqrt(queries)), after each query's own mean over
all clips is taken away: a query that likes every clip moves no rank. The interval is Student's. Its ends become ranks
among the scores of all clips as they are, for the scores between which a clip would lie are those of many others.

It is a mean over settings as well, where there are two or more. Queries and settings are crossed random effects: every
query is seen under every setting. The squared error of the mean has a part from each, and the two are added. Each part
holds the interaction of the two, which so counts twice: intervals are wider by it, never narrower. (Cameron, Gelbach
and Miller 2011 take it away once, by the influence of each query under each setting, which is not kept here.) Settings
are taken for draws though a recipe chooses the timesteps: what these are chosen to differ in counts as error.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

Array = npt.NDArray[np.float32]
Sums = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


def squared_error(columns: Iterable[Array]) -> tuple[Sums, int] | None:
    """The squared standard error of the mean [N] of several queries' influence, [N] each, and their number; None of
    fewer than two. Each query is centred on its mean over the clips. The same of several settings' scores."""
    total: Sums | None = None
    squares, count = np.zeros(0), 0
    for column in columns:
        centred = column - column.mean(dtype=np.float64)
        if total is None:
            total, squares = np.zeros(len(column)), np.zeros(len(column))
        total += centred
        squares += centred * centred
        count += 1
    if total is None or count < 2:
        return None
    error: Sums = np.maximum(squares - total * total / count, 0) / (count * (count - 1))
    return error, count


def half_width(error: Sums, count: int, confidence: float) -> Array:
    """Half of Student's interval [N], of a squared standard error from `count` queries."""
    half: Array = (np.sqrt(error) * stdtrit(count - 1, 0.5 + confidence / 2)).astype(np.float32)
    return half


def half_width_of_parts(parts: Sequence[tuple[Sums, int]], confidence: float) -> Array:
    """The same [N] of a squared standard error that is the sum of parts, each with its count of draws.

    Student's degrees of freedom are each clip's own, ``(sum v)^2 / sum(v^2 / (count - 1))`` over the parts v
    (Satterthwaite 1946; Welch 1947). A single part is that of `half_width`.
    """
    if len(parts) == 1:
        return half_width(*parts[0], confidence)
    total = np.sum([error for error, _ in parts], 0)
    squares = np.sum([error**2 / (count - 1) for error, count in parts], 0)
    degrees = np.divide(total**2, squares, out=np.ones_like(total), where=squares > 0)
    half: Array = (np.sqrt(total) * stdtrit(degrees, 0.5 + confidence / 2)).astype(np.float32)
    return half


def half_width_of_votes(votes: npt.NDArray[np.int32], queries: int, confidence: float) -> Array | None:
    """The same of the number of votes, each query's being yes or no; None for fewer than two queries."""
    if queries < 2:
        return None
    share = votes / queries
    return half_width(queries**2 * share * (1 - share) / (queries - 1), queries, confidence)


def rank_intervals(ascending: npt.NDArray[np.number], scores: npt.NDArray[np.number], half: Array) -> tuple[Rows, Rows]:
    """The first and the last rank, from 0, of clips whose scores may be off by up to `half` [n]; `ascending` has the
    scores of all ranked clips."""
    count = len(ascending)
    low = count - np.searchsorted(ascending, scores + half, side="right")
    high = count - np.searchsorted(ascending, scores - half, side="left") - 1
    return low.astype(np.int64), high.astype(np.int64)
