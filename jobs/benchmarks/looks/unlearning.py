"""Mirrored unlearning of a corpus' queries, kept on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from jobs.benchmarks import unlearning
from jobs.benchmarks.looks.gradients import Array, Cell, Corpus, Video
from jobs.benchmarks.unlearning import Encoded
from pipeline import config
from pipeline.config import Run
from pipeline.models import VideoModel
from pipeline.models.conditioning import split
from pipeline.storage import stores


def encoded(run: Run, model: VideoModel, videos: Sequence[Video]) -> Encoded:
    """Videos under empty captions."""
    latents, conditioning = [], []
    for video in videos:
        latent, of_clip = split(model.encode(video.frames, run.geometry[1]))
        latents.append(latent)
        conditioning.append({**of_clip, **model.text("")})
    return Encoded(torch.stack(latents), conditioning, torch.stack([video.mask for video in videos]))


def differences(corpus: Corpus, cell: Cell, folder: Path) -> Array:
    """`unlearning.differences` of the corpus' clips and queries, [2, N, Q]; from the folder where it is there."""
    path = folder / f"{cell.name}-unlearning.npz"
    if not path.is_file():
        run = config.load("demo", {})
        model = cell.model(run)
        clips, queries = encoded(run, model, corpus.clips), encoded(run, model, corpus.queries)
        motions = [video.scene.motion for video in corpus.queries]
        by_query = unlearning.differences(model, clips, queries, motions)
        with stores.writing(str(path)) as file:
            np.savez(file, differences=by_query)
    with np.load(path) as arrays:
        of_all: Array = arrays["differences"]
    return of_all
