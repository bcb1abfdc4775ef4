"""What a video model must offer to be attributed and fine-tuned, and how one is opened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from torch import Tensor, nn

from pipeline.config import VideoModelConfig
from pipeline.errors import ConfigError
from pipeline.storage import downloads, stores


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
        return downloads.local(id)
    except OSError as error:
        raise ConfigError(
            f"model.id={id!r}: no model can be fetched from there ({error}). Give the folder of a diffusers pipeline "
            "(it holds model_index.json), which this job may list and read."
        ) from error


@cache  # for a process, a model does not change while it runs
def _snapshot(id: str) -> Path:
    with downloads.locked(id, id):
        return Path(snapshot_download(id, allow_patterns=list(downloads.FILES)))


PARTS = ("vae", "text_encoder", "tokenizer", "transformer")  # folders of a pipeline whose files change a feature
_OTHERS = ("scheduler",)  # and those that change none


def family(path: Path) -> str:
    """Which adapter a pipeline folder needs. Raises ConfigError for families that have none yet.

    The class alone does not tell: Wan 2.2 has that of Wan 2.1, with a second transformer or another autoencoder.
    """
    index = _config(path / "model_index.json")
    name = str(index.get("_class_name"))
    if name != "WanPipeline":
        raise ConfigError(
            f"model.id={str(path)!r}: it is a {name}; this version has an adapter for WanPipeline only, with Wan 2.1 "
            "text-to-video."
        )
    _check_parts(path, index)
    if index.get("expand_timesteps"):
        raise _unsupported(path, "Wan 2.2 TI2V 5B (expand_timesteps), whose tokens have timesteps of their own")
    for part, kind in (("vae", "AutoencoderKLWan"), ("transformer", "WanTransformer3DModel")):
        class_name = _config(path / part / "config.json").get("_class_name", kind)
        if class_name != kind:
            raise _unsupported(path, f"a pipeline whose {part} is a {class_name}, not a {kind}")
    if _config(path / "vae" / "config.json").get("is_residual"):
        raise _unsupported(path, "Wan 2.2 with its residual autoencoder (is_residual)")
    transformer = _config(path / "transformer" / "config.json")
    image = next((key for key in ("image_dim", "added_kv_proj_dim") if transformer.get(key) is not None), None)
    if image is not None:
        raise _unsupported(path, f"an image-to-video model ({image}={transformer[image]}), which takes a first frame")
    inputs, outputs = transformer.get("in_channels"), transformer.get("out_channels")
    if None not in (inputs, outputs) and inputs != outputs:
        raise _unsupported(
            path,
            f"an image-to-video or control model (in_channels={inputs}, out_channels={outputs}), which takes more than "
            "noise and caption",
        )
    return name


def _unsupported(path: Path, what: str) -> ConfigError:
    return ConfigError(
        f"model.id={str(path)!r}: it is {what}. This version attributes and fine-tunes Wan 2.1 text-to-video alone; "
        "features of others would be wrong. Give a Wan 2.1 T2V pipeline."
    )


def _check_parts(path: Path, index: Mapping[str, Any]) -> None:
    """Raise ConfigError for a pipeline that has parts beside those that are hashed and opened."""
    named = [key for key, value in index.items() if isinstance(value, list) and any(value)]
    second = [key for key in ("transformer_2", "text_encoder_2") if key in named or (path / key).is_dir()]
    boundary = index.get("boundary_ratio")
    if "transformer_2" in second or boundary is not None:
        raise _unsupported(path, f"Wan 2.2 A14B with two experts (transformer_2, boundary_ratio={boundary})")
    others = [*second, *(key for key in named if key not in (*PARTS, *_OTHERS, *second))]
    if others:
        raise _unsupported(path, f"a pipeline with {', '.join(others)}, which Wan 2.1 text-to-video does not have")


def _config(file: Path) -> dict[str, Any]:
    """A JSON file of a pipeline's folder; empty where it is missing, which `open_model` tells of."""
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{file}: this is no JSON file that can be read ({error}); model.id names its folder."
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: this holds no JSON object, so model.id names no complete diffusers Wan pipeline.")
    return content


def strides(path: Path) -> tuple[int, int]:
    """Temporal and spatial stride of the autoencoder, from its configuration alone. Raises ConfigError."""
    file = path / "vae" / "config.json"
    return strides_of(_config(file), str(file))


def strides_of(config: Mapping[str, Any], source: str) -> tuple[int, int]:
    """Temporal and spatial stride by an autoencoder's configuration; nothing is assumed where it does not say.

    Its lists of levels tell what it does, and older configurations have them alone. Where `scale_factor_temporal` and
    `scale_factor_spatial` are there too, they must say the same. Raises ConfigError.
    """
    levels, halved = config.get("dim_mult"), config.get("temperal_downsample")
    derived: dict[str, int] = {}
    if isinstance(levels, list | tuple) and isinstance(halved, list | tuple):
        derived["scale_factor_temporal"] = 2 ** sum(bool(one) for one in halved[: len(levels) - 1])
        derived["scale_factor_spatial"] = 2 ** (len(levels) - 1) * int(config.get("patch_size") or 1)
    values = []
    for key in ("scale_factor_temporal", "scale_factor_spatial"):
        stride = config.get(key, derived.get(key))
        if not isinstance(stride, int) or stride < 1:
            raise ConfigError(
                f"{source}: it does not tell the autoencoder's stride: {key} is {stride!r}, and dim_mult with "
                "temperal_downsample is not there either. Add the key, or give the folder of a complete diffusers "
                "Wan pipeline."
            )
        if derived.get(key, stride) != stride:
            raise ConfigError(
                f"{source}: {key}={stride} contradicts dim_mult={levels}, temperal_downsample={halved} and patch_size="
                f"{config.get('patch_size')}, by which it is {derived[key]}. Correct the one that is wrong."
            )
        values.append(stride)
    return values[0], values[1]


def patch(path: Path) -> tuple[int, int, int]:
    """Latent frames, rows and columns to a token. Raises ConfigError."""
    file = path / "transformer" / "config.json"
    sizes = _config(file).get("patch_size")
    if not isinstance(sizes, list) or len(sizes) != 3 or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise ConfigError(
            f"{file}: patch_size is {sizes!r}, not three whole numbers. Give the folder of a complete diffusers Wan "
            "pipeline."
        )
    return sizes[0], sizes[1], sizes[2]


def skeleton(path: Path) -> nn.Module:
    """The transformer on the meta device: names and shapes of its parameters without their memory."""
    from diffusers import WanTransformer3DModel  # 0.3 GiB, which a driver that only lists videos does not need

    with torch.device("meta"):
        config = WanTransformer3DModel.load_config(path, subfolder="transformer")
        return cast(nn.Module, WanTransformer3DModel.from_config(config))


def weights_hash(path: Path) -> str:
    """A hash of every weight and configuration file that changes a feature.

    Raises ConfigError for a pipeline that has other parts, which it would leave out.
    """
    _check_parts(path, _config(path / "model_index.json"))
    digest = hashlib.blake2b(digest_size=16)
    for part in PARTS:
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
