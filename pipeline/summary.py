"""The numbers of a run, read from its tables: what came in, what dropped out and why, what was selected.

Everything here is counted by ``clip_id``, never by position. A number that cannot be had is None, never NaN. Tables
that do not exist yet leave their part of the summary empty; rows that contradict one another are in ``problems``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import stores, tables

DECISIONS = ("selected", "neutral", "harmful")
PENDING, OUTDATED = "pending", "outdated"
EXAMPLES = 20  # failed clips listed for each stage and code


@dataclass(frozen=True)
class Stage:
    """``entered`` clips went in; ``left`` came out; the others dropped out, counted by the reason's code."""

    name: str
    entered: int
    dropped: dict[str, int]
    left: int
    still: int = 0  # of those that left: clips without motion that keep their unmasked feature

    @property
    def adds_up(self) -> bool:
        return self.entered == self.left + sum(self.dropped.values())


@dataclass(frozen=True)
class Failure:
    stage: str
    code: str
    clip_id: str
    uri: str
    sentence: str


@dataclass
class Funnel:
    stages: list[Stage] = field(default_factory=list)
    remaining: frozenset[str] = frozenset()  # ids that came out of the last stage
    failures: dict[tuple[str, str], list[Failure]] = field(default_factory=dict)  # examples by stage and code
    problems: list[str] = field(default_factory=list)


# --- the funnel ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    version: str | None
    error: str | None

    @property
    def code(self) -> str | None:
        return None if self.error is None else self.error.split(":")[0]


def _rows(root: str, *names: str) -> dict[str, _Row] | None:
    table = tables.read(stores.join(root, *names), ["clip_id", "version", "error"])
    if table is None:
        return None
    columns = (table.column(c).to_pylist() for c in ("clip_id", "version", "error"))
    return {clip_id: _Row(version, error) for clip_id, version, error in zip(*columns, strict=True)}


def funnel(root: str, kind: str = "clips") -> Funnel:
    """Count a run's clips (or ``kind="queries"``) through index, motion and features, as far as tables exist.

    A clip that a stage has no row for is "pending"; one whose row is of another version of the video is "outdated".
    """
    found = Funnel()
    index = _rows(root, kind)
    if index is None:
        return found
    entered = frozenset(index)
    motion, features = _rows(root, "motion", kind), _rows(root, "features", kind)
    entered = _through(found, "index", entered, index, index, frozenset())
    still: frozenset[str] = frozenset()
    if motion is not None:
        if features is not None:
            results = {i for i, row in features.items() if row.error is None}
            still = frozenset(i for i in entered & results if i in motion and motion[i].code == "no_motion")
        entered = _through(found, "motion", entered, motion, index, still)
    if features is not None:
        entered = _through(found, "features", entered, features, index, frozenset())
    found.remaining = entered
    _find_uris(found, root, kind)
    return found


def _through(
    found: Funnel,
    name: str,
    entered: frozenset[str],
    rows: Mapping[str, _Row],
    index: Mapping[str, _Row],
    still: frozenset[str],
) -> frozenset[str]:
    """Count one stage, note what failed there, and return the ids that go on."""
    dropped: Counter[str] = Counter()
    left = set(still)
    for clip_id in sorted(entered - still):
        row = rows.get(clip_id)
        if row is not None and row.version == index[clip_id].version and row.error is None:
            left.add(clip_id)
            continue
        code = PENDING if row is None else OUTDATED if row.version != index[clip_id].version else str(row.code)
        dropped[code] += 1
        examples = found.failures.setdefault((name, code), [])
        if row is not None and row.error is not None and len(examples) < EXAMPLES:
            examples.append(Failure(name, code, clip_id, "", row.error.partition(":")[2].strip() or row.error))
    strays = sorted(i for i, row in rows.items() if row.error is None and i not in entered)
    if strays:
        found.problems.append(
            f"{name}: {len(strays)} rows with results are of clips that never entered this stage, such as {strays[0]}."
        )
    stage = Stage(name, len(entered), dict(sorted(dropped.items())), len(left), len(still))
    found.stages.append(stage)
    if not stage.adds_up:
        found.problems.append(f"{name}: {stage.entered} entered, but {stage.left} left and {stage.dropped} dropped.")
    return frozenset(left)


def _find_uris(found: Funnel, root: str, kind: str) -> None:
    wanted = {f.clip_id for examples in found.failures.values() for f in examples}
    uris = {row["clip_id"]: row["uri"] or "" for row in by_id(root, kind, wanted, ["clip_id", "uri"]).values()}
    for key, examples in found.failures.items():
        found.failures[key] = [Failure(f.stage, f.code, f.clip_id, uris[f.clip_id], f.sentence) for f in examples]


def by_id(root: str, name: str, ids: Iterable[str], columns: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """The rows of a table with these ids, as dictionaries."""
    table = tables.read(stores.join(root, name), columns)
    wanted = sorted(set(ids))
    if table is None or not wanted:
        return {}
    rows = table.filter(pc.is_in(table.column("clip_id"), pa.array(wanted, pa.string()))).to_pylist()
    return {row["clip_id"]: row for row in rows}


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


def decided(table: pa.Table | None, ranked: frozenset[str]) -> tuple[dict[str, int], list[str]]:
    """How the clips with features were decided upon for group "all", and what does not fit together."""
    if table is None:
        return {}, []
    rows = of_group(table, "all")
    ids, decisions = rows.column("clip_id").to_pylist(), rows.column("decision").to_pylist()
    counts = Counter(d for i, d in zip(ids, decisions, strict=True) if i in ranked)
    problems = []
    if len(set(ids)) != len(ids):
        problems.append(f"ranking: {len(ids) - len(set(ids))} clips are ranked more than once.")
    strays = sorted(set(ids) - ranked)
    if strays:
        problems.append(f"ranking: {len(strays)} ranked clips have no feature, such as {strays[0]}.")
    unknown = sorted(set(counts) - set(DECISIONS))
    if unknown:
        problems.append(f"ranking: unknown decisions {', '.join(map(str, unknown))}.")
    found = {d: counts.get(d, 0) for d in DECISIONS} | {"not_ranked": len(ranked - set(ids))}
    if sum(found.values()) != len(ranked):
        problems.append(f"ranking: {len(ranked)} clips have features, but the decisions are {sum(found.values())}.")
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
