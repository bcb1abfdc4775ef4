"""Wan 2.1 text-to-video, and what other Wan families share with it, through diffusers' own pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.config import VideoModelConfig
from pipeline.errors import ConfigError
from pipeline.models.contract import Conditioning, Frames, VideoModel
from pipeline.models.diffusers_family import DiffusersFamily
from pipeline.models.diffusers_model import DiffusersModel

GENERATED = 16  # of whose multiples WanPipeline generates videos, whatever the transformer takes


class AnyWanFamily(DiffusersFamily):
    """What all Wan families share: the classes of their parts, and how they write down their strides."""

    transformer_class = "WanTransformer3DModel"
    vae_class = "AutoencoderKLWan"

    @property
    def strides(self) -> tuple[int, int]:
        return strides_of(self.vae_config, str(self.path / "vae" / "config.json"))


class WanFamily(AnyWanFamily):
    """Wan 2.1 text-to-video, 1.3B and 14B.

    The class of the pipeline does not tell: Wan 2.2 has the same, with a second transformer or another autoencoder.
    """

    title = "Wan 2.1 text-to-video"
    components = ("vae", "text_encoder", "tokenizer", "transformer")

    def check_folder(self) -> None:
        super().check_folder()
        if self.vae_config.get("is_residual"):
            raise self.unsupported("a pipeline with Wan 2.2's residual autoencoder (is_residual)")
        check_inputs(self, self.transformer_config)

    @property
    def generates(self) -> int:
        return GENERATED

    @property
    def parts(self) -> tuple[str, ...]:
        """No scheduler: flow matching's noise needs none, and tables of before there were other families say so."""
        return self.components

    def record(self, config: VideoModelConfig) -> dict[str, Any]:
        return {}

    def open(self, config: VideoModelConfig, device: torch.device) -> VideoModel:
        return Wan(self, self.load(config), config, device)


class Wan(DiffusersModel):
    """A Wan pipeline that is loaded."""

    output_type = "latent"

    def __init__(self, family: DiffusersFamily, pipeline: Any, config: VideoModelConfig, device: torch.device) -> None:
        super().__init__(family, pipeline, config, device)
        shape = (1, -1, 1, 1, 1)
        self._mean = torch.tensor(self.vae.config.latents_mean).view(shape)
        self._std = torch.tensor(self.vae.config.latents_std).view(shape)

    def normalised(self, raw: Tensor) -> Tensor:
        latent: Tensor = (raw - self._mean.to(raw.device)) / self._std.to(raw.device)
        return latent

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Frames:
        """Normalised latent [C, f, h, w] -> frames [F, H, W, 3]."""
        raw = latent[None] * self._std.to(latent.device) + self._mean.to(latent.device)
        video = self.vae.decode(raw.to(self.vae.dtype)).sample[0].float()
        frames: Frames = ((video.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0).cpu().numpy()
        return frames

    @torch.no_grad()
    def text(self, caption: str) -> dict[str, Tensor]:
        embeddings, _ = self.pipeline.encode_prompt(
            [caption], do_classifier_free_guidance=False, max_sequence_length=self.text_tokens, device=self.device
        )
        return {"text": embeddings[0]}

    def arguments(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        return {
            "hidden_states": noisy.to(self.dtype),
            "timestep": timestep,
            "encoder_hidden_states": conditioning["text"].to(self.dtype),
        }

    def call(self, frames: int, height: int, width: int, fps: float, guidance: float) -> dict[str, Any]:
        return {
            **super().call(frames, height, width, fps, guidance),
            "negative_prompt": "",
            "max_sequence_length": self.text_tokens,
        }

    def finished(self, output: Any) -> Frames:
        return self.decode(output.float())


def check_inputs(family: DiffusersFamily, transformer: Mapping[str, Any]) -> None:
    """Raise ConfigError for a transformer that takes more than noise and caption."""
    image = next((key for key in ("image_dim", "added_kv_proj_dim") if transformer.get(key) is not None), None)
    if image is not None:
        raise family.unsupported(f"an image-to-video model ({image}={transformer[image]}), which takes a first frame")
    inputs, outputs = transformer.get("in_channels"), transformer.get("out_channels")
    if None not in (inputs, outputs) and inputs != outputs:
        raise family.unsupported(
            f"an image-to-video or control model (in_channels={inputs}, out_channels={outputs}), which takes more than "
            "noise and caption"
        )


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
