"""The Wan 2.1 text-to-video family, through diffusers' own pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKLWan, WanPipeline
from torch import Tensor, nn

from pipeline.config import VideoModelConfig
from pipeline.errors import ConfigError
from pipeline.models import strides_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Wan:
    """A Wan pipeline that is loaded; see `VideoModel` for its methods.

    The autoencoder runs in the dtype that it has, float32 as diffusers advises or bfloat16; its latents are normalised
    in float32 either way.
    """

    def __init__(self, pipeline: WanPipeline, config: VideoModelConfig, device: torch.device) -> None:
        self.pipeline = pipeline
        self.pipeline.to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.device, self.text_tokens = device, config.text_tokens
        self.vae, self.transformer = self.pipeline.vae, self.pipeline.transformer
        self.vae.enable_slicing()
        if device.type == "cuda":
            channels_last(self.vae, True)
        for module in (self.vae, self.pipeline.text_encoder):
            module.requires_grad_(False).eval()
        self.transformer.eval()
        if config.gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        self.temporal_stride, self.spatial_stride = strides_of(dict(self.vae.config), f"model.id={config.id!r}, vae")
        self.patch: tuple[int, int, int] = tuple(self.transformer.config.patch_size)
        scheduler = self.pipeline.scheduler.config
        self.shift = float(scheduler.get("flow_shift", scheduler.get("shift", 1.0)))
        shape = (1, -1, 1, 1, 1)
        self._mean = torch.tensor(self.vae.config.latents_mean, device=device).view(shape)
        self._std = torch.tensor(self.vae.config.latents_std, device=device).view(shape)

    @property
    def checkpointing(self) -> bool:
        return bool(self.transformer.is_gradient_checkpointing)

    @torch.no_grad()
    def encode(self, frames: npt.NDArray[np.uint8]) -> Tensor:
        video = torch.from_numpy(frames).to(self.device).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        mode = self.vae.encode(video.to(self.vae.dtype)).latent_dist.mode().float()
        latent: Tensor = (mode - self._mean) / self._std
        return latent[0]

    @torch.no_grad()
    def decode(self, latent: Tensor) -> npt.NDArray[np.uint8]:
        """Normalised latent [C, f, h, w] -> frames [F, H, W, 3]."""
        raw = latent[None] * self._std + self._mean
        video = self.vae.decode(raw.to(self.vae.dtype)).sample[0].float()
        frames: npt.NDArray[np.uint8] = (
            ((video.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0).cpu().numpy()
        )
        return frames

    @torch.no_grad()
    def text(self, captions: list[str]) -> Tensor:
        embeddings: Tensor
        embeddings, _ = self.pipeline.encode_prompt(
            captions, do_classifier_free_guidance=False, max_sequence_length=self.text_tokens, device=self.device
        )
        return embeddings

    def velocity(self, noisy: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        dtype = self.transformer.dtype
        prediction: Tensor = self.transformer(noisy.to(dtype), timestep, text.to(dtype), return_dict=False)[0]
        return prediction

    def noised(self, latent: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        s = (timestep / 1000).view(-1, 1, 1, 1, 1)
        return (1 - s) * latent + s * noise

    def target(self, latent: Tensor, noise: Tensor) -> Tensor:
        return noise - latent

    def shifted(self, uniform: Tensor) -> Tensor:
        timesteps: Tensor = 1000 * self.shift * uniform / (1 + (self.shift - 1) * uniform)
        return timesteps

    @torch.no_grad()
    def generate(
        self, caption: str, geometry: tuple[int, int, int], seed: int, steps: int, guidance: float
    ) -> npt.NDArray[np.uint8]:
        frames, height, width = geometry
        latent = self.pipeline(
            caption,
            negative_prompt="",
            num_frames=frames,
            height=height,
            width=width,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(seed),
            max_sequence_length=self.text_tokens,
            output_type="latent",
        ).frames[0]
        return self.decode(latent.float())


def channels_last(module: nn.Module, wanted: bool) -> None:
    """The layout of 3-D convolutions' weights: channels last takes an H200 an eighth less time, in the same dtype."""
    layout = torch.channels_last_3d if wanted else torch.contiguous_format
    for convolution in module.modules():
        if isinstance(convolution, nn.Conv3d):
            convolution.weight.data = convolution.weight.data.contiguous(memory_format=layout)


def load(path: Path, config: VideoModelConfig) -> WanPipeline:
    """diffusers' pipeline of a folder, on the CPU, in the dtypes of `config`. Raises ConfigError."""
    try:
        vae = AutoencoderKLWan.from_pretrained(
            path, subfolder="vae", dtype=DTYPES[config.vae_dtype], use_safetensors=True
        )
        return WanPipeline.from_pretrained(path, vae=vae, dtype=DTYPES[config.dtype], use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.id={config.id!r}: no Wan pipeline could be opened there ({str(error).splitlines()[0]}). Give the "
            "folder of a complete diffusers Wan pipeline."
        ) from error
