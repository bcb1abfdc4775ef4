"""Scores without a gradient of any clip: what its loss does when the model unlearns, and when it learns, some queries.

After MUCS (arXiv 2605.17938): bounded ascent on the queries, and the difference of a clip's losses under shared noise.
Here it is mirrored, ascent against descent, so that what both do to every clip cancels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jobs.benchmarks.looks.gradients import TIMES, Array, Cell, Corpus, Video
from pipeline import config
from pipeline.config import Run
from pipeline.models import Conditioning, VideoModel
from pipeline.models.conditioning import batched, split
from pipeline.models.loss import loss_map, masked_mean, shared_noise
from pipeline.storage import stores

STEPS = 8  # each way
FARTHEST = 0.01  # of the length of all parameters: how far they go in these steps
NOISES = (0, 1)
BATCH = 16


@dataclass(frozen=True)
class Encoded:
    """Videos as the model takes them: latents [N, C, f, h, w], conditioning of each, masks [N, f, h, w]."""

    latents: Tensor
    conditioning: Sequence[Conditioning]
    masks: Tensor


def encoded(run: Run, model: VideoModel, videos: Sequence[Video]) -> Encoded:
    latents, conditioning = [], []
    for video in videos:
        latent, given = split(model.encode(video.frames, run.geometry[1]))
        latents.append(latent)
        conditioning.append({**given, **model.text("")})
    return Encoded(torch.stack(latents), conditioning, torch.stack([video.mask for video in videos]))


def error_maps(run: Run, model: VideoModel, videos: Encoded, rows: Sequence[int]) -> Tensor:
    """Errors at the last of TIMES, mean over noises that all videos share: [rows, f, h, w]."""
    latents = videos.latents[list(rows)]
    given = batched([videos.conditioning[row] for row in rows])
    moment = torch.full((len(rows),), TIMES[-1])
    maps = []
    for index in NOISES:
        noise = shared_noise(run.seed, index, tuple(latents.shape[1:])).expand_as(latents)  # type: ignore[arg-type]
        maps.append(loss_map(model, latents, given, moment, noise))
    return torch.stack(maps).mean(0)


@torch.no_grad()
def losses(run: Run, model: VideoModel, videos: Encoded) -> Array:
    """Masked and plain loss of each video: [2, N]."""
    columns = []
    for start in range(0, len(videos.latents), BATCH):
        rows = range(start, min(start + BATCH, len(videos.latents)))
        errors = error_maps(run, model, videos, rows)
        columns.append(torch.stack([(errors * videos.masks[list(rows)]).mean((1, 2, 3)), errors.mean((1, 2, 3))]))
    of_all: Array = torch.cat(columns, 1).numpy()
    return of_all


@contextmanager
def moved(run: Run, model: VideoModel, queries: Encoded, rows: Sequence[int], sign: float) -> Iterator[None]:
    """The model after steps of equal length up (+1) or down (-1) the gradient of these queries' masked loss; then it is
    as it was."""
    parameters = [parameter for parameter in model.trained.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in parameters]
    step = FARTHEST / STEPS * float(torch.cat([parameter.flatten() for parameter in before]).norm())
    for _ in range(STEPS):
        model.trained.zero_grad(set_to_none=True)
        masks = queries.masks[list(rows)]
        masked_mean(error_maps(run, model, queries, rows), masks).backward()
        length = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None]).norm()
        with torch.no_grad():
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad / length, alpha=sign * step)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)


def differences(corpus: Corpus, cell: Cell, folder: Path) -> Array:
    """How much more a clip's loss rises when its queries' motion is unlearnt than when it is learnt, as a share of the
    loss: by masked and plain loss, for every query the same as for the others of its motion, [2, N, Q]. From the folder
    where it is there."""
    path = folder / f"{cell.name}-unlearning.npz"
    if not path.is_file():
        by_query = _differences(corpus, cell)
        with stores.writing(str(path)) as file:
            np.savez(file, differences=by_query)
    with np.load(path) as arrays:
        of_all: Array = arrays["differences"]
    return of_all


def _differences(corpus: Corpus, cell: Cell) -> Array:
    run = config.load("demo", {})
    model = cell.model(run)
    clips, queries = encoded(run, model, corpus.clips), encoded(run, model, corpus.queries)
    base = losses(run, model, clips)
    motions = [video.scene.motion for video in corpus.queries]
    by_query = np.empty((*base.shape, len(motions)), np.float32)
    for motion in dict.fromkeys(motions):
        rows = [row for row, name in enumerate(motions) if name == motion]
        with moved(run, model, queries, rows, 1.0):
            unlearnt = losses(run, model, clips)
        with moved(run, model, queries, rows, -1.0):
            learnt = losses(run, model, clips)
        by_query[..., rows] = ((unlearnt - learnt) / base)[..., None]
    return by_query
