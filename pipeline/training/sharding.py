"""Fully sharded training (FSDP2): each worker holds its rows of every parameter, of its gradient and of its moments.

Rows are those of the first dimension, split as `torch.chunk` splits them; a block's parameters come together for its
forward and backward pass only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor


def shard(module: nn.Module, blocks: Sequence[nn.Module], bfloat16: bool) -> None:
    """Shard a transformer block by block over all workers of the process group.

    What is trained is kept in float32, and its gradients are summed in float32; with `bfloat16`, blocks are gathered
    and computed in bfloat16. ValueError if there are no blocks.
    """
    device = next(module.parameters()).device.type
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    half = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    if not blocks:
        raise ValueError(f"{type(module).__name__} has no list of blocks, so that it cannot be sharded by them")
    for block in blocks:  # one after the other, so that no second whole copy in float32 is ever held
        masters(block)
        fully_shard(block, mesh=mesh, mp_policy=half if bfloat16 else MixedPrecisionPolicy())
    masters(module)
    fully_shard(module, mesh=mesh)


def masters(module: nn.Module) -> None:
    """Turn what is trained into float32, for updates of a step are far below what bfloat16 tells apart."""
    for parameter in module.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()


def rows(length: int, rank: int, workers: int) -> range:
    """Which of `length` rows worker `rank` of `workers` holds; the last workers may hold fewer, or none."""
    each = -(-length // workers)
    return range(min(rank * each, length), min((rank + 1) * each, length))


def local(tensor: Tensor) -> Tensor:
    """The rows of a tensor that this worker holds, sharing their memory; all of them where it is not sharded."""
    if isinstance(tensor, DTensor):
        part: Tensor = tensor.to_local()
        return part
    return tensor


def gathered(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole tensors in main memory, brought together one by one; empty without `keep`. All workers call it."""
    copies = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            copy = whole.detach().cpu().contiguous()
            padded = copy.untyped_storage().nbytes() > copy.nbytes  # by shards of uneven rows; files hold no such views
            copies[name] = copy.clone() if padded else copy
    return copies


def class_name(module: nn.Module) -> str:
    """The class that a module had before it was sharded."""
    return next(c.__name__ for c in type(module).__mro__ if not c.__name__.startswith("FSDP"))
