"""The colours of what moves in a clip: a description of its looks that knows nothing of how it moves.

A ranking by motion should not be explained by them. What share of it they explain is a control of the page.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.motion.thumbnails import thumbnails

LEVELS = 4  # of each channel
NUMBERS = LEVELS**3


def moving_colours(frames: npt.NDArray[np.uint8], flow: Tensor) -> npt.NDArray[np.float32]:
    """The histogram of the colours of a clip's pixels, each counted by its speed: [NUMBERS], of sum one.

    `frames` are [F, H, W, 3], `flow` [F-1, 2, h, w] from each frame to the next at any size; the last frame moves as
    the one before it. Bins are LEVELS steps of red, of green and of blue, red the slowest. Where nothing moves every
    pixel counts alike.
    """
    pixels = thumbnails(frames)
    speed = flow.norm(dim=1)[:, None].cpu()
    speed = F.interpolate(speed, pixels.shape[1:3], mode="bilinear", align_corners=False, antialias=True)[:, 0]
    weights = torch.cat([speed, speed[-1:]]).double().numpy()
    if not weights.any():
        weights = np.ones_like(weights)
    levels = pixels.astype(np.int64) * LEVELS // 256
    bins = (levels[..., 0] * LEVELS + levels[..., 1]) * LEVELS + levels[..., 2]
    counts = np.bincount(bins.ravel(), weights.ravel(), NUMBERS)
    histogram: npt.NDArray[np.float32] = (counts / counts.sum()).astype(np.float32)
    return histogram


def alike(histograms: npt.NDArray[np.floating], others: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """How alike the colours of two sets of clips are, in [0, 1]: the Bhattacharyya coefficients of their histograms,
    [N, NUMBERS] and [M, NUMBERS] -> [N, M]."""
    similarity: npt.NDArray[np.float64] = np.sqrt(histograms, dtype=np.float64) @ np.sqrt(others, dtype=np.float64).T
    return similarity
