"""Embeddings of captions, which many clips share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor

KEPT = 128  # embeddings; one caption's of Wan takes 4 MB


class Captions:
    """Embeddings of the captions seen last; memory does not grow with the corpus."""

    def __init__(self, embed: Callable[[list[str]], Tensor], size: int = KEPT) -> None:
        self._embed, self._size = embed, size
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, caption: str) -> Tensor:
        """[1, tokens, width]"""
        if caption not in self._kept:
            self._kept[caption] = self._embed([caption])
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)
        self._kept.move_to_end(caption)
        return self._kept[caption]
