"""Where an actor computes."""

from __future__ import annotations

import torch


def device_for(gpus: float) -> torch.device:
    """The device of an actor that was given that share of a GPU. One thread: results must not depend on a pool's
    size."""
    torch.set_num_threads(1)
    if gpus > 0 and not torch.cuda.is_available():
        raise RuntimeError("this actor was given a GPU, but torch sees none: is torch built for this machine's CUDA?")
    return torch.device("cuda" if gpus > 0 else "cpu")
