"""What is compared, by name: the paper's rule, ours, their parts, and the controls that each must beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jobs.benchmarks.quality import influences
from jobs.benchmarks.quality.influences import Floats, Method, Place
from jobs.benchmarks.quality.kernels import Grams
from jobs.benchmarks.quality.problem import Clips
from jobs.benchmarks.quality.tasks import PAPER

CONTROLS = ("untrained", "others", "own")  # kernels at PAPER that are no method's
WHITEN = 0.01
BEST = 0.001  # lambda of the best that was found, with the LDS of the skewed subsets in sight


@dataclass(frozen=True)
class Kernels:
    """Gram matrices by place, under shared noise, and those of CONTROLS at PAPER."""

    shared: Mapping[Place, Grams]
    controls: Mapping[str, Grams]

    @property
    def places(self) -> tuple[Place, ...]:
        return tuple(self.shared)


@dataclass(frozen=True)
class Scored:
    """Influence on every query [N, Q], or on every motion where `by_query` is false, and backward passes a clip."""

    values: Floats
    gradients: int = 0
    by_query: bool = True


def main(held: Kernels, clips: Clips, queries: Clips, motions: tuple[str, ...]) -> dict[str, Scored]:
    """The methods of the main table, and the controls."""
    every = held.places

    def of(pair: str, whiten: float | None, places: tuple[Place, ...] = (PAPER,)) -> Scored:
        return Scored(influences.values(held.shared, Method(places, pair, whiten), clips), len(places))

    found = {
        "motive": of("motion", None),
        "no mask": of("none", None),
        "motive, whitened": of("motion", WHITEN),
        "no mask, whitened": of("none", WHITEN),
        f"motive, {len(every)} settings": of("motion", None, every),
        f"motive, {len(every)} settings, whitened": of("motion", WHITEN, every),
        f"no mask, {len(every)} settings, whitened": of("none", WHITEN, every),
        "best": both(held, clips, BEST),
    }
    for name, whiten in (("untrained", WHITEN), ("others", WHITEN)):
        values = influences.values({PAPER: held.controls[name]}, Method((PAPER,), "motion", whiten), clips)
        found[{"untrained": "control: untrained model, whitened",
               "others": "control: own mask, another clip's latent, whitened"}[name]] = Scored(values, 1)  # fmt: skip
    for name, values in (
        ("control: mask overlap alone", influences.overlap(clips, queries, motions)),
        ("control: raw latents", influences.raw_latents(clips, queries, motions)),
        ("control: motion magnitude", influences.magnitude(clips, motions)),
        ("control: random", influences.chance(clips, motions)),
        ("oracle: the clip's true motion", influences.known(clips, motions)),
    ):
        found[name] = Scored(values, 0, by_query=False)
    return found


def both(held: Kernels, clips: Clips, whiten: float = WHITEN) -> Scored:
    """Masked and unmasked influence together, whitened, over every setting; the unmasked one alone for still clips."""
    masked, plain = (
        influences.values(held.shared, Method(held.places, pair, whiten), clips) for pair in ("motion", "none")
    )
    masked, plain = (values / np.nanstd(values) for values in (masked, plain))
    return Scored(np.where(np.isfinite(masked), masked + plain, plain), 2 * len(held.places))


def motion_scores(scored: Scored, queries: Clips, motions: tuple[str, ...]) -> Floats:
    """[N, T]: the mean over each motion's queries."""
    return influences.by_motion(scored.values, queries, motions) if scored.by_query else scored.values
