"""One clip of noise that every actor takes: whether features of different machines can be compared."""

from __future__ import annotations

import json
import time

import torch
from torch import Tensor

from pipeline.storage import stores

READS = 10  # half a second apart


def check_canary(path: str, feature: Tensor) -> None:
    """Compare an actor's feature of the canary clip with that of the first actor, which the file at `path` holds.

    Actors start together, so the file is created by one of them alone, and every actor compares with what is in it.
    RuntimeError where the cosine is below 0.9999, or where there is nothing to compare.
    """
    if not torch.isfinite(feature).all() or not feature.any():
        raise RuntimeError(
            "this actor's feature of the canary clip is not finite, or zero: the model's weights, its dtype or this "
            "machine's GPU are at fault, and every clip's feature would be so."
        )
    stores.create_bytes(path, json.dumps(feature.tolist()).encode())
    first = _first_canary(path)
    if first.shape != feature.shape:
        raise RuntimeError(
            f"{path}: it has {first.numel()} numbers, and this actor's feature of the canary clip {feature.numel()}. "
            "Delete the file if it was not written by this run."
        )
    cosine = float(torch.nn.functional.cosine_similarity(first, feature, 0))
    if not cosine >= 0.9999:
        raise RuntimeError(
            f"this actor's feature of the canary clip has a cosine of {cosine:.6f} with the first actor's "
            f"({path}); features of the two cannot be mixed. Use GPUs of one kind, or another root."
        )


def _first_canary(path: str) -> Tensor:
    for _ in range(READS):
        try:
            return torch.tensor(json.loads(stores.read_bytes(path)), dtype=torch.float32)
        except (ValueError, TypeError):  # on a disk without hard links its writer may still be at it
            time.sleep(0.5)
    raise RuntimeError(
        f"{path}: this is no feature of the canary clip. Delete the file, and run the same command again."
    )
