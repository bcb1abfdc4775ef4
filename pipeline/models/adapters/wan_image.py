"""Wan 2.1 and 2.2 image-to-video: a clip's own first frame is the condition."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.config import VideoModelConfig
from pipeline.errors import ConfigError
from pipeline.models.adapters.wan import GENERATED, AnyWanFamily, Wan
from pipeline.models.adapters.wan22 import WanExperts, WanExpertsFamily, WanTokens
from pipeline.models.contract import Conditioning, Frames, VideoModel
from pipeline.models.diffusers_family import DiffusersFamily
from pipeline.models.diffusers_model import ATTENTION, picture


class WanImageFamily(AnyWanFamily):
    """Wan 2.1 I2V: the first frame in channels beside the noise, and through CLIP. All frames are denoised."""

    title = "Wan 2.1 image-to-video"
    components = ("vae", "text_encoder", "tokenizer", "image_encoder", "image_processor", "transformer")
    image = True

    def check_folder(self) -> None:
        super().check_folder()
        if self.transformer_config.get("image_dim") is None:
            raise self.unsupported("a pipeline without CLIP's tokens (image_dim) and without boundary_ratio")
        check_channels(self)

    @property
    def generates(self) -> int:
        return GENERATED

    def check(self, config: VideoModelConfig) -> None:
        """diffusers' attention takes all but the last 512 tokens for those of the image."""
        self.check_tokens(config, exactly=512)

    def open(self, config: VideoModelConfig, device: torch.device) -> VideoModel:
        return WanImage(self, self.load(config), config, device)


class WanImageExpertsFamily(WanExpertsFamily):
    """Wan 2.2 A14B I2V: two experts, and the first frame in channels beside the noise."""

    title = "Wan 2.2 A14B image-to-video"
    image = True

    def check_inputs(self) -> None:
        for part in ("transformer", "transformer_2"):
            if self.config(part).get("image_dim") is not None:
                raise self.unsupported(f"a pipeline whose {part} takes CLIP's tokens (image_dim)")
            check_channels(self, part)

    def open(self, config: VideoModelConfig, device: torch.device) -> VideoModel:
        return WanImageExperts(self, self.load(config), config, device)


class WanImageTokensFamily(AnyWanFamily):
    """Wan 2.2 TI2V-5B from a first frame: the first latent frame is given, at time 0, and has no loss."""

    title = "Wan 2.2 TI2V-5B from a first frame"
    components = ("vae", "text_encoder", "tokenizer", "transformer")
    image = True

    def check_folder(self) -> None:
        super().check_folder()
        channels, inputs = self.channels, self.number("transformer", "in_channels")
        if self.transformer_config.get("image_dim") is not None or inputs != channels:
            raise self.unsupported(f"a pipeline with times per token and in_channels={inputs} for {channels} channels")

    def open(self, config: VideoModelConfig, device: torch.device) -> VideoModel:
        return WanImageTokens(self, self.load(config), config, device)


def check_channels(family: DiffusersFamily, part: str = "transformer") -> None:
    """Raise ConfigError unless a transformer takes noise, a mask for each folded frame and a condition."""
    channels, stride = family.channels, family.strides[0]
    inputs, expected = family.number(part, "in_channels"), 2 * channels + stride
    if inputs != expected:
        raise ConfigError(
            f"{family.path / part / 'config.json'}: in_channels={inputs}, and an image-to-video transformer takes "
            f"{expected}: {channels} of noise, {stride} of a mask and {channels} of the first frame. Give the folder "
            f"of a complete pipeline of {family.title}."
        )


class WanImage(Wan):
    """A Wan 2.1 image-to-video pipeline that is loaded."""

    targets = (*ATTENTION, "add_k_proj", "add_v_proj")
    frozen = ("text_encoder", "image_encoder")

    @torch.no_grad()
    def encode(self, frames: Frames, fps: float) -> dict[str, Tensor]:
        encoded = super().encode(frames, fps)
        image = self.pipeline.encode_image(picture(frames[0]), self.device)[0]
        return {**encoded, "condition": first_frame(self, frames, encoded["latent"]), "image": image}

    def arguments(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        return {
            **super().arguments(noisy, timestep, conditioning),
            "hidden_states": torch.cat([noisy, conditioning["condition"]], 1).to(self.dtype),
            "encoder_hidden_states_image": conditioning["image"].to(self.dtype),
        }


class WanImageExperts(WanExperts):
    """A Wan 2.2 A14B image-to-video pipeline that is loaded."""

    @torch.no_grad()
    def encode(self, frames: Frames, fps: float) -> dict[str, Tensor]:
        encoded = super().encode(frames, fps)
        return {**encoded, "condition": first_frame(self, frames, encoded["latent"])}

    def arguments(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        return {
            **super().arguments(noisy, timestep, conditioning),
            "hidden_states": torch.cat([noisy, conditioning["condition"]], 1).to(self.dtype),
        }


def first_frame(model: Wan, frames: Frames, latent: Tensor) -> Tensor:
    """The clip's first frame and grey for the others, encoded, under a mask of the frames that are given:
    [stride + C, f, h, w]."""
    video = model.pixels(frames).clone()
    video[:, :, 1:] = 0
    mode = model.vae.encode(video.to(model.vae.dtype)).latent_dist.mode().float()
    mask = latent.new_zeros(model.family.strides[0], *latent.shape[1:])
    mask[:, 0] = 1
    return torch.cat([mask, model.normalised(mode)[0]])


class WanImageTokens(WanTokens):
    """The first latent frame stands in the noisy latent as it is, and its tokens have the time 0."""

    def counted(self, frames: int) -> Tensor | None:
        counted = torch.ones(frames, device=self.device)
        counted[0] = 0
        return counted

    @torch.no_grad()
    def encode(self, frames: Frames, fps: float) -> dict[str, Tensor]:
        encoded = super().encode(frames, fps)
        return {**encoded, "given": encoded["latent"][:, :1]}

    def arguments(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        mixed = torch.cat([conditioning["given"], noisy[:, :, 1:]], 2)
        arguments = super().arguments(mixed, timestep, conditioning)
        _, rows, columns = self.family.patch
        per_frame = (noisy.shape[3] // rows) * (noisy.shape[4] // columns)
        times = arguments["timestep"].clone()
        times[:, :per_frame] = 0
        return {**arguments, "timestep": times}
