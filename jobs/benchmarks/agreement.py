"""What cheaper flow and a cheaper autoencoder cost: motion masks and latents against the dearest ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jobs.benchmarks import ceilings, measured_models
from pipeline.config import Motion, load
from pipeline.errors import ClipError
from pipeline.models import Grid
from pipeline.models.adapters.wan import Wan
from pipeline.motion import estimate, load_raft, motion_mask
from pipeline.synthetic import world
from pipeline.video.frames import decode

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


def compare(ours: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> Agreement:
    """Masks [f, h, w] or None, clip by clip, against the expected ones. ValueError if no clip moves under both."""
    both = [(a.double(), b.double()) for a, b in zip(ours, expected, strict=True) if a is not None and b is not None]
    lost = sum((a is None) != (b is None) for a, b in zip(ours, expected, strict=True))
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
    of_clips: list[Tensor | None] = []
    for frames in clips:
        flow = estimate(frames, raft, config, device)
        mask = motion_mask(flow, config, _grid(len(frames), grid, stride))
        of_clips.append(None if mask is None else mask.cpu())
    return of_clips


def exact_masks(
    scenes: Sequence[world.Scene], config: Motion, size: int, grid: tuple[int, int], stride: int
) -> list[Tensor | None]:
    """The masks of the world's own flow, rendered at `size` pixels."""
    masks = []
    for scene in scenes:
        flow = torch.from_numpy(world.flow(scene, size, size)).permute(0, 3, 1, 2)
        masks.append(motion_mask(flow, config, _grid(len(flow) + 1, grid, stride)))
    return masks


def _grid(frames: int, cells: tuple[int, int], stride: int) -> Grid:
    """Latent cells of an autoencoder that folds `stride` frames into one after the first."""
    return Grid((1, *[stride] * ((frames - 1) // stride)), *cells)


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
    agreements = {}
    for size in tried:
        name, plain = f"{size[0]}x{size[1]}", made[size, "float32"]
        if exact is not None:
            agreements[f"{name} against exact flow"] = compare(plain, exact)
        if size != tried[-1]:
            agreements[f"{name} against {tried[-1][0]}x{tried[-1][1]}"] = compare(plain, made[tried[-1], "float32"])
        agreements[f"{name} bfloat16 against float32"] = compare(made[size, "bfloat16"], plain)
    return agreements


def latents(clips: Sequence[Frames], model: Wan) -> dict[str, float]:
    """Relative L2 difference and cosine of the autoencoder's latents in bfloat16 against float32. The model's
    autoencoder is left in float32."""
    nn.Module.to(model.vae, torch.float32)
    expected = [model.encode(frames, 8.0)["latent"].flatten() for frames in clips]
    nn.Module.to(model.vae, torch.bfloat16)
    try:
        encoded = [model.encode(frames, 8.0)["latent"].flatten() for frames in clips]
    finally:
        nn.Module.to(model.vae, torch.float32)
    pairs = list(zip(encoded, expected, strict=True))
    return {
        "relative_difference": mean(float((a - b).norm() / b.norm()) for a, b in pairs),
        "cosine": mean(float(F.cosine_similarity(a, b, 0)) for a, b in pairs),
    }


def decoded_folder(folder: Path, count: int, fps: float, height: int, width: int) -> list[Frames]:
    """The first `count` frames at `fps` of every video of a folder that has them."""
    clips = []
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".mp4", ".mov", ".webm", ".avi", ".mkv", ".gif")):
        try:
            clips.append(decode(str(path), 0, count, fps, height, width))
        except ClipError as error:
            print(f"({path.name} left out: {error})")
    return clips


def print_agreements(device: torch.device, videos: Path | None) -> dict[str, Any]:
    """Masks by working size and dtype with the shipped RAFT small, and the demo autoencoder's latents in bfloat16."""
    recipe = load("demo").motion
    raft = load_raft(recipe, device)
    exact = None
    if videos is None:
        tried, grid = [(128, 128), (192, 192), (256, 256)], (32, 32)
        clips = [world.render(scene, 256, 256) for scene in _scenes()]
        exact = exact_masks(_scenes(), recipe, 256, grid, 4)
    else:
        tried, grid = [(128, 224), (160, 280), (192, 336), (240, 416), (320, 552), (480, 832)], (60, 104)
        clips = decoded_folder(videos, 9, 16.0, *tried[-1])
    agreements = sizes(clips, raft, recipe, tried, grid, 4, device, exact)
    whose = "world's" if videos is None else "given"
    print(f"agreement of motion masks on {len(clips)} {whose} clips of 9 frames, on a grid of {grid[0]}x{grid[1]},")
    print("with the shipped RAFT small, whose weights were trained on the synthetic world alone:")
    rows = [
        [name, f"{a.difference:.2%}", f"{a.pearson:.4f}", f"{a.cosine:.4f}", f"{a.clips}", f"{a.lost}"]
        for name, a in agreements.items()
    ]
    ceilings.print_table(["masks", "|a-b|/mean", "pearson", "cosine", "clips", "lost"], rows)
    of_latents = latents([world.render(s, 32, 32) for s in _scenes()], measured_models.demo(device).model)
    print(
        f"latents of the demo's autoencoder, bfloat16 against float32: relative difference "
        f"{of_latents['relative_difference']:.2%}, cosine {of_latents['cosine']:.6f}\n"
    )
    return {"masks": {name: asdict(a) for name, a in agreements.items()}, "latents_bfloat16": of_latents}


def _scenes() -> list[world.Scene]:
    """One clip of each motion that no weights have seen, every other one under a panning camera."""
    return [world.scene(1_000_003, f"agreement-{m}", "real", m, pan=float(i % 2)) for i, m in enumerate(world.MOTIONS)]
