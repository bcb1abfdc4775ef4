"""Controls: what else, with no video model, would have selected the same clips: motion magnitude, and what is alike in
masks, colours or movement."""

from __future__ import annotations

from collections.abc import Mapping
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


def overlaps(selected: Selected, alike: Mapping[str, Alike], sampled: bool = False) -> dict[str, dict[str, Any]]:
    """For every group: how the selection agrees with motion magnitude alone, and with each likeness by its name.

    Where only a sample of the clips has its motion measured, the sample stands for all of them.
    """
    by_group = {}
    for name, group in selected.groups.items():
        flags = group.places >= 0
        if sampled:
            flags[flags] = np.isfinite(selected.magnitude[group.places[flags]])
        at = group.places[flags]
        chosen, influence = (group.decisions == SELECTED)[flags], group.influence[flags].astype(np.float64)
        by_group[name] = {
            "selected": int(chosen.sum()),
            "ranked": len(chosen),
            "chance": float(chosen.mean()) if len(chosen) else None,
            "chance_sd": _chance_sd(len(chosen), int(chosen.sum())),
            "magnitude": compare(influence, selected.magnitude[at], chosen),
        }
        for control, likeness in alike.items():
            by_group[name][control] = compare(influence, _of_clips(selected, likeness, name)[at], chosen)
    return by_group


def _of_clips(selected: Selected, alike: Alike, group: str) -> Floats:
    """The likeness of every clip of the run to a group; NaN where it is not known."""
    places = selected.ids.find(alike.clip_ids)
    values = np.full(len(selected.ids), np.nan)
    values[places[places >= 0]] = alike.groups.get(group, np.full(len(places), np.nan))[places >= 0]
    return values


def _chance_sd(ranked: int, size: int) -> float | None:
    """Standard deviation of the share that two random sets of `size` of `ranked` clips have in common."""
    if ranked < 2 or not size:
        return None
    return float(np.sqrt((1 - size / ranked) ** 2 / (ranked - 1)))
