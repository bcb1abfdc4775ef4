"""CogVideoX 2B, 5B and 1.5 text-to-video: v-prediction at times that are indices, frames before channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.config import VideoModelConfig
from pipeline.models.contract import Conditioning, Frames, VideoModel
from pipeline.models.diffusers_family import DiffusersFamily
from pipeline.models.diffusers_model import DiffusersModel


class CogVideoXFamily(DiffusersFamily):
    """CogVideoX. Frames come as 8 n + 1: the autoencoder encodes 4 n + 1, but decodes them only for an even n right."""

    title = "CogVideoX text-to-video"
    transformer_class = "CogVideoXTransformer3DModel"
    vae_class = "AutoencoderKLCogVideoX"
    components = ("vae", "text_encoder", "tokenizer", "transformer")

    @property
    def strides(self) -> tuple[int, int]:
        levels = self.vae_config.get("block_out_channels")
        return self.number("vae", "temporal_compression_ratio"), 2 ** (self.length("vae", levels) - 1)

    @property
    def patch(self) -> tuple[int, int, int]:
        side = self.number("transformer", "patch_size")
        return int(self.transformer_config.get("patch_size_t") or 1), side, side

    @property
    def frame_step(self) -> int:
        return 2 * self.strides[0]

    def check(self, config: VideoModelConfig) -> None:
        """2B has a position for each text token and takes exactly as many; 5B and 1.5 were trained with them."""
        self.check_tokens(config, exactly=self.number("transformer", "max_text_seq_length"))

    def open(self, config: VideoModelConfig, device: torch.device) -> VideoModel:
        return CogVideoX(self, self.load(config), config, device)


class CogVideoX(DiffusersModel):
    """A CogVideoX pipeline that is loaded."""

    @torch.no_grad()
    def encode(self, frames: Frames, fps: float) -> dict[str, Tensor]:
        latent = super().encode(frames, fps)["latent"]
        if not self.padding(latent.shape[1]):
            return {"latent": latent}
        return {"latent": latent, "first": latent[:, :1], "last": latent[:, -1:]}

    def normalised(self, raw: Tensor) -> Tensor:
        latent: Tensor = raw * self.vae.config.scaling_factor
        return latent

    @torch.no_grad()
    def text(self, caption: str) -> dict[str, Tensor]:
        embeddings, _ = self.pipeline.encode_prompt(
            [caption], do_classifier_free_guidance=False, max_sequence_length=self.text_tokens, device=self.device
        )
        return {"text": embeddings[0]}

    def padding(self, frames: int) -> int:
        """Latent frames that 1.5 puts before a clip, whose frames are taken in twos."""
        return -frames % self.family.patch[0]

    def unpacked(self, output: Tensor, noisy: Tensor) -> Tensor:
        return output.transpose(1, 2)

    def noisy_of(self, arguments: Mapping[str, Any]) -> Tensor:
        hidden: Tensor = arguments["hidden_states"]
        return hidden.transpose(1, 2)

    def packed_output(self, prediction: Tensor) -> Tensor:
        return prediction.transpose(1, 2)

    def arguments(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        _, _, frames, height, width = noisy.shape
        _, stride = self.family.strides
        rope = None
        if self.pipeline.transformer.config.use_rotary_positional_embeddings:
            rope = self.pipeline._prepare_rotary_positional_embeddings(
                height * stride, width * stride, frames, noisy.device
            )
        return {
            "hidden_states": noisy.transpose(1, 2).to(self.dtype),
            "encoder_hidden_states": conditioning["text"].to(self.dtype),
            "timestep": timestep.long(),
            "image_rotary_emb": rope,
        }

    def predict(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """Without the padding, which is the first frame under noise of its own: that of the last frame, upside down,
        so that it depends on nothing but the clip and its noise."""
        count = self.padding(noisy.shape[2])
        if not count:
            return super().predict(noisy, timestep, conditioning)
        alpha, _ = self.schedule.coefficients(timestep)
        noise = (noisy[:, :, -1:] - alpha * conditioning["last"]).flip(3)
        padding = (alpha * conditioning["first"] + noise).expand(-1, -1, count, -1, -1)
        return super().predict(torch.cat([padding, noisy], 2), timestep, conditioning)[:, :, count:]

    def call(self, frames: int, height: int, width: int, fps: float, guidance: float) -> dict[str, Any]:
        return {**super().call(frames, height, width, fps, guidance), "max_sequence_length": self.text_tokens}
