"""How clips move: optical flow, the camera, masks on the latent grid, statistics."""

from __future__ import annotations

from pipeline.motion.masks import (
    camera_motion,
    camera_share,
    check_weights,
    decode_mask,
    encode_mask,
    estimate,
    load_raft,
    mask_energy,
    motion_mask,
    moving_region,
    statistics,
    weights_file,
)

__all__ = [
    "camera_motion",
    "camera_share",
    "check_weights",
    "decode_mask",
    "encode_mask",
    "estimate",
    "load_raft",
    "mask_energy",
    "motion_mask",
    "moving_region",
    "statistics",
    "weights_file",
]
