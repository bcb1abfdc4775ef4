"""What else a gradient could be of: other masks, noise of each clip's own, other models, cheaper clips. By name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F

from jobs.benchmarks.quality.problem import Clips

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
    found: npt.NDArray[np.bool_] = np.arange(len(clips)) % 2 == 1
    return found


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
    "untrained": Variant(model="untrained"),
    "others": Variant(clips=other_latents),
}
