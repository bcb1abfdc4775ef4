"""Video models: their contract, the schedule and the loss, and a file for each family."""

from __future__ import annotations

from pipeline.models.contract import (
    VideoModel,
    family,
    folder,
    open_model,
    patch,
    skeleton,
    strides,
    strides_of,
    weights_hash,
)

__all__ = ["VideoModel", "family", "folder", "open_model", "patch", "skeleton", "strides", "strides_of", "weights_hash"]
