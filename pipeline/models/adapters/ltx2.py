"""LTX-2 text-to-video: LTX-Video's packed tokens beside a branch of sound, from which the video is isolated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.config import VideoModelConfig
from pipeline.errors import ConfigError
from pipeline.models.adapters.ltx import LTX, LTXFamily
from pipeline.models.contract import Conditioning, VideoModel
from pipeline.models.diffusers_family import DiffusersFamily
from pipeline.models.diffusers_model import ATTENTION

SOUND = r"audio|a2v|v2a|av_cross_attn"  # in the names of what makes sound, or carries it to the video
KEYFRAMES = "keyframes_abs_pos_embedding"  # of a pipeline that is given frames


class LTX2Family(LTXFamily):
    """LTX-2 and 2.3. Clips have no sound here: the transformer is called as diffusers calls it for its modality
    guidance, with attention between video and sound switched off, so that the sound changes no prediction of the video.
    What belongs to the sound does not count and is not trained."""

    title = "LTX-2 text-to-video"
    transformer_class = "LTX2VideoTransformer3DModel"
    vae_class = "AutoencoderKLLTX2Video"
    components = ("vae", "text_encoder", "tokenizer", "connectors", "transformer")
    optional = ("audio_vae", "vocoder", "processor", "prompt_enhancer", "duration_head")

    @property
    def idle(self) -> str:
        return f"{SOUND}|{KEYFRAMES}"

    def check(self, config: VideoModelConfig) -> None:
        registers = self.config("connectors").get("video_connector_num_learnable_registers")
        if registers and config.text_tokens % registers:
            raise ConfigError(
                f"model.text_tokens={config.text_tokens}: the connectors of {self.title} fill captions up with "
                f"{registers} tokens of their own, so it has to be a multiple of {registers}; the pipeline's own call "
                "has 1024."
            )

    def record(self, config: VideoModelConfig) -> dict[str, Any]:
        return {**super().record(config), "model.audio": "isolated"}

    def open(self, config: VideoModelConfig, device: torch.device) -> VideoModel:
        unused = {"processor": None, "prompt_enhancer": None, "duration_head": None}  # they write captions, and lengths
        return LTX2(self, self.load(config, **unused), config, device)


class LTX2(LTX):
    """An LTX-2 pipeline that is loaded."""

    targets = tuple(f"{attention}.{layer}" for attention in ("attn1", "attn2") for layer in ATTENTION)
    frozen = ("text_encoder", "connectors", "audio_vae", "vocoder")
    idle_arguments = ("audio_hidden_states", "audio_encoder_hidden_states")

    def __init__(self, family: DiffusersFamily, pipeline: Any, config: VideoModelConfig, device: torch.device) -> None:
        super().__init__(family, pipeline, config, device)
        audio = pipeline.audio_vae
        rate = audio.config.sample_rate / audio.config.mel_hop_length / audio.temporal_compression_ratio
        self.sound_rate = float(rate)  # latent frames of sound a second

    @torch.no_grad()
    def text(self, caption: str) -> dict[str, Tensor]:
        """After the connectors, as the video is told it; what the sound is told of a caption is left out."""
        states, mask, _, _ = self.pipeline.encode_prompt(
            [caption], do_classifier_free_guidance=False, max_sequence_length=self.text_tokens, device=self.device
        )
        side = self.pipeline.tokenizer.padding_side
        text, _, mask = self.pipeline.connectors(states, mask, padding_side=side)
        return {"text": text[0], "mask": mask[0]}

    def arguments(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        """The sound is zeros, in the shapes that the pipeline gives it."""
        batch, _, frames, height, width = noisy.shape
        transformer, text, mask = self.pipeline.transformer, conditioning["text"], conditioning["mask"]
        (fps,) = set(conditioning["fps"].tolist())  # clips of a run have one
        seconds = ((frames - 1) * self.family.strides[0] + 1) / fps
        sounds = round(seconds * self.sound_rate)
        heard = torch.zeros(batch, sounds, transformer.config.audio_in_channels)
        heard_text = torch.zeros(batch, text.shape[1], self.sound_text_width())
        return {
            "hidden_states": self.packed(noisy).to(self.dtype),
            "audio_hidden_states": heard.to(noisy.device, self.dtype),
            "encoder_hidden_states": text.to(self.dtype),
            "audio_encoder_hidden_states": heard_text.to(noisy.device, self.dtype),
            "timestep": timestep,
            "sigma": timestep,
            "encoder_attention_mask": mask,
            "audio_encoder_attention_mask": mask,
            "num_frames": frames,
            "height": height,
            "width": width,
            "fps": fps,
            "audio_num_frames": sounds,
            "video_coords": transformer.rope.prepare_video_coords(batch, frames, height, width, noisy.device, fps=fps),
            "audio_coords": transformer.audio_rope.prepare_audio_coords(batch, sounds, noisy.device),
            "isolate_modalities": True,
            "use_cross_timestep": True,
        }

    def sound_text_width(self) -> int:
        """Numbers to a token of what the sound is told of a caption."""
        connectors = self.pipeline.connectors.config
        heads = connectors.audio_connector_num_attention_heads
        return int(heads * connectors.audio_connector_attention_head_dim)

    def check_call(self) -> dict[str, Any]:
        """With modality guidance, each step has a call in which the video is isolated."""
        return {"modality_scale": 2.0}

    def compared_call(self, arguments: Mapping[str, Any]) -> bool:
        return bool(arguments["isolate_modalities"])

    def outputs(self, output: Tensor, arguments: Mapping[str, Any]) -> tuple[Tensor, ...]:
        return output, torch.zeros_like(arguments["audio_hidden_states"])

    def latent_of_call(self, result: Tensor, noisy: Tensor) -> Tensor:
        """The pipeline gives latents that are not normalised any more."""
        return self.normalised(result)

    def call(self, frames: int, height: int, width: int, fps: float, guidance: float) -> dict[str, Any]:
        """Guidance by the caption alone. Video and sound are made together, as the pipeline does it; the sound is
        dropped."""
        return {
            **super().call(frames, height, width, fps, guidance),
            "audio_guidance_scale": guidance,
            "stg_scale": 0.0,
            "audio_stg_scale": 0.0,
            "modality_scale": 1.0,
            "audio_modality_scale": 1.0,
            "guidance_rescale": 0.0,
            "audio_guidance_rescale": 0.0,
        }
