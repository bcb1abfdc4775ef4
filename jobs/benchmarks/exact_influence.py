"""Influence by whole gradients, and how much of its top tenth another ranking keeps."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def exact(clips: Tensor, queries: Tensor, whiten: float | None) -> Tensor:
    """Influence [N, Q] without any projection; whitened by Phi (Phi^T Phi / N + l)^-1 = (Phi Phi^T / N + l)^-1 Phi."""
    phi, query = (torch.nn.functional.normalize(g.double(), dim=1) for g in (clips, queries))
    plain = phi @ query.T
    if whiten is None:
        return plain
    kernel = phi @ phi.T / len(phi) + whiten * torch.eye(len(phi), dtype=torch.float64)
    whitened: Tensor = torch.linalg.solve(kernel, plain)
    return whitened


def survivors(truth: Tensor, scores: Tensor) -> float:
    """Which share of the exact top tenth of each column is in that of other scores."""
    count = max(1, round(0.1 * len(truth)))
    top = [x.topk(count, 0).indices.T.tolist() for x in (truth, scores)]
    return float(np.mean([len(set(a) & set(b)) / count for a, b in zip(*top, strict=True)]))
