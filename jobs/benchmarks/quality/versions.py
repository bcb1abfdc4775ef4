"""Queries in other looks and as spoiled twins (`queries.looks`, `queries.twins`), and what each asks for by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from jobs.benchmarks.quality import kernels
from jobs.benchmarks.quality.kernels import Grams
from jobs.benchmarks.quality.problem import Clips, base_model, run_of
from pipeline import models, motion
from pipeline.attribution.functionals import query_feature
from pipeline.models import VideoModel
from pipeline.motion import load_raft
from pipeline.storage import stores
from pipeline.synthetic import world
from pipeline.video import looks

LOOKS = 8
TWINS = ("backwards", "slow_start")
PLACE = (501.0, 0)  # timestep and noise; captions are empty: the setting of the looks benchmark's best rule
ONE_LOOK, IN_LOOKS, WITH_TWINS = "one look", "looks", "looks and twins"  # pairs of `grams`
FILE = "versions.safetensors"


@dataclass(frozen=True)
class Versions:
    """Every query and its twins in every look."""

    latent: Tensor  # [Q, 1 + twins, looks, C, f, h, w], the query itself first
    mask: Tensor  # [Q, 1 + twins, f, h, w], the same in all looks, zeros of what stands still


def encode(scenes: Sequence[world.Scene], folder: str) -> None:
    """Render, recolour, encode and mask scenes and their twins: a file in `folder`. A twin's looks are its query's."""
    run, model = run_of(), base_model()
    raft = load_raft(run.motion, torch.device("cpu"))
    _, _, height, width = run.geometry
    latents, masks = [], []
    for scene in scenes:
        frames = world.render(scene, height, width)
        grid = models.grid_of(model.family, len(frames), height, width)
        for name in (None, *TWINS):
            ordered = frames if name is None else looks.twin(frames, name, scene.name)
            mask = motion.motion_mask(motion.estimate(ordered, raft, run.motion, torch.device("cpu")), run.motion, grid)
            masks.append(torch.zeros(grid.shape) if mask is None else mask)
            for look in range(LOOKS):
                latents.append(model.encode(looks.recoloured(ordered, scene.name, look), run.data.fps)["latent"])
    shape = len(scenes), 1 + len(TWINS)
    tensors = {
        "latent": torch.stack(latents).unflatten(0, (*shape, LOOKS)).contiguous(),
        "mask": torch.stack(masks).unflatten(0, shape).contiguous(),
    }
    stores.write_bytes(f"{folder}/{FILE}", safetensors.torch.save(tensors))


def encoded(folder: str) -> bool:
    return Path(folder, FILE).exists()


def load(folders: Sequence[str]) -> Versions:
    """The versions of the queries of these folders, one after the other."""
    parts = [safetensors.torch.load_file(f"{folder}/{FILE}") for folder in folders]
    return Versions(*(torch.cat([part[name] for part in parts]) for name in ("latent", "mask")))


def grams(model: VideoModel, clips: Clips, versions: Versions) -> Grams:
    """Inner products of what clips say and queries ask for, part by part: [parts, M, M], M = clips, then queries.

    Gradients are of masked losses at PLACE under empty captions. A query asks for the gradient of its first look
    (ONE_LOOK), for that of all looks (IN_LOOKS), or for what both functionals say of looks and twins (WITH_TWINS). A
    query that stands still asks for nothing, and a twin that does has no part: zeros.
    """
    blank = model.blank()["text"]
    same = replace(clips, text=blank.expand(len(clips), *blank.shape))
    of_clips, sizes = kernels.gradients(model, (same,), *PLACE, False, ("motion",))
    asked = {pair: torch.zeros(len(versions.latent), sum(sizes)) for pair in (ONE_LOOK, IN_LOOKS, WITH_TWINS)}
    shape = tuple(clips.latent.shape[1:])
    for row, (latents, masks) in enumerate(zip(versions.latent, versions.mask, strict=True)):
        encodings = [
            (latent, blank, mask, "") for of_looks, mask in zip(latents, masks, strict=True) for latent in of_looks
        ]
        rows, _ = kernels.gradients_of(model, encodings, shape, *PLACE, False, ("motion",))
        real, *twins = rows["motion"].unflatten(0, (len(masks), -1)).numpy()
        moving = np.array([twin for twin in twins if twin.any()])
        if real.any():
            asked[ONE_LOOK][row] = torch.from_numpy(real[0])
            asked[IN_LOOKS][row] = torch.from_numpy(query_feature(real, moving, "loss"))
        if real.any() and len(moving):
            asked[WITH_TWINS][row] = torch.from_numpy(query_feature(real, moving, "both"))
    return {pair: kernels.by_part(torch.cat([of_clips["motion"], rows]), sizes) for pair, rows in asked.items()}
