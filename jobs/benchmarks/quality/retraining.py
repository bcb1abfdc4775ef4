"""A short fine-tuning on some of the clips, and the held-out losses after it: the truth of everything here."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jobs.benchmarks.quality.problem import OUT, Clips, base_model, make
from pipeline.config import Finetune
from pipeline.evaluation.comparison import BANDS
from pipeline.models import VideoModel
from pipeline.models.loss import drawn_uniforms, loss_map, masked_mean, own_noise
from pipeline.training.loop import begin, train
from pipeline.training.time_bands import EDGES, WEIGHTS
from pipeline.training.training_set import ClipSet, EncodedClip, Row

FIRST_NOISE = 1 << 20  # evaluation's noises; attribution's begin at 0
AT_A_TIME = 25  # held-out clips of one forward pass

Losses = npt.NDArray[np.float64]  # [N, 2], masked and plain
LossesByTime = npt.NDArray[np.float64]  # [N, times, 2]


@dataclass(frozen=True)
class Recipe:
    """How the benchmark fine-tunes and what it measures then."""

    steps: int = 75
    batch: int = 16
    learning_rate: float = 3e-4
    noises: int = 6  # of a held-out clip, each at a timestep of its own

    @property
    def finetune(self) -> Finetune:
        rate = self.learning_rate
        return Finetune(arm="random", steps=self.steps, batch=self.batch, learning_rate=rate, schedule="linear")


@dataclass(frozen=True)
class Retraining:
    """A fine-tuning: the weight of every clip that takes part (row of the corpus -> weight), and its seed. `bands` says
    of each of them how often it is drawn in each of BANDS; where it is empty, all are drawn at any time."""

    weights: tuple[tuple[int, float], ...]
    seed: int
    bands: tuple[tuple[float, ...], ...] = ()

    def digest(self, recipe: Recipe, problem: str) -> str:
        drawn = [self.bands] if self.bands else []  # so that what is drawn at any time keeps its name
        identity = json.dumps([problem, asdict(recipe), self.weights, self.seed, *drawn])
        return hashlib.blake2b(identity.encode(), digest_size=12).hexdigest()


def on(rows: npt.NDArray[np.int64], seed: int) -> Retraining:
    """A fine-tuning on these rows of the corpus, each as likely as the other."""
    return Retraining(tuple((int(row), 1.0) for row in sorted(rows.tolist())), seed)


def at_band(
    band: str, rows: npt.NDArray[np.int64], elsewhere: npt.NDArray[np.int64], recipe: Recipe, seed: int
) -> Retraining:
    """A fine-tuning on these rows of the corpus at the times of one of BANDS alone, and on the others at all other
    times; a row may be in both. The band has its share of the draws, so only what is drawn there differs from
    fine-tunings of the same seed and band."""
    own = [float(name == band) for name in BANDS]
    share = float(np.dot(band_shares(recipe), own))
    sides = (rows, share, own), (elsewhere, 1 - share, [1 - one for one in own])
    weights = [(int(row), part / len(side)) for side, part, _ in sides for row in sorted(side.tolist())]
    return Retraining(tuple(weights), seed, tuple(tuple(drawn) for side, _, drawn in sides for _ in side))


def fine_tuned(task: Retraining, clips: Clips, recipe: Recipe, base: VideoModel | None = None) -> VideoModel:
    """The base, fine-tuned by the product's own loop; another model where one is given, which is changed."""
    model = fresh() if base is None else base
    rows: list[dict[str, Any]] = [{"clip_id": clips.clip_ids[n], "row": n, "weight": w} for n, w in task.weights]
    if task.bands:
        edges = band_edges(model, recipe)
        rows = [row | {EDGES: edges, WEIGHTS: drawn} for row, drawn in zip(rows, task.bands, strict=True)]
    dropped = EncodedClip({}, (model.blank(),))

    def read(row: Row | None) -> EncodedClip:
        if row is None:
            return dropped
        return EncodedClip({"latent": clips.latent[row["row"]]}, ({"text": clips.text[row["row"]]},))

    training = begin(model, recipe.finetune, task.seed)
    for _ in train(training, ClipSet(model, rows, read), recipe.finetune, task.seed):
        pass
    return model


def fresh(base: Path = OUT) -> VideoModel:
    """The base model as it is on disk, whatever was trained in this process before."""
    model = base_model(base)
    model.trained.load_state_dict(_state(base))
    return model


def untrained() -> VideoModel:
    """A model of the bases' architecture whose weights are random: what the architecture alone tells."""
    model = copy.copy(base_model())  # for gradients alone: its pipeline keeps the base's transformer
    torch.manual_seed(3)
    model.trained = make(model).eval()
    return model


@functools.cache
def _state(base: Path) -> dict[str, Any]:
    """First called by a base's first `fresh` of a process, when nothing has been trained yet."""
    return copy.deepcopy(base_model(base).trained.state_dict())


def times(model: VideoModel, clip_ids: Sequence[str], count: int) -> Tensor:
    """Timesteps of held-out clips [N, count], drawn clip by clip as training draws them, one from each equal part of
    the draw. At those of the settings alone a ranking by these settings would be flattered."""
    return torch.stack([model.schedule.times(drawn_uniforms(clip_id, count)) for clip_id in clip_ids])


@torch.no_grad()
def losses(model: VideoModel, clips: Clips, recipe: Recipe) -> LossesByTime:
    """Losses at each of the recipe's drawn timesteps, the least noise first, each under a noise of its own, the same
    for every model: [N, noises, 2], masked and plain."""
    model.trained.eval()
    by_time = np.zeros((len(clips), recipe.noises, 2))
    for start in range(0, len(clips), AT_A_TIME):
        here = slice(start, start + AT_A_TIME)
        latent, timesteps = clips.latent[here], times(model, clips.clip_ids[here], recipe.noises)
        for index in range(recipe.noises):
            at, shape = FIRST_NOISE + index, tuple(latent.shape[1:])
            noise = torch.stack([own_noise(clip_id, at, shape) for clip_id in clips.clip_ids[here]])
            errors = loss_map(model, latent, {"text": clips.text[here]}, timesteps[:, index], noise)
            by_time[here, index, 0] = [float(masked_mean(e, m)) for e, m in zip(errors, clips.mask[here], strict=True)]
            by_time[here, index, 1] = errors.mean((1, 2, 3)).numpy()
    return by_time


def in_bands(by_time: LossesByTime) -> list[Losses]:
    """The means [N, 2] over the times of each of BANDS, as `evaluate` parts them: of four times the first band has two.
    ValueError for fewer times than bands."""
    if by_time.shape[1] < len(BANDS):
        raise ValueError(f"noises={by_time.shape[1]}: {len(BANDS)} bands of times take as many noises at least")
    return [part.mean(1) for part in np.array_split(by_time, len(BANDS), axis=1)]


def band_shares(recipe: Recipe) -> list[float]:
    """The share of the draws of training that each of BANDS has, where it is parted as `in_bands` parts the times."""
    return [len(part) / recipe.noises for part in np.array_split(range(recipe.noises), len(BANDS))]


def band_edges(model: VideoModel, recipe: Recipe) -> list[float]:
    """The timesteps where these bands meet, ascending."""
    below = torch.tensor(np.cumsum(band_shares(recipe))[:-1], dtype=torch.float32)
    edges: list[float] = model.schedule.times(below).tolist()
    return edges
