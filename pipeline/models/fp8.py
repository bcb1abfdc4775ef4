"""Frozen weights of a byte each, for adapters on a transformer that is too large for its device otherwise.

A linear layer's weight is stored as float8 (e4m3fn: a sign, four bits of exponent, three of fraction) times a scale for
each output row, which is a power of two. Storing it rounds once: by a sixteenth at most of a number that is not
thousands of times smaller than its row's largest. Turning it back into float32 or bfloat16 is exact. It is turned back
for each product, in the forward and in the backward pass, and nothing of full width is kept in between, so that
gradients are those of a model whose weights were rounded beforehand.

diffusers' layerwise casting has the same gradients, but no scales, without which small weights are rounded by more, and
autograd keeps a copy of full width of each of its layers until the backward pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pipeline.errors import ConfigError
from pipeline.models.contract import VideoModel
from pipeline.models.diffusers_model import blocks_of

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max  # 448
SMALLEST_EXPONENT = -126  # of a scale, as bfloat16 and float32 have it
# In the names of layers that stay: those that scale and shift whole tokens by the time, whose errors all numbers of a
# token share, and adapters.
SPARED = re.compile(r"norm|modulation|lora_")


class Fp8Linear(nn.Linear):
    """A frozen linear layer: `weight` [out, in] uint8, the bytes of float8, and `scale` [out, 1] in the layer's dtype.

    Integers have no gradient, and a change of the model's dtype leaves them alone. The bias stays as it was.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        codes, scale = compressed(linear.weight.detach())
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = linear.bias

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out], in autocast's dtype where it is on, as `nn.Linear`."""
        kind = input.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
        product: Tensor = _Product.apply(input.to(dtype), self.weight, self.scale, self.bias)  # type: ignore[no-untyped-call]
        return product


class _Product(torch.autograd.Function):
    """A linear layer of which the bytes are kept for the backward pass, and no weight of full width."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(codes, scale)
        return F.linear(input, restored(codes, scale, input.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        codes, scale = ctx.saved_tensors
        return gradient @ restored(codes, scale, gradient.dtype), None, None, None


def compressed(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight [out, in] -> its bytes [out, in] uint8 and scales [out, 1], powers of two in the weight's dtype."""
    exponent = torch.frexp(weight.float().abs().amax(1, keepdim=True) / LARGEST).exponent
    scale = torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), exponent.clamp(min=SMALLEST_EXPONENT))
    codes = (weight.float() / scale).to(FLOAT8).view(torch.uint8)
    return codes, scale.to(weight.dtype)


def restored(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight [out, in] that `compressed` stored, exact in float32 and bfloat16."""
    return codes.view(FLOAT8).to(dtype).mul_(scale.to(dtype))


def compress(model: VideoModel) -> None:
    """Store the linear layers of a model's blocks as float8, in place, one after the other; what already is stays.

    Norms and what modulates them, embeddings, the first and the last projection and convolutions stay as they are.
    Raises ConfigError for a transformer without such layers.
    """
    for part, transformer in model.transformers().items():
        places = list(_places(model.blocks(transformer)))
        if not places:
            raise ConfigError(
                f"finetune.frozen_weights='fp8': {part}, a {type(transformer).__name__}, has no list of blocks with "
                "linear layers in them. Use finetune.frozen_weights: full."
            )
        for parent, name in places:
            linear = getattr(parent, name)
            if not isinstance(linear, Fp8Linear):
                setattr(parent, name, Fp8Linear(linear))


def _places(blocks: Sequence[nn.Module]) -> Iterator[tuple[nn.Module, str]]:
    """Where the linear layers are that are stored as float8: the module that has one, and its name there."""
    for block in blocks:
        for path, module in block.named_modules():
            if isinstance(module, nn.Linear) and not SPARED.search(path):
                parent, _, name = path.rpartition(".")
                yield block.get_submodule(parent), name


def frozen_bytes(transformer: nn.Module, dtype: torch.dtype, fp8: bool) -> int:
    """Bytes of a transformer's parameters that are loaded in a dtype, also where it is on the meta device: in float32
    what diffusers keeps in it, and with `fp8` the layers of `compress` as they are after it."""
    single = set(getattr(transformer, "_keep_in_fp32_modules", None) or ())
    stored = {id(getattr(*place).weight) for place in _places(blocks_of(transformer))} if fp8 else set()
    total = 0
    for name, parameter in transformer.named_parameters():
        width = torch.float32.itemsize if single & set(name.split(".")) else dtype.itemsize
        is_stored = id(parameter) in stored
        total += parameter.numel() + width * len(parameter) if is_stored else width * parameter.numel()
    return total
