"""The numbers of a run, read from its tables: what came in, what dropped out and why, what was selected.

Everything here is counted by ``clip_id``, never by position. A number that cannot be had is None, never NaN. Tables
that do not exist yet leave their part of the summary empty; rows that contradict one another are in ``problems``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.storage import stores
from pipeline.tables import scanning
from pipeline.tables.ids import IdSet, Places
from pipeline.tables.registry import table_of

DECISIONS = ("selected", "neutral", "harmful")
SELECTED, NEUTRAL, HARMFUL = range(3)


def by_id(root: str, name: str, ids: Iterable[str], columns: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """The rows of a table with these ids, as dictionaries; no more of it is in memory than a block."""
    folder, id_array = stores.join(root, name), pa.array(sorted(set(ids)), pa.string())
    if not len(id_array) or not tables.parts(folder):
        return {}
    every = scanning.schema(scanning.footers(folder)).names
    named, of = columns or every, table_of(folder, every)
    blocks = scanning.blocks(folder, list(dict.fromkeys([*named, *of.needed])))
    matches = [rows.filter(pc.is_in(rows.column("clip_id"), id_array)) for rows in blocks]
    rows = tables.once(pa.concat_tables(matches), of).select(list(named)) if matches else pa.table({})
    return {row["clip_id"]: row for row in rows.to_pylist()}


def query_groups(root: str) -> dict[str, str]:
    """The group of each query that a root has, by its id; "all" is that of one without a group."""
    queries = tables.read(stores.join(root, "queries"), ["clip_id", "group"])
    return {} if queries is None else {row["clip_id"]: row["group"] or "all" for row in queries.to_pylist()}


# --- the selection ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """A group's ranked clips, in the order of their places: [n] each."""

    places: npt.NDArray[np.int32]  # of each among the run's clips; -1 where it is none of them
    influence: npt.NDArray[np.float32]
    decisions: npt.NDArray[np.int8]  # places among DECISIONS; -1: something else


@dataclass(frozen=True)
class Selected:
    """The selection of a run in numbers, some 40 bytes a clip and 9 for each group of queries.

    `ids` are those of the run's clips, in whose order are `sources`, places among `source_names`, and `magnitude`,
    the mean motion. Clips that have no place in the ranking are no decision.
    """

    ids: IdSet
    sources: npt.NDArray[np.int32]
    source_names: list[str | None]
    magnitude: npt.NDArray[np.float64]
    groups: dict[str, Group]  # "all" first
    unknown: str | None  # a ranked clip that the index does not have


def selected(root: str, clips: IdSet) -> Selected | None:
    """The selection of a run with these clips; None before ranking."""
    folder = stores.join(root, "selection")
    if not tables.parts(folder):
        return None
    by_group: dict[str, list[tuple[Places, npt.NDArray[np.float32], npt.NDArray[np.int8]]]] = {}
    unknown = None
    for block in scanning.blocks(folder, ["clip_id", "group", "mean_influence", "decision", "rank"]):
        block = block.filter(pc.is_valid(block.column("rank")))
        for group in block.column("group").unique().to_pylist():
            rows = block.filter(pc.equal(block.column("group"), group))
            places = clips.find(rows.column("clip_id"))
            if unknown is None and (places < 0).any():
                unknown = rows.column("clip_id").filter(pa.array(places < 0))[0].as_py()
            decisions = pc.fill_null(pc.index_in(rows.column("decision"), pa.array(DECISIONS)), -1)
            columns = rows.column("mean_influence").to_numpy(), decisions.to_numpy().astype(np.int8)
            by_group.setdefault(group, []).append((places.astype(np.int32), *columns))
    groups = {name: _ordered(by_group.pop(name)) for name in sorted(by_group, key=lambda g: (g != "all", g))}
    return Selected(clips, *_sources(root, clips), _magnitude(root, clips), groups, unknown)


def _ordered(blocks: Sequence[tuple[Any, ...]]) -> Group:
    places, influence, decisions = (np.concatenate(column) for column in zip(*blocks, strict=True))
    order = np.argsort(places, kind="stable")
    return Group(places[order], influence[order], decisions[order])


def _sources(root: str, clips: IdSet) -> tuple[npt.NDArray[np.int32], list[str | None]]:
    names: dict[str | None, int] = {None: 0}
    sources = np.zeros(len(clips), np.int32)
    for rows in scanning.blocks(stores.join(root, "clips"), ["clip_id", "source"]):
        coded = rows.column("source").combine_chunks().dictionary_encode(null_encoding="encode")
        codes = np.array([names.setdefault(n, len(names)) for n in coded.dictionary.to_pylist()], np.int32)
        places = clips.find(rows.column("clip_id"))
        sources[places[places >= 0]] = codes[coded.indices.to_numpy()][places >= 0]
    return sources, list(names)


def _magnitude(root: str, clips: IdSet) -> npt.NDArray[np.float64]:
    magnitude = np.full(len(clips), np.nan)
    folder = stores.join(root, "motion", "clips")
    for rows in scanning.blocks(folder, ["clip_id", "motion_mean"]) if tables.parts(folder) else ():
        rows = rows.filter(pc.is_valid(rows.column("motion_mean")))
        places = clips.find(rows.column("clip_id"))
        magnitude[places[places >= 0]] = rows.column("motion_mean").to_numpy()[places >= 0]
    return magnitude


def decided(table: Selected | None, featured: IdSet) -> tuple[dict[str, int], list[str]]:
    """How the clips with features were decided upon for group "all", and what does not fit together."""
    if table is None:
        return {}, []
    group, problems = table.groups["all"], []
    has_place, here = group.places >= 0, np.zeros(len(group.places), bool)
    expected = np.zeros(len(table.ids), bool)
    expected[table.ids.find_set(featured)] = True
    here[has_place] = expected[group.places[has_place]]
    ranked = np.unique(group.places[here])
    counts = np.bincount(group.decisions[here] + 1, minlength=len(DECISIONS) + 1).tolist()
    twice = len(group.places) - len(np.unique(group.places))
    if twice and has_place.all():
        problems.append(f"ranking: {twice} clips are ranked more than once.")
    if not here.all():
        problems.append(f"ranking: {int((~here).sum())} ranked clips have no feature{_such(table.unknown)}.")
    if counts[0]:
        problems.append(f"ranking: {counts[0]} clips have decisions other than {', '.join(DECISIONS)}.")
    sizes = dict(zip(DECISIONS, counts[1:], strict=True)) | {"not_ranked": len(featured) - len(ranked)}
    if sum(sizes.values()) != len(featured):
        problems.append(f"ranking: {len(featured)} clips have features, but the decisions are {sum(sizes.values())}.")
    return sizes, problems


def _such(clip_id: str | None) -> str:
    return "" if clip_id is None else f", such as {clip_id}"


def by_source(table: Selected) -> dict[str, dict[str, dict[str, int]]]:
    """group -> source -> decision -> count; sources ordered by how many clips of theirs are ranked."""
    by_group: dict[str, dict[str, dict[str, int]]] = {}
    for name, group in table.groups.items():
        flags = (group.places >= 0) & (group.decisions >= 0)
        coded = table.sources[group.places[flags]].astype(np.int64) * len(DECISIONS) + group.decisions[flags]
        counts = np.bincount(coded, minlength=len(table.source_names) * len(DECISIONS)).reshape(-1, len(DECISIONS))
        rows = {
            "\N{EN DASH}" if source is None else source: dict(zip(DECISIONS, row, strict=True))
            for source, row in zip(table.source_names, counts.tolist(), strict=True)
            if sum(row)
        }
        by_group[name] = dict(sorted(rows.items(), key=lambda kv: (-sum(kv[1].values()), kv[0])))
    return by_group
