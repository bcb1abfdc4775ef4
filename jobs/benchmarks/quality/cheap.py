"""Cheaper attributions beside the full one: how alike they rank, what is lost, and what the full one's own noise is.

The full one is masked and whitened over every setting. Its repeatability is how alike it ranks under noises of other
numbers: no cheaper one can be asked to be more alike. Cost is the processor's seconds for gradients, as a share of the
full one's; what leaving out parts of the model saves is not in it. How much of the full best tenth the cheap best fifth
holds is what two stages of attribution live on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scipy.stats import rankdata

from jobs.benchmarks.quality import influences
from jobs.benchmarks.quality.influences import Floats, Method, Place
from jobs.benchmarks.quality.kernels import Grams
from jobs.benchmarks.quality.methods import WHITEN, Kernels
from jobs.benchmarks.quality.problem import Clips
from jobs.benchmarks.quality.tasks import PAPER

TOP, LISTED = 0.1, 0.2  # the full one's best tenth, looked for in the cheap one's best fifth
LAST = 3  # parts of the model: the last block and what follows


def variants(
    held: Kernels, clips: Clips, queries: Clips, motions: Sequence[str], parts: int
) -> Iterator[tuple[str, float, Floats]]:
    """A name, the cost, and every clip's score for every motion [N, T]; the full one first, then its repetition."""
    places, again, last = held.places, tuple(held.repeated), tuple(range(parts))[-LAST:]
    whole = sum(_seconds(grams) for grams in held.repeated.values())
    single, one = whole / len(places), Method((PAPER,), "motion", WHITEN)

    def scores(grams: Mapping[Place, Grams], method: Method) -> Floats:
        return influences.by_motion(influences.values(grams, method, clips), queries, motions)

    yield f"full: {len(places)} settings", 1.0, scores(held.shared, Method(places, "motion", WHITEN))
    yield "full, other noises", 1.0, scores(held.repeated, Method(again, "motion", WHITEN))
    yield "one setting", single / whole, scores(held.shared, one)
    part = Method((PAPER,), "motion", WHITEN, parts=last)
    yield "one setting, the last block alone", single / whole, scores(held.shared, part)
    for name, title in (("short", "five frames of nine"), ("small", "half height and width")):
        grams = held.others[name]
        yield f"one setting, {title}", _seconds(grams) / whole, scores({PAPER: grams}, one)


def _seconds(grams: Grams) -> float:
    return float(grams["seconds"][0])


def alike(scores: Floats, full: Floats) -> dict[str, float]:
    """Spearman's correlation with the full scores, and how much of their best tenth is in the best fifth of these: mean
    over the motions."""
    rows = np.isfinite(full).all(1) & np.isfinite(scores).all(1)
    a, b = scores[rows], full[rows]
    top, listed = (max(1, round(share * len(a))) for share in (TOP, LISTED))
    same = [np.corrcoef(rankdata(x), rankdata(y))[0, 1] for x, y in zip(a.T, b.T, strict=True)]
    kept = [len(set(np.argsort(-x)[:listed]) & set(np.argsort(-y)[:top])) / top for x, y in zip(a.T, b.T, strict=True)]
    return {"spearman": float(np.mean(same)), "top_kept": float(np.mean(kept))}
