"""Hold the fine-tuned arms against the base: held-out losses and generated videos, table evaluation/."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import models, tables
from pipeline.attribution import fingerprints
from pipeline.cluster import resources, streaming, training
from pipeline.cluster.streaming import Stage
from pipeline.config import Arm, Run
from pipeline.errors import MissingTableError
from pipeline.evaluation.comparison import comparison
from pipeline.evaluation.held_out import (
    TASKS,
    EvaluationWorker,
    Trained,
    held_out_tasks,
    lacking,
    prompt_file,
    video_tasks,
)
from pipeline.operations import tracking
from pipeline.stages import attribution, budget, indexing, pilots, run_record, video_sets
from pipeline.stages.progress import Progress, achieved
from pipeline.storage import stores
from pipeline.tables import merging
from pipeline.training.training_set import cache_folder


def evaluate(run: Run) -> None:
    held_out = ("held_out",) if run.evaluate.videos else ()
    attribution.check(run, "evaluate", ("queries", *held_out))
    tracking.check(run)
    folder = stores.join(run.root, "evaluation")
    tables.check(folder, fingerprints.evaluation(run))
    arms = [trained(run, arm) for arm in run.evaluate.arms]
    stages = [*(["index_clips", "estimate_motion"] if run.evaluate.videos else []), "evaluate"]
    streaming.connect()
    run = pilots.with_pools(run, stages)
    run_record.record(run)
    resources.check(run, stages)
    merging.merge(folder)
    tasks: list[dict[str, Any]] = []
    if run.evaluate.videos:
        indexing.index(run, "held_out")
        video_sets.check_disjoint(run)
        attribution.estimate_motion(run, "held_out")
        moving = tables.read(stores.join(run.root, "motion", "held_out"))
        tasks += held_out_tasks(arms, moving.to_pylist() if moving else [], run.evaluate.twins)
    queries = tables.read(stores.join(run.root, "queries"))
    if queries is not None and run.evaluate.generate:
        of_image, e = models.family(run.model).image, run.evaluate
        tasks += video_tasks(arms, queries.to_pylist(), e.generate, e.seeds, of_image=of_image)
        stores.write_bytes(stores.join(run.root, "generated", "prompts.json"), prompt_file(tasks, run.root))
    measure(run, tasks, folder)
    left = len(pending_tasks(tasks, folder))
    if left:
        run_record.note_retry(f"evaluation/ has no values of {left} clips and videos, which are tried again")
    done = tables.read(folder)
    if done is None:
        print(
            "evaluation: no values, because no held-out clip moves (evaluate.videos), and no video is to be generated "
            "(evaluate.generate) or no query has a caption for it"
        )
        return
    tracking.evaluated(run, {arm.arm: arm.version for arm in arms}, comparison(done))
    print(f"evaluation: {done.num_rows} values of {pc.count_distinct(done.column('arm')).as_py()} arms")


def measure(run: Run, tasks: list[dict[str, Any]], folder: str) -> None:
    """Work those tasks that a table like evaluation/ has no rows of."""
    missing = pending_tasks(tasks, folder)
    cache = cache_folder(run.root, run, models.weights_hash(run.model), run.geometry)
    stage = Stage(
        title="evaluate",
        root=run.root,
        pool=run.resources.evaluate,
        worker=partial(EvaluationWorker, run, cache),
        folders={"evaluation": folder},
        fingerprints={"evaluation": fingerprints.evaluation(run)},
    )
    figures = streaming.stream(
        stage,
        [pa.Table.from_pylist(missing, schema=TASKS)],
        len(missing),
        Progress(stage.title),
        checkpoint=budget.spending(run.budget).checkpoint(stage.title, stage.pool),
    )
    achieved(stage.title, figures)


def trained(run: Run, arm: Arm) -> Trained:
    """Which training of an arm there is to evaluate. Raises MissingTableError where there is none."""
    if arm == "base":
        return Trained("base", "base", "")
    version = training.finished(run, arm)
    if version is None:
        raise MissingTableError(
            f"evaluate.arms={arm!r}: {stores.join(run.root, 'finetuned', arm)} holds no finished model; run "
            f"`python -m jobs.finetune --set finetune.arm={arm}` with this configuration first, or leave the arm out."
        )
    return Trained(arm, version, stores.join(run.root, "finetuned", arm))


def pending_tasks(tasks: list[dict[str, Any]], folder: str) -> list[dict[str, Any]]:
    """What the tasks ask for and no row of the present version has. Rows of earlier trainings of an arm are dropped,
    and those of a clip or prompt as it was before."""
    table = tables.read(folder)
    if table is None:
        return tasks
    contents: dict[str, set[str]] = defaultdict(set)
    for task in tasks:
        contents[task["clip_id"]].add(task["content"])
    done: dict[tuple[str, str, int, str], set[str]] = defaultdict(set)
    changed = set[str]()
    for row in table.to_pylist():
        content = row.get("content")  # rows of earlier versions have none, and stand
        if content is not None and content not in contents.get(row["clip_id"], {content}):
            changed.add(content)
        else:
            done[row["arm"], row["clip_id"], row["seed"], row["version"]].add(row["metric"])
    now = {t["arm"]: t["version"] for t in tasks}
    stale = [arm for arm, version in {(d[0], d[3]) for d in done} if now.get(arm, version) != version]

    def gives_way(rows: pa.Table) -> pa.Array:
        of_training = pc.is_in(rows.column("arm"), pa.array(stale, pa.string()))
        if "content" not in rows.column_names:
            return of_training
        return pc.or_(of_training, pc.is_in(rows.column("content"), pa.array(sorted(changed), pa.string())))

    tables.drop_where(folder, gives_way, ["arm", "content"])
    missing = []
    for task in tasks:
        metrics = done.get((task["arm"], task["clip_id"], task["seed"], task["version"]), set())
        rest = lacking(task, set() if task["arm"] in stale else metrics)
        if rest is not None:
            missing.append(rest)
    return missing
