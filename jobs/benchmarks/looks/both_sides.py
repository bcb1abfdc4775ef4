"""Clips in other looks and against their own twins, as queries are: several gradients of every clip of the corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from jobs.benchmarks.looks.changes import FEW, MASKED, Versions
from jobs.benchmarks.looks.gradients import LOOKS, Array, Cell, Corpus, Taker, Video
from jobs.benchmarks.untrained import with_random_weights
from pipeline import config
from pipeline.config.attribution import Change
from pipeline.storage import stores
from pipeline.video import looks

OF_CLIPS: tuple[Change, ...] = ("colours", "background")
OF_QUERIES: tuple[Change, ...] = ("colours", "background", "mirrored")


@dataclass(frozen=True)
class BothSides:
    """Projected gradients, masked, at the last of TIMES, under empty captions."""

    clips: Array  # of the clips in FEW looks of OF_CLIPS, [looks, N, k]
    backwards: Array  # of the clips backwards, [N, k]
    untrained_clips: Array  # as `clips`, under a model that has learnt nothing
    untrained_queries: Array  # of the queries in LOOKS looks of OF_QUERIES under it, [looks, Q, k]


def both_sides(corpus: Corpus, cell: Cell, folder: Path) -> BothSides:
    """From the folder where they are there."""
    path = folder / f"{cell.name}-both-sides.npz"
    if not path.is_file():
        run = config.load("demo", {})
        trained, blank = Taker(run, cell.model(run)), Taker(run, with_random_weights(cell.model(run)))
        clips = Versions(trained, corpus.clips)
        sides = BothSides(
            clips.in_looks(OF_CLIPS, FEW),
            _backwards(clips, corpus.clips),
            Versions(blank, corpus.clips).in_looks(OF_CLIPS, FEW),
            Versions(blank, corpus.queries).in_looks(OF_QUERIES, LOOKS),
        )
        with stores.writing(str(path)) as file:
            np.savez(file, **{field.name: getattr(sides, field.name) for field in fields(BothSides)})
    with np.load(path) as arrays:
        return BothSides(**{field.name: arrays[field.name] for field in fields(BothSides)})


def _backwards(versions: Versions, videos: Sequence[Video]) -> Array:
    """[N, k]; a clip of which nothing moves backwards has its own mask."""
    backwards = []
    for video in videos:
        frames = looks.twin(video.frames, "backwards", video.scene.name)
        mask = versions.mask(frames)
        backwards.append((frames, video.mask if mask is None else mask, ""))
    return versions.taker.take(backwards, MASKED)[:, 0]
