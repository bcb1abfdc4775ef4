"""Numbers that come by the block and are wanted as one array: memory holds them once, however many there are.

To join arrays in a list takes their room twice. Here the array grows where it lies: beyond some megabytes the system
moves pages instead of copying, and gives them back when the array goes.
"""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]


class Growing:
    """64-bit words, put in by the block and taken as one array, in their order."""

    def __init__(self) -> None:
        self._held = array("Q")

    def put(self, words: Words) -> None:
        self._held.frombytes(np.ascontiguousarray(words).view(np.uint8))  # type: ignore[arg-type]

    def take(self) -> Words:
        """All of them; none is left here."""
        held, self._held = self._held, array("Q")
        return np.frombuffer(held, np.uint64)
