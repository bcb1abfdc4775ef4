"""Fine-tune the base model on one arm's clips (`finetune.arm`) with Ray Train: finetuned/ARM/."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextvars import copy_context
from functools import partial
from threading import Lock, Thread

import pyarrow as pa

from pipeline import models, tables
from pipeline.attribution import fingerprints
from pipeline.cluster import checkpoints, resources, streaming, training
from pipeline.config import LITTLE_NOISE, TIMED, Arm, Finetune, Run
from pipeline.errors import ConfigError
from pipeline.operations import tracking
from pipeline.ranking import partitions
from pipeline.stages import attribution, budget, pilots, run_record
from pipeline.stages.progress import Progress, duration
from pipeline.storage import stores
from pipeline.training import arms, time_bands


def with_arm(run: Run, arm: Arm) -> Run:
    return run.model_copy(update={"finetune": run.finetune.model_copy(update={"arm": arm})})


def finetune_arms(run: Run, named: Iterable[Arm]) -> None:
    """Fine-tune these arms, each once, as many at a time as the nodes that are up have room for.

    What an arm becomes does not depend on those trained beside it. Where one fails, those that have begun go on to
    their end, and then its error is raised. Followed by a tracking server, which knows one training of a process at a
    time, arms are trained one after the other.
    """
    streaming.connect()
    run = pilots.with_pools(run, ["finetune"])
    runs = [with_arm(run, arm) for arm in dict.fromkeys(named)]
    workers = run.finetune.workers
    most = resources.room(run.resources.finetune) // workers if run.tracking.kind == "none" else 1
    if most < 2 or len(runs) < 2:
        for one in runs:
            finetune(one)
        return
    _each_in_a_thread([partial(finetune, one) for one in runs], most)


def _each_in_a_thread(calls: Sequence[Callable[[], None]], most: int) -> None:
    """Make the calls in their order, at most so many at a time; after a failure no other one is begun.

    The threads do not hold up the process's end, so that Ctrl-C stops them all.
    """
    waiting, failures, lock = deque(calls), list[BaseException](), Lock()

    def work() -> None:
        while True:
            with lock:
                if failures or not waiting:
                    return
                call = waiting.popleft()
            try:
                call()
            except BaseException as error:  # it is raised in the thread that waits
                failures.append(error)

    threads = [Thread(target=copy_context().run, args=(work,), daemon=True) for _ in range(min(most, len(calls)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def finetune(run: Run) -> None:
    arm = run.finetune.arm
    partitions.check(run)
    rows = arms.training_set(run)
    if rows is None:
        print("finetuned/base: the base model as it is, nothing to train")
        return
    attribution.check(run, "finetune")
    check_shares(run)
    tracking.check(run)
    partitions.copy_queries(run)
    streaming.connect()
    run = pilots.with_pools(run, ["finetune"])
    run_record.record(run)
    resources.check(run, ["finetune"])
    spending = budget.spending(run.budget)
    with spending.holding(f"finetune {arm}", run.resources.finetune, run.finetune.workers):
        folder = _followed(run, rows)
    arms.write_curated(stores.join(folder, "curated"), rows)
    if arm in TIMED:
        _write_times(run, stores.join(folder, "times"), rows)
    print(f"finetuned/{arm}: {run.finetune.steps} steps on {rows.num_rows} clips{_waited(folder)}, in {folder}")


def check_shares(run: Run) -> None:
    """Raise ConfigError where sharded workers that go on after a loss would wait for each other for good."""
    f = run.finetune
    if f.sharding != "fsdp" or f.min_workers in (None, f.workers):
        return
    family = models.family(run.model)
    if family.clip_by_clip:
        raise ConfigError(
            f"finetune.min_workers={f.min_workers}: {family.name} computes clip by clip, so that sharded workers need "
            "equally many clips, and fewer workers would not have them. Leave finetune.min_workers out: training then "
            "waits until all of its workers are there again."
        )


def _waited(folder: str) -> str:
    """For how much of its steps' time an arm waited for its clips; nothing where its metrics do not say."""
    path = stores.join(folder, checkpoints.METRICS)
    lines = stores.read_bytes(path).splitlines() if stores.exists(path) else []
    steps = [json.loads(line) for line in lines]
    seconds = sum(step["seconds"] for step in steps)
    if not seconds or not all("waited" in step for step in steps):
        return ""
    return f", {sum(step['waited'] for step in steps) / seconds:.1%} of the time waiting for them"


def _write_times(run: Run, folder: str, rows: pa.Table) -> None:
    table = time_bands.times_table(rows)
    tables.replace(folder, table, fingerprints.features(run.of("clips")))
    without = 0 if run.finetune.arm in LITTLE_NOISE else rows.column(time_bands.SCORES).null_count
    others = f"; {without} of {rows.num_rows} clips have no influence and train at all times alike" if without else ""
    print(f"finetuned/{run.finetune.arm}: how often each clip is drawn in each band of times is in {folder}{others}")


def _followed(run: Run, rows: pa.Table) -> str:
    """Fine-tune, showing progress here and, where one is configured, on a tracking server."""
    config = run.finetune
    line = Progress(f"finetune {config.arm}", "step")
    metrics = stores.join(run.root, "finetuned", config.arm, checkpoints.METRICS)
    version = "" if run.tracking.kind == "none" else training.version(run, rows)
    begun = False
    with tracking.opened(run, config.arm, version) as tracked:
        if tracked is not None:
            print(f"finetuned/{config.arm}: tracked at {tracked.url}")

        def report(done: int, total: int, errors: dict[str, int]) -> None:
            nonlocal begun
            if not begun:  # an arm that is finished already never comes here
                print(_promise(config), flush=True)
                begun = True
            line(done, total, errors)
            tracking.follow(tracked, metrics)

        folder = training.finetune(run, rows, report=report)
        tracking.follow(tracked, metrics)
    return folder


def _promise(config: Finetune) -> str:
    return (
        f"finetuned/{config.arm}: if a worker is lost, {config.min_workers or config.workers} or more go on; at most "
        f"{config.checkpoint_every} steps or {duration(config.checkpoint_seconds)} of work are done again, and "
        "what it takes to write a checkpoint"
    )
