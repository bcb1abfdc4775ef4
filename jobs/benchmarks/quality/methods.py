"""What is compared, by name: the paper's rule, ours, their parts, and the controls that each must beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jobs.benchmarks.quality import influences
from jobs.benchmarks.quality.influences import Floats, Method, Place
from jobs.benchmarks.quality.kernels import Grams
from jobs.benchmarks.quality.problem import Clips
from jobs.benchmarks.quality.tasks import PAPER

# Kernels at PAPER beside the shared ones (`variants`).
CONTROLS = ("untrained", "others")
OTHERS = ("adam", "projected", "own", "robust", "steady", "mixed", "short", "small", "tuned", *CONTROLS)
WHITEN = 0.01
# Pairs, and lambda, over every setting; chosen in sight of the subsets (`choice` judges that).
BEST = (("crossed",), WHITEN)


@dataclass(frozen=True)
class Kernels:
    """Gram matrices by place, under shared noise; the same under noises of other numbers; and OTHERS."""

    shared: Mapping[Place, Grams]
    repeated: Mapping[Place, Grams]
    others: Mapping[str, Grams]

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
    every, many = held.places, f"{len(held.places)} settings"
    others = [place for place in every if place[0] != PAPER[0]]

    def of(pair: str, whiten: float | None, places: tuple[Place, ...] = (PAPER,)) -> Scored:
        return Scored(influences.values(held.shared, Method(places, pair, whiten), clips), len(places))

    found = {
        "motive": of("motion", None),
        "no mask": of("none", None),
        "motive, whitened": of("motion", WHITEN),
        "no mask, whitened": of("none", WHITEN),
        "queries masked, whitened": of("crossed", WHITEN),
        **{f"queries masked, timestep {t:g}, whitened": of("crossed", WHITEN, ((t, n),)) for t, n in others},
        f"motive, {many}": of("motion", None, every),
        f"no mask, {many}": of("none", None, every),
        f"motive, {many}, whitened": of("motion", WHITEN, every),
        f"no mask, {many}, whitened": of("none", WHITEN, every),
        "best": combined(held, clips, *BEST),
    }
    for control, title in (("untrained", "untrained model"), ("others", "own mask, another clip's latent")):
        values = influences.values({PAPER: held.others[control]}, Method((PAPER,), "motion", WHITEN), clips)
        found[f"control: {title}, whitened"] = Scored(values, 1)
    for name, values in (
        ("control: mask overlap alone", influences.overlap(clips, queries, motions)),
        ("control: raw latents", influences.raw_latents(clips, queries, motions)),
        ("control: motion magnitude", influences.magnitude(clips, motions)),
        ("control: random", influences.chance(clips, motions)),
        ("oracle: the clip's true motion", influences.known(clips, motions)),
    ):
        found[name] = Scored(values, 0, by_query=False)
    return found


def combined(held: Kernels, clips: Clips, pairs: Sequence[str], whiten: float | None = WHITEN) -> Scored:
    """The mean of several pairs' influence, each in units of its own spread, over every setting; of a clip without
    motion the mean of those that it has."""
    found = [influences.values(held.shared, Method(held.places, pair, whiten), clips) for pair in pairs]
    scaled = np.stack([values / np.nanstd(values) for values in found])
    has = np.isfinite(scaled)
    mean = np.where(has, scaled, 0).sum(0) / np.maximum(has.sum(0), 1)
    of_clips = {"motion" if pair == "motion" else "none" for pair in pairs}
    return Scored(np.where(has.any(0), mean, np.nan), len(of_clips) * len(held.places))


def motion_scores(scored: Scored, queries: Clips, motions: tuple[str, ...]) -> Floats:
    """[N, T]: the mean over each motion's queries."""
    return influences.by_motion(scored.values, queries, motions) if scored.by_query else scored.values
