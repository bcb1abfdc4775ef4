"""What cheaper flow and a cheaper autoencoder cost: motion masks and latents against the dearest ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.config import Motion
from pipeline.models.wan import Wan
from pipeline.motion import estimate, motion_mask
from pipeline.synthetic import world

Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Agreement:
    """Means over clips. `difference` is mean |a - b| over mean b, `pearson` and `cosine` are of the flattened masks;
    `lost` counts clips that are still under one and moving under the other."""

    difference: float
    pearson: float
    cosine: float
    clips: int
    lost: int


def compare(found: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> Agreement:
    """Masks [f, h, w] or None, clip by clip, against the expected ones. ValueError if no clip moves under both."""
    both = [(a.double(), b.double()) for a, b in zip(found, expected, strict=True) if a is not None and b is not None]
    lost = sum((a is None) != (b is None) for a, b in zip(found, expected, strict=True))
    if not both:
        raise ValueError("not one of these clips moves")
    return Agreement(
        difference=mean(float((a - b).abs().mean() / b.mean()) for a, b in both),
        pearson=mean(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) for a, b in both),
        cosine=mean(float(F.cosine_similarity(a.flatten(), b.flatten(), 0)) for a, b in both),
        clips=len(both),
        lost=lost,
    )


def masks(
    clips: Sequence[Frames], raft: nn.Module, config: Motion, grid: tuple[int, int], stride: int, device: torch.device
) -> list[Tensor | None]:
    """The motion mask of every clip on a latent grid of `grid` rows and columns."""
    found: list[Tensor | None] = []
    for frames in clips:
        flow = estimate(frames, raft, config, device)
        mask = motion_mask(flow, config, ((len(frames) - 1) // stride + 1, *grid), stride)
        found.append(None if mask is None else mask.cpu())
    return found


def exact_masks(
    scenes: Sequence[world.Scene], config: Motion, size: int, grid: tuple[int, int], stride: int
) -> list[Tensor | None]:
    """The masks of the world's own flow, rendered at `size` pixels."""
    found = []
    for scene in scenes:
        flow = torch.from_numpy(world.flow(scene, size, size)).permute(0, 3, 1, 2)
        found.append(motion_mask(flow, config, (len(flow) // stride + 1, *grid), stride))
    return found


def sizes(
    clips: Sequence[Frames],
    raft: nn.Module,
    config: Motion,
    tried: Sequence[tuple[int, int]],
    grid: tuple[int, int],
    stride: int,
    device: torch.device,
    exact: Sequence[Tensor | None] | None = None,
) -> dict[str, Agreement]:
    """Masks at each working size in float32, against the last size's and the exact ones where those are known, and in
    bfloat16 against float32's of its own size. `still` is scaled with the size."""
    made: dict[tuple[tuple[int, int], str], list[Tensor | None]] = {}
    for size in tried:
        still = config.still * size[0] / tried[-1][0]
        for dtype in ("float32", "bfloat16"):
            changed = {"height": size[0], "width": size[1], "dtype": dtype, "still": still}
            own = config.model_copy(update=changed)
            made[size, dtype] = masks(clips, raft, own, grid, stride, device)
    found = {}
    for size in tried:
        name, plain = f"{size[0]}x{size[1]}", made[size, "float32"]
        if exact is not None:
            found[f"{name} against exact flow"] = compare(plain, exact)
        if size != tried[-1]:
            found[f"{name} against {tried[-1][0]}x{tried[-1][1]}"] = compare(plain, made[tried[-1], "float32"])
        found[f"{name} bfloat16 against float32"] = compare(made[size, "bfloat16"], plain)
    return found


def latents(clips: Sequence[Frames], model: Wan) -> dict[str, float]:
    """Relative L2 difference and cosine of the autoencoder's latents in bfloat16 against float32. The model's
    autoencoder is left in float32."""
    nn.Module.to(model.vae, torch.float32)
    expected = [model.encode(frames).flatten() for frames in clips]
    nn.Module.to(model.vae, torch.bfloat16)
    try:
        found = [model.encode(frames).flatten() for frames in clips]
    finally:
        nn.Module.to(model.vae, torch.float32)
    pairs = list(zip(found, expected, strict=True))
    return {
        "relative_difference": mean(float((a - b).norm() / b.norm()) for a, b in pairs),
        "cosine": mean(float(F.cosine_similarity(a, b, 0)) for a, b in pairs),
    }
