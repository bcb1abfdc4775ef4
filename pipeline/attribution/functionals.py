"""What a query asks for, as a direction among features: its loss, or that it is preferred to its spoiled twins.

A query's gradient says which change of the model lowers its loss. Half of that is its looks: over several of them
(`video.looks`) what they have in common is left. A twin has the same pictures and another motion; the gradient of the
difference of the two losses says which change makes the query's motion more likely than the twin's, and looks cancel.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.config.attribution import Functional

Array = npt.NDArray[np.float32]


def query_feature(real: Array, twins: Array, functional: Functional) -> Array:
    """One direction out of projected gradients of a query and its twins in the same looks.

    `real` are [looks, k], `twins` [twins, looks, k]. With R the mean of the looks' unit gradients, and V_j that of twin
    j, it is R for the loss, the sum of the unit vectors of R - V_j for the preference, and for both that of R as well.
    Its length is the mean of the real gradients', so that one look alone is its own feature to the bit. [k]
    """
    if len(real) == 1 and functional == "loss":
        own: Array = real[0]
        return own
    mean: Array = _unit(real).mean(0)
    parts = [] if functional == "preference" else [_unit(mean)]
    if functional != "loss":
        parts += [_unit(mean - _unit(of_twin).mean(0)) for of_twin in twins]
    direction: Array = np.sum(parts, axis=0, dtype=np.float32)
    length = np.float32(np.linalg.norm(real, axis=1).mean())
    feature: Array = np.multiply(_unit(direction), length, dtype=np.float32)
    return feature


def _unit(rows: Array) -> Array:
    """Rows, or one row, of length one; zero stays zero."""
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    unit: Array = (rows / np.where(length > 0, length, 1)).astype(np.float32, copy=False)
    return unit
