"""What a video model must offer to be attributed and fine-tuned, and how one is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.config import ConfigError, VideoModelConfig


class VideoModel(Protocol):
    """A latent video diffusion model: autoencoder, text encoder and the transformer whose parameters count."""

    transformer: nn.Module
    temporal_stride: int  # pixel frames to a latent frame (the first stands alone): frames = stride * n + 1
    spatial_stride: int
    patch: tuple[int, int, int]  # latent frames, rows and columns to a token

    def encode(self, frames: npt.NDArray[np.uint8]) -> Tensor:
        """Frames [F, H, W, 3] -> normalised latent [C, f, h, w], float32."""

    def text(self, captions: list[str]) -> Tensor:
        """Captions -> what the transformer is conditioned on, [B, tokens, width]."""

    def velocity(self, noisy: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """The transformer's prediction [B, C, f, h, w] at timesteps [B] on the 1000-step scale."""

    def noised(self, latent: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """The transformer's input at a timestep, [B, C, f, h, w]."""

    def target(self, latent: Tensor, noise: Tensor) -> Tensor:
        """What the prediction is compared with."""

    def shifted(self, uniform: Tensor) -> Tensor:
        """Uniform numbers in [0, 1] -> timesteps as the model is trained on, on the 1000-step scale."""

    def generate(self, caption: str, geometry: tuple[int, int, int], seed: int, steps: int, guidance: float) -> npt.NDArray[np.uint8]:
        """A video [F, H, W, 3] for a caption; geometry is frames, height, width."""

    def weights_hash(self) -> str:
        """A hash of every weight and configuration that changes a feature."""


def open_model(config: VideoModelConfig, device: torch.device) -> VideoModel:
    """Load the diffusers checkpoint that `config.id` names. Raises ConfigError if it is not to be had or not known."""
    from pipeline.models import wan

    path = Path(config.id)
    if not path.is_dir() and (path.is_absolute() or config.id.count("/") != 1):
        raise ConfigError(
            f"model.id={config.id!r}: this is neither a folder nor a hub id of the form owner/name. Give the folder of a "
            "diffusers pipeline (it holds model_index.json)."
        )
    if path.is_dir() and not (path / "model_index.json").is_file():
        raise ConfigError(f"model.id={config.id!r}: the folder has no model_index.json, so it is no diffusers pipeline.")
    return wan.Wan(config, device)
