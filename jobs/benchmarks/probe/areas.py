"""How well a probe on a layer's states does: areas under the ROC curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jobs.benchmarks.probe.ridge import Floats, Fold, Probe, folds
from jobs.benchmarks.probe.states import LATENTS, TIMES, Array, Layer, States
from jobs.benchmarks.quality.retrieval import auc
from pipeline.synthetic import world
from pipeline.video.looks import TWINS

ALL = "all twins"
TOGETHER = "all"  # noise levels
LEFT_OUT = "motion and colour"  # what layers, noise levels and ridges are chosen by
RIDGES = (0.01, 0.1, 1.0, 10.0)


@dataclass(frozen=True)
class Kind:
    """What a probe sees: the states of a layer at one noise level, or at all of them."""

    layer: Layer
    time: str

    @property
    def name(self) -> str:
        model, block = self.layer
        return model if model == LATENTS else f"{model}, block {block}, {self.time}"

    def of(self, states: Array) -> Floats:
        """[..., times, D] -> [rows, D'] of this kind."""
        chosen = states if self.time == TOGETHER else states[..., [TIMES.index(float(self.time))], :]
        return chosen.reshape(-1, chosen.shape[-2] * chosen.shape[-1]).astype(np.float64)


def kinds(layers: Sequence[Layer]) -> list[Kind]:
    times = [f"{time:g}" for time in TIMES]
    return [
        Kind(layer, time) for layer in layers for time in ([TOGETHER] if layer[0] == LATENTS else [*times, TOGETHER])
    ]


@dataclass(frozen=True)
class Areas:
    """AUC of queries above their twins, by what is left out and the kind of twin, and of real clips above cartoons of
    their motion."""

    twins: Mapping[str, Mapping[str, float]]
    cartoons: float


def areas(states: States, kind: Kind, ridge: float) -> Areas:
    """Of a probe of this kind that is taught on the corpus' queries and their twins."""
    versions = 1 + len(TWINS)
    labels = np.where(np.arange(len(states.queries) * versions) % versions == 0, 1.0, -1.0)
    probe = Probe(kind.of(states.of_queries[kind.layer]), labels, ridge)
    twins = {name: of_twins(probe, some) for name, some in folds(states.queries).items()}
    return Areas(twins, _over_cartoons(states, probe.scores(kind.of(states.of_clips[kind.layer]))))


def of_twins(probe: Probe, some: Sequence[Fold]) -> dict[str, float]:
    """The share of pairs of a query and a twin, of the same fold, that the probe has in the right order; of each kind
    of twin, and their mean."""
    right, pairs = np.zeros(len(TWINS)), 0
    for fold in some:
        scores = _asked(probe, fold)
        pairs += len(scores) ** 2
        right += [auc(scores[:, 0], scores[:, 1 + place]) * len(scores) ** 2 for place in range(len(TWINS))]
    shares = dict(zip(TWINS, (right / pairs).tolist(), strict=True))
    return {**shares, ALL: float(np.mean(list(shares.values())))}


def _asked(probe: Probe, fold: Fold) -> Floats:
    """Scores of what a fold asks about: [asked, 1 + twins]."""
    versions = 1 + len(TWINS)
    if not fold.left_out.any():
        return probe.scores_of_its_own().reshape(-1, versions)[fold.asked]
    scores = probe.scores_without(np.repeat(fold.left_out, versions)).reshape(-1, versions)
    return scores[fold.asked[fold.left_out]]


def _over_cartoons(states: States, scores: Floats) -> float:
    of_motions = []
    for motion in world.CARTOONS:
        real, cartoon = (
            scores[[(clip.motion, clip.kind) == (motion, kind) for clip in states.clips]]
            for kind in ("real", "cartoon")
        )
        if len(real) and len(cartoon):
            of_motions.append(auc(real, cartoon))
    return float(np.mean(of_motions))
