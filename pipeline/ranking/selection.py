"""From the features tables of a run to its ranking: influence, neighbours and a decision on every clip.

Everything is streamed: memory holds the clips' ids and a few numbers for each, however many queries there are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.config import Ranking, Run
from pipeline.errors import ConfigError, NothingUsableError
from pipeline.ranking import (
    CHUNK,
    Counts,
    Population,
    Rows,
    Sums,
    partitions,
    placed,
    selection_blocks,
    share,
    shortlist,
    unit_settings,
)
from pipeline.ranking.column_file import Columns
from pipeline.ranking.feature_table import FeatureTable, under_mask
from pipeline.ranking.influence_table import (
    BUFFER_ROWS,
    BySetting,
    Progress,
    influence_by_setting,
    is_written,
    recorded_by_setting,
)
from pipeline.ranking.rules.choice import Rules
from pipeline.ranking.rules.intervals import half_width_of_parts, squared_error
from pipeline.storage.parallel import in_order
from pipeline.storage.stores import join, place
from pipeline.tables import IdSet, figures, scanning, schemas

Array = npt.NDArray[np.float32]

NOT_ATTRIBUTED = "it has no row in features/; run extract_features, or curate"

# --- influence --------------------------------------------------------------------------------------------------------


class Marks(NamedTuple):
    """Every query's influence at the last clip it votes for, its last neighbor and its last opposite: [Q] each."""

    votes_from: Array
    nearest_from: Array
    farthest_to: Array


@dataclass(frozen=True)
class Ranked:
    """Influence of clips on queries, with their ids and the queries' groups."""

    clip_ids: pa.LargeStringArray
    query_ids: list[str]
    groups: list[str]
    influence: Columns
    shortlisted: Population | None = None  # the clips that these stand for, where they are a shortlist
    by_setting: BySetting | None = None  # of two settings or more; none where an earlier version wrote influence/

    @property
    def population(self) -> Population:
        return self.shortlisted or Population(len(self.clip_ids))

    def of(self, group: str) -> list[int]:
        """One group's queries; "all" is every query."""
        return [i for i, g in enumerate(self.groups) if group in ("all", g)]

    def not_of(self, group: str) -> list[int]:
        """The queries of all other groups; of "all" there are none."""
        return [i for i, g in enumerate(self.groups) if group not in ("all", g)]

    @property
    def all_groups(self) -> list[str]:
        return ["all", *sorted(set(self.groups) - {"all"})]

    def marks(self, vote_fraction: float, neighbors: int = 1) -> Marks:
        """The exact influence at three places of every query's order. Its votes are a share of all clips, given to
        those here: to the best of a shortlist, where they are one."""
        count = len(self.clip_ids)
        ends, voted = min(neighbors, count), min(share(vote_fraction, self.population.count), count)
        places = [count - voted, count - ends, ends - 1]

        def of_query(query: int) -> Array:
            return np.partition(self.influence[query], sorted(set(places)))[places]

        return Marks(*np.array(list(in_order(of_query, range(len(self.query_ids))))).T)

    def score(self, group: str, marks: Marks, spare: float = 0.0) -> tuple[Array, Counts]:
        """Mean influence on a group's queries, less `spare` times that on all others, and how many of the group's vote
        for each clip: [N], [N]."""
        total, votes = np.zeros(len(self.clip_ids)), np.zeros(len(self.clip_ids), np.int32)
        queries = self.of(group)
        for query in queries:
            column = self.influence[query]
            total += column
            votes += column >= marks.votes_from[query]
        mean = total / len(queries)
        others = self.not_of(group)
        if spare and others:
            mean -= spare * sum(self.influence[query].astype(np.float64) for query in others) / len(others)
        return mean.astype(np.float32), votes

    def half_widths(self, group: str, confidence: float | None, spare: float = 0.0) -> Array | None:
        """How far each clip's mean influence on a group's queries may be off, for another draw of them and of the
        settings: half of an interval of this confidence [N]; None without one, and for a single query."""
        queries = self.of(group)
        others = self.not_of(group)
        error = None if confidence is None else squared_error(self.influence[query] for query in queries)
        if confidence is None or error is None:
            return None
        of_others = squared_error(self.influence[query] for query in others) if spare else None
        if of_others is not None:  # of one other query nothing is known, and it has no part
            error = error[0] + spare**2 * of_others[0], error[1]
        of_settings = squared_error(self.by_setting.scores(group, spare)) if self.by_setting else None
        return half_width_of_parts([error] if of_settings is None else [error, of_settings], confidence)

    def weighted_mean(self, group: str, weights: Sums) -> Array:
        """The sum of weight times influence over a group's queries, over the sum of the weights' sizes: [N]."""
        total = np.zeros(len(self.clip_ids))
        for query, weight in zip(self.of(group), weights.tolist(), strict=True):
            if weight:
                total += weight * self.influence[query]
        mean: Array = (total / np.abs(weights).sum()).astype(np.float32)
        return mean

    def weighted_order(self, group: str, weights: Sums) -> pa.LargeStringArray:
        """The clips' ids from best to worst by `weighted_mean`."""
        return self.clip_ids.take(pa.array(placed(self.weighted_mean(group, weights), None, self.clip_ids)))

    def order(
        self, group: str, by: Literal["mean", "votes"], vote_fraction: float, spare: float = 0.0
    ) -> pa.LargeStringArray:
        """The clips' ids from best to worst for a group."""
        mean, votes = self.score(group, self.marks(vote_fraction), spare)
        return self.clip_ids.take(pa.array(placed(mean, votes if by == "votes" else None, self.clip_ids)))


def rank(
    run: Run, mask: str, whiten: float | None, progress: Progress | None = None, index: str | None = None
) -> Ranked:
    """Influence of every clip with features under `mask` on every such query. Whitening reads the features twice.

    The clips are those of all of `run.clip_roots`. `index` is the root whose queries/ tells their groups, by default
    that of the queries. Raises NothingUsableError where there are no features.
    """
    home = partitions.query_root(run)
    clips, queries = under_mask(run.clip_roots, "clips", mask), under_mask(home, "queries", mask)
    if not len(queries.clip_ids):
        raise NothingUsableError(
            f"queries: no query has a feature under mask {mask!r} (a query without motion has none); "
            "give queries that move, or lower motion.still."
        )
    if not len(clips.clip_ids):
        raise NothingUsableError(
            f"data.videos: no clip has a feature under mask {mask!r}, so there is nothing to rank."
        )
    query_ids, groups, rows = query_rows(run, index or home, queries)
    population = shortlist.population(run, clips.clip_ids)
    weights = None if population is None else population.weights
    columns, by_setting = influence_by_setting(clips, rows, groups, whiten, progress, weights)
    return Ranked(clips.clip_ids, query_ids, groups, columns, population, by_setting)


def recorded(run: Run, mask: str, whiten: float | None) -> Ranked | None:
    """The same as `rank`, read from influence/ without a look at any feature; None where that is of other features,
    clips, queries, mask or whitening, or influence_by_setting/ is. Where the latter is absent, so is `by_setting`."""
    folder = join(run.root, "influence")
    written = tables.metadata(folder)
    fingerprint = written.get("fingerprint", {})
    rule = fingerprint.get("ranking", {})
    if (rule.get("mask"), rule.get("whiten")) != (mask, whiten):
        return None
    home = partitions.query_root(run)
    clips, queries = under_mask(run.clip_roots, "clips", mask), under_mask(home, "queries", mask)
    query_ids, groups, _ = query_rows(run, home, queries)
    if written["query_ids"] != query_ids:
        return None
    features = tables.metadata(join(run.clip_roots[0], "features", "clips"))["fingerprint"]
    if any(_of_clips(fingerprint.get(field)) != _of_clips(value) for field, value in features.items()):
        return None
    columns, ids = Columns(len(clips.clip_ids), len(query_ids)), []
    for rows in scanning.blocks(folder, ["clip_id", "influence"]):
        ids.append(rows.column("clip_id").cast(pa.large_string()))
        columns.add(tables.matrix(rows, "influence"))
    if not pa.chunked_array([c for column in ids for c in column.chunks], pa.large_string()).equals(
        pa.chunked_array([clips.clip_ids])
    ):
        return None
    by_setting, settings = None, len(clips.members)
    if settings > 1 and is_written(run.root):
        by_setting = recorded_by_setting(run.root, clips.clip_ids, groups, settings)
        if by_setting is None:
            return None
    return Ranked(clips.clip_ids, query_ids, groups, columns, shortlist.population(run, clips.clip_ids), by_setting)


def features_state(run: Run) -> str:
    """A hash of the files of features that a ranking is of, and of what else its influence depends on. It changes with
    every feature that is computed anew, or merged into another part."""
    folders = partitions.folders(run, "features/clips")
    folders.append(join(partitions.query_root(run), "features", "queries"))
    if run.attribution.shortlist is not None:
        folders.append(shortlist.folder(run))
    parts: list[Any] = [list(run.queries.unwanted)]
    for folder in folders:
        fs, _ = place(folder)
        for path in tables.parts(folder):
            about = fs.info(path)
            parts.append({key: str(about[key]) for key in ("name", "size", "mtime", "ETag") if key in about})
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()


def _of_clips(value: Any) -> Any:
    """A field of a fingerprint; of a ranking's settings those of clips, as the table of their features has them."""
    if not isinstance(value, list):
        return value
    settings = [one for one in value if not isinstance(one, dict) or one.get("of", "clips") == "clips"]
    return [{k: v for k, v in one.items() if k != "of"} if isinstance(one, dict) else one for one in settings]


def query_rows(run: Run, root: str, queries: FeatureTable) -> tuple[list[str], list[str], Array]:
    """The queries' ids, groups and unit rows [Q, k], by id; the groups are those of the root's queries/.

    Of the rows of `queries.unwanted` the mean direction is taken away from each of the others; they are none of the
    ranking's queries themselves. Raises ConfigError for a group that no query has, or where all are unwanted.
    """
    named, rows = figures.query_groups(root), queries.rows()
    ids = sorted(rows)
    groups = [named.get(i, "all") for i in ids]
    unit, unwanted = np.stack([rows[i] for i in ids]), np.isin(groups, run.queries.unwanted)
    missing = sorted(set(run.queries.unwanted) - set(groups))
    if missing or unwanted.all():
        raise ConfigError(
            f"queries.unwanted={list(run.queries.unwanted)}: "
            + (f"no query with a feature is of group {missing[0]!r}" if missing else "that is every query")
            + f"; the groups are {', '.join(sorted(set(groups)))}. Name some of them, and leave one at least."
        )
    if unwanted.any():
        away = unit[unwanted].mean(0)
        unit = unit[~unwanted] - away / np.linalg.norm(away)
        unit = unit_settings(unit, len(queries.members))
    places = np.flatnonzero(~unwanted).tolist()
    return [ids[n] for n in places], [groups[n] for n in places], unit


# --- tables -----------------------------------------------------------------------------------------------------------


def influence_tables(ranked: Ranked) -> Iterator[pa.Table]:
    """Rows of influence/, BUFFER_ROWS at a time."""
    schema, queries = schemas.influence_schema(len(ranked.query_ids)), range(len(ranked.query_ids))
    for start in range(0, len(ranked.clip_ids), BUFFER_ROWS):
        stop = min(start + BUFFER_ROWS, len(ranked.clip_ids))
        values = np.stack([ranked.influence.read(q, start, stop) for q in queries], 1)
        ids = ranked.clip_ids[start:stop].cast(pa.string())
        yield pa.table([ids, tables.vectors(values)], schema=schema)


def neighbors_table(ranked: Ranked, count: int, marks: Marks) -> pa.Table:
    """Each query's nearest and farthest clips: rank 0 is the most positive, or the most negative. `marks` are those for
    this count."""

    def of_query(query: int) -> list[dict[str, object]]:
        column = ranked.influence[query]
        high = _placed(column, np.flatnonzero(column >= marks.nearest_from[query]), ranked.clip_ids)
        low = _placed(column, np.flatnonzero(column <= marks.farthest_to[query]), ranked.clip_ids)[::-1]
        return [
            {
                "query_id": ranked.query_ids[query],
                "clip_id": ranked.clip_ids[n].as_py(),
                "rank": place,
                "influence": float(column[n]),
                "sign": sign,
            }
            for sign, ends in (("positive", high), ("negative", low))
            for place, n in enumerate(ends[:count].tolist())
        ]

    rows = [row for records in in_order(of_query, range(len(ranked.query_ids))) for row in records]
    return pa.Table.from_pylist(rows, schema=schemas.NEIGHBORS)


def _placed(column: Array, rows: Rows, clip_ids: pa.LargeStringArray) -> Rows:
    """Some rows, ordered by influence, then clip_id."""
    return rows[placed(column[rows], None, clip_ids.take(pa.array(rows)))]


def selection_tables(
    ranked: Ranked,
    rule: Ranking,
    marks: Marks,
    others: pa.Table,
    unlawful: pa.Table | None = None,
    rules: Rules | None = None,
) -> Iterator[pa.Table]:
    """A decision on every clip for every group of queries, CHUNK rows at a time; the `others`, clip_id and why, are not
    ranked. `unlawful` has columns clip_id and reason, the least lawful first; `rules` bar near-duplicates and more."""
    for group in ranked.all_groups:
        mean, votes = ranked.score(group, marks, rule.spare)
        queries = len(ranked.of(group))
        half = ranked.half_widths(group, rule.interval, rule.spare) if rule.by == "mean" or rule.above else None
        for table in selection_blocks(
            mean, votes, ranked.clip_ids, queries, rule, ranked.shortlisted, unlawful, rules, half
        ):
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
        "rule": pa.repeat(pa.scalar("not ranked"), others.num_rows),
        "choice": pa.nulls(others.num_rows, pa.int64()),
        "duplicate_of": pa.nulls(others.num_rows, pa.string()),
        "rank_low": pa.nulls(others.num_rows, pa.int64()),
        "rank_high": pa.nulls(others.num_rows, pa.int64()),
    }
    return _with_group(pa.table(columns), group)


def unranked(run: Run, ranked: Ranked) -> pa.Table:
    """Every clip of the run without a place in the ranking, and why: columns clip_id, error; by clip_id. A clip without
    an error, and without a row in features/, is NOT_ATTRIBUTED."""
    schema = pa.schema([("clip_id", pa.string()), ("error", pa.string())])
    pieces = [schema.empty_table()]
    roots = run.clip_roots if run.attribution.shortlist is None else (shortlist.home(run.root), run.root)
    stages: list[tuple[str, tuple[str, ...]]] = [(root, ("clips",)) for root in run.clip_roots]
    stages += [(root, (stage, "clips")) for root in roots for stage in ("motion", "features")]
    featured = list[pa.ChunkedArray]()
    for root, names in stages:
        table = tables.read(join(root, *names), schema.names)
        if table is not None:
            if names[0] == "features":
                featured.append(table.column("clip_id"))
            ids = table.column("clip_id").cast(pa.large_string())
            pieces.append(table.filter(pc.invert(pc.is_in(ids, ranked.clip_ids))).cast(schema))
    # In one thread rows keep their order, so that the last error is that of the latest stage.
    why = pa.concat_tables(pieces).group_by("clip_id", use_threads=False).aggregate([("error", "last")])
    ids, reasons = why.column("clip_id"), why.column("error_last")
    if run.attribution.shortlist is not None:
        reasons = pc.coalesce(reasons, shortlist.left_out(run, ids))
    lacking = pa.array(~IdSet.of(featured).has(ids))
    reasons = pc.coalesce(reasons, pc.if_else(lacking, NOT_ATTRIBUTED, "it has no feature under the ranking's mask"))
    return pa.table([ids, reasons], schema=schema).sort_by("clip_id")
