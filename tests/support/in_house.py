"""An in-house family: Wan's architecture, trained at another shift than its scheduler's file says, on sides in 32."""

from __future__ import annotations

from typing import Any

from pipeline.config import VideoModelConfig
from pipeline.models.adapters.wan import WanFamily
from pipeline.models.schedule import Schedule


class Family(WanFamily):
    title = "our video model"
    schedule = Schedule("flow", "velocity", shift=5.0)

    @property
    def sides(self) -> tuple[int, int]:
        return 32, 32

    def record(self, config: VideoModelConfig) -> dict[str, Any]:
        return {"model.family": self.title, "model.schedule": self.schedule.record()}
