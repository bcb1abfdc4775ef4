"""From features to influence, votes and a selection."""

from __future__ import annotations

from pipeline.ranking.rules.selection_blocks import select, selection_blocks
from pipeline.ranking.scores import (
    BLOCK,
    CHUNK,
    Counts,
    Moment,
    Population,
    Rows,
    Sums,
    influence,
    mean_influence,
    order,
    own_part,
    placed,
    products,
    second_moment,
    share,
    unit_settings,
    votes,
    whitened,
)

__all__ = [
    "BLOCK",
    "CHUNK",
    "Counts",
    "Moment",
    "Population",
    "Rows",
    "Sums",
    "influence",
    "mean_influence",
    "order",
    "own_part",
    "placed",
    "products",
    "second_moment",
    "select",
    "selection_blocks",
    "share",
    "unit_settings",
    "votes",
    "whitened",
]
