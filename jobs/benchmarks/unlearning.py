"""Scores without a gradient of any clip: what its loss does when the model unlearns, and when it learns, some queries.

After MUCS (arXiv 2605.17938): bounded ascent on the queries, and the difference of a clip's losses under shared noise.
Here it is mirrored, ascent against descent, so that what both do to every clip cancels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.models import Conditioning, VideoModel
from pipeline.models.conditioning import batched
from pipeline.models.loss import loss_map, masked_mean, shared_noise

Array = npt.NDArray[np.float32]

TIMESTEP = 501.0
STEPS = 8  # each way
FARTHEST = 0.01  # of the length of all parameters: how far they go in these steps
NOISES = (0, 1)
SEED = 0  # of the noises
BATCH = 16


@dataclass(frozen=True)
class Encoded:
    """Videos as the model takes them: latents [N, C, f, h, w], conditioning of each, masks [N, f, h, w]."""

    latents: Tensor
    conditioning: Sequence[Conditioning]
    masks: Tensor


def error_maps(model: VideoModel, videos: Encoded, rows: Sequence[int]) -> Tensor:
    """Errors at TIMESTEP, mean over noises that all videos share: [rows, f, h, w]."""
    latents = videos.latents[list(rows)]
    conditioning = batched([videos.conditioning[row] for row in rows])
    moment = torch.full((len(rows),), TIMESTEP)
    maps = []
    for index in NOISES:
        noise = shared_noise(SEED, index, tuple(latents.shape[1:])).expand_as(latents)
        maps.append(loss_map(model, latents, conditioning, moment, noise))
    return torch.stack(maps).mean(0)


@torch.no_grad()
def losses(model: VideoModel, videos: Encoded) -> Array:
    """Masked and plain loss of each video: [2, N]."""
    columns = []
    for start in range(0, len(videos.latents), BATCH):
        rows = range(start, min(start + BATCH, len(videos.latents)))
        errors = error_maps(model, videos, rows)
        columns.append(torch.stack([(errors * videos.masks[list(rows)]).mean((1, 2, 3)), errors.mean((1, 2, 3))]))
    of_all: Array = torch.cat(columns, 1).numpy()
    return of_all


@contextmanager
def moved(model: VideoModel, queries: Encoded, rows: Sequence[int], sign: float) -> Iterator[None]:
    """The model after steps of equal length up (+1) or down (-1) the gradient of these queries' masked loss; then it is
    as it was."""
    parameters = [parameter for parameter in model.trained.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in parameters]
    step = FARTHEST / STEPS * float(torch.cat([parameter.flatten() for parameter in before]).norm())
    for _ in range(STEPS):
        model.trained.zero_grad(set_to_none=True)
        masks = queries.masks[list(rows)]
        masked_mean(error_maps(model, queries, rows), masks).backward()
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


def differences(model: VideoModel, clips: Encoded, queries: Encoded, motions: Sequence[str]) -> Array:
    """How much more a clip's loss rises when its queries' motion is unlearnt than when it is learnt, as a share of the
    loss: by masked and plain loss, for every query the same as for the others of its motion, [2, N, Q]. NaN by the
    masked loss of a clip without motion, and for a motion "", which nothing shows."""
    base = losses(model, clips)
    by_query = np.full((*base.shape, len(motions)), np.nan, np.float32)
    for motion in dict.fromkeys(filter(None, motions)):
        rows = [row for row, name in enumerate(motions) if name == motion]
        with moved(model, queries, rows, 1.0):
            unlearnt = losses(model, clips)
        with moved(model, queries, rows, -1.0):
            learnt = losses(model, clips)
        share = np.divide(unlearnt - learnt, base, out=np.full_like(base, np.nan), where=base > 0)
        by_query[..., rows] = share[..., None]
    return by_query
