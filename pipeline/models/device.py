"""Where an actor computes, and in what."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # by their names in a configuration


def device_for(gpus: float) -> torch.device:
    """The device of an actor that was given that share of a GPU. One thread: results must not depend on a pool's
    size."""
    torch.set_num_threads(1)
    if gpus > 0 and not torch.cuda.is_available():
        raise RuntimeError("this actor was given a GPU, but torch sees none: is torch built for this machine's CUDA?")
    return torch.device("cuda" if gpus > 0 else "cpu")


class SideStream:
    """A second stream of a GPU: what is computed in it does not wait for the work that the first one still has.

    So the next clip's flow and latent are computed while the gradient of the clip before goes on, and the GPU has work
    where the flow is asked about on the CPU. That takes the memory of both. A CPU has no second stream, and does one
    after the other.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(device))  # the models are being loaded there

    def stream(self) -> AbstractContextManager[object]:
        """Work of the body goes to the second stream."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def hand_over(self, tensors: Iterable[Tensor]) -> None:
        """Let the current stream use tensors of the second one, once they are computed."""
        if self._stream is None:
            return
        current = torch.cuda.current_stream(self._stream.device)
        current.wait_stream(self._stream)
        for tensor in tensors:
            if tensor.is_cuda:  # its memory is not given away before the current stream is done with it
                tensor.record_stream(current)

    def close(self) -> bool:
        """From now on do everything in turn, in less memory. Whether it was otherwise before."""
        was_open = self._stream is not None
        self.hand_over(())  # captions that are kept may still be computed there
        self._stream = None
        return was_open
