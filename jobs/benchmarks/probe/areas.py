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
    their motion. The probe of `twins` and `cartoons` is taught on every kind of twin at once; in `alone` each kind has
    a probe of its own, because of two twins one may change more than the query does and the other less."""

    twins: Mapping[str, Mapping[str, float]]
    alone: Mapping[str, Mapping[str, float]]
    cartoons: float


def areas(states: States, kind: Kind, ridge: float) -> Areas:
    """Of probes of this kind that are taught on the corpus' queries and their twins."""
    of_queries, by_scheme = states.of_queries[kind.layer], folds(states.queries)
    probe = taught(kind.of(of_queries), len(TWINS), ridge)
    twins = {name: of_twins(probe, some, list(TWINS)) for name, some in by_scheme.items()}
    alone: dict[str, dict[str, float]] = {name: {} for name in by_scheme}
    for place, twin in enumerate(TWINS):
        of_kind = taught(kind.of(of_queries[:, [0, 1 + place]]), 1, ridge)
        for name, some in by_scheme.items():
            alone[name] |= of_twins(of_kind, some, [twin])
    for of_scheme in (*twins.values(), *alone.values()):
        of_scheme[ALL] = float(np.mean(list(of_scheme.values())))
    return Areas(twins, alone, _over_cartoons(states, probe.scores(kind.of(states.of_clips[kind.layer]))))


def area_left_out(states: States, kind: Kind, ridge: float) -> float:
    """`twins` of Areas where motion and colour are left out, over all kinds of twin: what kinds are chosen by."""
    probe = taught(kind.of(states.of_queries[kind.layer]), len(TWINS), ridge)
    of_kinds = of_twins(probe, folds(states.queries)[LEFT_OUT], list(TWINS))
    return float(np.mean(list(of_kinds.values())))


def taught(states: Floats, twins: int, ridge: float) -> Probe:
    """A probe on the states of queries, each followed by those of so many twins of its own."""
    return Probe(states, np.where(np.arange(len(states)) % (1 + twins) == 0, 1.0, -1.0), ridge)


def of_twins(probe: Probe, some: Sequence[Fold], twins: Sequence[str]) -> dict[str, float]:
    """The share of pairs of a query and a twin, of the same fold, that the probe has in the right order, of each kind
    of twin that it was taught on."""
    right, pairs = np.zeros(len(twins)), 0
    for fold in some:
        scores = _asked(probe, fold, 1 + len(twins))
        pairs += len(scores) ** 2
        right += [auc(scores[:, 0], scores[:, 1 + place]) * len(scores) ** 2 for place in range(len(twins))]
    return dict(zip(twins, (right / pairs).tolist(), strict=True))


def _asked(probe: Probe, fold: Fold, versions: int) -> Floats:
    """Scores of what a fold asks about: [asked, versions]."""
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
