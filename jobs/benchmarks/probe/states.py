"""The pooled states of every block of several models, for a corpus of the synthetic world: queries, their twins, clips.

States are averaged over places, as are the sizes of their changes from one latent frame to the next. All blocks and
noise levels come from one forward pass of a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from jobs.benchmarks.looks.gradients import Cell
from pipeline.config import Run
from pipeline.models import VideoModel
from pipeline.models.conditioning import Captions, batched, split
from pipeline.models.loss import shared_noise
from pipeline.ranking.lawfulness import named_group
from pipeline.synthetic import world
from pipeline.synthetic.world import Scene
from pipeline.video.looks import TWINS, twin

TIMES = (201.0, 401.0, 601.0)
LATENTS = "latents"

Array = npt.NDArray[np.float32]
Frames = npt.NDArray[np.uint8]
Layer = tuple[str, int]  # a model and the number of its block


@dataclass(frozen=True)
class States:
    """Pooled states of a corpus, by layer; latents have one time, and block 0."""

    queries: Sequence[Scene]
    clips: Sequence[Scene]  # real ones and cartoons, of motions that have cartoons
    of_queries: Mapping[Layer, Array]  # [Q, 1 + twins, times, D]: as they are, then each of TWINS
    of_clips: Mapping[Layer, Array]  # [N, times, D]


class Reader:
    """Models that share an autoencoder and a text encoder: a video and its caption -> the states of every layer."""

    def __init__(self, run: Run, models: Mapping[str, VideoModel]) -> None:
        self.run, self.models = run, models
        self.encoder = next(iter(models.values()))
        self.text = Captions(self.encoder.text)
        self.outputs: list[Tensor] = []  # of the blocks of the pass that runs, in their order
        for model in models.values():
            for block in model.blocks(model.trained):
                block.register_forward_hook(self._keep)

    def _keep(self, block: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        self.outputs.append(output[0] if isinstance(output, tuple) else output)

    @torch.no_grad()
    def read(self, frames: Frames, caption: str) -> dict[Layer, Array]:
        """[times, D] of every layer."""
        latent, of_clip = split(self.encoder.encode(frames, self.run.data.fps))
        conditioning = batched([{**of_clip, **self.text(caption)}] * len(TIMES))
        noise = shared_noise(self.run.seed, 0, tuple(latent.shape))
        times = torch.tensor(TIMES)
        latents, noises = (one.expand(len(TIMES), *one.shape) for one in (latent, noise))
        states = {(LATENTS, 0): pooled(latent.flatten(2).permute(1, 2, 0)[None])}
        for name, model in self.models.items():
            self.outputs.clear()
            model.predict(model.schedule.noised(latents, noises, times), times, conditioning)
            for block, output in enumerate(self.outputs):
                states[name, block] = pooled(output.unflatten(1, (latent.shape[1], -1)))
        return states


def pooled(states: Tensor) -> Array:
    """Means over places of states [times, frames, places, width] and of the sizes of their changes: [times, D]."""
    changes = states.diff(dim=1).abs()
    means: Array = torch.cat([states.mean(2).flatten(1), changes.mean(2).flatten(1)], 1).float().numpy()
    return means


def states(reader: Reader, cell: Cell) -> States:
    """Of a cell's corpus."""
    scenes, queries = cell.scenes()
    clips = [s for s in scenes if s.kind in ("real", "cartoon") and named_group(s.caption, world.CARTOONS) is not None]
    data = reader.run.data

    def pictures(scene: Scene) -> Frames:
        return world.render(scene, data.height, data.width)

    of_queries = []
    for scene in queries:
        frames = pictures(scene)
        versions = [frames, *(twin(frames, name, scene.name) for name in TWINS)]
        of_queries.append(_stacked([reader.read(version, scene.caption) for version in versions]))
    of_clips = [reader.read(pictures(scene), scene.caption) for scene in clips]
    return States(queries, clips, _stacked(of_queries), _stacked(of_clips))


def _stacked(rows: Sequence[Mapping[Layer, Array]]) -> dict[Layer, Array]:
    return {layer: np.stack([row[layer] for row in rows]) for layer in rows[0]}
