"""Orders that depend on names alone, and halves of a corpus that a score tells apart, matched in what their clips
show."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


def by_hash(seed: int, names: Sequence[str]) -> list[str]:
    """The names in an order that depends on the seed and themselves alone."""
    return sorted(names, key=lambda name: hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest())


def matched_halves(score: Floats, cells: Sequence[tuple[str, str]], clip_ids: Sequence[str]) -> tuple[Rows, Rows]:
    """The rows of the upper and of the lower half by a score, within every cell, as (action, person) or (motion, kind).

    A cell's middle clip is in neither half, nor is a clip without a score. Equal scores go by the clips' ids.
    """
    order = {clip_id: place for place, clip_id in enumerate(by_hash(0, clip_ids))}
    members: dict[tuple[str, str], list[int]] = {}
    for row, cell in enumerate(cells):
        if np.isfinite(score[row]):
            members.setdefault(cell, []).append(row)
    upper: list[int] = []
    lower: list[int] = []
    for rows in members.values():
        ranked = sorted(rows, key=lambda row: (-score[row], order[clip_ids[row]]))
        half = len(ranked) // 2
        upper += ranked[:half]
        lower += ranked[len(ranked) - half :]
    return np.array(sorted(upper), np.int64), np.array(sorted(lower), np.int64)
