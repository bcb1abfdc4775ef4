"""What a family of video models must offer to be attributed and fine-tuned.

A `Family` is what the configuration files of a folder tell, without a weight: the driver and the plan ask it. A
`VideoModel` is loaded: actors ask it. Outside an adapter there is one layout of latents, [B, C, f, h, w], one loss map,
[B, f, h, w], and one scale of times, 0 to 1000. What a clip and a caption are conditioned by is a mapping of tensors
with the adapter's own names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.config import VideoModelConfig
from pipeline.models.schedule import Schedule

Frames = npt.NDArray[np.uint8]
Conditioning = Mapping[str, Tensor]  # of one clip or caption, without a batch; of a batch where it is said


@dataclass(frozen=True)
class Expert:
    """A transformer of its own for an interval of times: `part` is its folder, and its times are [first, last)."""

    name: str
    part: str
    first: float
    last: float

    def has(self, timestep: float) -> bool:
        return self.first <= timestep < self.last


@dataclass(frozen=True)
class Grid:
    """The latent grid of one clip geometry: how many pixel frames each latent frame is made of, rows and columns."""

    folds: tuple[int, ...]
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.folds), self.height, self.width


class Family(Protocol):
    """What a folder's configuration files tell of its model. Made by `models.family`."""

    @property
    def path(self) -> Path:
        """The folder."""

    @property
    def name(self) -> str:
        """The family in words, for messages and tables: "Wan 2.1 text-to-video"."""

    @property
    def strides(self) -> tuple[int, int]:
        """Pixel frames to a latent frame after the first, and pixels to a latent row or column. Raises ConfigError."""

    @property
    def channels(self) -> int:
        """Of the latent."""

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width come in multiples of these: stride times patch."""

    @property
    def generates(self) -> int:
        """Sides of generated videos come in multiples of this as well."""

    @property
    def schedule(self) -> Schedule:
        """Noise levels, targets and training times. Raises ConfigError."""

    @property
    def experts(self) -> tuple[Expert, ...]:
        """Transformers by intervals of times, the noisiest first; one for most families."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Folders and files of the pipeline whose content changes a feature."""

    @property
    def idle(self) -> str | None:
        """A regular expression of parameters that no loss reaches: they do not count and are not trained."""

    @property
    def varying(self) -> bool:
        """Whether some parameters are reached by some clips or captions alone."""

    @property
    def clip_by_clip(self) -> bool:
        """Whether the transformer is called for each clip of a batch: sharded workers then need equally many."""

    @property
    def image(self) -> bool:
        """Whether a video is made from its first frame as well as from a caption."""

    def folds(self, frames: int) -> tuple[int, ...]:
        """How many pixel frames each latent frame of a clip is made of. Raises ConfigError for numbers of frames that
        the autoencoder cannot take, with the nearest that it can."""

    def check(self, config: VideoModelConfig) -> None:
        """Raise ConfigError for keys of `model` that this family cannot take."""

    def record(self, config: VideoModelConfig) -> dict[str, Any]:
        """What features depend on beside weights, geometry and the keys of every family, for fingerprints."""

    def skeleton(self) -> nn.Module:
        """What is trained, on the meta device: names and shapes of its parameters without their memory."""

    def open(self, config: VideoModelConfig, device: torch.device) -> VideoModel:
        """Load it. Raises ConfigError."""


class VideoModel(Protocol):
    """A latent video diffusion model: autoencoder, text encoder and what is trained."""

    trained: nn.Module  # the transformer; an nn.ModuleDict of them, by the names of their folders, where there are more
    schedule: Schedule

    @property
    def family(self) -> Family:
        """What its folder's configuration files tell."""

    @property
    def checkpointing(self) -> bool:
        """Whether backward computes the forward pass again, block by block."""

    def encode(self, frames: Frames, fps: float) -> dict[str, Tensor]:
        """Frames [F, H, W, 3] -> "latent", normalised [C, f, h, w] float32, and what else of the clip the transformer
        is told: a first frame, its rate."""

    def text(self, caption: str) -> dict[str, Tensor]:
        """One caption -> what the transformer takes, after every frozen part."""

    def cut(self, caption: str) -> int:
        """How many tokens of a caption are cut off, because the transformer takes no more."""

    def blank(self) -> dict[str, Tensor]:
        """What training puts in the place of a caption that is dropped."""

    def counted(self, frames: int) -> Tensor | None:
        """[f] of ones, and zeros where a latent frame is given and not denoised; None where all count."""

    def arguments(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        """The keyword arguments of the transformer's call, for a batch: noisy [B, C, f, h, w], timestep [B]."""

    def predict(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """The prediction [B, C, f, h, w]. ValueError for times of two experts in a batch."""

    def expert(self, timestep: float) -> Expert:
        """Which expert is asked at a time."""

    def transformers(self) -> dict[str, nn.Module]:
        """What is trained, by the names of the folders."""

    def blocks(self, transformer: nn.Module) -> Sequence[nn.Module]:
        """The repeated blocks of a transformer, by which it is sharded and explained."""

    def generate(
        self,
        caption: str,
        geometry: tuple[int, int, int],
        fps: float,
        seed: int,
        steps: int,
        guidance: float,
        image: Frames | None = None,
    ) -> Frames:
        """A video [F, H, W, 3] for a caption, and for a first frame [H, W, 3] where the family takes one; geometry is
        frames, height, width."""

    def keep_on_device(self, parts: Collection[str]) -> None:
        """From now on these transformers stay where they compute, and no other is asked: for training."""

    def lora_targets(self) -> list[str]:
        """Names of the modules that LoRA adapts."""

    def write_lora(self, part: str, layers: dict[str, Tensor], metadata: dict[str, Any], folder: str) -> None:
        """Write a transformer's adapters as diffusers loads them."""

    def read_lora(self, part: str, folder: str) -> bool:
        """Give a transformer the adapters of a folder; False where it has none of this part."""
