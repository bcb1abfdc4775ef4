"""Influence of the clips of a features table, read part by part: memory holds a few parts' worth of features.

`ranking.influence` says what it is; whitening reads the features twice.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pipeline.ranking import Moment, Sums, own_part, products, second_moment, whitened
from pipeline.ranking.column_file import Columns
from pipeline.ranking.feature_table import FeatureTable
from pipeline.storage.parallel import in_order

Array = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]  # rows done, rows in all
Scores = Callable[[Array, slice], Array]  # of clips' unit rows [n, k], and which clips they are: [n, Q]
HELD = 1 << 16  # rows of influence gathered before they go to their columns
RESIDENT = 1 << 30  # bytes of features that whitening keeps from its first pass for its second


def influence_columns(
    clips: FeatureTable,
    queries: Array,
    whiten: float | None,
    progress: Progress | None = None,
    weights: Sums | None = None,
) -> Columns:
    """`ranking.influence` of a table's clips on the queries' unit rows [Q, k], clip by clip in the table's order.

    Whitening counts each clip's row `weights` times, where they are given; but for the clip's own score, once.
    """
    count, done = len(clips.clip_ids), 0
    first, rest = clips.split(0 if whiten is None else RESIDENT // queries[0].nbytes)
    reads = count if whiten is None else count + len(rest.clip_ids)

    def tell(rows: int) -> None:
        nonlocal done
        done += rows
        if progress:
            progress(done, reads)

    def moment_of(phi: Array, rows: slice) -> Sums:
        return second_moment(phi if weights is None else phi * np.sqrt(weights[rows], dtype=np.float32)[:, None])

    tell(0)
    resident, scores = list[Array](), _plain(queries)
    if whiten is not None:
        moment = Moment(queries.shape[1])
        for phi, part_moment in first.map_rows(lambda phi, rows: (phi, moment_of(phi, rows))):
            resident.append(phi)
            moment.add(part_moment)
            tell(len(phi))
        for many, part_moment in rest.map_rows(lambda phi, rows: (len(phi), moment_of(phi, rows))):
            moment.add(part_moment)
            tell(many)
        scores = _whitened(queries, moment.total, count, whiten, weights)
    columns, buffer = Columns(count, len(queries)), list[Array]()
    ends = np.cumsum([len(phi) for phi in resident]).tolist()
    places = (slice(end - len(phi), end) for phi, end in zip(resident, ends, strict=True))
    for values in in_order(lambda pair: scores(*pair), zip(resident, places, strict=True)):
        columns.add(values)
    resident.clear()
    for values in rest.map_rows(scores):
        buffer.append(values)
        if sum(map(len, buffer)) >= HELD:
            columns.add(np.concatenate(buffer))
            buffer = []
        tell(len(values))
    if buffer:
        columns.add(np.concatenate(buffer))
    return columns


def _plain(queries: Array) -> Scores:
    return lambda phi, _: products(phi, queries)


def _whitened(queries: Array, moment: Sums, count: int, whiten: float, weights: Sums | None) -> Scores:
    """Scores of clips [n, k] on queries [Q, k] that a second moment whitens."""
    if weights is None:
        return _plain(whitened(queries, moment, count, whiten))
    total = float(weights.sum())
    inverse = np.linalg.inv(moment / total + whiten * np.eye(len(moment))).astype(np.float32)
    fair = _plain(whitened(queries, moment, total, whiten))

    def scores(phi: Array, rows: slice) -> Array:
        values, others = fair(phi, rows), np.flatnonzero(weights[rows] != 1)
        values[others] /= own_part(phi[others], weights[rows][others], inverse, total)[:, None]
        return values

    return scores
