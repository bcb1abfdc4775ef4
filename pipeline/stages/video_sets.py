"""The sets of videos that a run knows: its clips, its queries, and those held out."""

from __future__ import annotations

from pipeline.config import Run
from pipeline.inputs.video_set import VideoSet
from pipeline.storage import stores

SETS = {"clips": "data.videos", "queries": "queries.videos", "held_out": "evaluate.videos"}


def names(run: Run) -> tuple[str, ...]:
    return ("queries", "clips", *(("held_out",) if run.evaluate.videos else ()))


def where(run: Run, name: str) -> str | None:
    """The place of a set's videos. Queries made from prompts lie under the run's root."""
    if name == "queries" and run.queries.videos is None:
        return stores.join(run.root, "generated", "queries", "metadata.jsonl")
    return {"clips": run.data.videos, "queries": run.queries.videos, "held_out": run.evaluate.videos}[name]


def asked(run: Run, name: str) -> VideoSet:
    """A set as the configuration asks for it. Queries made from prompts lie under the run's own root, and may have no
    captions."""
    d, place = run.data, str(where(run, name))
    if name == "queries" and run.queries.videos is None:
        return VideoSet(place, SETS[name], fps=d.fps)
    files = {"clips": d.files, "queries": run.queries.files, "held_out": run.evaluate.files}[name]
    return VideoSet(place, SETS[name], d.base, files, d.camera, d.fps, d.empty_captions)
