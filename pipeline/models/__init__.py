"""What a video model must offer to be attributed and fine-tuned, and how one is opened."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from torch import Tensor, nn

from pipeline import fetched, stores
from pipeline.config import ConfigError, VideoModelConfig


class VideoModel(Protocol):
    """A latent video diffusion model: autoencoder, text encoder and the transformer whose parameters count."""

    transformer: nn.Module
    temporal_stride: int  # pixel frames to a latent frame (the first stands alone): frames = stride * n + 1
    spatial_stride: int
    patch: tuple[int, int, int]  # latent frames, rows and columns to a token

    @property
    def checkpointing(self) -> bool:
        """Whether backward computes the forward pass again, block by block."""

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

    def generate(
        self, caption: str, geometry: tuple[int, int, int], seed: int, steps: int, guidance: float
    ) -> npt.NDArray[np.uint8]:
        """A video [F, H, W, 3] for a caption; geometry is frames, height, width."""


def folder(id: str) -> Path:
    """The local folder of a diffusers pipeline: `id` itself, or a copy of what lies at s3:// or on the hub, fetched
    once a machine. Raises ConfigError."""
    path = _stored(id) if id.startswith(stores.S3) else Path(id)
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise ConfigError(f"model.id={id!r}: the folder has no model_index.json, so it is no diffusers pipeline.")
        return path
    if path.is_absolute() or id.count("/") != 1 or id.startswith("."):
        raise ConfigError(
            f"model.id={id!r}: this is neither a folder nor a hub id of the form owner/name, nor at s3://. Give "
            "the folder of a diffusers pipeline (it holds model_index.json)."
        )
    try:
        return _snapshot(id)
    except (HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, OSError) as error:
        raise ConfigError(
            f"model.id={id!r}: there is no such folder, and the hub could not be asked for it "
            f"({type(error).__name__}). Give a local folder, or run where the hub can be reached."
        ) from error


def _stored(id: str) -> Path:
    try:
        return fetched.local(id)
    except OSError as error:
        raise ConfigError(
            f"model.id={id!r}: no model can be fetched from there ({error}). Give the folder of a diffusers pipeline "
            "(it holds model_index.json), which this job may list and read."
        ) from error


@cache  # for a process, a model does not change while it runs
def _snapshot(id: str) -> Path:
    with fetched.locked(id, id):
        return Path(snapshot_download(id, allow_patterns=list(fetched.FILES)))


def family(path: Path) -> str:
    """Which adapter a pipeline folder needs. Raises ConfigError for families that have none yet."""
    name = str(json.loads((path / "model_index.json").read_text()).get("_class_name"))
    if name != "WanPipeline":
        raise ConfigError(f"model.id={str(path)!r}: it is a {name}; this version has an adapter for WanPipeline only.")
    return name


def strides(path: Path) -> tuple[int, int]:
    """Temporal and spatial stride of the autoencoder, from its configuration alone."""
    config = json.loads((path / "vae" / "config.json").read_text())
    return int(config.get("scale_factor_temporal", 4)), int(config.get("scale_factor_spatial", 8))


def patch(path: Path) -> tuple[int, int, int]:
    frames, rows, columns = json.loads((path / "transformer" / "config.json").read_text())["patch_size"]
    return int(frames), int(rows), int(columns)


def skeleton(path: Path) -> nn.Module:
    """The transformer on the meta device: names and shapes of its parameters without their memory."""
    from diffusers import WanTransformer3DModel  # 0.3 GiB, which a driver that only lists videos does not need

    with torch.device("meta"):
        config = WanTransformer3DModel.load_config(path, subfolder="transformer")
        return cast(nn.Module, WanTransformer3DModel.from_config(config))


def weights_hash(path: Path) -> str:
    """A hash of every weight and configuration file that changes a feature."""
    digest = hashlib.blake2b(digest_size=16)
    for part in ("vae", "text_encoder", "tokenizer", "transformer"):
        for file in sorted((path / part).glob("*")):
            if file.suffix in (".json", ".safetensors", ".model", ".txt"):
                digest.update(f"{part}/{file.name}".encode())
                with file.open("rb") as data:
                    while block := data.read(1 << 24):
                        digest.update(block)
    return digest.hexdigest()


def open_model(config: VideoModelConfig, device: torch.device) -> VideoModel:
    """Load the diffusers checkpoint that `config.id` names. Raises ConfigError if it is not to be had or not known."""
    from pipeline.models.wan import Wan, load

    path = folder(config.id)
    family(path)
    return Wan(load(path, config), config, device)
