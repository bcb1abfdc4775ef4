"""Pilots: a few clips, or a few steps, of what a job would do. Those of a plan have a folder of their own; those that
choose pools, for `resources: auto`, write nothing but what they measured."""

from __future__ import annotations

import hashlib
import heapq
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, get_args

import pyarrow as pa

from pipeline.cluster import resources, streaming
from pipeline.cluster.alone import call_alone
from pipeline.cluster.nodes import Nodes
from pipeline.cluster.streaming import Stage
from pipeline.config import Run
from pipeline.config.operations import Measurable, Model, Pool
from pipeline.errors import ConfigError, NothingUsableError, code_of, first_line
from pipeline.inputs.changes import blocks_of
from pipeline.inputs.video_set import VideoSet
from pipeline.operations import index_pilot, pilot, pools, stage_pilot
from pipeline.operations.index_pilot import Report
from pipeline.operations.pools import Chosen, Measure
from pipeline.stages import video_sets
from pipeline.stages.progress import Progress, achieved, duration
from pipeline.storage import stores
from pipeline.tables import throughput

AT_A_TIME = 10  # clips that an actor of the pilot is handed
TRAINED = 8  # clips whose latents the steps of fine-tuning draw from
PILOT_CPUS = 4  # of an actor on a GPU whose stage is measured
REASONS = 3  # of clips that fail, which a message repeats
# The stage of `stats/` that shows what a pool achieved; of several, those that the job ran.
TITLES: dict[str, tuple[str, ...]] = {
    "index_clips": ("index clips",),
    "estimate_motion": ("motion clips",),
    "extract_features": ("attribute clips", "features clips"),
    "evaluate": ("evaluate",),
}


def training_pilot(run: Run, folder: str, clips: pa.Table) -> None:
    """Time a few steps of fine-tuning on some of these clips and of generating a video: rows of `folder`/pilot."""
    alone = run.resources.finetune.model_copy(update={"actors": 1})
    pilot_of(run, folder, clips.slice(0, TRAINED), alone, pilot.TrainingPilot, "pilot, fine-tuning", ("pilot",))


def pilot_of(
    run: Run, folder: str, rows: pa.Table, pool: Pool, worker: Any, title: str, names: tuple[str, ...]
) -> None:
    """Send rows through a pilot, into tables below a folder of its own."""
    stage = Stage(
        title=title,
        root=folder,
        pool=pool.model_copy(update={"batch": AT_A_TIME}),
        worker=partial(worker, run.model_copy(update={"root": folder})),
        folders={name: stores.join(folder, name) for name in names},
        fingerprints={name: {} for name in names},
    )
    figures = streaming.stream(stage, [rows], rows.num_rows, Progress(title))
    achieved(title, figures)


def drawn(asked: VideoSet, count: int, seed: int) -> tuple[pa.Table, int]:
    """So many of a set's videos, by a hash of their path: at random, and the same ones every time. Also how many the
    set has. Raises InputError."""

    def place(relative: str) -> bytes:
        return hashlib.blake2b(f"pilot {seed} {relative}".encode(), digest_size=8).digest()

    schema, blocks = blocks_of(asked)
    first, whole = schema.empty_table(), 0
    for block in blocks:
        whole += block.num_rows
        rows = pa.concat_tables([first, block])
        places = [place(relative) for relative in rows.column("relative").to_pylist()]
        first = rows.take(pa.array(heapq.nsmallest(count, range(len(places)), key=places.__getitem__), pa.int64()))
    return first, whole


def print_table(rows: list[list[str]]) -> None:
    """The first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("  " + "  ".join(cells).rstrip())


# --- resources: auto -------------------------------------------------------------------------------------------------


class NodeRecord(Model):
    """`cluster.nodes.Nodes`; memory in GB, null where Ray counts none."""

    cpus: float
    gpus: float
    count: int
    memory: float | None

    def nodes(self) -> Nodes:
        return Nodes(self.cpus, self.gpus, self.count, math.inf if self.memory is None else self.memory)


class Record(Model):
    """ROOT/resources/pilot.json: what a pilot measured of a run's stages, and what was chosen for which nodes."""

    key: str  # of what the measurements depend on in the configuration
    nodes: tuple[NodeRecord, ...]
    videos: int
    segments: float  # of a video, on average
    measures: dict[str, Measure]
    chosen: dict[str, Chosen]


def with_pools(run: Run, stages: Sequence[str]) -> Run:
    """The run with a pool for each of these stages whose pool is `auto`; the run itself where none is.

    A pilot measures what ROOT/resources/pilot.json does not have, on this cluster's nodes. What was chosen stands while
    the nodes are the same; for other nodes it is chosen anew, of the same measurements. Raises UsageError where no
    clip can be measured, or where not one actor has room; nothing is written then.
    """
    asked = [stage for stage in get_args(Measurable) if stage in run.resources.auto and stage in stages]
    if not asked:
        return run
    nodes = resources.with_real_cores(resources.reachable())
    record, before = _record(run), _read(run)
    if before is not None and before.key == record.key:
        fitting = {s: m for s, m in before.measures.items() if _is_of(s, m, nodes)}
        record = before.model_copy(update={"measures": fitting})
    lacking = [stage for stage in asked if stage not in record.measures]
    if lacking:
        resources.check(run, stages)  # what is asked for by hand, before a pilot of minutes
        record = _measured(run, record, lacking, nodes)
    old_nodes = [one.nodes() for one in record.nodes]
    if lacking or not pools.stands(record.chosen, old_nodes, nodes) or not set(asked) <= set(record.chosen):
        auto: dict[str, Measure] = {stage: m for stage, m in record.measures.items() if stage in run.resources.auto}
        chosen = pools.choose_all(auto, nodes, _rows(run, record))
        record = record.model_copy(update={"nodes": _recorded(nodes), "chosen": chosen})
    result = _with_chosen(run, record.chosen, asked)
    if result != run:
        for stage in asked:
            print(pools.sentence(stage, record.chosen[stage]), flush=True)
    if record != before:
        stores.write_bytes(_path(run), record.model_dump_json(indent=1).encode())
    return result


def _with_chosen(run: Run, chosen: dict[str, Chosen], asked: Sequence[str]) -> Run:
    attribution = run.attribution
    if "extract_features" in asked:
        attribution = attribution.model_copy(update={"hold": chosen["extract_features"].hold})
    changed = run.resources.model_copy(update={stage: chosen[stage].pool for stage in asked})
    return run.model_copy(update={"resources": changed, "attribution": attribution})


def _measured(run: Run, record: Record, stages: list[str], nodes: Sequence[Nodes]) -> Record:
    """The record with measures of these stages, by a pilot on nodes of this cluster."""
    pool = _pilot_pool(nodes)
    on_pool = dict.fromkeys(("estimate_motion", "extract_features", "finetune", "evaluate"), pool)
    light = Pool(memory=None)
    run = run.model_copy(update={"resources": run.resources.model_copy(update={**on_pool, "index_clips": light})})
    resources.check(run, ["index_clips", "extract_features"])
    first, whole = drawn(video_sets.asked(run, "clips"), run.resources.pilot, run.seed)
    videos = first.to_pylist()
    print(f"resources: auto: a pilot of {len(videos)} videos measures {', '.join(stages)}", flush=True)
    report, seconds = _asked("index_clips", partial(index_pilot.index_videos, run, videos), light)
    if not report.clips:
        raise NothingUsableError(_all_failed(run, len(videos), report.problems))
    measures, clips = dict(report.measures), report.clips
    if {"estimate_motion", "extract_features"} & set(stages):
        features = "extract_features" in stages
        more, took = _asked("extract_features", partial(stage_pilot.attribute_clips, run, clips, features), pool)
        seconds += took
        if not set(stages) & {"estimate_motion", "extract_features"} <= set(more.measures):
            raise NothingUsableError(_all_failed(run, len(clips), more.problems))
        measures |= more.measures
    training = [stage for stage in ("finetune", "evaluate") if stage in stages]
    if training:
        call = partial(stage_pilot.train_and_generate, run, clips[:TRAINED], training)
        more, took = _asked(training[0], call, pool)
        seconds += took
        if not set(training) <= set(more.measures):
            raise ConfigError(
                f"resources.{training[0]}: auto: {'; '.join(more.problems)}. Take larger nodes, finetune.lora_rank, a "
                "smaller finetune.batch, or a smaller geometry or model."
            )
        measures |= more.measures
    print(f"resources: auto: the pilot took {duration(seconds)}", flush=True)
    values = {"videos": whole, "segments": report.segments, "measures": {**record.measures, **measures}}
    return record.model_copy(update=values)


def _asked(stage: str, call: Callable[[], Report], pool: Pool) -> tuple[Report, float]:
    """A pilot's report from a process of its own, and its seconds. What was not the pilot itself, the start of its
    process, counts as loading."""
    report, seconds = call_alone(f"resources.{stage}: auto", call, pool)
    start = max(0.0, seconds - report.seconds)
    measures = {s: m.model_copy(update={"load": m.load + start}) for s, m in report.measures.items()}
    return Report(measures, report.seconds, report.clips, report.segments, report.problems), seconds


def _pilot_pool(nodes: Sequence[Nodes]) -> Pool:
    """One actor: with a GPU where the cluster has any."""
    with_gpu = [n for n in nodes if n.gpus >= 1]
    if not with_gpu:
        return Pool()
    cpus = max(n.cpus // n.gpus for n in with_gpu)
    return Pool(gpus=1, cpus=max(1.0, min(cpus, PILOT_CPUS)))


def _is_of(stage: str, measure: Measure, nodes: Sequence[Nodes]) -> bool:
    """Whether a measure is of the kind of device that the cluster has for its stage."""
    return stage == "index_clips" or (measure.gpu_total > 0) == any(n.gpus >= 1 for n in nodes)


def _all_failed(run: Run, count: int, problems: list[str]) -> str:
    reasons = "; ".join(dict.fromkeys(problems))
    memory = all(code_of(problem) == "memory" for problem in problems)
    remedy = (
        "Take larger nodes, a smaller geometry (attribution.height, width and frames) or model, or "
        "model.gradient_checkpointing: true."
        if memory
        else "Run index_clips with pools given by hand to see all of them, or raise resources.pilot."
    )
    listed = reasons if len(set(problems)) <= REASONS else f"{'; '.join(list(dict.fromkeys(problems))[:REASONS])}; ..."
    return (
        f"resources: auto: none of the pilot's {count} clips of data.videos={run.data.videos!r} could be measured "
        f"({listed}). {remedy}"
    )


def _rows(run: Run, record: Record) -> dict[str, float]:
    """How many rows each stage has, by what the pilot saw of the videos."""
    e, clips = run.evaluate, max(1.0, record.videos * record.segments)
    arms = len([arm for arm in dict.fromkeys([run.finetune.arm, *e.arms]) if arm != "base"])
    return {
        "index_clips": max(1, record.videos),
        "estimate_motion": clips if run.motion.of == "all" else max(1.0, min(clips, run.motion.sample)),
        "extract_features": clips,
        "finetune": max(1, arms * run.finetune.steps),
        "evaluate": max(1, len(e.arms) * e.generate * len(e.seeds)),
    }


def _record(run: Run) -> Record:
    """A record of nothing yet."""
    sections: dict[str, set[str] | bool] = {
        "data": {"frames", "fps", "height", "width"},
        "model": True,
        "motion": True,
        "finetune": {"batch", "accumulate", "lora_rank", "frozen_weights", "expert", "sharding"},
        "evaluate": {"steps", "guidance"},
    }
    parts = run.model_dump(mode="json", include=sections, exclude_defaults=True)  # a new key measures nothing anew
    # hold is chosen, and each night's own weights take as long as the last's
    parts["attribution"] = run.attribution.model_dump(mode="json", exclude={"hold", "weights"}, exclude_defaults=True)
    key = hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()
    return Record(key=key, nodes=(), videos=0, segments=0.0, measures={}, chosen={})


def _recorded(nodes: Sequence[Nodes]) -> tuple[NodeRecord, ...]:
    return tuple(
        NodeRecord(cpus=n.cpus, gpus=n.gpus, count=n.count, memory=None if math.isinf(n.memory) else n.memory)
        for n in nodes
    )


def _path(run: Run) -> str:
    return stores.join(run.root, "resources", "pilot.json")


def _read(run: Run) -> Record | None:
    """What an earlier job of this run measured and chose. Raises ConfigError for a file that is none of ours."""
    if not stores.exists(_path(run)):
        return None
    try:
        return Record.model_validate_json(stores.read_bytes(_path(run)))
    except ValueError as error:
        raise ConfigError(
            f"{_path(run)}: this is no record of a pilot ({first_line(error)}). Delete it, and the pilot runs again."
        ) from error


def compare(run: Run) -> None:
    """One line: how busy the actors of each stage were, and what a row took them, against what the pilot led to
    expect."""
    record = _read(run) if run.resources.auto else None
    if record is None:
        return
    figures, parts = throughput.sums(run.root), []
    for stage, chosen in record.chosen.items():
        for title in TITLES.get(stage, ()):
            one = figures.get(title)
            if one is None or not one.rows or one.busy_share is None:
                continue
            seconds = one.busy_seconds / one.rows
            parts.append(
                f"{title} {one.busy_share:.0%} busy of {chosen.busy:.0%}, {seconds:.3g} s a row of {chosen.seconds:.3g}"
            )
    if parts:
        print(f"resources, as it was of what was planned: {'; '.join(parts)}")
