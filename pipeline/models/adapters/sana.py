"""Sana-Video text-to-video: captions come after an instruction, and a dropped one does not."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from pipeline.config import VideoModelConfig
from pipeline.models.adapters.wan import Wan, strides_of
from pipeline.models.contract import Conditioning, VideoModel
from pipeline.models.diffusers_family import DiffusersFamily


class SanaFamily(DiffusersFamily):
    """Sana-Video with Wan's autoencoder. Its others, DC-AE and LTX-2's, normalise otherwise and are refused."""

    title = "Sana-Video text-to-video"
    transformer_class = "SanaVideoTransformer3DModel"
    vae_class = "AutoencoderKLWan"
    components = ("vae", "text_encoder", "tokenizer", "transformer")

    def check_folder(self) -> None:
        super().check_folder()
        inputs, outputs = (self.number("transformer", key) for key in ("in_channels", "out_channels"))
        if inputs != outputs:
            raise self.unsupported(f"a model that predicts a variance as well ({inputs} channels in, {outputs} out)")

    @property
    def strides(self) -> tuple[int, int]:
        return strides_of(self.vae_config, str(self.path / "vae" / "config.json"))

    def open(self, config: VideoModelConfig, device: torch.device) -> VideoModel:
        return Sana(self, self.load(config), config, device)


class Sana(Wan):
    """A Sana-Video pipeline that is loaded. Videos are generated at the size that is asked for, without its bins."""

    def text(self, caption: str) -> dict[str, Tensor]:
        default = inspect.signature(self.pipeline.__call__).parameters["complex_human_instruction"].default
        return self._embedded(caption, default)

    def blank(self) -> dict[str, Tensor]:
        return self._embedded("", None)

    @torch.no_grad()
    def _embedded(self, caption: str, instruction: list[str] | None) -> dict[str, Tensor]:
        tokens, mask, _, _ = self.pipeline.encode_prompt(
            [caption],
            do_classifier_free_guidance=False,
            max_sequence_length=self.text_tokens,
            complex_human_instruction=instruction,
            device=self.device,
        )
        return {"text": tokens[0], "mask": mask[0]}

    def arguments(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        return {**super().arguments(noisy, timestep, conditioning), "encoder_attention_mask": conditioning["mask"]}

    def call(self, frames: int, height: int, width: int, fps: float, guidance: float) -> dict[str, Any]:
        return {
            "frames": frames,
            "height": height,
            "width": width,
            "guidance_scale": guidance,
            "max_sequence_length": self.text_tokens,
            "use_resolution_binning": False,
        }
