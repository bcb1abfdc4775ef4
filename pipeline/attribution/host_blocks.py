"""Attribution of a transformer that does not fit its device: its blocks wait in main memory and come one at a time.

Under gradient checkpointing a block is computed twice, in the forward and in the backward pass. Its parameters are
copied to the device for each and go with it, so that of the blocks one is there at a time, with its gradients on the
way to their projection. Every number is computed as if all of them were there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pipeline.errors import ConfigError
from pipeline.models.diffusers_model import DiffusersModel, channels_last

CHUNK = 1 << 30  # bytes of locked memory at once: each request is rounded up to a power of two
ALIGNED = 256  # bytes

Sink = Callable[[nn.Parameter, Tensor], None]  # takes a parameter's gradient, on the device


def pack(parameters: Iterable[nn.Parameter], allocate: Callable[[int], Tensor]) -> None:
    """Move parameters into memory that `allocate` gives, bytes as a uint8 tensor, in a few large pieces.

    Locked memory of each parameter's own would be rounded up to a power of two: by half, of Wan 2.1 14B.
    """
    rest = list(parameters)
    sizes = [-(-p.numel() * p.element_size() // ALIGNED) * ALIGNED for p in rest]
    left, chunk, start = sum(sizes), torch.empty(0, dtype=torch.uint8), 0
    for parameter, size in zip(rest, sizes, strict=True):
        if start + size > len(chunk):
            chunk, start = allocate(max(size, min(CHUNK, left))), 0
        values = parameter.data
        place = chunk[start : start + values.numel() * values.element_size()]
        parameter.data = place.view(values.dtype).view(values.shape).copy_(values)
        start, left = start + size, left - size


class HostBlocks:
    """A model's blocks in main memory, and the rest of it on the device. `sink` takes the gradients of the blocks'
    parameters; while it is None they become the parameters' `grad`, in main memory.

    Raises ConfigError for a model whose blocks are not known, or that keeps what it computes (no checkpointing).
    """

    def __init__(self, model: object, device: torch.device) -> None:
        if not isinstance(model, DiffusersModel):
            raise ConfigError(
                f"attribution.blocks='host': {type(model).__name__} is no DiffusersModel, and which of its parts are "
                "blocks is not known here. Use attribution.blocks: device."
            )
        if not model.checkpointing:
            raise ConfigError(
                "attribution.blocks='host' needs model.gradient_checkpointing: true; without it the copies of all "
                "blocks would stay on the device until the backward pass."
            )
        self.device = device
        self.sink: Sink | None = None
        for component in model.pipeline.components.values():
            if isinstance(component, nn.Module) and component not in model.transformers().values():
                component.to(device)
        for transformer in model.transformers().values():
            blocks = model.blocks(transformer)
            if not blocks:
                raise ConfigError(
                    f"attribution.blocks='host': {type(transformer).__name__} has no list of blocks. Use "
                    "attribution.blocks: device."
                )
            self._place_rest(transformer, blocks)
            for block in blocks:
                self._stream(block)
        model.device = device
        if device.type == "cuda":
            channels_last(model.vae, True)

    def _place_rest(self, transformer: nn.Module, blocks: Any) -> None:
        """Bring a transformer's parameters and buffers to the device, but for the parameters of its blocks."""
        inside = {id(parameter): parameter for block in blocks for parameter in block.parameters()}
        for parameter in transformer.parameters():
            if id(parameter) not in inside:
                parameter.data = parameter.data.to(self.device)
        if self.device.type == "cuda":
            pack(inside.values(), partial(torch.empty, dtype=torch.uint8, pin_memory=True))
        for module in transformer.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(self.device))

    def _stream(self, block: nn.Module) -> None:
        """Let a block compute with copies of its parameters, which last as long as what they are needed for."""
        compute, within = block.forward, False

        def forward(*inputs: Any, **named: Any) -> Any:
            nonlocal within
            if within:  # `functional_call` calls the block again, with the copies in its parameters' place
                return compute(*inputs, **named)
            within = True
            try:
                copies = {name: self._copy(parameter) for name, parameter in block.named_parameters()}
                return functional_call(block, copies, inputs, named)
            finally:
                within = False

        block.forward = forward

    def _copy(self, parameter: nn.Parameter) -> Tensor:
        copy: Tensor = _OnDevice.apply(parameter, self)  # type: ignore[no-untyped-call]
        return copy


class _OnDevice(torch.autograd.Function):
    """A parameter's copy on the device. Nothing of it is saved: its gradient goes to the sink where it is computed."""

    @staticmethod
    def forward(ctx: Any, parameter: nn.Parameter, home: HostBlocks) -> Tensor:
        ctx.parameter, ctx.home = parameter, home
        return parameter.detach().to(home.device, non_blocking=True, copy=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        if ctx.home.sink is None:
            return gradients[0].to(ctx.parameter.device), None
        ctx.home.sink(ctx.parameter, gradients[0])
        return None, None
