"""SkyReels V2 text-to-video: Wan's architecture and latents in a class of its own."""

from __future__ import annotations

from typing import Any

from pipeline.config import VideoModelConfig
from pipeline.models.adapters.wan import WanFamily
from pipeline.models.diffusers_family import SCHEDULER, DiffusersFamily


class SkyReelsFamily(WanFamily):
    """SkyReels V2 T2V; diffusion forcing, with a time for each frame, is another pipeline."""

    title = "SkyReels V2 text-to-video"
    transformer_class = "SkyReelsV2Transformer3DModel"

    @property
    def parts(self) -> tuple[str, ...]:
        return (*self.components, SCHEDULER, "model_index.json")

    def record(self, config: VideoModelConfig) -> dict[str, Any]:
        return DiffusersFamily.record(self, config)
