"""How much each query counts, as people say: one pure function of the set of rows of query_weights/.

A person's weight of a query is the latest that the person gave it, by (at, batch). A query's weight is the mean over
the people who gave it one; 1 where nobody did. A clip's score is then the sum of weight times influence over the sum of
the weights' sizes, so that a query of weight -1 counts as one of which the selection is to have less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import tables
from pipeline.errors import ConfigError
from pipeline.storage.stores import join
from pipeline.tables import schemas

FOLDER = "query_weights"
_ORDER = ("at", "batch", "weight")

Weights = npt.NDArray[np.float64]


def read(root: str) -> pa.Table:
    """The rows of query_weights/, each once; none where there is no such table."""
    rows = tables.read(join(root, FOLDER), schemas.QUERY_WEIGHTS.names)
    return schemas.QUERY_WEIGHTS.empty_table() if rows is None else rows.cast(schemas.QUERY_WEIGHTS)


def weights(rows: pa.Table) -> dict[str, float]:
    """The weight of every query that somebody gave one, by query_id."""
    ordered = rows.sort_by([(name, "ascending") for name in _ORDER])
    latest = {(row["query_id"], row["by"]): row["weight"] for row in ordered.to_pylist()}
    weights_by_query: dict[str, list[float]] = {}
    for (query_id, _), weight in sorted(latest.items()):
        weights_by_query.setdefault(query_id, []).append(weight)
    return {query_id: float(np.mean(values)) for query_id, values in weights_by_query.items()}


def of_queries(weights_by_query: Mapping[str, float], query_ids: Sequence[str], name: str) -> Weights | None:
    """The weights [Q] of some queries; None where each counts 1. Raises ConfigError where none of them counts."""
    values = np.array([weights_by_query.get(query_id, 1.0) for query_id in query_ids])
    if (values == 1).all():
        return None
    if not values.any():
        raise ConfigError(
            f"query_weights/: every query of {name!r} has the weight 0, so nothing can be ranked. Give one of them "
            "another weight in the workbench, or delete that folder."
        )
    return values
