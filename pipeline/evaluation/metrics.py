"""Motion metrics of a video, as VBench (Huang et al., CVPR 2024) defines them; pure functions, flow handed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

Flow = Callable[[Tensor, Tensor], Tensor]  # two batches of frames [B, 3, H, W], 0..255, -> flow [B, 2, H, W] in pixels

STRONGEST = 0.05  # a pair's score is the mean over this share of its pixels, the fastest ones
SPEED, SIDE = 6.0, 256  # pixels between frames sampled at 8 fps that count as motion, at this shorter side


@dataclass(frozen=True)
class DynamicDegree:
    """What `vbench_dynamic_degree` found: `margin` is above 1 where `dynamic` holds (two frames aside)."""

    dynamic: bool
    margin: float
    scores: tuple[float, ...]
    threshold: float
    needed: int


@torch.no_grad()
def vbench_dynamic_degree(frames: npt.NDArray[np.uint8], fps: float, flow: Flow, batch: int = 8) -> DynamicDegree:
    """Whether a video [F, H, W, 3] moves, as VBench's dynamic degree decides it.

    Every max(1, round(fps / 8))-th frame is taken; a pair of them scores the mean of the fastest 5 % of its flow, the
    frames padded to multiples of 8. The video is dynamic when at least ``round(4 * n / 16)`` pairs of the n frames are
    strictly above ``6 * min(H, W) / 256``. `margin` says by how much: the needed-th largest score over the threshold.
    For the two frames of which VBench needs no pair at all (Python rounds 0.5 to 0), the margin is of their only pair,
    and `dynamic` holds whatever it is. Comparable with published figures only for RAFT large (C_T_V1), 20 updates.
    """
    sample = torch.from_numpy(np.ascontiguousarray(frames[:: max(1, round(fps / 8))])).permute(0, 3, 1, 2)
    if len(sample) < 2:
        raise ValueError(f"dynamic degree needs two frames at about 8 fps; {len(frames)} frames at {fps} fps have one")
    height, width = sample.shape[-2:]
    threshold, needed = SPEED * min(height, width) / SIDE, round(4 * len(sample) / 16)
    scores: list[float] = []
    for start in range(0, len(sample) - 1, batch):
        piece = pad(sample[start : start + batch + 1].float())
        scores += pair_scores(flow(piece[:-1], piece[1:])).tolist()
    moving = sum(score > threshold for score in scores)
    margin = sorted(scores, reverse=True)[max(needed, 1) - 1] / threshold
    return DynamicDegree(moving >= needed, margin, tuple(scores), threshold, needed)


def pad(frames: Tensor) -> Tensor:
    """Frames [B, C, H, W] with their edges repeated to multiples of 8, evenly on both sides (RAFT's "sintel" mode)."""
    down, across = -frames.shape[-2] % 8, -frames.shape[-1] % 8
    sides = [across // 2, across - across // 2, down // 2, down - down // 2]
    return functional.pad(frames, sides, mode="replicate")


def pair_scores(flow: Tensor) -> Tensor:
    """Mean length of the fastest 5 % of each flow's pixels: [B, 2, H, W] -> [B], float32."""
    speed = flow.float().square().sum(1).sqrt().flatten(1)
    return speed.topk(int(speed.shape[1] * STRONGEST), dim=1).values.mean(1)


def temporal_flickering(frames: npt.NDArray[np.uint8]) -> float:
    """VBench's temporal flickering of a video [F, H, W, 3]: (255 - mean absolute change between frames) / 255.

    The mean runs over consecutive frames, pixels and channels; 1 is a video without any change.
    """
    if len(frames) < 2:
        raise ValueError(f"temporal flickering needs two frames, there are {len(frames)}")
    changes = [np.abs(after.astype(np.int16) - before).mean() for before, after in pairwise(frames)]
    return (255.0 - float(np.mean(changes))) / 255.0
