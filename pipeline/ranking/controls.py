"""Controls: what else, with no video model, would have selected the same clips: motion magnitude, and mask overlap."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.ranking.mask_overlap import Alike
from pipeline.statistics.correlations import spearman
from pipeline.tables.figures import SELECTED, Selected

Floats = npt.NDArray[np.float64]


def compare(influence: Floats, other: Floats, chosen: npt.NDArray[np.bool_]) -> dict[str, float | None]:
    """What share of the chosen clips the top of `other`, of the same size, would have chosen too; NaN is never chosen.

    Rows come in the order of their keys, so ties are broken the same way every time.
    """
    size = int(chosen.sum())
    finite = np.isfinite(other)
    top = np.argsort(-np.where(finite, other, -np.inf), kind="stable")[:size]
    share = float(chosen[top][finite[top]].sum()) / size if size and finite.any() else None
    return {"share": share, "spearman": spearman(influence, other)}


def overlaps(found: Selected, alike: Alike, sampled: bool = False) -> dict[str, dict[str, Any]]:
    """For every group: how the selection agrees with motion magnitude alone and with mask overlap alone.

    Where only a sample of the clips has its motion measured, the sample stands for all of them.
    """
    places = found.ids.find(alike.clip_ids)
    by_group = {}
    for name, group in found.groups.items():
        flags = group.places >= 0
        if sampled:
            flags[flags] = np.isfinite(found.magnitude[group.places[flags]])
        overlap, at = np.full(len(found.ids), np.nan), group.places[flags]
        overlap[places[places >= 0]] = alike.groups.get(name, np.full(len(places), np.nan))[places >= 0]
        chosen, influence = (group.decisions == SELECTED)[flags], group.influence[flags].astype(np.float64)
        by_group[name] = {
            "selected": int(chosen.sum()),
            "ranked": len(chosen),
            "chance": float(chosen.mean()) if len(chosen) else None,
            "chance_sd": _chance_sd(len(chosen), int(chosen.sum())),
            "magnitude": compare(influence, found.magnitude[at], chosen),
            "mask_overlap": compare(influence, overlap[at], chosen),
        }
    return by_group


def _chance_sd(ranked: int, size: int) -> float | None:
    """Standard deviation of the share that two random sets of `size` of `ranked` clips have in common."""
    if ranked < 2 or not size:
        return None
    return float(np.sqrt((1 - size / ranked) ** 2 / (ranked - 1)))
