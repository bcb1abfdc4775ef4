"""HunyuanVideo 1.5 text-to-video: two text encoders with masks, and channels for a first frame that is not there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.config import VideoModelConfig
from pipeline.models.adapters.hunyuan import HunyuanGrid
from pipeline.models.contract import Conditioning, VideoModel
from pipeline.models.diffusers_family import DiffusersFamily
from pipeline.models.diffusers_model import ATTENTION, TEXT_STREAM, DiffusersModel, lora_file


class Hunyuan15Family(HunyuanGrid):
    """HunyuanVideo 1.5, 480p and 720p. What embeds a first frame, and the last block's text output, change no video."""

    title = "HunyuanVideo 1.5 text-to-video"
    transformer_class = "HunyuanVideo15Transformer3DModel"
    vae_class = "AutoencoderKLHunyuanVideo15"
    optional = ("guider",)
    varying = True  # what reads letters is reached by captions with something in quotation marks

    @property
    def idle(self) -> str:
        last = self.number("transformer", "num_layers") - 1
        unused = r"(attn\.(to_add_out|add_q_proj|norm_added_q)|norm2_context|ff_context)\."
        return rf"^(image_embedder\.|transformer_blocks\.{last}\.{unused})"

    def check_folder(self) -> None:
        super().check_folder()
        if self.transformer_config.get("use_meanflow"):
            raise self.unsupported("a distilled model (use_meanflow), whose transformer takes two times")

    def open(self, config: VideoModelConfig, device: torch.device) -> VideoModel:
        return Hunyuan15(self, self.load(config), config, device)


class Hunyuan15(DiffusersModel):
    """A HunyuanVideo 1.5 pipeline that is loaded."""

    targets = (*ATTENTION, *TEXT_STREAM)
    frozen = ("text_encoder", "text_encoder_2")

    def __init__(self, family: DiffusersFamily, pipeline: Any, config: VideoModelConfig, device: torch.device) -> None:
        super().__init__(family, pipeline, config, device)
        pipeline.tokenizer_max_length = config.text_tokens

    def normalised(self, raw: Tensor) -> Tensor:
        latent: Tensor = raw * self.vae.config.scaling_factor
        return latent

    @torch.no_grad()
    def text(self, caption: str) -> dict[str, Tensor]:
        """The caption, and what it has in quotation marks, letter by letter."""
        tensors = self.pipeline.encode_prompt([caption], batch_size=1, dtype=self.dtype, device=self.device)
        return {name: t[0] for name, t in zip(("text", "mask", "glyphs", "glyph_mask"), tensors, strict=True)}

    def arguments(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        batch, channels, *cells = noisy.shape
        without = torch.zeros(batch, channels + 1, *cells, dtype=self.dtype, device=noisy.device)
        pipeline = self.pipeline
        image = torch.zeros(
            batch,
            pipeline.vision_num_semantic_tokens,
            pipeline.vision_states_dim,
            dtype=self.dtype,
            device=noisy.device,
        )
        return {
            "hidden_states": torch.cat([noisy.to(self.dtype), without], 1),
            "image_embeds": image,
            "timestep": timestep.to(self.dtype),  # the transformer embeds it in its own dtype, as the pipeline does
            "encoder_hidden_states": conditioning["text"].to(self.dtype),
            "encoder_attention_mask": conditioning["mask"].to(self.dtype),
            "encoder_hidden_states_2": conditioning["glyphs"].to(self.dtype),
            "encoder_attention_mask_2": conditioning["glyph_mask"].to(self.dtype),
        }

    def call(self, frames: int, height: int, width: int, fps: float, guidance: float) -> dict[str, Any]:
        """The pipeline's guider has the guidance."""
        self.pipeline.guider = self.pipeline.guider.new(guidance_scale=guidance)
        return {"num_frames": frames, "height": height, "width": width}

    def write_lora(self, part: str, layers: dict[str, Tensor], metadata: dict[str, Any], folder: str) -> None:
        """As the transformer's own `save_lora_adapter`: diffusers has no loader for this pipeline."""
        from diffusers.loaders.lora_base import LoraBaseMixin

        LoraBaseMixin.write_lora_layers(layers, folder, True, lora_file(part), None, True, metadata)

    def read_lora_as_pipeline(self, folder: str) -> None:
        self.pipeline.transformer.load_lora_adapter(folder, prefix=None, weight_name=lora_file("transformer"))
