"""A model with a clip, as every check takes it, and how far two results may be apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.models import Conditioning, Frames
from pipeline.models.conditioning import split
from pipeline.models.diffusers_model import DiffusersModel
from pipeline.models.loss import own_noise, shared_noise

CAPTIONS = ("a red ball rolls", 'a sign that says "left" falls over slowly')


class CheckError(Exception):
    """What a check found wrong, as a sentence."""


@dataclass(frozen=True)
class Check:
    name: str
    passed: bool
    detail: str


@dataclass
class Subject:
    """A model with a clip, as every check takes it. `exact` is what two ways of computing the same may differ by."""

    model: DiffusersModel
    geometry: tuple[int, int, int]
    fps: float
    timesteps: Sequence[float]
    exact: float

    @property
    def frames(self) -> Frames:
        """Drifting random colours, the same each time."""
        frames, height, width = self.geometry
        picture = own_noise("check", 0, (height, width, 3)).clamp(-2, 2).mul(60).add(128).byte().numpy()
        return np.stack([np.roll(picture, 2 * n, 1) for n in range(frames)])

    def clip(self, caption: str = CAPTIONS[0]) -> tuple[Tensor, Conditioning]:
        latent, of_clip = split(self.model.encode(self.frames, self.fps))
        return latent, {**of_clip, **self.model.text(caption)}

    def noise(self, latent: Tensor, index: int = 0) -> Tensor:
        return shared_noise(0, index, tuple(latent.shape)).to(latent.device)

    def time(self, timestep: float, count: int = 1) -> Tensor:
        return torch.full((count,), timestep, device=self.model.device)


def difference(a: Tensor, b: Tensor) -> float:
    """The length of the difference, relative to b's."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


def within(value: float, limit: float, otherwise: str) -> str:
    if not value <= limit:
        raise CheckError(f"{otherwise}: {value:.2g} apart, where {limit:.2g} is allowed")
    return f"{value:.1g} apart"
