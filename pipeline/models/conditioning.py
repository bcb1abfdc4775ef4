"""What clips and captions are conditioned by: batches of it, and a cache of captions, which many clips share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pipeline.models.contract import Conditioning

CACHE_BYTES = 1 << 30  # bytes; a caption takes 4 MB in Wan, 100 MB in families that keep all layers of their encoder


class Captions:
    """Embeddings of the captions seen last, up to a number of bytes; memory does not grow with the corpus."""

    def __init__(self, embed: Callable[[str], Conditioning], size: int = CACHE_BYTES) -> None:
        self._embed, self._size, self._bytes = embed, size, 0
        self._by_caption: OrderedDict[str, Conditioning] = OrderedDict()

    def __call__(self, caption: str) -> Conditioning:
        if caption not in self._by_caption:
            self._by_caption[caption] = self._embed(caption)
            self._bytes += weight(self._by_caption[caption])
            while self._bytes > self._size and len(self._by_caption) > 1:
                self._bytes -= weight(self._by_caption.popitem(last=False)[1])
        self._by_caption.move_to_end(caption)
        return self._by_caption[caption]


def weight(conditioning: Conditioning) -> int:
    """Bytes of its tensors."""
    return sum(tensor.nbytes for tensor in conditioning.values())


def split(encoded: Conditioning) -> tuple[Tensor, dict[str, Tensor]]:
    """The latent of an encoded clip, and what else the transformer is told of it."""
    return encoded["latent"], {name: tensor for name, tensor in encoded.items() if name != "latent"}


def batched(conditionings: Sequence[Conditioning]) -> dict[str, Tensor]:
    """Conditionings of single clips as those of a batch. ValueError where they differ in names or shapes."""
    names = list(conditionings[0])
    for other in conditionings[1:]:
        if set(other) != set(names):
            raise ValueError(f"conditionings of one model have the same names, not {names} and {list(other)}")
    return {name: _stacked(name, [c[name] for c in conditionings]) for name in names}


def _stacked(name: str, tensors: Sequence[Tensor]) -> Tensor:
    shapes = {tuple(t.shape) for t in tensors}
    if len(shapes) > 1:
        raise ValueError(
            f"the conditioning {name!r} of these clips has shapes {sorted(shapes)}, which cannot share a batch; set "
            "finetune.batch to 1"
        )
    return torch.stack(list(tensors))


def moved(conditioning: Conditioning, device: torch.device) -> dict[str, Tensor]:
    """The same on a device. A copy out of pinned memory goes on while the host does something else."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in conditioning.items()}
