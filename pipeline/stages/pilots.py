"""Pilots: a few clips, or a few steps, of what a job would do, in a folder of their own."""

from __future__ import annotations

from functools import partial
from typing import Any

import pyarrow as pa

from pipeline.cluster import streaming
from pipeline.cluster.streaming import Stage
from pipeline.config import Run
from pipeline.config.operations import Pool
from pipeline.operations import pilot
from pipeline.stages.progress import Progress, achieved
from pipeline.storage import stores

AT_A_TIME = 10  # clips that an actor of the pilot is handed
TRAINED = 8  # clips whose latents the steps of fine-tuning draw from


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


def print_table(rows: list[list[str]]) -> None:
    """The first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("  " + "  ".join(cells).rstrip())
