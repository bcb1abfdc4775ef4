"""How far a ranking of the same clips has moved: rank correlation, and how much of the top tenth stays.

Between the features of the checkpoint that attributes and those of the model in use, on a random set of clips; and
between one night's influence and the next's.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.statistics.correlations import spearman, spearman_interval
from pipeline.statistics.intervals import wilson

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Drift:
    """`spearman` and `overlap` (the share of the first ranking's top that is in the second's as well) with their 95 %
    intervals; None where they are not defined."""

    clips: int
    spearman: float | None
    spearman_interval: tuple[float, float] | None
    top: int
    overlap: float | None
    overlap_interval: tuple[float, float] | None

    def record(self) -> dict[str, Any]:
        return asdict(self)


def drawn(seed: int, clip_ids: Iterable[str], count: int) -> list[str]:
    """The clips on which drift is measured: random, by seed and id alone, so that most stay from night to night."""
    return sorted(heapq.nsmallest(count, clip_ids, key=lambda i: (_hash(f"drift {seed} {i}"), i)))


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def compare(before: Floats, after: Floats, fraction: float = 0.1) -> Drift:
    """Two scores [N] of the same clips in the same order. The top holds max(1, round(fraction * N)) clips."""
    n = len(before)
    top = max(1, round(fraction * n)) if n else 0
    common_count = len(set(_first(before, top)) & set(_first(after, top)))
    correlation = spearman(before.astype(np.float64), after.astype(np.float64))
    return Drift(
        n,
        correlation,
        None if correlation is None else spearman_interval(correlation, n),
        top,
        common_count / top if top else None,
        wilson(common_count, top)[1:] if top else None,
    )


def _first(score: Floats, count: int) -> list[int]:
    rows: list[int] = np.argsort(-score, kind="stable")[:count].tolist()
    return rows
