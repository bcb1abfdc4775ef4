"""Query videos made by the base model itself from prompts: "where did you learn that?"."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import pyarrow as pa

from pipeline.config import Run
from pipeline.errors import ClipError
from pipeline.models import open_model
from pipeline.models.device import device_for
from pipeline.storage import stores
from pipeline.video.frames import write_mp4

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("file_name", pa.string()),
        ("caption", pa.string()),
        ("group", pa.string()),
        ("seed", pa.int64()),
    ]
)


def prompted_queries(run: Run, weights: str) -> pa.Table:
    """A row for every prompt; its id belongs to the prompt, the seed, the geometry and the model's weights."""
    d, e = run.data, run.evaluate
    rows = []
    for p in run.queries.prompts:
        identity = json.dumps([p.prompt, p.group, p.seed, d.frames, d.height, d.width, e.steps, e.guidance, weights])
        name = hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
        rows.append({"id": name, "file_name": f"{name}.mp4", "caption": p.prompt, "group": p.group, "seed": p.seed})
    return pa.Table.from_pylist(rows, schema=SCHEMA)


class GenerationWorker:
    """Prompts -> video files in `folder`."""

    def __init__(self, run: Run, folder: str) -> None:
        self.run, self.folder = run, folder
        self.model = open_model(run.model, device_for(run.resources.evaluate.gpus))

    def __call__(self, rows: pa.Table) -> Iterator[dict[str, pa.Table]]:
        d, e = self.run.data, self.run.evaluate
        for row in rows.to_pylist():
            size = (d.frames, d.height, d.width)
            frames = self.model.generate(row["caption"], size, d.fps, row["seed"], e.steps, e.guidance)
            write_mp4(stores.join(self.folder, row["file_name"]), frames, d.fps)
            yield {}  # a video is a file of its own, no row of a table

    def refuse(self, rows: pa.Table, error: ClipError) -> dict[str, pa.Table]:
        """RuntimeError: without its queries a run has nothing to rank for."""
        raise RuntimeError(f"no video could be made of the prompts {rows.column('caption').to_pylist()}: {error}")
