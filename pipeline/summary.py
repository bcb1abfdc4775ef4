"""The numbers of a run, read from its tables: what came in, what dropped out and why, what was selected.

Everything here is counted by ``clip_id``, never by position. A number that cannot be had is None, never NaN. Tables
that do not exist yet leave their part of the summary empty; rows that contradict one another are in ``problems``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import scanning, stores, tables
from pipeline.scanning import Keys
from pipeline.shuffling import keys

DECISIONS = ("selected", "neutral", "harmful")


def by_id(root: str, name: str, ids: Iterable[str], columns: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """The rows of a table with these ids, as dictionaries; no more of it is in memory than a block."""
    folder, wanted = stores.join(root, name), pa.array(sorted(set(ids)), pa.string())
    if not len(wanted) or not tables.parts(folder):
        return {}
    named = columns or scanning.schema(scanning.footers(folder)).names
    blocks = scanning.blocks(folder, list(dict.fromkeys(["clip_id", *named, "error"])))
    found = [rows.filter(pc.is_in(rows.column("clip_id"), wanted)) for rows in blocks]
    rows = tables.once(pa.concat_tables(found)).select(list(named)) if found else pa.table({})
    return {row["clip_id"]: row for row in rows.to_pylist()}


# --- the selection ---------------------------------------------------------------------------------------------------


def selection(root: str) -> pa.Table | None:
    """The ranked rows of the selection, with each clip's `source` and `motion_mean` joined on; None before ranking.

    Clips that have no place in the ranking are rows of the table too, without a rank; they are no decision.
    """
    table = tables.read(stores.join(root, "selection"))
    if table is None:
        return None
    table = table.filter(pc.is_valid(table.column("rank")))
    for name, column, kind in (("clips", "source", pa.string()), ("motion/clips", "motion_mean", pa.float32())):
        other = tables.read(stores.join(root, name), ["clip_id", column])
        values: Any = pa.nulls(table.num_rows, kind)
        if other is not None:
            values = other.column(column).take(pc.index_in(table.column("clip_id"), other.column("clip_id")))
        table = table.append_column(column, values)
    return table


def of_group(table: pa.Table, group: str) -> pa.Table:
    return table.filter(pc.equal(table.column("group"), group))


def groups(table: pa.Table) -> list[str]:
    """The selection's groups, "all" first."""
    return sorted(table.column("group").unique().to_pylist(), key=lambda g: (g != "all", g))


def decided(table: pa.Table | None, featured: Keys) -> tuple[dict[str, int], list[str]]:
    """How the clips with features were decided upon for group "all", and what does not fit together."""
    if table is None:
        return {}, []
    rows = of_group(table, "all")
    ids = rows.column("clip_id")
    here = pa.array(featured.has(keys(ids)))
    counts = {r["values"]: r["counts"] for r in rows.filter(here).column("decision").value_counts().to_pylist()}
    problems, twice = [], len(ids) - pc.count_distinct(ids).as_py()
    if twice:
        problems.append(f"ranking: {twice} clips are ranked more than once.")
    strays = ids.filter(pc.invert(here))
    if len(strays):
        problems.append(f"ranking: {len(strays)} ranked clips have no feature, such as {pc.min(strays)}.")
    unknown = sorted(set(counts) - set(DECISIONS))
    if unknown:
        problems.append(f"ranking: unknown decisions {', '.join(map(str, unknown))}.")
    found = {d: counts.get(d, 0) for d in DECISIONS} | {"not_ranked": len(featured) - pc.sum(here).as_py()}
    if sum(found.values()) != len(featured):
        problems.append(f"ranking: {len(featured)} clips have features, but the decisions are {sum(found.values())}.")
    return found, problems


def by_source(table: pa.Table) -> dict[str, dict[str, dict[str, int]]]:
    """group -> source -> decision -> count; sources ordered by how many clips of theirs are ranked."""
    counted = table.group_by(["group", "source", "decision"]).aggregate([([], "count_all")]).to_pylist()
    found: dict[str, dict[str, dict[str, int]]] = {g: {} for g in groups(table)}
    for row in counted:
        source = "\N{EN DASH}" if row["source"] is None else row["source"]
        counts = found[row["group"]].setdefault(source, dict.fromkeys(DECISIONS, 0))
        counts[row["decision"]] = counts.get(row["decision"], 0) + row["count_all"]
    return {g: dict(sorted(s.items(), key=lambda kv: (-sum(kv[1].values()), kv[0]))) for g, s in found.items()}
