"""The judge (`motion/judge.py`) over the videos that the arms of a run generated: table comparison/motion/."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.cluster import streaming
from pipeline.cluster.streaming import Stage
from pipeline.config import Run
from pipeline.errors import MissingTableError
from pipeline.evaluation import comparison, contests, movement
from pipeline.evaluation.movement import ASKED, QUERY, VIDEO, DescriptionWorker
from pipeline.motion import judge
from pipeline.stages.progress import Progress, achieved
from pipeline.storage import stores
from pipeline.storage.stores import join
from pipeline.tables.figures import query_groups

log = logging.getLogger(__name__)


def distances(run: Run, evaluation: pa.Table) -> dict[str, dict[contests.Key, float]]:
    """Every arm's generated videos by their distance from the queries of their caption's group."""
    by_arm: dict[str, dict[contests.Key, float]] = {arm: {} for arm in dict.fromkeys(run.evaluate.arms)}
    tasks = _asked(run, evaluation)
    if not any(row["kind"] == VIDEO for row in tasks):
        return by_arm
    rows = _described(run, tasks)
    _refuse({r["uri"]: r["problem"] for r in rows if r["kind"] == VIDEO and r["problem"] is not None}, run)
    groups = query_groups(run.root)
    good = [row for row in rows if row["problem"] is None]
    examples = [(groups[row["clip_id"]], row["description"]) for row in good if row["kind"] == QUERY]
    unused = sum(row["kind"] == QUERY for row in rows) - len(examples)
    if unused:
        log.warning("the judge could not use %d queries; comparison/motion/ says why", unused)
    if not examples:
        log.warning("the judge has no query that it could compare videos with: generated videos are not judged")
        return by_arm
    taught = judge.taught(examples)
    for row in good:
        if row["kind"] == VIDEO and groups[row["clip_id"]] in taught.queries:
            distance = taught.distance(groups[row["clip_id"]], np.array(row["description"]))
            by_arm[row["arm"]][row["clip_id"], row["seed"]] = distance
    return by_arm


def _asked(run: Run, evaluation: pa.Table) -> list[dict[str, Any]]:
    """The queries and the arms' videos, a row each."""
    table = tables.read(join(run.root, "queries"))
    queries = [] if table is None else table.to_pylist()
    rows = [{"kind": QUERY, "arm": "", "seed": 0, **row} for row in queries if row["error"] is None]
    query_ids = {row["clip_id"] for row in queries}
    generated = [row for row in evaluation.to_pylist() if not comparison.is_held_out(row["metric"])]
    gone = {row["clip_id"] for row in generated} - query_ids
    if gone:
        log.warning("videos of %d captions are not judged: queries/ no longer has them", len(gone))
    once = {(row["arm"], row["clip_id"], row["seed"]): row for row in generated if row["clip_id"] in query_ids}
    rows += [{**row, "kind": VIDEO, "start_frame": 0} for row in once.values()]
    return [{name: row[name] for name in ASKED.names} for row in rows]


def _described(run: Run, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of comparison/motion/ for these; what it lacks, or could not read the last time, is computed."""
    folder, fingerprint = join(run.root, "comparison", "motion"), movement.fingerprint(run)
    tables.check(folder, fingerprint)
    tables.drop_where(folder, lambda rows: pc.is_valid(rows.column("problem")), ["problem"])
    existing_rows = tables.read(folder, ["arm", "clip_id", "seed", "version"])
    existing_keys = {tuple(row.values()) for row in ([] if existing_rows is None else existing_rows.to_pylist())}
    missing = [r for r in tasks if (r["arm"], r["clip_id"], r["seed"], r["version"]) not in existing_keys]
    stage = Stage(
        title="judge",
        root=run.root,
        pool=run.resources.evaluate,
        worker=partial(DescriptionWorker, run),
        folders={"motion": folder},
        fingerprints={"motion": fingerprint},
    )
    table = pa.Table.from_pylist(missing, schema=ASKED)
    figures = streaming.stream(stage, [table], len(missing), Progress(stage.title))
    achieved(stage.title, figures)
    rows = tables.read(folder)
    assert rows is not None, "it has just been written"
    task_keys = {(r["arm"], r["clip_id"], r["seed"], r["version"]) for r in tasks}
    return [r for r in rows.to_pylist() if (r["arm"], r["clip_id"], r["seed"], r["version"]) in task_keys]


# --- videos that are not there ---------------------------------------------------------------------------------------


def check_files(run: Run) -> None:
    """Raise MissingTableError where a generated video that evaluation/ has figures of is gone."""
    table = tables.read(join(run.root, "evaluation"), ["arm", "uri", "metric"])
    rows = [] if table is None else table.to_pylist()
    uris = {row["uri"] for row in rows if not comparison.is_held_out(row["metric"]) and row["arm"] in run.evaluate.arms}
    _refuse({uri: "it is not there" for uri in uris if not stores.exists(uri)}, run)


def _refuse(problems: dict[str, str], run: Run) -> None:
    if problems:
        uri, why = min(problems.items())
        raise MissingTableError(
            f"generated/: {len(problems)} of the arms' videos cannot be compared, such as {uri}: {why}. Put back what "
            f"the arm generated; or delete {join(run.root, 'evaluation')}, and the same command makes all videos and "
            "losses again. The fine-tuned models are kept either way."
        )
