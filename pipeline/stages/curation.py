"""What a curation begins with: query videos from prompts, the queries' features, the clips' index."""

from __future__ import annotations

import json
import logging
from functools import partial

import pyarrow as pa

from pipeline import models, tables
from pipeline.cluster import streaming
from pipeline.cluster.streaming import Stage
from pipeline.config import Run
from pipeline.errors import NothingUsableError
from pipeline.evaluation.generation import GenerationWorker, wanted
from pipeline.ranking.feature_table import under_mask
from pipeline.stages import attribution, indexing, two_stages
from pipeline.stages.progress import Counted, Progress, achieved
from pipeline.storage import stores

log = logging.getLogger(__name__)

STAGES = ["index_clips", "estimate_motion", "extract_features", "finetune", "evaluate"]


def generate_queries(run: Run) -> None:
    """Turn `queries.prompts` into query videos with the base model; nothing to do where videos are given."""
    if not run.queries.prompts:
        return
    folder = stores.join(run.root, "generated", "queries")
    rows = wanted(run, models.weights_hash(models.folder(run.model.id)))
    missing = [not stores.exists(stores.join(folder, name)) for name in rows.column("file_name").to_pylist()]
    stage = Stage("generate queries", run.root, run.resources.evaluate, partial(GenerationWorker, run, folder))
    figures = streaming.stream(stage, [rows.filter(pa.array(missing))], sum(missing), Progress(stage.title))
    achieved(stage.title, figures)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.to_pylist())
    stores.write_bytes(stores.join(folder, "metadata.jsonl"), lines.encode())


def attribute_queries(run: Run) -> None:
    """Queries run first: where none of them can be used, the clips are not touched."""
    generate_queries(run)
    _readable("queries", run.queries.videos, indexing.index(run, "queries"))
    two_stages.queries(run)
    for one, scope in attribution.scopes(run):
        _usable(one, scope.motion)


def index_data(run: Run) -> None:
    _readable("data", run.data.videos, indexing.index(run, "clips"))


def _readable(key: str, videos: str | None, found: Counted) -> None:
    """Raise NothingUsableError where not one segment could be indexed."""
    if sum(found.errors.values()) == found.rows:
        why = ", ".join(f"{n} {code}" for code, n in found.errors.items())
        raise NothingUsableError(
            f"{key}.videos={videos!r}: none of its {found.rows} videos could be used ({why}); the rows of its table "
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
        raise NothingUsableError(
            f"queries.videos={run.queries.videos!r}: none of the {motion.num_rows} queries has any motion or "
            f"could be used ({why}), so there is nothing to rank for. Give queries that move, or lower motion.still."
        )
    if unused:
        log.warning("%d of %d queries cannot be used: %s", len(unused), motion.num_rows, ", ".join(unused[:10]))
