"""HunyuanVideo text-to-video: a guidance that the transformer is told, and a pooled caption."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.config import VideoModelConfig
from pipeline.models.contract import Conditioning, VideoModel
from pipeline.models.diffusers_family import DiffusersFamily
from pipeline.models.diffusers_model import ATTENTION, TEXT_STREAM, DiffusersModel


class HunyuanGrid(DiffusersFamily):
    """How HunyuanVideo and 1.5 write down their strides and patches."""

    components = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer")

    @property
    def strides(self) -> tuple[int, int]:
        return self.number("vae", "temporal_compression_ratio"), self.number("vae", "spatial_compression_ratio")

    @property
    def patch(self) -> tuple[int, int, int]:
        side = self.number("transformer", "patch_size")
        return self.number("transformer", "patch_size_t"), side, side


class HunyuanFamily(HunyuanGrid):
    """HunyuanVideo 13B. It is trained at `model.guidance`, 1 by default, and generates at that of `evaluate`."""

    title = "HunyuanVideo text-to-video"
    transformer_class = "HunyuanVideoTransformer3DModel"
    vae_class = "AutoencoderKLHunyuanVideo"

    @property
    def generates(self) -> int:
        return 16

    def check_folder(self) -> None:
        super().check_folder()
        kind = self.transformer_config.get("image_condition_type")
        if kind is not None:
            raise self.unsupported(f"an image-to-video model (image_condition_type={kind})")

    def record(self, config: VideoModelConfig) -> dict[str, Any]:
        return {**super().record(config), "model.guidance": config.guidance}

    def open(self, config: VideoModelConfig, device: torch.device) -> VideoModel:
        return Hunyuan(self, self.load(config), config, device)


class Hunyuan(DiffusersModel):
    """A HunyuanVideo pipeline that is loaded."""

    targets = (*ATTENTION, *TEXT_STREAM)
    frozen = ("text_encoder", "text_encoder_2")

    def normalised(self, raw: Tensor) -> Tensor:
        latent: Tensor = raw * self.vae.config.scaling_factor
        return latent

    @torch.no_grad()
    def text(self, caption: str) -> dict[str, Tensor]:
        tokens, pooled, mask = self.pipeline.encode_prompt(
            [caption], max_sequence_length=self.text_tokens, device=self.device
        )
        return {"text": tokens[0], "pooled": pooled[0], "mask": mask[0]}

    def arguments(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        guidance = torch.full((len(noisy),), self.guidance, dtype=self.dtype, device=noisy.device) * 1000.0
        return {
            "hidden_states": noisy.to(self.dtype),
            "timestep": timestep,
            "encoder_hidden_states": conditioning["text"].to(self.dtype),
            "encoder_attention_mask": conditioning["mask"].to(self.dtype),
            "pooled_projections": conditioning["pooled"].to(self.dtype),
            "guidance": guidance,
        }

    def call(self, frames: int, height: int, width: int, fps: float, guidance: float) -> dict[str, Any]:
        return {**super().call(frames, height, width, fps, guidance), "max_sequence_length": self.text_tokens}
