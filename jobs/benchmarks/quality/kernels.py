"""Inner products of whole gradients, part by part of the model: all that influence by any rule is made of.

For a few hundred clips it is cheaper to keep these than projections to thousands of numbers, and they are exact: what
k numbers lose is an ablation of its own (`projected`).
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jobs.benchmarks.quality.problem import Clips
from pipeline.config.attribution import Kind
from pipeline.models import VideoModel
from pipeline.models.loss import loss_map, masked_mean, own_noise, shared_noise
from pipeline.projection import Projection
from pipeline.storage import stores

Floats = npt.NDArray[np.float32]
One = tuple[Tensor, Tensor, Tensor, str]  # a clip's latent, text, mask and id
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
    groups: dict[str, list[str]] = {}
    for name, _ in module.named_parameters():
        first, *rest = name.split(".")
        groups.setdefault(f"{first}.{rest[0]}" if first == "blocks" else first, []).append(name)
    return groups


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
    for name in ("motion", "none"):
        if name in pairs:
            yield name, by_part(rows[name], sizes)
    if "crossed" in pairs:
        yield "crossed", by_part(rows["motion"], sizes, rows["none"])
    if "projected" in pairs:
        yield from projected(rows["motion"])
    if "adam_motion" in pairs:
        of_clips = rows["none"][: len(clips)]
        mean = of_clips.mean(0)
        second = mean.square() + (of_clips.square().mean(0) - mean.square()) / BATCH
        rows["motion"] *= (second + TINY).pow(-0.25)
        yield "adam_motion", by_part(rows["motion"], sizes)


def by_part(rows: Tensor, sizes: Sequence[int], columns: Tensor | None = None) -> Floats:
    """Products of gradients [M, D] with themselves, or with others, for each part of the model: [parts, M, M]."""
    others = rows if columns is None else columns
    spans = pairwise(np.cumsum([0, *sizes]).tolist())
    return np.stack([(rows[:, start:end] @ others[:, start:end].T).numpy() for start, end in spans])


def gradients(
    model: VideoModel,
    sets: Sequence[Clips],
    timestep: float,
    noise: int,
    own: bool,
    masks: Sequence[str],
) -> tuple[dict[str, Tensor], list[int]]:
    """The gradients of every clip of the sets [M, D] under each of `masks`, and the sizes of the model's parts."""
    return gradients_of(model, list(_each(*sets)), tuple(sets[0].latent.shape[1:]), timestep, noise, own, masks)


def gradients_of(
    model: VideoModel,
    clips: Sequence[One],
    shape: tuple[int, ...],
    timestep: float,
    noise: int,
    own: bool,
    masks: Sequence[str],
) -> tuple[dict[str, Tensor], list[int]]:
    """`gradients` of single clips. `shape` is that of a whole latent; a shorter one has its first frames of noise."""
    named = dict(model.trained.named_parameters())
    groups = [[named[name] for name in names] for names in parts(model.trained).values()]
    sizes, parameters = [sum(p.numel() for p in part) for part in groups], [p for part in groups for p in part]
    rows = {mask: torch.zeros(len(clips), sum(sizes)) for mask in masks}
    full = shared_noise(0, noise, shape)
    for n, (latent, text, mask, clip_id) in enumerate(clips):
        at = own_noise(clip_id, noise, tuple(latent.shape)) if own else full[:, : latent.shape[1]]
        errors = loss_map(model, latent[None], {"text": text[None]}, torch.tensor([timestep]), at[None])
        for name in masks:
            if name == "none" or bool(mask.any()):
                weight = mask[None] if name == "motion" else None
                of_names = torch.autograd.grad(masked_mean(errors, weight), parameters, retain_graph=name != masks[-1])
                torch.cat([g.flatten() for g in of_names], out=rows[name][n])
    return rows, sizes


def projected(rows: Tensor) -> Iterator[tuple[str, Floats]]:
    """Products of gradients [M, D] that were projected first, named KIND-DIM: [1, M, M]."""

    def features(kind: Kind, dim: int) -> Tensor:
        p = Projection(kind, dim)
        return torch.cat([p(rows[i : i + ROWS_AT_A_TIME]) for i in range(0, len(rows), ROWS_AT_A_TIME)])

    def products(rows: Tensor) -> Floats:
        gram: Floats = (rows @ rows.T)[None].numpy()
        return gram

    widest = features("gaussian", DIMS[-1])
    for dim in DIMS:
        yield f"gaussian-{dim}", products(widest[:, :dim])
    for kind in OTHERS:
        yield f"{kind}-512", products(features(kind, 512))


def _each(*sets: Clips) -> Iterator[One]:
    for clips in sets:
        for latent, text, mask, clip_id, frames in zip(
            clips.latent, clips.text, clips.mask, clips.clip_ids, clips.frames.tolist(), strict=True
        ):
            yield latent[:, :frames], text, mask[:frames], clip_id


def write(path: str, grams: Grams) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **grams)  # type: ignore[arg-type]
    stores.write_bytes(path, buffer.getvalue())


def read(path: str) -> Grams:
    with np.load(io.BytesIO(stores.read_bytes(path))) as arrays:
        return {name: arrays[name] for name in arrays.files}


# --- what else a gradient could be of: other masks, own noise, other models, cheaper clips ----------------------------


SHORT = 3  # latent frames of a clip that is cut: five frames of nine, since the autoencoder looks back alone

Change = Callable[[Clips], Clips]


def _same(clips: Clips) -> Clips:
    return clips


def robust(clips: Clips) -> Clips:
    """A quantile as the upper end of the masks."""
    return replace(clips, mask=clips.robust)


def steady(clips: Clips) -> Clips:
    """Masks of what the camera's motion does not explain."""
    return replace(clips, mask=clips.steady)


def small(clips: Clips) -> Clips:
    """Half the height and width."""
    return replace(clips, latent=clips.small, mask=F.avg_pool2d(clips.mask, 2))


def short(clips: Clips) -> Clips:
    """The first SHORT latent frames."""
    return replace(clips, frames=np.full(len(clips), SHORT))


def mixed(clips: Clips) -> Clips:
    """Every second clip is cut short."""
    return replace(clips, frames=np.where(cut(clips), SHORT, clips.frames))


def cut(clips: Clips) -> npt.NDArray[np.bool_]:
    """Which clips `mixed` cuts: [N]."""
    shorter: npt.NDArray[np.bool_] = np.arange(len(clips)) % 2 == 1
    return shorter


def other_latents(clips: Clips) -> Clips:
    """Each moving clip's own mask with the latent and caption of the next one: what the mask's place alone tells."""
    moving = np.flatnonzero(clips.moving)
    to = np.arange(len(clips))
    to[moving] = np.roll(moving, 1)
    return replace(clips, latent=clips.latent[to], text=clips.text[to])


@dataclass(frozen=True)
class Variant:
    """Which products are wanted (`kernels`), and what is changed for them."""

    pairs: tuple[str, ...] = ("motion",)
    clips: Change = _same
    queries: Change = _same
    own_noise: bool = False
    model: Literal["base", "untrained", "tuned"] = "base"  # tuned: fine-tuned on the whole corpus


VARIANTS = {
    "shared": Variant(("motion", "none", "crossed")),
    "masked": Variant(),
    "adam": Variant(("adam_motion",)),
    "projected": Variant(("projected",)),
    "own": Variant(own_noise=True),
    "robust": Variant(clips=robust, queries=robust),
    "steady": Variant(clips=steady, queries=steady),
    "mixed": Variant(clips=mixed),
    "short": Variant(clips=short, queries=short),
    "small": Variant(clips=small, queries=small),
    "tuned": Variant(("motion", "none", "crossed"), model="tuned"),
    "untrained": Variant(("motion", "none", "crossed"), model="untrained"),
    "others": Variant(clips=other_latents),
}
