"""Mochi text-to-video: time runs backwards, and the velocity points from the noise to the clip."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from pipeline.config import VideoModelConfig
from pipeline.models.contract import Conditioning, VideoModel
from pipeline.models.diffusers_family import DiffusersFamily
from pipeline.models.diffusers_model import ATTENTION, TEXT_STREAM, DiffusersModel
from pipeline.models.schedule import STEPS


class MochiFamily(DiffusersFamily):
    """Mochi 1. The last block's text output changes no video."""

    title = "Mochi text-to-video"
    transformer_class = "MochiTransformer3DModel"
    vae_class = "AutoencoderKLMochi"
    components = ("vae", "text_encoder", "tokenizer", "transformer")
    sign = -1

    @property
    def strides(self) -> tuple[int, int]:
        levels = [self.vae_config.get(f"{name}_expansions") for name in ("temporal", "spatial")]
        for values in levels:
            self.length("vae", values)
        temporal, spatial = (prod(int(n) for n in values) for values in levels if values)
        return temporal, spatial

    @property
    def patch(self) -> tuple[int, int, int]:
        side = self.number("transformer", "patch_size")
        return 1, side, side

    @property
    def idle(self) -> str:
        last = self.number("transformer", "num_layers") - 1
        return rf"^transformer_blocks\.{last}\.attn1\.(add_q_proj|norm_added_q)\."

    def open(self, config: VideoModelConfig, device: torch.device) -> VideoModel:
        return Mochi(self, self.load(config), config, device)


class Mochi(DiffusersModel):
    """A Mochi pipeline that is loaded."""

    targets = (*ATTENTION, *TEXT_STREAM)

    def normalised(self, raw: Tensor) -> Tensor:
        config = self.vae.config
        if config.latents_mean is None or config.latents_std is None:
            plain: Tensor = raw * config.scaling_factor
            return plain
        mean, std = (
            raw.new_tensor(values).view(1, -1, 1, 1, 1) for values in (config.latents_mean, config.latents_std)
        )
        latent: Tensor = (raw - mean) / std * config.scaling_factor
        return latent

    @torch.no_grad()
    def text(self, caption: str) -> dict[str, Tensor]:
        tokens, mask, _, _ = self.pipeline.encode_prompt(
            [caption], do_classifier_free_guidance=False, max_sequence_length=self.text_tokens, device=self.device
        )
        return {"text": tokens[0], "mask": mask[0]}

    def arguments(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        return {
            "hidden_states": noisy.to(self.dtype),
            "timestep": STEPS - timestep,
            "encoder_hidden_states": conditioning["text"].to(self.dtype),
            "encoder_attention_mask": conditioning["mask"],
        }

    def time_of(self, arguments: Mapping[str, Any]) -> float:
        return STEPS - super().time_of(arguments)

    def call(self, frames: int, height: int, width: int, fps: float, guidance: float) -> dict[str, Any]:
        return {**super().call(frames, height, width, fps, guidance), "max_sequence_length": self.text_tokens}
