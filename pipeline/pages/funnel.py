"""Where every clip of a run went: through index, motion and features, with a shortlist through both settings.

Clips are counted by 128 bits of a hash of their id, some 30 bytes a clip and table: a run of millions has a page, too.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.config import Run
from pipeline.errors import code_of
from pipeline.ranking import shortlist
from pipeline.storage.stores import join
from pipeline.tables import IdSet, Outcomes, figures, scanning

Flags = npt.NDArray[np.bool_]

PENDING, OUTDATED, LEFT_OUT = "pending", "outdated", "not_shortlisted"
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
    clips: IdSet = field(default_factory=lambda: IdSet.of([]))  # of the index
    remaining: IdSet = field(default_factory=lambda: IdSet.of([]))  # of the clips that came out of the last stage
    failures: dict[tuple[str, str], list[Failure]] = field(default_factory=dict)  # examples by stage and code
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Step:
    """A stage's table, and that of the features which a clip without motion may have all the same."""

    name: str
    folder: str
    features: str | None = None


def funnel(run: Run, kind: str = "clips") -> Funnel:
    """Count a run's clips (or ``kind="queries"``) through index, motion and features, as far as tables exist.

    A clip that a stage has no row for is "pending"; one whose row is of another version of the video is "outdated".
    With a shortlist there are "cheaper_motion" and "cheaper_features" of every clip, and "shortlist", which hands on
    the clips that are on it, and those that an earlier one had the full setting computed for.
    """
    result, folder = Funnel(), join(run.root, kind)
    if not tables.parts(folder):
        return result
    index = Outcomes(folder)
    result.clips = index.ids
    remaining = _through(result, _Step("index", folder), index, np.ones(len(index), bool), index)
    for step in _steps(run, kind):
        if not tables.parts(step.folder):
            continue
        if step.name == "shortlist":
            remaining = _chosen(result, run, index, remaining)
            continue
        outcomes = Outcomes(step.folder)
        remaining = _through(result, step, index, remaining, outcomes, _still(step, index, remaining, outcomes))
    result.remaining = index.ids.subset(remaining)
    _find_uris(result, run.root, kind)
    return result


def _steps(run: Run, kind: str) -> list[_Step]:
    def of(name: str, root: str, home: str) -> list[_Step]:
        """Motion of one root, features of another."""
        features = join(home, "features", kind)
        return [_Step(f"{name}motion", join(root, "motion", kind), features), _Step(f"{name}features", features)]

    full, cheaper = of("", run.root, run.root), shortlist.variant(run)
    if run.motion.of == "queries" and kind == "clips":  # of a sample, and nothing depends on it
        return full[1:]
    if cheaper is None:
        return full
    root = shortlist.motion_root(run)
    first = of("cheaper_", root, cheaper.root)
    if root == run.root:
        first, full = [replace(first[0], name="motion"), first[1]], full[1:]
    choice = [_Step("shortlist", join(cheaper.root, "chosen"))] if kind == "clips" else []
    return [*first, *choice, *full]


def _still(step: _Step, index: Outcomes, entered: Flags, motion: Outcomes) -> Flags:
    """Clips without motion that have a feature all the same."""
    still = np.zeros(len(index), bool)
    if step.features is None or not tables.parts(step.features):
        return still
    features = Outcomes(step.features)
    at, after = motion.ids.find_set(index.ids), features.ids.find_set(index.ids)
    both = entered & (at >= 0) & (after >= 0)
    still[both] = (motion.codes[at[both]] == _code(motion, "no_motion")) & (features.codes[after[both]] == 0)
    return still


def _code(outcomes: Outcomes, name: str) -> int:
    return outcomes.names.index(name) if name in outcomes.names else -1


def _through(
    result: Funnel, step: _Step, index: Outcomes, entered: Flags, outcomes: Outcomes, still: Flags | None = None
) -> Flags:
    """Count one stage, note what failed there, and return which clips go on."""
    still = np.zeros(len(index), bool) if still is None else still
    at = outcomes.ids.find_set(index.ids)
    has_row = at >= 0
    current = has_row.copy()
    current[has_row] = outcomes.versions[at[has_row]] == index.versions[has_row]
    codes = np.where(has_row, outcomes.codes[at], 0) if len(outcomes) else np.zeros(len(index), np.uint8)
    remaining: Flags = entered & ((current & (codes == 0)) | still)
    lost = entered & ~remaining
    failed = lost & current
    counts = {PENDING: int((lost & ~has_row).sum()), OUTDATED: int((lost & has_row & ~current).sum())}
    counts |= {name: int((failed & (codes == i)).sum()) for i, name in enumerate(outcomes.names) if i}
    dropped = dict(sorted((name, count) for name, count in counts.items() if count))
    result.failures |= {(step.name, code): [] for code in dropped}
    if failed.any():
        _note(result, step, outcomes, index.ids.subset(failed))
    _count(result, Stage(step.name, int(entered.sum()), dropped, int(remaining.sum()), int(still.sum())))
    _strays(result, step, index, entered, outcomes)
    return remaining


def _count(result: Funnel, stage: Stage) -> None:
    result.stages.append(stage)
    if not stage.adds_up:
        result.problems.append(
            f"{stage.name}: {stage.entered} entered, but {stage.left} left and {sum(stage.dropped.values())} dropped."
        )


def _strays(result: Funnel, step: _Step, index: Outcomes, entered: Flags, outcomes: Outcomes) -> None:
    """Note the results of clips that never entered this stage."""
    at = index.ids.find_set(outcomes.ids)
    has_entered = at >= 0
    has_entered[has_entered] = entered[at[has_entered]]
    stray = (outcomes.codes == 0) & ~has_entered
    if stray.any():
        strays, first = outcomes.ids.subset(stray), list[str]()
        for rows in scanning.blocks(step.folder, ["clip_id"]):
            ids = rows.column("clip_id")
            here = ids.filter(pa.array(strays.has(ids)))
            first = [min([*first, pc.min(here).as_py()])] if len(here) else first
        result.problems.append(
            f"{step.name}: {len(strays)} rows with results are of clips that never entered this stage, such as "
            f"{first[0]}."
        )


def _chosen(result: Funnel, run: Run, index: Outcomes, entered: Flags) -> Flags:
    """Count the shortlist as a stage, and return which clips go on to the full setting."""
    on = shortlist.chosen(run).has_set(index.ids)
    names = ("features",) if shortlist.motion_root(run) == run.root else ("motion", "features")
    for folder in (join(run.root, name, "clips") for name in names):
        on |= Outcomes(folder).ids.has_set(index.ids)
    remaining: Flags = entered & on
    lost = int((entered & ~on).sum())
    _count(result, Stage("shortlist", int(entered.sum()), {LEFT_OUT: lost} if lost else {}, int(remaining.sum())))
    return remaining


# --- what failed -----------------------------------------------------------------------------------------------------


def _note(result: Funnel, step: _Step, outcomes: Outcomes, failed: IdSet) -> None:
    """The first clips that failed in a stage with each code, by id."""
    sentences: dict[str, dict[str, str]] = {}
    for block in scanning.blocks(step.folder, ["clip_id", "error"]):
        rows = block.filter(pc.is_valid(block.column("error")))
        rows = rows.filter(pa.array(failed.has(rows.column("clip_id"))))
        codes = outcomes.codes[outcomes.ids.find(rows.column("clip_id"))].tolist()
        columns = (rows.column(name).to_pylist() for name in ("clip_id", "error"))
        for clip_id, error, code in zip(*columns, codes, strict=True):
            name = outcomes.names[code]
            if code_of(error) == name:  # a clip may have another row, which does not count
                sentences.setdefault(name, {})[clip_id] = error.partition(":")[2].strip() or error
        sentences = {name: _first(by_id) for name, by_id in sentences.items()}
    for name, by_id in sentences.items():
        result.failures[step.name, name] = [Failure(step.name, name, i, "", why) for i, why in sorted(by_id.items())]


def _first(by_id: Mapping[str, str]) -> dict[str, str]:
    return dict(heapq.nsmallest(EXAMPLES, by_id.items()))


def _find_uris(result: Funnel, root: str, kind: str) -> None:
    clip_ids = {f.clip_id for examples in result.failures.values() for f in examples}
    uris = {i: row["uri"] or "" for i, row in figures.by_id(root, kind, clip_ids, ["clip_id", "uri"]).items()}
    for key, examples in result.failures.items():
        result.failures[key] = [replace(f, uri=uris[f.clip_id]) for f in examples]
