"""The sets of videos that a run knows: its clips, its queries, and those held out."""

from __future__ import annotations

from pipeline.config import Run
from pipeline.storage import stores

SETS = {"clips": "data.videos", "queries": "queries.videos", "held_out": "evaluate.videos"}


def names(run: Run) -> tuple[str, ...]:
    return ("queries", "clips", *(("held_out",) if run.evaluate.videos else ()))


def where(run: Run, name: str) -> str | None:
    """The place of a set's videos. Queries made from prompts lie under the run's root."""
    if name == "queries" and run.queries.videos is None:
        return stores.join(run.root, "generated", "queries", "metadata.jsonl")
    return {"clips": run.data.videos, "queries": run.queries.videos, "held_out": run.evaluate.videos}[name]


def listed(run: Run, name: str) -> tuple[str, str, str | None, str | None, str | None, float, float]:
    """Where a set's videos are, the key that says so, the folder they must lie in, that of a manifest's relative paths,
    a robot's camera, the rate of pictures, and the share of empty captions that is allowed."""
    d = run.data
    if name == "queries" and run.queries.videos is None:  # made from prompts: they lie under the run's own root
        return str(where(run, name)), SETS[name], None, None, None, d.fps, 1.0
    files = {"clips": d.files, "queries": run.queries.files, "held_out": run.evaluate.files}[name]
    return str(where(run, name)), SETS[name], d.base, files, d.camera, d.fps, d.empty_captions
