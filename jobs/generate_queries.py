"""Turn `queries.prompts` into query videos with the base model. Part of index_clips; nothing to do for query videos."""

from __future__ import annotations

import json

import pyarrow as pa

from jobs import command
from jobs.command import Progress
from pipeline import models
from pipeline.cluster import streaming
from pipeline.config import Run
from pipeline.evaluation.generation import GenerationWorker, wanted
from pipeline.storage import stores


def generate_queries(run: Run) -> None:
    if not run.queries.prompts:
        return
    folder = stores.join(run.root, "generated", "queries")
    rows = wanted(run, models.weights_hash(models.folder(run.model.id)))
    missing = [not stores.exists(stores.join(folder, name)) for name in rows.column("file_name").to_pylist()]
    figures = streaming.stream(
        "generate queries",
        run.root,
        [rows.filter(pa.array(missing))],
        sum(missing),
        run.resources.evaluate,
        GenerationWorker,
        (run, folder),
        {},
        {},
        Progress("generate queries"),
    )
    command.achieved("generate queries", figures)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.to_pylist())
    stores.write_bytes(stores.join(folder, "metadata.jsonl"), lines.encode())
