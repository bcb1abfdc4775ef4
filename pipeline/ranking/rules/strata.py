"""What the corpus is made of, and what the selection for all queries is made of: shares by camera, amount of motion,
source and the manifest's columns.

`before` is what the order of the ranking alone would select, as many clips, without near-duplicates and caps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.config import Run
from pipeline.ranking import partitions, shortlist
from pipeline.storage.stores import join
from pipeline.tables import IdSet, scanning, schemas

CAMERA, MOTION = "camera", "motion"  # strata by motion/; a manifest's column of that name is left out
SHARES = ("under 25 %", "25 to 50 %", "50 to 75 %", "over 75 %")  # of the flow that is the camera's
QUARTERS = ("least", "second quarter", "third quarter", "most")  # of the corpus by its mean motion
UNKNOWN = "not known"
MOST = 12  # values of a column; of a source or a capped column the others are one
OTHERS = "others"
SETS = ("corpus", "before", "selected")

Flags = npt.NDArray[np.bool_]
Counts = dict[str, dict[str, dict[str, int]]]  # column -> value -> set -> clips


def strata(run: Run) -> Counts:
    """Clips of each stratum, in the corpus and in the selection. Nothing before a ranking. Memory holds some 60 bytes a
    clip."""
    folder = join(run.root, "selection")
    if not tables.parts(folder) or not partitions.folders(run, "clips"):
        return {}
    ids = IdSet.of(rows.column("clip_id") for rows in partitions.blocks(run, "clips", ["clip_id"]))
    before, selected = _selections(folder, ids)
    counts = _motion(run, ids, before, selected)
    names = [name for name in _columns(run) if name not in counts]
    listed = np.zeros(len(ids), bool)
    for name in names:
        counts[name] = {}
    for rows in partitions.blocks(run, "clips", ["clip_id", *names]):
        block, places = _new(rows, ids, listed)
        for name in names:
            values = pc.fill_null(block.column(name).cast(pa.string()), UNKNOWN).to_numpy(zero_copy_only=False)
            _count(counts[name], values, before[places], selected[places])
    always = {"source", *run.ranking.caps}
    return {name: _first(of) for name, of in counts.items() if len(of) > 1 and (name in always or len(of) <= MOST)}


def lines(counts: Counts) -> Iterator[str]:
    """A table of shares, a line a stratum."""
    totals = {name: sum(of[name] for of in next(iter(counts.values())).values()) for name in SETS} if counts else {}
    for column, of in counts.items():
        for value, row in of.items():
            shares = "".join(f" {row[name] / max(1, totals[name]):>9.1%}" for name in SETS)
            title = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in f"{column} {value}")
            yield f"{title[:44]:<44}{shares}"


def _selections(folder: str, ids: IdSet) -> tuple[Flags, Flags]:
    """Which clips the order alone would select, and which are selected: [N] each."""
    selected, ranks = np.zeros(len(ids), bool), np.full(len(ids), -1, np.int64)
    for block in scanning.blocks(folder, ["clip_id", "group", "rank", "decision"]):
        rows = block.filter(pc.and_(pc.equal(block.column("group"), "all"), pc.is_valid(block.column("rank"))))
        places = ids.find(rows.column("clip_id"))
        known, decision = places >= 0, rows.column("decision")
        selected[places[known]] = pc.equal(decision, "selected").to_numpy()[known]
        harmless = pc.not_equal(decision, "harmful").to_numpy()
        ranks[places[known & harmless]] = rows.column("rank").to_numpy()[known & harmless]
    before, open_to = np.zeros(len(ids), bool), np.flatnonzero(ranks >= 0)
    before[open_to[np.argsort(ranks[open_to], kind="stable")][: int(selected.sum())]] = True
    return before, selected


def _columns(run: Run) -> list[str]:
    """The source, the capped columns, and the manifest's columns of texts that every root has."""
    every = [scanning.schema(scanning.footers(folder)) for folder in partitions.folders(run, "clips")]
    passed = [field for field in every[0] if field.name not in schemas.CLIPS.names]
    texts = [field.name for field in passed if pa.types.is_string(field.type)]
    names = dict.fromkeys(["source", *run.ranking.caps, *texts])
    return [name for name in names if all(name in schema.names for schema in every)]


def _motion(run: Run, ids: IdSet, before: Flags, selected: Flags) -> Counts:
    measured = {name: np.full(len(ids), np.nan) for name in ("camera_share", "motion_mean")}
    for block in _measured(run, list(measured)):
        places = ids.find(block.column("clip_id"))
        for name, values in measured.items():
            column = pc.fill_null(block.column(name).cast(pa.float64()), np.nan).to_numpy()
            values[places[places >= 0]] = column[places >= 0]
    counts: Counts = {}
    known = measured["motion_mean"][np.isfinite(measured["motion_mean"])]
    if len(known):
        cuts = np.quantile(known, [0.25, 0.5, 0.75])
        for title, names, values, ends in (
            (CAMERA, SHARES, measured["camera_share"], np.array([0.25, 0.5, 0.75])),
            (MOTION, QUARTERS, measured["motion_mean"], cuts),
        ):
            words = np.array([*names, UNKNOWN], object)
            stratum = np.where(np.isfinite(values), np.searchsorted(ends, values, side="right"), len(names))
            counts[title] = {}
            _count(counts[title], words[stratum], before, selected)
            counts[title] = {name: counts[title][name] for name in [*names, UNKNOWN] if name in counts[title]}
    return counts


def _measured(run: Run, columns: list[str]) -> Iterator[pa.Table]:
    if run.attribution.shortlist is None:
        yield from partitions.blocks(run, "motion/clips", ["clip_id", *columns])
        return
    folder = join(shortlist.motion_root(run), "motion", "clips")
    if tables.parts(folder):
        yield from scanning.blocks(folder, ["clip_id", *columns])


def _new(block: pa.Table, ids: IdSet, listed: Flags) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """The rows of a block whose clip has not come yet: a killed job may leave a clip twice."""
    places = ids.find(block.column("clip_id"))
    first = np.zeros(len(places), bool)
    first[np.unique(places, return_index=True)[1]] = True
    new = first & ~listed[places]
    listed[places[new]] = True
    return block.filter(pa.array(new)), places[new]


def _count(counts: dict[str, dict[str, int]], values: Any, before: Flags, selected: Flags) -> None:
    """Add clips with these values to the counts of a column; of a column with very many values the later ones are
    OTHERS."""
    for name, flags in zip(SETS, (np.ones(len(values), bool), before, selected), strict=True):
        for value, count in zip(*np.unique(values[flags].astype(str), return_counts=True), strict=True):
            key = str(value) if str(value) in counts or len(counts) < 1000 else OTHERS
            counts.setdefault(key, dict.fromkeys(SETS, 0))[name] += int(count)


def _first(of: Mapping[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """The MOST values of which the corpus has most, and the others as one."""
    if len(of) <= MOST:
        return dict(of)
    order = sorted((value for value in of if value != OTHERS), key=lambda value: (-of[value]["corpus"], value))
    rest = [of[value] for value in of if value not in order[: MOST - 1]]
    others = {name: sum(row[name] for row in rest) for name in SETS}
    return {value: of[value] for value in order[: MOST - 1]} | {OTHERS: others}
