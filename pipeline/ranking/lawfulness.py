"""Whether a clip moves as the real clips of its motion do: the judge's distance of its flow from its group's queries.

A clip's group is the motion that its caption names, or that a column of the manifest says; of a clip whose motion
nobody names it is the one whose queries move most alike. How far is too far, the queries themselves say: each of them
is held against the others of its group, and a clip's quantile is its place among those distances, of all groups
together. Only a clip whose motion is named can be called unlawful by it: one that shows another motion is no
spoiled one. A flaw, such as frames that are shown again, spoils any clip (`motion/flaws.py`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.config import Run
from pipeline.errors import ConfigError, FingerprintError
from pipeline.motion import flaws
from pipeline.motion.flaws import FLAWS
from pipeline.motion.judge import COURSES, Floats, Judge, taught
from pipeline.ranking import partitions, shortlist
from pipeline.storage.stores import join
from pipeline.tables import IdSet, figures, scanning, schemas

CAPTION, COLUMN, FLOW = "caption", "column", "flow"  # what says which motion a clip shows
WORD = re.compile(r"[^\W\d_]+")
ENDINGS = "(?:e|es|s|ed|ing|e?ly)?"  # of a word's forms, after its stem and perhaps its last letter again: spin(n)ing

CHUNK = 4096  # clips that are held against all queries at a time
MEASURE_ANEW = (
    "Delete movement/ and motion/ of this run, and run estimate_motion or curate: no gradient is computed anew."
)

Codes = npt.NDArray[np.int32]


def named_group(caption: str, groups: Sequence[str]) -> str | None:
    """The group whose name a caption has, in any form of its words ("a ball bouncing" names bounce); None where it has
    none, or several."""
    words = [word.lower() for word in WORD.findall(caption)]
    named = [group for group in groups if all(_has(words, part) for part in WORD.findall(group.lower()))]
    return named[0] if len(named) == 1 else None


def _has(words: Sequence[str], part: str) -> bool:
    stem = part.removesuffix("e") if len(part) > 3 else part
    form = re.compile(f"{re.escape(stem)}{re.escape(stem[-1])}?{ENDINGS}")
    return any(form.fullmatch(word) for word in words)


def leave_one_out(judge: Judge) -> Floats:
    """The distances of the queries from the nearest other one of their group, ascending; of lone queries there is
    none."""
    groups = {group: len(rows) for group, rows in judge.queries.items() if len(rows) > 1}
    distances = [judge.nearest_but_itself(group, n) for group, count in groups.items() for n in range(count)]
    return np.sort(np.array(distances))


def quantiles(distances: Floats, among: Floats) -> Floats:
    """The share of lawful clips that would be as far or farther: (1 + how many of `among` are) / (1 + their number),
    as conformal tests have it. [N]; `among` is ascending."""
    farther = len(among) - np.searchsorted(among, distances, side="left")
    return np.asarray((1 + farther) / (1 + len(among)), np.float64)


def lawfulness(run: Run) -> Iterator[pa.Table]:
    """Rows of lawfulness/: every clip whose movement is known, in blocks. Nothing where no query's movement is.

    Raises ConfigError where `ranking.group_column` names no column of clips/, FingerprintError for a movement/ of
    before flaws were measured.
    """
    judge, folders = _judge(run), _movement_folders(run, "clips")
    if judge is None or not folders:
        return
    _check_flaws(run)
    measure = _Measure(judge, _flaws_of_queries(run))
    ids, codes = _named(run, measure.groups)
    by = COLUMN if run.ranking.group_column else CAPTION
    listed = np.zeros(len(ids), bool)
    blocks = (scanning.blocks(folder, ["clip_id", "description", "flaws"]) for folder in folders)
    for block in itertools.chain.from_iterable(blocks):
        places = ids.find(block.column("clip_id"))
        first = np.zeros(len(places), bool)
        first[np.unique(places, return_index=True)[1]] = True
        new = first & (places >= 0) & ~listed[places]  # a job that was killed between two tables leaves a row twice
        new &= pc.is_valid(block.column("description")).to_numpy()
        listed[places[new]] = True
        block, places = block.filter(pa.array(new)), places[new]
        for start in range(0, block.num_rows, CHUNK):
            rows = block.slice(start, CHUNK)
            yield measure.rows(rows, codes[places[start : start + CHUNK]], by)


class _Measure:
    """The queries as a measure of clips: their groups, their own distances, their flaws, and how far a course is off
    usually."""

    def __init__(self, judge: Judge, flaws_of_queries: Floats) -> None:
        self.flaws_of_queries = flaws_of_queries
        self.judge, self.groups = judge, list(judge.queries)
        self.among, self.typical = leave_one_out(judge), _typical_courses(judge)

    def rows(self, clips: pa.Table, codes: Codes, by: str) -> pa.Table:
        """Rows of lawfulness/ of clips with a description; `codes` are the places of the groups that name them."""
        videos = tables.matrix(clips, "description").astype(np.float64)
        named = codes >= 0
        group = np.where(named, codes, self._nearest_groups(videos))
        distances, laws = np.empty(len(videos)), np.empty(len(videos), np.int64)
        for code in np.unique(group).tolist():
            of_group = group == code
            apart = self.judge.courses(self.groups[code], videos[of_group])
            distances[of_group], laws[of_group] = apart.mean(1), (apart / self.typical).argmax(1)
        judged = len(self.among) > 0
        columns = [
            clips.column("clip_id"),
            pa.array([self.groups[code] for code in group.tolist()], pa.string()),
            pa.array(distances, pa.float64()),
            pa.array(quantiles(distances, self.among), pa.float64()) if judged else pa.nulls(len(videos), pa.float64()),
            pa.array([COURSES[law] for law in laws.tolist()], pa.string()),
            pa.array(np.where(named, by, FLOW).tolist(), pa.string()),
            *self._flaws(tables.matrix(clips, "flaws").astype(np.float64)),
        ]
        return pa.table(columns, schema=schemas.LAWFULNESS)

    def _flaws(self, measures: Floats) -> tuple[pa.Array, pa.Array]:
        """Which flaw each clip has, the first where it has several, and its measure; nulls where it has none."""
        spoils = flaws.spoils(measures, self.flaws_of_queries)
        which, whole = spoils.argmax(1), ~spoils.any(1)
        names = pa.array(np.array(FLAWS)[which].tolist(), pa.string())
        measured = pa.array(measures[np.arange(len(measures)), which], pa.float64())
        return tuple(pc.if_else(pa.array(whole), None, values) for values in (names, measured))

    def _nearest_groups(self, videos: Floats) -> Codes:
        distances = np.stack([self.judge.courses(group, videos).mean(1) for group in self.groups])
        nearest: Codes = distances.argmin(0).astype(np.int32)
        return nearest


def violations(rows: pa.Table, quantile: float) -> pa.ChunkedArray:
    """Of each of some rows of lawfulness/ its flaw, else the law that it breaks; null where there is neither.

    A clip breaks a law where its quantile is at most `quantile` and somebody names its motion.
    """
    far = pc.fill_null(pc.less_equal(rows.column("quantile"), quantile), False)
    unlike = pc.and_(far, pc.not_equal(rows.column("named_by"), FLOW))
    broken = pc.if_else(unlike, rows.column("law"), pa.scalar(None, pa.string()))
    return pc.coalesce(rows.column("flaw"), broken)


def unlawful(rows: pa.Table, quantile: float) -> pa.Table:
    """Those of some rows of lawfulness/ that have a flaw, or that move unlike the real clips of the motion that they
    are named for: their quantile is at most this one."""
    return rows.filter(pc.is_valid(violations(rows, quantile)))


def reasons(rows: pa.Table) -> pa.Table:
    """Columns clip_id and reason of rows of lawfulness/, the least lawful first."""
    rows = rows.sort_by([("distance", "descending"), ("clip_id", "ascending")])
    sentences = [_reason(row) for row in rows.to_pylist()]
    return pa.table({"clip_id": rows.column("clip_id"), "reason": pa.array(sentences, pa.string())})


def _reason(row: Mapping[str, Any]) -> str:
    if row["flaw"] is not None:
        return flaws.sentence(row["flaw"], row["flaw_measure"])
    return (
        f"moves unlike the real clips of {row['group']!r}, most by its {row['law']}: distance {row['distance']:.2f}, "
        f"as far as {row['quantile']:.1%} of lawful ones"
    )


def sentence(row: Mapping[str, Any], quantile: float) -> str:
    """What a row of lawfulness/ says, in words, where a quantile of at most `quantile` is unlawful."""
    group, place = repr(row["group"]), row["quantile"]
    if row["named_by"] == FLOW:
        moves, limit = f"nobody names its motion, and it moves most like the queries of {group}", ""
    else:
        unlike, limit = place is not None and place <= quantile, f" (unlawful up to {quantile:g})"
        moves = f"it moves unlike the queries of {group}" if unlike else f"it moves as the queries of {group} do"
    known = "quantile unknown, as no motion has two queries" if place is None else f"quantile {place:.3f}{limit}"
    flaw = "no flaw"
    if row["flaw"] is not None:
        flaw = f"flaw {row['flaw']}: {flaws.sentence(row['flaw'], row['flaw_measure'])}"
    return f"{moves}: distance {row['distance']:.2f}, {known}, farthest off by its {row['law']}; {flaw}"


def unknown(run: Run, error: str | None = None) -> str:
    """Why lawfulness/ has no row of a clip, in words. `error` is that of the clip's row in clips/ or motion/."""
    if error is not None:
        return f"its lawfulness is not known: {error.rstrip('.')}"
    if run.motion.of == "queries":
        return (
            "its lawfulness is not known: its flow was not measured when the clips were ranked, as motion.of=queries "
            f"takes a sample of {run.motion.sample:,} clips (motion.sample)"
        )
    return "its lawfulness is not known: lawfulness/ has no row of it, which rank_clips writes where its flow is known"


class UnlawfulCounts(NamedTuple):
    """Of some clips: how many they are, of how many the flow is known, and how many of those have a flaw or break a
    law."""

    clips: int
    measured: int
    unlawful: int

    @property
    def share(self) -> float | None:
        return self.unlawful / self.measured if self.measured else None


def count_unlawful(rows: pa.Table, clip_ids: pa.Array, quantile: float) -> UnlawfulCounts:
    """Count these clips among rows of lawfulness/."""
    own = rows.filter(pc.is_in(rows.column("clip_id"), clip_ids))
    return UnlawfulCounts(len(clip_ids), own.num_rows, unlawful(own, quantile).num_rows)


# --- what it is held against ------------------------------------------------------------------------------------------


def _movement_folders(run: Run, name: str) -> list[str]:
    """The tables movement/ of the clips or the queries, those that are there."""
    folders = [join(root, "movement", name) for root in _motion_roots(run, name)]
    return [folder for folder in folders if tables.parts(folder)]


def _motion_roots(run: Run, name: str) -> list[str]:
    """Where motion/ and movement/ of the clips or the queries lie."""
    if run.attribution.shortlist is not None:
        return [shortlist.motion_root(run)]
    return [partitions.query_root(run)] if name == "queries" else list(run.clip_roots)


def gaps(run: Run) -> list[str]:
    """A sentence for each movement/ that lacks rows of its motion/, as when a part of it was deleted: what they would
    have said of their clips is not known."""
    sentences = []
    roots = [(name, root) for name in ("queries", "clips") for root in _motion_roots(run, name)]
    for name, root in roots:
        motion, movement = (join(root, stage, name) for stage in ("motion", "movement"))
        listed = IdSet.of(_ids(movement))
        missing = sum(int((~listed.has(ids)).sum()) for ids in _ids(motion))
        if missing:
            sentences.append(
                f"{movement} lacks {missing} of the rows that {motion} has, so nothing is known of how these move. "
                f"{MEASURE_ANEW}"
            )
    return sentences


def _ids(folder: str) -> Iterator[pa.ChunkedArray]:
    if tables.parts(folder):
        yield from (rows.column("clip_id") for rows in scanning.blocks(folder, ["clip_id"]))


def _movement_of_queries(run: Run, columns: Sequence[str]) -> pa.Table | None:
    folders = _movement_folders(run, "queries")
    return tables.read(folders[0], columns) if folders else None


def _judge(run: Run) -> Judge | None:
    table = _movement_of_queries(run, ["clip_id", "description", "error"])
    if table is None or not table.num_rows:
        return None
    groups = figures.query_groups(partitions.query_root(run))
    with_description = table.filter(pc.is_valid(table.column("description")))
    rows = [row for row in with_description.to_pylist() if row["clip_id"] in groups]
    return taught([(groups[r["clip_id"]], np.array(r["description"], np.float64)) for r in rows]) if rows else None


def _check_flaws(run: Run) -> None:
    for folder in (*_movement_folders(run, "clips"), *_movement_folders(run, "queries")):
        if not all("flaws" in schema.names for schema in tables.columns(folder)):
            raise FingerprintError(f"{folder}: its rows were measured before clips had flaws. {MEASURE_ANEW}")


def _flaws_of_queries(run: Run) -> Floats:
    """Of every query whose movement is known: [Q, FLAWS]."""
    table = _movement_of_queries(run, ["flaws"])
    assert table is not None, "the judge was made of the same table"
    measured = table.filter(pc.is_valid(table.column("flaws")))
    return tables.matrix(measured, "flaws").astype(np.float64)


def _typical_courses(judge: Judge) -> Floats:
    """How far each course of a query is from the nearest other one's, on average: [COURSES]; ones where every query is
    alone."""
    apart = [
        judge.without(group, n).courses(group, rows[n : n + 1])[0]
        for group, rows in judge.queries.items()
        for n in range(len(rows))
        if len(rows) > 1
    ]
    return np.maximum(np.mean(apart, axis=0), 1e-6) if apart else np.ones(len(COURSES))


def _named(run: Run, names: Sequence[str]) -> tuple[IdSet, Codes]:
    """The ids of the run's clips, and for each the place of the group that it is named for; -1: of none."""
    column, folders = run.ranking.group_column, partitions.folders(run, "clips")
    if column is not None and not all(any(column in s.names for s in tables.columns(folder)) for folder in folders):
        raise ConfigError(
            f"ranking.group_column={column!r}: the manifest {run.data.videos!r} gave no such column. Name a column "
            "that holds each clip's motion, or leave it out: then captions say which motion a clip shows."
        )
    ids = IdSet.of(rows.column("clip_id") for rows in partitions.blocks(run, "clips", ["clip_id"]))
    place, codes = {name: n for n, name in enumerate(names)}, np.full(len(ids), -1, np.int32)
    for rows in partitions.blocks(run, "clips", ["clip_id", column or "caption"]):
        texts = rows.column(column or "caption").to_pylist()
        groups = [named_group(text or "", names) if column is None else str(text) for text in texts]
        codes[ids.find(rows.column("clip_id"))] = [place.get(group or "", -1) for group in groups]
    return ids, codes
