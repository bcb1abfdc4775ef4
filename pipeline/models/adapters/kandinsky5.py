"""Kandinsky 5 text-to-video: channels come last, and captions have as many tokens as they have, without a mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config import VideoModelConfig
from pipeline.models.contract import Conditioning, VideoModel
from pipeline.models.diffusers_family import DiffusersFamily
from pipeline.models.diffusers_model import DiffusersModel

SIDES_480P = (480, 854)  # within these the pipeline stretches its positions by 2, beside them by 3.16


class Kandinsky5Family(DiffusersFamily):
    """Kandinsky 5 with dense attention. Its models for ten seconds have sparse attention (nabla) and are refused."""

    title = "Kandinsky 5 text-to-video"
    clip_by_clip = True
    transformer_class = "Kandinsky5Transformer3DModel"
    vae_class = "AutoencoderKLHunyuanVideo"
    components = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer")

    def check_folder(self) -> None:
        super().check_folder()
        attention = self.transformer_config.get("attention_type")
        if attention != "regular":
            raise self.unsupported(f"a model with attention_type={attention!r}, which needs compiled kernels")

    @property
    def strides(self) -> tuple[int, int]:
        return self.number("vae", "temporal_compression_ratio"), self.number("vae", "spatial_compression_ratio")

    def open(self, config: VideoModelConfig, device: torch.device) -> VideoModel:
        return Kandinsky5(self, self.load(config), config, device)


class Kandinsky5(DiffusersModel):
    """A Kandinsky 5 pipeline that is loaded.

    The transformer attends to every token that it is given, so that captions of a batch cannot be padded: it is called
    clip by clip. A caption is kept with `text_tokens` rows, of which `tokens` count.
    """

    targets = ("to_query", "to_key", "to_value", "self_attention.out_layer", "cross_attention.out_layer")
    frozen = ("text_encoder", "text_encoder_2")

    def normalised(self, raw: Tensor) -> Tensor:
        latent: Tensor = raw * self.vae.config.scaling_factor
        return latent

    @torch.no_grad()
    def text(self, caption: str) -> dict[str, Tensor]:
        tokens, pooled, _ = self.pipeline.encode_prompt(
            [caption], max_sequence_length=self.text_tokens, device=self.device, dtype=self.dtype
        )
        count = tokens.shape[1]
        padded = F.pad(tokens[0], (0, 0, 0, self.text_tokens - count))
        return {"text": padded, "tokens": torch.tensor(count), "pooled": pooled[0]}

    def cut(self, caption: str) -> int:
        return max(0, len(self.pipeline.tokenizer.tokenizer(caption).input_ids) - self.text_tokens)

    def predict(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        module = self.asked(timestep)
        outputs = []
        for n in range(len(noisy)):
            one = {name: tensor[n : n + 1] for name, tensor in conditioning.items()}
            arguments = self.arguments(noisy[n : n + 1], timestep[n : n + 1], one)
            outputs.append(module(**arguments, return_dict=True).sample)
        return self.unpacked(torch.cat(outputs), noisy)

    def arguments(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        """Of a batch of one. ValueError for captions of several lengths."""
        counts = set(conditioning["tokens"].tolist())
        if len(counts) > 1:
            raise ValueError(f"captions of {sorted(counts)} tokens cannot share a call of {self.family.name}")
        (count,) = counts
        hidden = noisy.permute(0, 2, 3, 4, 1)
        if self.family.transformer_config["visual_cond"]:  # a first frame that is not there, and its mask
            hidden = torch.cat([hidden, torch.zeros_like(hidden), torch.zeros_like(hidden[..., :1])], -1)
        frames, rows, columns = noisy.shape[2:]
        stride, device = self.family.strides[1], noisy.device
        dense = all(SIDES_480P[0] <= side * stride <= SIDES_480P[1] for side in (rows, columns))
        return {
            "hidden_states": hidden.to(self.dtype),
            "encoder_hidden_states": conditioning["text"][:, :count].to(self.dtype),
            "pooled_projections": conditioning["pooled"].to(self.dtype),
            "timestep": timestep,
            "visual_rope_pos": [torch.arange(n, device=device) for n in (frames, rows // 2, columns // 2)],
            "text_rope_pos": torch.arange(count, device=device),
            "scale_factor": (1, 2, 2) if dense else (1, 3.16, 3.16),
            "sparse_params": None,
        }

    def unpacked(self, output: Tensor, noisy: Tensor) -> Tensor:
        return output.permute(0, 4, 1, 2, 3)

    def noisy_of(self, arguments: Mapping[str, Any]) -> Tensor:
        hidden: Tensor = arguments["hidden_states"]
        return hidden[..., : self.family.channels].permute(0, 4, 1, 2, 3)

    def packed_output(self, prediction: Tensor) -> Tensor:
        return prediction.permute(0, 2, 3, 4, 1)

    def call(self, frames: int, height: int, width: int, fps: float, guidance: float) -> dict[str, Any]:
        return {**super().call(frames, height, width, fps, guidance), "max_sequence_length": self.text_tokens}
