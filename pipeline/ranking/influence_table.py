"""Influence of the clips of a features table, read part by part: memory holds a few parts' worth of features.

`ranking.influence` says what it is; whitening reads the features twice. A feature's row is that of its settings, one
after the other, and influence is the sum over the settings of products. What each setting gave alone is a few columns
more of the same pass: `rules.intervals` knows from their spread what other settings would change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import tables
from pipeline.ranking import Moment, Sums, own_part, products, second_moment, whitened
from pipeline.ranking.column_file import Columns
from pipeline.ranking.feature_table import FeatureTable
from pipeline.storage.parallel import in_order
from pipeline.storage.stores import join
from pipeline.tables import scanning, schemas

Array = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]  # rows done, rows in all
Scores = Callable[[Array, slice], Array]  # of clips' unit rows [n, k], and which clips they are: [n, Q + by setting]
Plain = Callable[[Array], Scores]  # of the queries' unit rows [Q, k], whitened or not
BY_SETTING = "influence_by_setting"
BUFFER_ROWS = 1 << 16  # rows of influence gathered before they go to their columns
RESIDENT = 1 << 30  # bytes of features that whitening keeps from its first pass for its second


@dataclass(frozen=True)
class BySetting:
    """Mean influence of clips on each group's queries by each of `settings` settings alone, times their number: the
    mean over the settings is the mean influence.

    `groups` are the groups' names in order, `counts` how many queries each has. Column ``s * len(groups) + g`` of
    `columns` is that of setting s and group g.
    """

    groups: tuple[str, ...]
    counts: tuple[int, ...]
    settings: int
    columns: Columns

    def scores(self, group: str, spare: float = 0.0) -> Iterator[Array]:
        """A group's score by each setting alone [N], one setting after the other: the mean influence on the group's
        queries, less `spare` times that on all others. "all" is every query."""
        chosen = np.array([group in ("all", name) for name in self.groups])
        counts = np.array(self.counts, np.float64)
        weights = np.where(chosen, counts, 0) / counts[chosen].sum()
        if spare and not chosen.all():
            weights -= spare * np.where(chosen, 0, counts) / counts[~chosen].sum()
        for setting in range(self.settings):
            total = np.zeros(self.columns.rows)
            for place, weight in enumerate(weights.tolist()):
                if weight:
                    total += weight * self.columns[setting * len(self.groups) + place]
            yield total.astype(np.float32)


# --- reading features once --------------------------------------------------------------------------------------------


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
    columns, _ = _columns(clips, queries, _plain, whiten, progress, weights)
    return columns


def influence_by_setting(
    clips: FeatureTable,
    queries: Array,
    groups: Sequence[str],
    whiten: float | None,
    progress: Progress | None = None,
    weights: Sums | None = None,
) -> tuple[Columns, BySetting | None]:
    """The same, and by each setting alone on the queries of each group; None where there is one setting. `groups` has
    the name of every query's."""
    settings = len(clips.members)
    if settings < 2:
        return influence_columns(clips, queries, whiten, progress, weights), None

    def plain(rows: Array) -> Scores:
        means = group_means(rows, groups, settings)
        return lambda phi, _: np.concatenate([products(phi, rows), products(phi, means)], 1)

    counts = group_counts(groups)
    columns, others = _columns(clips, queries, plain, whiten, progress, weights, settings * len(counts))
    return columns, BySetting(tuple(counts), tuple(counts.values()), settings, others)


def _columns(
    clips: FeatureTable,
    queries: Array,
    plain: Plain,
    whiten: float | None,
    progress: Progress | None,
    weights: Sums | None,
    more: int = 0,
) -> tuple[Columns, Columns]:
    """The first columns of the scores, one a query, and the `more` columns after them."""
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
    resident, scores = list[Array](), plain(queries)
    if whiten is not None:
        moment = Moment(queries.shape[1])
        for phi, part_moment in first.map_rows(lambda phi, rows: (phi, moment_of(phi, rows))):
            resident.append(phi)
            moment.add(part_moment)
            tell(len(phi))
        for many, part_moment in rest.map_rows(lambda phi, rows: (len(phi), moment_of(phi, rows))):
            moment.add(part_moment)
            tell(many)
        scores = _whitened(queries, plain, moment.total, count, whiten, weights)
    columns, others, buffer = Columns(count, len(queries)), Columns(count, more), list[Array]()

    def add(values: Array) -> None:
        columns.add(values[:, : len(queries)])
        others.add(values[:, len(queries) :])

    ends = np.cumsum([len(phi) for phi in resident]).tolist()
    places = (slice(end - len(phi), end) for phi, end in zip(resident, ends, strict=True))
    for values in in_order(lambda pair: scores(*pair), zip(resident, places, strict=True)):
        add(values)
    resident.clear()
    for values in rest.map_rows(scores):
        buffer.append(values)
        if sum(map(len, buffer)) >= BUFFER_ROWS:
            add(np.concatenate(buffer))
            buffer = []
        tell(len(values))
    if buffer:
        add(np.concatenate(buffer))
    return columns, others


def _plain(queries: Array) -> Scores:
    return lambda phi, _: products(phi, queries)


def _whitened(queries: Array, plain: Plain, moment: Sums, count: int, whiten: float, weights: Sums | None) -> Scores:
    """Scores of clips [n, k] on queries [Q, k] that a second moment whitens."""
    if weights is None:
        return plain(whitened(queries, moment, count, whiten))
    total = float(weights.sum())
    inverse = np.linalg.inv(moment / total + whiten * np.eye(len(moment))).astype(np.float32)
    fair = plain(whitened(queries, moment, total, whiten))

    def scores(phi: Array, rows: slice) -> Array:
        values, others = fair(phi, rows), np.flatnonzero(weights[rows] != 1)
        values[others] /= own_part(phi[others], weights[rows][others], inverse, total)[:, None]
        return values

    return scores


# --- by setting -------------------------------------------------------------------------------------------------------


def group_counts(groups: Sequence[str]) -> dict[str, int]:
    """How many queries each group has, by the groups' names in order. `groups` has the name of every query's."""
    return {name: list(groups).count(name) for name in sorted(set(groups))}


def group_means(queries: Array, groups: Sequence[str], settings: int) -> Array:
    """Rows whose products with a clip's are the columns of `BySetting`: [Q, settings * k] -> [settings * groups,
    settings * k]. Each is the mean row of a group's queries at one setting, times the number of settings, and zero at
    the others. Of queries that are whitened, it is the mean of the whitened."""
    names = np.array(groups)
    means = np.stack([queries[names == name].mean(0, dtype=np.float64) for name in sorted(set(groups))])
    apart = np.kron(np.eye(settings), np.ones(means.shape[1] // settings))
    rows: Array = (settings * apart[:, None] * means).reshape(-1, means.shape[1]).astype(np.float32)
    return rows


def by_setting_tables(by_setting: BySetting, clip_ids: pa.LargeStringArray) -> Iterator[pa.Table]:
    """Rows of influence_by_setting/, BUFFER_ROWS at a time."""
    columns = by_setting.columns
    schema = schemas.influence_schema(len(columns))
    for start in range(0, len(clip_ids), BUFFER_ROWS):
        stop = min(start + BUFFER_ROWS, len(clip_ids))
        values = np.stack([columns.read(column, start, stop) for column in range(len(columns))], 1)
        yield pa.table([clip_ids[start:stop].cast(pa.string()), tables.vectors(values)], schema=schema)


def is_written(root: str) -> bool:
    """Whether a root has the table. One that an earlier version ranked has none."""
    return bool(tables.parts(join(root, BY_SETTING)))


def recorded_by_setting(
    root: str, clip_ids: pa.LargeStringArray, groups: Sequence[str], settings: int
) -> BySetting | None:
    """What the table holds of these clips, in this order; None where it is of other clips, settings or groups of the
    queries, or belongs to another influence/ than that of the root."""
    folder = join(root, BY_SETTING)
    own, influence = tables.metadata(folder), tables.metadata(join(root, "influence"))
    alike = all(own.get(name) == influence.get(name) for name in ("fingerprint", "features", "query_ids"))
    if not alike or (own.get("groups"), own.get("settings")) != (list(groups), settings):
        return None
    counts = group_counts(groups)
    columns, start = Columns(len(clip_ids), settings * len(counts)), 0
    for rows in scanning.blocks(folder, ["clip_id", "influence"]):
        ids = rows.column("clip_id").cast(pa.large_string()).combine_chunks()
        if not ids.equals(clip_ids[start : start + len(ids)]):
            return None
        columns.add(tables.matrix(rows, "influence"))
        start += len(ids)
    return BySetting(tuple(counts), tuple(counts.values()), settings, columns) if start == len(clip_ids) else None
