"""Nodes of a cluster as plain numbers. No Ray."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.config.operations import Pool

GB = 1e9  # bytes


@dataclass(frozen=True)
class Nodes:
    """So many nodes of one kind. `memory` is what actors of one of them may have together, in GB."""

    cpus: float
    gpus: float
    count: int = 1
    memory: float = math.inf

    def room(self, pool: Pool) -> int:
        """How many actors of a pool these nodes hold, were nothing else on them."""
        each = math.floor(self.cpus / pool.cpus + 1e-9)
        if pool.gpus:
            each = min(each, math.floor(self.gpus / pool.gpus + 1e-9))
        if pool.memory is not None and math.isfinite(self.memory):
            each = min(each, math.floor(self.memory / pool.memory + 1e-9))
        return each * self.count
