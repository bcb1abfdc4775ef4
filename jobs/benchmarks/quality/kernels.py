"""Inner products of whole gradients, part by part of the model: all that influence by any rule is made of.

For a few hundred clips it is cheaper to keep these than projections to thousands of numbers, and they are exact: what
k numbers lose is an ablation of its own (`influences`).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from jobs.benchmarks.quality.problem import Clips
from pipeline import stores
from pipeline.diffusion import loss_map, masked_mean, shared_noise
from pipeline.models import VideoModel
from pipeline.training_set import named_generator

Grams = dict[str, npt.NDArray[np.float32]]  # by the masks of both sides: [parts, M, M], M = clips, then queries
PAIRS = ("motion", "none", "adam_motion", "crossed")
BATCH = 16  # clips whose mean gradient a step of fine-tuning sees
TINY = 1e-16  # under the root of Adam's second moments: parameters with no gradient do not count


def parts(module: nn.Module) -> dict[str, list[str]]:
    """The parameters' names by part of the model: each block, and each module beside the blocks."""
    found: dict[str, list[str]] = {}
    for name, _ in module.named_parameters():
        first, *rest = name.split(".")
        found.setdefault(f"{first}.{rest[0]}" if first == "blocks" else first, []).append(name)
    return found


def own_noise(clip_id: str, index: int, shape: tuple[int, ...]) -> Tensor:
    """A noise that belongs to the clip: the alternative to one noise for all."""
    drawn = named_generator(f"own noise {clip_id} {index}").standard_normal(shape, np.float32)
    return torch.from_numpy(drawn)


def grams(
    model: VideoModel,
    clips: Clips,
    queries: Clips,
    timestep: float,
    noise: int,
    own: bool = False,
    pairs: Sequence[str] = PAIRS,
) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """The Gram matrices of one timestep and noise, for some of PAIRS. Rows without motion are zero under the mask.

    `crossed` has masked gradients in its rows and unmasked ones in its columns. In `adam_motion` every parameter is
    divided by the root of Adam's second moment, that of the mean gradient of BATCH clips of the corpus (as LESS does,
    Xia et al. 2024): half of it on either side of the product.
    """
    named = dict(model.transformer.named_parameters())
    held = [[named[name] for name in names] for names in parts(model.transformer).values()]
    sizes, parameters = [sum(p.numel() for p in part) for part in held], [p for part in held for p in part]
    total = len(clips) + len(queries)
    rows = {mask: torch.zeros(total, sum(sizes)) for mask in ("motion", "none")}
    shared = shared_noise(0, noise, tuple(clips.latent.shape[1:]))  # type: ignore[arg-type]
    for n, (latent, text, mask, clip_id) in enumerate(_each(clips, queries)):
        at = own_noise(clip_id, noise, tuple(latent.shape)) if own else shared
        errors = loss_map(model, latent[None], text[None], torch.tensor([timestep]), at[None])
        for name, weight in (("motion", mask[None]), ("none", None)):
            if name == "none" or bool(mask.any()):
                found = torch.autograd.grad(masked_mean(errors, weight), parameters, retain_graph=name == "motion")
                torch.cat([g.flatten() for g in found], out=rows[name][n])
    ends = np.cumsum([0, *sizes]).tolist()
    spans = list(pairwise(ends))

    def products(a: str, b: str) -> npt.NDArray[np.float32]:
        return np.stack([(rows[a][:, s:e] @ rows[b][:, s:e].T).numpy() for s, e in spans])

    for name in ("motion", "none"):
        if name in pairs:
            yield name, products(name, name)
    if "crossed" in pairs:
        yield "crossed", products("motion", "none")
    of_clips = rows["none"][: len(clips)]
    mean = of_clips.mean(0)
    second = mean.square() + (of_clips.square().mean(0) - mean.square()) / BATCH
    scale = (second + TINY).pow(-0.25)
    if "adam_motion" in pairs:
        rows["motion"] *= scale
        yield "adam_motion", products("motion", "motion")


def _each(*sets: Clips) -> Iterator[tuple[Tensor, Tensor, Tensor, str]]:
    for clips in sets:
        yield from zip(clips.latent, clips.text, clips.mask, clips.clip_ids, strict=True)


def write(path: str, found: Grams) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **found)  # type: ignore[arg-type]
    stores.write_bytes(path, buffer.getvalue())


def read(path: str) -> Grams:
    with np.load(io.BytesIO(stores.read_bytes(path))) as held:
        return {name: held[name] for name in held.files}
