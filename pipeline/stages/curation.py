"""What a curation begins with: queries from prompts or from the clips, their features, the clips' index."""

from __future__ import annotations

import hashlib
import heapq
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pyarrow as pa

from pipeline import models, tables
from pipeline.attribution import fingerprints
from pipeline.cluster import streaming
from pipeline.cluster.streaming import Stage
from pipeline.config import Run
from pipeline.errors import MissingTableError, NothingUsableError
from pipeline.evaluation.generation import GenerationWorker, prompted_queries
from pipeline.ranking.feature_table import under_mask
from pipeline.ranking.selection import query_rows
from pipeline.stages import attribution, indexing, two_stages
from pipeline.stages.progress import Counted, Progress, achieved
from pipeline.storage import stores
from pipeline.tables import IdSet, Outcomes, scanning, schemas

log = logging.getLogger(__name__)

STAGES = ["index_clips", "estimate_motion", "extract_features", "finetune", "evaluate"]


def generate_queries(run: Run) -> None:
    """Turn `queries.prompts` into query videos with the base model; nothing to do where videos are given."""
    if not run.queries.prompts:
        return
    folder = stores.join(run.root, "generated", "queries")
    rows = prompted_queries(run, models.weights_hash(run.model))
    missing = [not stores.exists(stores.join(folder, name)) for name in rows.column("file_name").to_pylist()]
    stage = Stage("generate queries", run.root, run.resources.evaluate, partial(GenerationWorker, run, folder))
    figures = streaming.stream(stage, [rows.filter(pa.array(missing))], sum(missing), Progress(stage.title))
    achieved(stage.title, figures)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.to_pylist())
    stores.write_bytes(stores.join(folder, "metadata.jsonl"), lines.encode())


def attribute_queries(run: Run) -> None:
    """Queries run first: where none of them can be used, the clips are not touched. A sample of the clips can be drawn
    only once they are indexed."""
    if run.queries.source == "sample":
        index_data(run)
        sample_queries(run)
    else:
        generate_queries(run)
        _readable("queries", run.queries.videos, indexing.index(run, "queries"))
    two_stages.queries(run)
    for one, scope in attribution.scopes(run):
        _usable(one, scope.motion)
        if one.queries.unwanted:  # what cannot be ranked is told before the clips are touched
            query_rows(one, scope.index, under_mask(one.root, "queries", one.ranking.mask))


def index_data(run: Run) -> None:
    _readable("data", run.data.videos, indexing.index(run, "clips"))


def _readable(key: str, videos: str | None, counts: Counted) -> None:
    """Raise NothingUsableError where not one segment could be indexed."""
    if sum(counts.errors.values()) == counts.rows:
        why = ", ".join(f"{n} {code}" for code, n in counts.errors.items())
        raise NothingUsableError(
            f"{key}.videos={videos!r}: none of its {counts.rows} videos could be used ({why}); the rows of its table "
            "say why, one by one. Give videos that can be decoded and are long enough for data.frames at data.fps."
        )


def _usable(run: Run, root: str) -> None:
    """Queries that cannot be used, by their motion in `root`, are a warning; NothingUsableError where none is left."""
    motion = tables.read(stores.join(root, "motion", "queries"))
    assert motion is not None, "attribute has just written it"
    featured = bool(tables.parts(stores.join(run.root, "features", "queries")))
    ids = under_mask(run.root, "queries", run.ranking.mask).clip_ids.to_pylist() if featured else []
    unused = sorted(set(motion.column("clip_id").to_pylist()) - set(ids))
    if not ids:
        why = ", ".join(f"{n} {code}" for code, n in tables.errors_by_code(motion).items()) or "no features"
        source = str(run.queries.source)
        raise NothingUsableError(
            f"queries.{source}={getattr(run.queries, source)!r}: none of the {motion.num_rows} queries has any motion "
            f"or could be used ({why}), so there is nothing to rank for. Give queries that move, or lower motion.still."
        )
    if unused:
        log.warning("%d of %d queries cannot be used: %s", len(unused), motion.num_rows, ", ".join(unused[:10]))


# --- provisional queries ---------------------------------------------------------------------------------------------


def sample_queries(run: Run) -> None:
    """Write the table queries/ of `queries.sample` clips: the first moving ones in the order of a hash of seed and id.
    A run that is stopped, another machine and another number of workers draw the same ones.

    It takes the table clips/, and the motion of as many clips as it needs. That motion stays in motion/clips/, where
    the clips' own stage finds it. Raises NothingUsableError where no clip moves.
    """
    assert run.queries.sample is not None
    if not tables.parts(stores.join(run.root, "clips")):
        raise MissingTableError(f"root={run.root!r} has no table clips; run index_clips first, or curate.")
    ids = _first_moving(run, run.queries.sample)
    if not ids:
        raise NothingUsableError(
            f"queries.sample={run.queries.sample}: none of the clips of data.videos={run.data.videos!r} moves, so "
            "there is none to rank for. Give queries.videos, or lower motion.still."
        )
    rows = tables.of_clips(stores.join(run.root, "clips"), ids)
    assert rows is not None, "the ids are of this table"
    rows = rows.append_column("group", pa.array(["all"] * rows.num_rows, pa.string()))
    for field in schemas.QUERIES:  # a clip has no part of itself named, as a query may
        if field.name not in rows.column_names:
            rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
    others = [field for field in rows.schema if field.name not in schemas.QUERIES.names]
    schema = pa.schema([*schemas.QUERIES, *others])
    _replace_queries(run, rows.select(schema.names).cast(schema))
    print(f"queries: {rows.num_rows} clips of data.videos, provisionally")


def _replace_queries(run: Run, rows: pa.Table) -> None:
    """Put these queries in the place of those before them. What was computed for a query that is none any more, or
    that has another caption now, goes."""
    folder = stores.join(run.root, "queries")
    before = tables.read(folder, ["clip_id", "caption"])
    captions = {row["clip_id"]: row["caption"] for row in ([] if before is None else before.to_pylist())}
    recaptioned = [row["clip_id"] for row in rows.to_pylist() if captions.get(row["clip_id"]) != row["caption"]]
    for root, stage in indexing.computed(run):
        tables.drop(stores.join(root, stage, "queries"), recaptioned)
    tables.replace(folder, rows, fingerprints.clips(run))
    indexing.drop_orphans(run, "queries", Outcomes(folder))


def _first_moving(run: Run, count: int) -> list[str]:
    """The ids of the first `count` clips of the order that move, or of all that do where there are fewer. Motion is
    estimated for twice as many clips at first, and for twice as many again until enough of them move."""
    one, scope = attribution.scopes(run)[0]
    motion_of_all = one.motion.model_copy(update={"of": "all"})  # with `of: queries` too, candidates are measured
    one = one.model_copy(update={"motion": motion_of_all})
    tried = 2 * count
    while True:
        ids = heapq.nsmallest(tried, _usable_ids(run), key=lambda clip_id: place_in_draw(run.seed, clip_id))
        among = IdSet.of([pa.array(ids, pa.string())])
        attribution.estimate_motion(one, "clips", replace(scope, among=among))
        motion = tables.of_clips(stores.join(scope.motion, "motion", "clips"), ids)
        rows = [] if motion is None else motion.select(["clip_id", "error"]).to_pylist()
        usable = {row["clip_id"] for row in rows if row["error"] is None}
        moving = [clip_id for clip_id in ids if clip_id in usable]
        if len(moving) >= count or len(ids) < tried:
            return moving[:count]
        tried *= 2


def place_in_draw(seed: int, clip_id: str) -> bytes:
    """A clip's place in the order of the draw."""
    return hashlib.blake2b(f"query {seed} {clip_id}".encode(), digest_size=16).digest()


def _usable_ids(run: Run) -> Iterator[str]:
    for rows in scanning.blocks(stores.join(run.root, "clips"), ["clip_id", "error"]):
        for row in rows.to_pylist():
            if row["error"] is None:
                yield row["clip_id"]
