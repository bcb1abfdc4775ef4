"""The model whose gradients are features, and what projects them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.attribution.gradients import ProjectedGradients, restrict
from pipeline.attribution.host_blocks import HostBlocks
from pipeline.config import Run
from pipeline.config.attribution import Setting
from pipeline.models import VideoModel, open_model
from pipeline.models.lora import load_adapters
from pipeline.models.trained_weights import load_weights
from pipeline.projection import Projection


def open_attributed(
    run: Run, device: torch.device, settings: Sequence[Setting]
) -> tuple[VideoModel, HostBlocks | None]:
    """A run's model as it is attributed, where it computes: on a device, or block by block from main memory."""
    a = run.attribution
    on_host = a.blocks == "host"
    model = open_model(run.model, torch.device("cpu") if on_host else device)
    if a.weights is not None:
        load_weights(model, a.weights, merge=True)
    if a.lora is not None:
        load_adapters(model, run.model, a.lora)
    if on_host:
        return model, HostBlocks(model, device)
    _place_experts(model, settings)
    return model, None


def _place_experts(model: VideoModel, settings: Sequence[Setting]) -> None:
    """Where settings ask one expert of several, let it stay on the device and the others in main memory."""
    asked = {model.expert(setting.timestep).part for setting in settings}
    if len(asked) == 1:
        model.keep_on_device(asked)


def projection_of(run: Run) -> Projection:
    projection = run.attribution.projection
    return Projection(projection.kind, projection.dim, projection.seed)


def projected_gradients(
    run: Run, model: VideoModel, host: HostBlocks | None, hold: int | None = None
) -> ProjectedGradients:
    """What takes the model's losses under a run's configuration: of the parameters that count, under its projection.
    `hold` is the configured one unless another is given. Raises ConfigError where no parameter counts."""
    a = run.attribution
    restrict(model.trained, a.parameters, model.family.idle, adapters=a.lora is not None)
    return ProjectedGradients(model.trained, projection_of(run), hold or a.hold, host)
