"""From the features tables of a run to its ranking: influence, neighbours and a decision on every clip.

Everything is streamed: memory holds the clips' ids and a few numbers for each, however many queries there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schemas, tables
from pipeline.columns import Columns
from pipeline.config import ConfigError, Ranking, Run
from pipeline.feature_table import FeatureTable, under_mask
from pipeline.parallel import in_order
from pipeline.ranking import CHUNK, decisions, placed, second_moment, share, whitened
from pipeline.stores import join

Array = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int32]
Progress = Callable[[int, int], None]  # rows done, rows in all
HELD = 1 << 16  # rows of influence gathered before they go to their columns

# --- influence --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranked:
    """Influence of clips on queries, with their ids and the queries' groups."""

    clip_ids: pa.LargeStringArray
    query_ids: list[str]
    groups: list[str]
    influence: Columns

    def of(self, group: str) -> list[int]:
        """One group's queries; "all" is every query."""
        return [i for i, g in enumerate(self.groups) if group in ("all", g)]

    @property
    def all_groups(self) -> list[str]:
        return ["all", *sorted(set(self.groups) - {"all"})]

    def cutoffs(self, fraction: float) -> Array:
        """What influence a query votes from: exactly that of its max(1, round(fraction * N))-th clip. [Q]"""
        last = len(self.clip_ids) - share(fraction, len(self.clip_ids))
        return np.array(list(in_order(lambda q: np.partition(self.influence[q], last)[last], range(len(self.groups)))))

    def score(self, group: str, cutoffs: Array) -> tuple[Array, Counts]:
        """Mean influence on a group's queries, and how many of them vote for each clip: [N], [N]."""
        total, votes = np.zeros(len(self.clip_ids)), np.zeros(len(self.clip_ids), np.int32)
        queries = self.of(group)
        for query in queries:
            column = self.influence[query]
            total += column
            votes += column >= cutoffs[query]
        return (total / len(queries)).astype(np.float32), votes

    def order(self, group: str, by: Literal["mean", "votes"], vote_fraction: float) -> pa.LargeStringArray:
        """The clips' ids from best to worst for a group."""
        mean, votes = self.score(group, self.cutoffs(vote_fraction))
        return self.clip_ids.take(pa.array(placed(mean, votes if by == "votes" else None, self.clip_ids)))


def rank(run: Run, mask: str, whiten: float | None, progress: Progress | None = None) -> Ranked:
    """Influence of every clip with features under `mask` on every such query. Whitening reads the features twice.

    Raises ConfigError where there are none.
    """
    clips, queries = under_mask(run.root, "clips", mask), under_mask(run.root, "queries", mask)
    if not len(queries.clip_ids):
        raise ConfigError(
            f"queries: no query has a feature under mask {mask!r} (a query without motion has none); "
            "give queries that move, or lower motion.still."
        )
    if not len(clips.clip_ids):
        raise ConfigError(f"data.videos: no clip has a feature under mask {mask!r}, so there is nothing to rank.")
    table = tables.read(join(run.root, "queries"), ["clip_id", "group"])
    named = dict(zip(*(table.column(c).to_pylist() for c in ("clip_id", "group")), strict=True)) if table else {}
    query_ids = queries.clip_ids.to_pylist()
    by_id = sorted(range(len(query_ids)), key=query_ids.__getitem__)
    rows = np.concatenate(list(queries.map(lambda phi: phi)))[by_id]
    query_ids = [query_ids[i] for i in by_id]
    groups = [named.get(i) or "all" for i in query_ids]
    return Ranked(clips.clip_ids, query_ids, groups, influence_columns(clips, rows, whiten, progress))


def influence_columns(
    clips: FeatureTable, queries: Array, whiten: float | None, progress: Progress | None = None
) -> Columns:
    """`ranking.influence` of a table's clips on the queries' unit rows [Q, k], clip by clip in the table's order."""
    count, done = len(clips.clip_ids), 0
    passes = 1 if whiten is None else 2

    def tell(rows: int) -> None:
        nonlocal done
        done += rows
        if progress:
            progress(done, passes * count)

    tell(0)
    if whiten is not None:
        moment = np.zeros((queries.shape[1], queries.shape[1]))
        for rows, found in clips.map(lambda phi: (len(phi), second_moment(phi))):
            moment += found
            tell(rows)
        queries = whitened(queries, moment, count, whiten)
    columns, held = Columns(count, len(queries)), list[Array]()
    for values in clips.map(lambda phi: phi @ queries.T):
        held.append(values)
        if sum(map(len, held)) >= HELD:
            columns.add(np.concatenate(held))
            held = []
        tell(len(values))
    if held:
        columns.add(np.concatenate(held))
    return columns


# --- tables -----------------------------------------------------------------------------------------------------------


def influence_tables(ranked: Ranked) -> Iterator[pa.Table]:
    """Rows of influence/, HELD at a time."""
    schema, queries = schemas.influence_schema(len(ranked.query_ids)), range(len(ranked.query_ids))
    for start in range(0, len(ranked.clip_ids), HELD):
        stop = min(start + HELD, len(ranked.clip_ids))
        values = np.stack([ranked.influence.read(q, start, stop) for q in queries], 1)
        ids = ranked.clip_ids[start:stop].cast(pa.string())
        yield pa.table([ids, tables.vectors(values)], schema=schema)


def neighbors_table(ranked: Ranked, count: int) -> pa.Table:
    """Each query's nearest and farthest clips: rank 0 is the most positive, or the most negative."""

    def of_query(query: int) -> list[dict[str, object]]:
        column = ranked.influence[query]
        return [
            {
                "query_id": ranked.query_ids[query],
                "clip_id": ranked.clip_ids[n].as_py(),
                "rank": place,
                "influence": float(column[n]),
                "sign": sign,
            }
            for sign, ends in zip(("positive", "negative"), _ends(column, ranked.clip_ids, count), strict=True)
            for place, n in enumerate(ends.tolist())
        ]

    rows = [row for found in in_order(of_query, range(len(ranked.query_ids))) for row in found]
    return pa.Table.from_pylist(rows, schema=schemas.NEIGHBORS)


def _ends(column: Array, clip_ids: pa.LargeStringArray, count: int) -> tuple[npt.NDArray[np.int64], ...]:
    """The first and the last `count` rows of the order by influence, then clip_id; the last ones from the end."""
    count = min(count, len(column))
    marks = np.partition(column, (count - 1, len(column) - count))
    high = np.flatnonzero(column >= marks[len(column) - count])
    low = np.flatnonzero(column <= marks[count - 1])
    first, last = (rows[placed(column[rows], None, clip_ids.take(pa.array(rows)))] for rows in (high, low))
    return first[:count], last[::-1][:count]


def selection_tables(ranked: Ranked, rule: Ranking, others: pa.Table) -> Iterator[pa.Table]:
    """A decision on every clip for every group of queries, CHUNK rows at a time; the `others`, clip_id and why, are not
    ranked."""
    cutoffs = ranked.cutoffs(rule.vote_fraction)
    for group in ranked.all_groups:
        mean, votes = ranked.score(group, cutoffs)
        for table in decisions(mean, votes, ranked.clip_ids, len(ranked.of(group)), rule):
            yield _with_group(table, group)
        for start in range(0, others.num_rows, CHUNK):
            yield _not_ranked(others.slice(start, CHUNK), group)


def _with_group(table: pa.Table, group: str) -> pa.Table:
    table = table.append_column("group", pa.repeat(pa.scalar(group, pa.string()), table.num_rows))
    return table.select(schemas.SELECTION.names).cast(schemas.SELECTION)


def _not_ranked(others: pa.Table, group: str) -> pa.Table:
    columns = {
        "clip_id": others.column("clip_id"),
        "votes": pa.repeat(pa.scalar(0, pa.int32()), others.num_rows),
        "mean_influence": pa.nulls(others.num_rows, pa.float32()),
        "rank": pa.nulls(others.num_rows, pa.int64()),
        "decision": pa.repeat(pa.scalar("neutral"), others.num_rows),
        "weight": pa.repeat(pa.scalar(0.0, pa.float32()), others.num_rows),
        "reason": pc.binary_join_element_wise("not ranked: ", others.column("error"), ""),
    }
    return _with_group(pa.table(columns), group)


def unranked(root: str, ranked: Ranked) -> pa.Table:
    """Every clip of the run without a place in the ranking, and why: columns clip_id, error; by clip_id."""
    schema = pa.schema([("clip_id", pa.string()), ("error", pa.string())])
    found = [schema.empty_table()]
    for name in ("clips", "motion/clips", "features/clips"):
        table = tables.read(join(root, name), schema.names)
        if table is not None:
            ids = table.column("clip_id").cast(pa.large_string())
            found.append(table.filter(pc.invert(pc.is_in(ids, ranked.clip_ids))).cast(schema))
    # In one thread rows keep their order, so that the last error is that of the latest stage.
    why = pa.concat_tables(found).group_by("clip_id", use_threads=False).aggregate([("error", "last")])
    reasons = pc.fill_null(why.column("error_last"), "it has no feature under the ranking's mask")
    return pa.table([why.column("clip_id"), reasons], schema=schema).sort_by("clip_id")
