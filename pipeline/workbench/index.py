"""A run's clips as columns in memory: what views filter and sort by, about 160 bytes a clip, and 15 for each group.

Influence on single queries, which is large, lies in an unnamed temporary file (TMPDIR), a column a query.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.config import Run
from pipeline.errors import MissingTableError
from pipeline.ranking import lawfulness
from pipeline.ranking.column_file import Columns
from pipeline.storage.stores import join, place
from pipeline.tables import scanning, schemas

Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.int32]
Codes = npt.NDArray[np.int8]
Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

DECISIONS = ("selected", "neutral", "harmful", "not ranked")
MOST_VALUES = 50  # of a manifest's column that can be a filter; a code of them is one byte
STEP = 1 << 18  # clips that are counted at a time: what is copied of them stays in the processor's cache
BINS = 60  # of the histogram of influence
ROWS = 1 << 20  # rows of a table that are looked up at a time, or more
LOOKED_UP = 1 << 28  # bytes of influence that are looked up at a time
FEW = 500  # ids that are looked up one by one
NOT_RANKED = np.iinfo(np.int32).max
LAW_OR_FLAW, NEITHER = "law or flaw", "neither"  # the facet of lawfulness/, and its value of a clip without either


@dataclass(frozen=True)
class Facet:
    """A column that clips can be filtered by: `codes` [N] are places among `values`; -1: none."""

    name: str
    values: tuple[str, ...]
    codes: Codes


@dataclass(frozen=True)
class Histogram:
    """Equal bins of mean influence: the `edges` [BINS + 1], what is outside them lies in the first and the last, each
    clip's bin [N] (-1: not ranked), and the two cuts: the least selected, and the largest harmful."""

    edges: npt.NDArray[np.float64]
    codes: Codes
    cut: float | None
    harmful: float | None


@dataclass(frozen=True)
class Standing:
    """The clips' places in the ranking for a group: rank [N] (NOT_RANKED), mean influence [N] (NaN), decision [N], and
    whether a rule keeps the clip out of the selection [N]."""

    rank: Places
    influence: Floats
    decision: npt.NDArray[np.int8]
    barred: Flags

    @classmethod
    def of_nobody(cls, count: int) -> Standing:
        return cls(
            np.full(count, NOT_RANKED, np.int32),
            np.full(count, np.nan, np.float32),
            np.full(count, 3, np.int8),
            np.zeros(count, bool),
        )

    @cached_property
    def ranked(self) -> int:
        return int((self.rank != NOT_RANKED).sum())

    @cached_property
    def selected(self) -> int:
        return int((self.decision == 0).sum())

    @cached_property
    def order(self) -> Places:
        """Places of all clips from best to worst; those that are not ranked come last, by id."""
        places = np.flatnonzero(self.rank != NOT_RANKED).astype(np.int32)
        ranks = self.rank[places]
        at_rank = np.full(int(ranks.max(initial=-1)) + 1, -1, np.int32)  # no two share a rank: faster than to sort
        at_rank[ranks] = places
        others = np.flatnonzero(self.rank == NOT_RANKED).astype(np.int32)
        return np.concatenate([at_rank[at_rank >= 0], others])

    @cached_property
    def histogram(self) -> Histogram | None:
        """Of the ranked clips' mean influence; None where none is ranked."""
        if not self.ranked:
            return None
        low, high = np.quantile(self.influence[self.rank != NOT_RANKED], (0.0005, 0.9995)).tolist()
        edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
        codes = np.empty(len(self.rank), np.int8)
        for start in range(0, len(codes), STEP):
            here = slice(start, start + STEP)
            codes[here] = np.where(self.rank[here] == NOT_RANKED, -1, _bins(self.influence[here], edges))
        selected, harmful = (self.influence[self.decision == n] for n in (0, 2))
        cut = float(selected.min()) if len(selected) else None
        return Histogram(edges, codes, cut, float(harmful.max()) if len(harmful) else None)

    def percentile(self, rank: int) -> float | None:
        """Share of the other ranked clips that rank lower, in per cent."""
        if rank == NOT_RANKED:
            return None
        return 100.0 * (1 - rank / (self.ranked - 1)) if self.ranked > 1 else 100.0


@dataclass(frozen=True)
class Lawfulness:
    """How far each clip moves from the queries of its motion: distance [N] and quantile [N], NaN where its flow is not
    known, and the law that it breaks or its flaw as a facet, NEITHER where it has none."""

    distance: Floats
    quantile: Floats
    violation: Facet


@dataclass
class Index:
    """`clips` has a row for each clip, by clip_id: clip_id, uri, version, caption, file, source, error and numbers."""

    run: Run
    clips: pa.Table
    queries: list[dict[str, Any]]
    standings: dict[str, Standing]
    facets: list[Facet]
    influence: Columns | None
    influence_row: Places  # of each clip, its row in `influence`; -1: none
    query_ids: list[str]
    ranking: str  # digest of the ranking; empty: there is none
    written: str  # when the ranking was written, for people
    problems: list[str] = field(default_factory=list)
    liked: Columns | None = None  # influence on clips that people like, as if these were queries
    liked_row: Places | None = None
    liked_ids: list[str] = field(default_factory=list)
    lawfulness: Lawfulness | None = None

    def __len__(self) -> int:
        return int(self.clips.num_rows)

    @property
    def groups(self) -> list[str]:
        return list(self.standings)

    @cached_property
    def ids(self) -> pa.Array:
        return self.clips.column("clip_id").combine_chunks()

    def places(self, clip_ids: Sequence[str]) -> Places:
        """Where these clips stand; -1 for those that the run does not have."""
        if len(clip_ids) < FEW:  # ids are in order; a hash table of all of them takes longer
            return np.array([self._place(clip_id) for clip_id in clip_ids], np.int32)
        at = pc.index_in(pa.array(list(clip_ids), pa.string()), self.ids)
        places: Places = pc.fill_null(at, -1).to_numpy(zero_copy_only=False).astype(np.int32)
        return places

    def _place(self, clip_id: str) -> int:
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self.ids[middle].as_py() < clip_id:
                low = middle + 1
            else:
                high = middle
        return low if low < len(self) and self.ids[low].as_py() == clip_id else -1

    def rows(self, places: Sequence[int] | Places, columns: Sequence[str]) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = self.clips.select(list(columns)).take(pa.array(places, pa.int64())).to_pylist()
        return listed

    def numbers(self, column: str) -> Floats:
        """A column of numbers [N]; NaN where there is none."""
        values = pc.fill_null(self.clips.column(column).cast(pa.float32()), float("nan"))
        numbers: Floats = values.to_numpy()
        return numbers

    def of_group(self, group: str) -> list[int]:
        """The places of a group's queries among `query_ids`."""
        named = {query["clip_id"]: query["group"] or "all" for query in self.queries}
        return [n for n, query in enumerate(self.query_ids) if group in ("all", named.get(query, "all"))]

    def weighted_sum(self, weights: Mapping[int, float]) -> npt.NDArray[np.float64]:
        """The sum of weight times influence over some queries, for every clip [N]; NaN where it is not known."""
        values = np.full(len(self), np.nan)
        if self.influence is None:
            return values
        total = np.zeros(self.influence.rows)
        for start in range(0, len(total), STEP):
            part = total[start : start + STEP]
            for query, weight in weights.items():
                if weight:
                    part += np.float64(weight) * self.influence.read(query, start, start + len(part))
        has = self.influence_row >= 0
        values[has] = total[self.influence_row[has]]
        return values

    def clip_column(self, at: int) -> Floats | None:
        """Influence of one clip on every query [Q]; None where it has none."""
        row = int(self.influence_row[at])
        if self.influence is None or row < 0:
            return None
        return np.array([self.influence.read(q, row, row + 1)[0] for q in range(len(self.query_ids))], np.float32)

    def prepare(self) -> None:
        """Compute every motion's order and histogram now, so that the first look at one is as quick as the next."""
        for standing in self.standings.values():
            _ = standing.order, standing.histogram

    def standing(self, group: str) -> Standing:
        """Of a group; where nothing is ranked yet, of nobody."""
        if group in self.standings:
            return self.standings[group]
        return Standing.of_nobody(len(self))


# --- reading ----------------------------------------------------------------------------------------------------------


def read(run: Run) -> Index:
    """The index of a run. Raises MissingTableError where no clips have been indexed yet.

    Tables from motion/ on may be missing or damaged: what they hold is then not known, and `problems` says why.
    """
    problems: list[str] = []
    clips = _clips(run)
    ids = clips.column("clip_id").combine_chunks()
    clips = _with_motion(run, clips, ids, problems)
    clips = _with_errors(run, clips, ids, problems)
    standings = _standings(run, ids, problems)
    influence, row_of, query_ids = _influence(run, "influence", ids, problems)
    liked = _influence(run, "influence_liked", ids, problems)
    queries = tables.read(join(run.root, "queries"))
    listed = [] if queries is None else queries.drop_columns(["cuts"]).to_pylist()
    digest, written = ranking_state(run.root)
    lawful = _lawfulness(run, ids, problems)
    facets = _facets(clips, lawful)
    return Index(
        *(run, clips, listed, standings, facets, influence, row_of, query_ids, digest, written, problems),
        *liked,
        lawfulness=lawful,
    )


def ranking_state(root: str) -> tuple[str, str]:
    """A digest of the ranking that is there, which changes when it is written anew, and when that was."""
    folder = join(root, "selection")
    fs, _ = place(folder)
    paths = tables.parts(folder)
    if not paths:
        return "", ""
    about = [{k: str(v) for k, v in fs.info(path).items() if k in ("size", "mtime", "ETag")} for path in paths]
    digest = hashlib.blake2b(json.dumps(about).encode(), digest_size=8).hexdigest()
    try:
        moment = fs.modified(paths[0])
    except NotImplementedError:  # a store that does not say
        return digest, ""
    return digest, f"{moment:%Y-%m-%d %H:%M} UTC"


def _clips(run: Run) -> pa.Table:
    folder = join(run.root, "clips")
    if not tables.parts(folder):
        raise MissingTableError(
            f"root={run.root!r} has no table clips/, so there is nothing to look at; run `python -m jobs.index_clips` "
            "first, or `python -m jobs.curate`, or name another root."
        )
    names = scanning.schema(scanning.footers(folder)).names
    rows = tables.read(folder, [name for name in names if name != "cuts"])
    assert rows is not None, "it has parts"
    return rows.append_column("file", file_names(rows.column("uri"))).combine_chunks()


def file_names(uris: pa.ChunkedArray) -> pa.ChunkedArray:
    """The names of videos' files, without folders; of addresses also without query and fragment."""
    plain = pc.replace_substring_regex(uris, r"(?s)[?#].*$", "")
    remote = pc.fill_null(pc.match_substring(uris, "://"), False)
    names = pc.replace_substring_regex(pc.if_else(remote, plain, uris), r"(?s)^.*/([^/]+)/*$", r"\1")
    return pc.fill_null(names, "")


def _joined(ids: pa.Array, table: pa.Table, column: str) -> pa.ChunkedArray:
    at = pc.index_in(ids, table.column("clip_id").combine_chunks())
    return table.column(column).take(at)


def _table(run: Run, name: str, columns: Sequence[str], problems: list[str]) -> pa.Table | None:
    try:
        table = tables.read(join(run.root, name), columns)
    except (OSError, ValueError, KeyError) as error:  # damaged, foreign, or denied: the rest is still of use
        problems.append(f"{name}/ cannot be read: {error}")
        return None
    return table


def _with_motion(run: Run, clips: pa.Table, ids: pa.Array, problems: list[str]) -> pa.Table:
    motion = _table(run, "motion/clips", ["clip_id", "motion_mean", "camera_share"], problems)
    for name in ("motion_mean", "camera_share"):
        column = pa.nulls(len(ids), pa.float32()) if motion is None else _joined(ids, motion, name)
        clips = clips.append_column(name, column)
    return clips


def _with_errors(run: Run, clips: pa.Table, ids: pa.Array, problems: list[str]) -> pa.Table:
    """The clips with the first stage's error of each, as `error`."""
    errors = clips.column("error")
    for name in ("motion/clips", "features/clips"):
        table = _table(run, name, ["clip_id", "error"], problems)
        if table is not None and table.num_rows:
            errors = pc.coalesce(errors, _joined(ids, table, "error"))
    return clips.set_column(clips.column_names.index("error"), "error", errors)


def _lawfulness(run: Run, ids: pa.Array, problems: list[str]) -> Lawfulness | None:
    """None where no clip's flow was held against the queries."""
    columns = ["clip_id", "distance", "quantile", "law", "named_by", "flaw"]
    table = _table(run, "lawfulness", columns, problems)
    if table is None or not table.num_rows:
        return None
    violations = pc.fill_null(lawfulness.violations(table, run.ranking.unlawful), NEITHER)
    table = table.append_column("violation", violations)

    def numbers(name: str) -> Floats:
        values: Floats = pc.fill_null(_joined(ids, table, name).cast(pa.float32()), float("nan")).to_numpy()
        return values

    violation = _coded(LAW_OR_FLAW, _joined(ids, table, "violation"))
    return Lawfulness(numbers("distance"), numbers("quantile"), violation)


def _standings(run: Run, ids: pa.Array, problems: list[str]) -> dict[str, Standing]:
    folder, n = join(run.root, "selection"), len(ids)
    standings: dict[str, Standing] = {}
    words = pa.array(DECISIONS[:3])
    try:
        columns = ["clip_id", "group", "rank", "mean_influence", "decision", "choice"]
        if not any("choice" in schema.names for schema in tables.columns(folder)):  # before there were other rules
            columns.remove("choice")
        for rows in _many(scanning.blocks(folder, columns), max(ROWS, n)):
            at = pc.fill_null(pc.index_in(rows.column("clip_id"), ids), -1).to_numpy().astype(np.int64)
            coded = rows.column("group").combine_chunks().dictionary_encode()
            names, codes = coded.dictionary.to_pylist(), coded.indices.to_numpy(zero_copy_only=False)
            rank = pc.fill_null(rows.column("rank"), NOT_RANKED).to_numpy().astype(np.int32)
            influence = pc.fill_null(rows.column("mean_influence"), float("nan")).to_numpy()
            decision = pc.fill_null(pc.index_in(rows.column("decision"), words), 3).to_numpy().astype(np.int8)
            barred = decision == 2
            if "choice" in columns:
                barred |= pc.is_null(rows.column("choice")).to_numpy()
            for code, name in enumerate(names):
                here = (codes == code) & (at >= 0)
                one = standings.setdefault(name, Standing.of_nobody(n))
                one.barred[at[here]] = barred[here]
                one.rank[at[here]], one.influence[at[here]] = rank[here], influence[here]
                one.decision[at[here]] = np.where(rank[here] == NOT_RANKED, 3, decision[here])
    except (OSError, ValueError, KeyError) as error:
        problems.append(f"selection/ cannot be read: {error}")
        return {}
    return {name: standings[name] for name in sorted(standings, key=lambda name: (name != "all", name))}


def _many(blocks: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of at least so many, but for the last: to look ids up takes a hash table of all clips'
    ids for each table."""
    group = list[pa.Table]()
    for block in blocks:
        group.append(block)
        if sum(table.num_rows for table in group) >= rows:
            yield pa.concat_tables(group).combine_chunks()
            group = []
    if group:
        yield pa.concat_tables(group).combine_chunks()


def _influence(run: Run, name: str, ids: pa.Array, problems: list[str]) -> tuple[Columns | None, Places, list[str]]:
    folder, row_of = join(run.root, name), np.full(len(ids), -1, np.int32)
    try:
        query_ids = list(tables.metadata(folder).get("query_ids", []))
        rows = sum(part.rows for part in scanning.footers(folder))
        if not rows or not query_ids:
            return None, row_of, []
        columns, start = Columns(rows, len(query_ids)), 0
        most = max(ROWS // 4, LOOKED_UP // (4 * len(query_ids)))
        for block in _many(scanning.blocks(folder, ["clip_id", "influence"]), most):
            at = pc.fill_null(pc.index_in(block.column("clip_id"), ids), -1).to_numpy().astype(np.int64)
            inside = at >= 0
            row_of[at[inside]] = start + np.flatnonzero(inside)
            columns.add(tables.matrix(block, "influence"))
            start += block.num_rows
    except (OSError, ValueError, KeyError) as error:
        problems.append(f"{name}/ cannot be read: {error}")
        return None, np.full(len(ids), -1, np.int32), []
    return columns, row_of, query_ids


def _bins(values: Floats, edges: npt.NDArray[np.float64]) -> Codes:
    """The bin of each value, as of `np.histogram` of the values clipped to the edges; of NaN any. Two comparisons after
    a division, which rounds, take a quarter of the time of a search among the edges."""
    inside = np.nan_to_num(np.clip(values, edges[0], edges[-1]), nan=edges[0])
    bins = ((inside - edges[0]) * (BINS / (edges[-1] - edges[0]))).astype(np.int64)
    bins = np.minimum(bins, BINS - 1)
    bins -= inside < edges[bins]
    bins += (inside >= edges[bins + 1]) & (bins < BINS - 1)
    codes: Codes = bins.astype(np.int8)
    return codes


# --- what clips can be filtered by ------------------------------------------------------------------------------------

CAMERA = ("camera under 25 %", "25 to 50 %", "50 to 75 %", "camera over 75 %")


def _facets(clips: pa.Table, lawful: Lawfulness | None) -> list[Facet]:
    facets = [_coded("source", clips.column("source"))]
    share = pc.fill_null(clips.column("camera_share").cast(pa.float32()), float("nan")).to_numpy()
    bins = np.where(np.isnan(share), -1, np.clip(np.nan_to_num(share) * 4, 0, 3).astype(np.int64)).astype(np.int8)
    facets.append(Facet("camera share", CAMERA, bins))
    seconds = pc.divide(clips.column("num_frames").cast(pa.float32()), clips.column("fps"))
    lengths = pc.binary_join_element_wise(pc.round(seconds, 1).cast(pa.string()), "s", " ")
    facets.append(_coded("length", lengths))
    facets.append(_coded("error", pc.struct_field(pc.extract_regex(clips.column("error"), "^(?P<code>[a-z_]+)"), 0)))
    if lawful is not None:
        facets.append(lawful.violation)
    own = {*schemas.CLIPS.names, "file", "motion_mean", "camera_share"}
    for name in clips.column_names:
        if name not in own and pa.types.is_string(clips.schema.field(name).type):
            facets.append(_coded(name, clips.column(name)))
    return [facet for facet in facets if len(facet.values) + bool((facet.codes < 0).any()) > 1 and facet.values]


def _coded(name: str, column: pa.ChunkedArray) -> Facet:
    """A facet of a column of texts; of one with too many values, none."""
    coded = column.combine_chunks().dictionary_encode()
    values = coded.dictionary.to_pylist()
    if len(values) > MOST_VALUES:
        return Facet(name, (), np.empty(0, np.int8))
    order = sorted(range(len(values)), key=lambda n: values[n])
    place_of = np.full(len(values) + 1, -1, np.int8)
    place_of[order] = np.arange(len(order), dtype=np.int8)
    codes = pc.fill_null(coded.indices, len(values)).to_numpy(zero_copy_only=False)
    return Facet(name, tuple(values[n] for n in order), place_of[codes])


def count(codes: Codes, values: int, matches: Flags | None = None) -> Counts:
    """How many clips have each code from 0 to values - 1 [values]: of those that `matches` [N] names, or of all."""
    return count_each([codes], [values], matches)[0]


def count_each(columns: Sequence[Codes], values: Sequence[int], matches: Flags | None = None) -> list[Counts]:
    """`count` of several columns. Where the clips that match lie is looked up once, which takes the most time."""
    counts = [np.zeros(size + 1, np.int64) for size in values]
    for start in range(0, len(columns[0]) if columns else 0, STEP):
        at = None if matches is None else np.flatnonzero(matches[start : start + STEP])
        for codes, tally in zip(columns, counts, strict=True):
            here = codes[start : start + STEP]
            tally += np.bincount((here if at is None else here[at]).astype(np.int64) + 1, minlength=len(tally))
    return [tally[1:] for tally in counts]


def facet(facets: Sequence[Facet], name: str) -> Facet | None:
    return next((one for one in facets if one.name == name), None)
