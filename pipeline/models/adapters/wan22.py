"""Wan 2.2 text-to-video: A14B with two experts by noise level, and TI2V-5B, whose tokens have times of their own."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import VideoModelConfig
from pipeline.errors import ConfigError
from pipeline.models.adapters.wan import GENERATED, AnyWanFamily, Wan, check_inputs
from pipeline.models.contract import Conditioning, Expert, VideoModel
from pipeline.models.diffusers_family import DiffusersFamily
from pipeline.models.diffusers_model import lora_file
from pipeline.models.schedule import STEPS


class WanExpertsFamily(AnyWanFamily):
    """Wan 2.2 A14B: `transformer` for times from `boundary_ratio` on, `transformer_2` below it.

    Parameters of the two have names `transformer.*` and `transformer_2.*` and consecutive coordinates. A setting's
    gradient is zero on the expert that its time does not ask.
    """

    title = "Wan 2.2 A14B text-to-video"
    components = ("vae", "text_encoder", "tokenizer", "transformer", "transformer_2")

    def check_folder(self) -> None:
        if not any(self.index.get("transformer_2") or []) or not self.has("transformer_2"):
            raise self.unsupported("a pipeline with boundary_ratio and without transformer_2")
        super().check_folder()
        if self.index.get("expand_timesteps"):
            raise self.unsupported("a pipeline with two experts and times per token (expand_timesteps)")
        self.check_inputs()

    def check_inputs(self) -> None:
        for part in ("transformer", "transformer_2"):
            check_inputs(self, self.config(part))

    @property
    def generates(self) -> int:
        return GENERATED

    @property
    def boundary(self) -> float:
        """The first time of the high-noise expert. Raises ConfigError where it is not told."""
        ratio = self.index.get("boundary_ratio")
        if not isinstance(ratio, int | float) or not 0 < ratio < 1:
            raise ConfigError(
                f"{self.path / 'model_index.json'}: boundary_ratio is {ratio!r}, not a number between 0 and 1, so that "
                "it is not told which of the two transformers is asked at which time."
            )
        return ratio * STEPS

    @property
    def experts(self) -> tuple[Expert, ...]:
        boundary = self.boundary
        return (Expert("high", "transformer", boundary, STEPS), Expert("low", "transformer_2", 0.0, boundary))

    def open(self, config: VideoModelConfig, device: torch.device) -> VideoModel:
        return WanExperts(self, self.load(config), config, device)


class WanExperts(Wan):
    """Two transformers, of which one is asked at a time.

    On a GPU the other one waits in main memory, for the two take 28 GB each in bfloat16. Training both keeps both on
    the GPU.
    """

    def __init__(self, family: DiffusersFamily, pipeline: Any, config: VideoModelConfig, device: torch.device) -> None:
        super().__init__(family, pipeline, config, device)
        for module in self.transformers().values():
            module.register_forward_pre_hook(self._bring)  # the pipeline's own call asks them as well

    def place(self, pipeline: Any, device: torch.device) -> None:
        self.apart = device.type == "cuda"
        if not self.apart:
            super().place(pipeline, device)
            return
        for name, component in pipeline.components.items():
            if isinstance(component, nn.Module) and name != "transformer_2":
                component.to(device)

    def keep_on_device(self, parts: Collection[str]) -> None:
        self.apart = False
        for part, module in self.transformers().items():
            module.to(self.device if part in parts else "cpu")

    def read_lora_as_pipeline(self, folder: str) -> None:
        self.pipeline.load_lora_weights(folder)
        self.pipeline.load_lora_weights(folder, weight_name=lora_file("transformer_2"), load_into_transformer_2=True)

    def _bring(self, module: nn.Module, _: Any) -> None:
        """Before a transformer computes, let it and the other one change places."""
        if not self.apart or next(module.parameters()).device.type == self.device.type:
            return
        for other in self.transformers().values():
            if other is not module:
                other.to("cpu")
        module.to(self.device)


class WanTokensFamily(AnyWanFamily):
    """Wan 2.2 TI2V-5B from text: an autoencoder of stride 16 and a time for each token."""

    title = "Wan 2.2 TI2V-5B"
    components = ("vae", "text_encoder", "tokenizer", "transformer")
    optional = ("transformer_2",)

    def check_folder(self) -> None:
        super().check_folder()
        if any(self.index.get("transformer_2") or []) or self.has("transformer_2"):
            raise self.unsupported("a pipeline with two experts and times per token (expand_timesteps)")
        check_inputs(self, self.transformer_config)

    def open(self, config: VideoModelConfig, device: torch.device) -> VideoModel:
        return WanTokens(self, self.load(config), config, device)


class WanTokens(Wan):
    """All tokens of a clip have the same time, as WanPipeline gives it to them without a first frame."""

    def arguments(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        _, _, frames, height, width = noisy.shape
        _, rows, columns = self.family.patch
        tokens = frames * (height // rows) * (width // columns)
        return {
            **super().arguments(noisy, timestep, conditioning),
            "timestep": timestep[:, None].expand(-1, tokens),
        }
