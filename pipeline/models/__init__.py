"""Video models: their contract, the schedule and the loss, and a file for each family."""

from __future__ import annotations

from pipeline.models.contract import Conditioning, Expert, Family, Frames, Grid, VideoModel
from pipeline.models.folders import folder
from pipeline.models.registry import family, grid, grid_of, open_model, weights_hash

__all__ = [
    "Conditioning",
    "Expert",
    "Family",
    "Frames",
    "Grid",
    "VideoModel",
    "family",
    "folder",
    "grid",
    "grid_of",
    "open_model",
    "weights_hash",
]
