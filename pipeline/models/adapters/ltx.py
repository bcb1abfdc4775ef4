"""LTX-Video text-to-video: packed tokens, a shift by the number of cells, the clip's rate in the positions."""

from __future__ import annotations

from collections.abc import Mapping
from math import lcm
from typing import Any, ClassVar

import torch
from torch import Tensor

from pipeline.config import VideoModelConfig
from pipeline.models.contract import Conditioning, Frames, VideoModel
from pipeline.models.diffusers_family import DiffusersFamily
from pipeline.models.diffusers_model import DiffusersModel

GENERATED = 32  # of whose multiples the pipelines generate videos, whatever the transformer takes
DECODE_TIME, DECODE_NOISE = 0.05, 0.025  # of decoders that denoise once more, as diffusers' documentation has them


class LTXFamily(DiffusersFamily):
    """LTX-Video 2B and 13B. Mean and deviation of the latent are buffers in the autoencoder's weights."""

    title = "LTX-Video text-to-video"
    transformer_class = "LTXVideoTransformer3DModel"
    vae_class = "AutoencoderKLLTXVideo"
    components: ClassVar[tuple[str, ...]] = ("vae", "text_encoder", "tokenizer", "transformer")

    @property
    def strides(self) -> tuple[int, int]:
        halvings = self.flags("vae", "spatio_temporal_scaling")
        spatial = self.vae_config.get("spatial_compression_ratio") or self.number("vae", "patch_size") * 2**halvings
        temporal = self.vae_config.get("temporal_compression_ratio") or self.number("vae", "patch_size_t") * 2**halvings
        return int(temporal), int(spatial)

    @property
    def patch(self) -> tuple[int, int, int]:
        side = self.number("transformer", "patch_size")
        return self.number("transformer", "patch_size_t"), side, side

    @property
    def generates(self) -> int:
        return lcm(*self.sides, GENERATED)

    def open(self, config: VideoModelConfig, device: torch.device) -> VideoModel:
        return LTX(self, self.load(config), config, device)


class LTX(DiffusersModel):
    """An LTX-Video pipeline that is loaded."""

    @torch.no_grad()
    def encode(self, frames: Frames, fps: float) -> dict[str, Tensor]:
        return {**super().encode(frames, fps), "fps": torch.tensor(fps, dtype=torch.float64)}

    def normalised(self, raw: Tensor) -> Tensor:
        shape = (1, -1, 1, 1, 1)
        mean, std = (t.to(raw).view(shape) for t in (self.vae.latents_mean, self.vae.latents_std))
        latent: Tensor = (raw - mean) * self.vae.config.scaling_factor / std
        return latent

    @torch.no_grad()
    def text(self, caption: str) -> dict[str, Tensor]:
        embeddings, mask, _, _ = self.pipeline.encode_prompt(
            [caption], do_classifier_free_guidance=False, max_sequence_length=self.text_tokens, device=self.device
        )
        return {"text": embeddings[0], "mask": mask[0]}

    def packed(self, latent: Tensor) -> Tensor:
        """[B, C, f, h, w] -> [B, tokens, C patch], a token for each patch."""
        (t, rows, columns), (_, _, f, h, w) = self.family.patch, latent.shape
        batch, channels = latent.shape[:2]
        patches = latent.reshape(batch, channels, f // t, t, h // rows, rows, w // columns, columns)
        return patches.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)

    def unpacked(self, output: Tensor, noisy: Tensor) -> Tensor:
        (t, rows, columns), (_, _, f, h, w) = self.family.patch, noisy.shape
        tokens = output.reshape(len(output), f // t, h // rows, w // columns, -1, t, rows, columns)
        return tokens.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def noisy_of(self, arguments: Mapping[str, Any]) -> Tensor:
        hidden = arguments["hidden_states"]
        cells = (arguments[name] for name in ("num_frames", "height", "width"))
        return self.unpacked(hidden, hidden.new_empty(1, 1, *cells))

    def packed_output(self, prediction: Tensor) -> Tensor:
        return self.packed(prediction)

    def arguments(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        _, _, frames, height, width = noisy.shape
        temporal, spatial = self.family.strides
        (fps,) = set(conditioning["fps"].tolist())  # clips of a run have one
        return {
            "hidden_states": self.packed(noisy).to(self.dtype),
            "timestep": timestep,
            "encoder_hidden_states": conditioning["text"].to(self.dtype),
            "encoder_attention_mask": conditioning["mask"],
            "num_frames": frames,
            "height": height,
            "width": width,
            "rope_interpolation_scale": (temporal / fps, spatial, spatial),
        }

    def call(self, frames: int, height: int, width: int, fps: float, guidance: float) -> dict[str, Any]:
        arguments = {
            **super().call(frames, height, width, fps, guidance),
            "frame_rate": fps,
            "max_sequence_length": self.text_tokens,
        }
        if self.vae.config.timestep_conditioning:
            arguments |= {"decode_timestep": DECODE_TIME, "decode_noise_scale": DECODE_NOISE}
        return arguments
