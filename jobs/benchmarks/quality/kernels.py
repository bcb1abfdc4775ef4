"""Inner products of whole gradients, part by part of the model: all that influence by any rule is made of.

For a few hundred clips it is cheaper to keep these than projections to thousands of numbers, and they are exact: what
k numbers lose is an ablation of its own (`projected`).
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from jobs.benchmarks.quality.problem import Clips
from pipeline.config.attribution import Kind
from pipeline.models import VideoModel
from pipeline.models.loss import loss_map, masked_mean, own_noise, shared_noise
from pipeline.projection import Projection
from pipeline.storage import stores

Floats = npt.NDArray[np.float32]
Grams = dict[str, Floats]  # by the masks of both sides: [parts, M, M], M = clips, then queries
PAIRS = ("motion", "none", "crossed", "adam_motion", "projected")
UNMASKED = {"none", "crossed", "adam_motion"}  # pairs for which unmasked gradients are needed
BATCH = 16  # clips whose mean gradient a step of fine-tuning sees
TINY = 1e-16  # under the root of Adam's second moments: parameters with no gradient do not count
DIMS = (128, 256, 512, 1024, 2048, 4096)  # of the Gaussian projection: the first rows of the largest
OTHERS: tuple[Kind, ...] = ("rademacher", "sketched_gaussian", "fastfood")  # at 512
ROWS_AT_A_TIME = 64


def parts(module: nn.Module) -> dict[str, list[str]]:
    """The parameters' names by part of the model: each block, and each module beside the blocks."""
    found: dict[str, list[str]] = {}
    for name, _ in module.named_parameters():
        first, *rest = name.split(".")
        found.setdefault(f"{first}.{rest[0]}" if first == "blocks" else first, []).append(name)
    return found


def grams(
    model: VideoModel,
    clips: Clips,
    queries: Clips,
    timestep: float,
    noise: int,
    own: bool = False,
    pairs: Sequence[str] = PAIRS,
) -> Iterator[tuple[str, Floats]]:
    """The Gram matrices of one timestep and noise, for some of PAIRS. Rows without motion are zero under the mask.

    `crossed` has masked gradients in its rows and unmasked ones in its columns. In `adam_motion` every parameter is
    divided by the root of Adam's second moment, that of the mean gradient of BATCH clips of the corpus (as LESS does,
    Xia et al. 2024): half of it on either side of the product. `projected` is one matrix for each dimension and kind of
    projection, of masked gradients. `seconds` [1] are those of the processor for the gradients of a clip or query.
    """
    masks = ("motion", "none") if UNMASKED & set(pairs) else ("motion",)
    start = time.thread_time()
    rows, sizes = gradients(model, (clips, queries), timestep, noise, own, masks)
    yield "seconds", np.array([(time.thread_time() - start) / len(rows["motion"])], np.float32)
    spans = list(pairwise(np.cumsum([0, *sizes]).tolist()))

    def products(a: str, b: str) -> Floats:
        return np.stack([(rows[a][:, s:e] @ rows[b][:, s:e].T).numpy() for s, e in spans])

    for name in ("motion", "none"):
        if name in pairs:
            yield name, products(name, name)
    if "crossed" in pairs:
        yield "crossed", products("motion", "none")
    if "projected" in pairs:
        yield from projected(rows["motion"])
    if "adam_motion" in pairs:
        of_clips = rows["none"][: len(clips)]
        mean = of_clips.mean(0)
        second = mean.square() + (of_clips.square().mean(0) - mean.square()) / BATCH
        rows["motion"] *= (second + TINY).pow(-0.25)
        yield "adam_motion", products("motion", "motion")


def gradients(
    model: VideoModel,
    sets: Sequence[Clips],
    timestep: float,
    noise: int,
    own: bool,
    masks: Sequence[str],
) -> tuple[dict[str, Tensor], list[int]]:
    """The gradients of every clip of the sets [M, D] under each of `masks`, and the sizes of the model's parts."""
    named = dict(model.transformer.named_parameters())
    held = [[named[name] for name in names] for names in parts(model.transformer).values()]
    sizes, parameters = [sum(p.numel() for p in part) for part in held], [p for part in held for p in part]
    rows = {mask: torch.zeros(sum(map(len, sets)), sum(sizes)) for mask in masks}
    full = shared_noise(0, noise, tuple(sets[0].latent.shape[1:]))  # type: ignore[arg-type]
    for n, (latent, text, mask, clip_id) in enumerate(_each(*sets)):
        at = own_noise(clip_id, noise, tuple(latent.shape)) if own else full[:, : latent.shape[1]]
        errors = loss_map(model, latent[None], text[None], torch.tensor([timestep]), at[None])
        for name in masks:
            if name == "none" or bool(mask.any()):
                weight = mask[None] if name == "motion" else None
                found = torch.autograd.grad(masked_mean(errors, weight), parameters, retain_graph=name != masks[-1])
                torch.cat([g.flatten() for g in found], out=rows[name][n])
    return rows, sizes


def projected(rows: Tensor) -> Iterator[tuple[str, Floats]]:
    """Products of gradients [M, D] that were projected first, named KIND-DIM: [1, M, M]."""

    def features(kind: Kind, dim: int) -> Tensor:
        p = Projection(kind, dim)
        return torch.cat([p(rows[i : i + ROWS_AT_A_TIME]) for i in range(0, len(rows), ROWS_AT_A_TIME)])

    def products(found: Tensor) -> Floats:
        gram: Floats = (found @ found.T)[None].numpy()
        return gram

    widest = features("gaussian", DIMS[-1])
    for dim in DIMS:
        yield f"gaussian-{dim}", products(widest[:, :dim])
    for kind in OTHERS:
        yield f"{kind}-512", products(features(kind, 512))


def _each(*sets: Clips) -> Iterator[tuple[Tensor, Tensor, Tensor, str]]:
    for clips in sets:
        for latent, text, mask, clip_id, frames in zip(
            clips.latent, clips.text, clips.mask, clips.clip_ids, clips.frames.tolist(), strict=True
        ):
            yield latent[:, :frames], text, mask[:frames], clip_id


def write(path: str, found: Grams) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **found)  # type: ignore[arg-type]
    stores.write_bytes(path, buffer.getvalue())


def read(path: str) -> Grams:
    with np.load(io.BytesIO(stores.read_bytes(path))) as held:
        return {name: held[name] for name in held.files}
