"""The only random matrix: a gradient projected to a few hundred numbers, E<Pg, Ph> = <g, h>.

P is never stored. Its entry for (seed, kind, global coordinate, row) is made of Philox4x32-7 (`philox.py`) with
the seed as key and (coordinate, block of rows, kind) as counter, the same to the bit on every CPU and GPU; any slice of
any parameter can be projected anywhere, and the shares of disjoint ranges add up to the whole.

| kind | an entry | cost for D coordinates, k rows |
| --- | --- | --- |
| gaussian | one of 4,096 normal quantiles, by twelve bits | D k / 8 calls of Philox, whatever number of gradients |
| rademacher | a sign, by one bit | D k / 128 calls |
| sketched_gaussian | a CountSketch to 2**18 buckets, then gaussian | one pass over the gradient |
| fastfood | products of Hadamard matrices with Gaussian weights (`fastfood.py`), the paper's | D log D |

Gaussian enough: the quantiles are the midpoints of 4,096 equally likely cells, rounded to bfloat16 so that tensor cores
take them as they are. Their distribution function is within 1.0e-3 of the normal one (1.2e-4 before rounding), the
largest is 3.67, mean and odd moments are zero, the variance is set right by one factor on the result, the kurtosis is
2.991. A feature sums over 1e5 and more entries, so what is left of the difference is far below its 1/sqrt(k) noise.

All kinds have the variance of a Gaussian P, (|g|^2 |h|^2 + <g, h>^2) / k: rademacher a little less, the sketch and
fastfood by their collisions a few per mille more.
"""

from __future__ import annotations

from types import ModuleType
from typing import get_args

import torch
from torch import Tensor

from pipeline.config.attribution import Kind
from pipeline.projection import cpu, fastfood
from pipeline.projection.philox import BUCKETS_LOG, Tag, scale

ROWS = 8  # rows to one call of Philox in the dense Gaussian kind

_TAGS = {"gaussian": Tag.GAUSSIAN, "rademacher": Tag.RADEMACHER}


class Projection:
    """P of dim rows: ``y = p(values, offset)``. It holds no matrix, only what its entries are a function of.

    To sum over many slices, ``total = p.zeros(B, device)``, ``p.add(total, values, offset)`` for each, then
    ``p.finish(total)``: the sketch's dense stage and Fastfood's last transform then run once.
    """

    def __init__(self, kind: Kind = "gaussian", dim: int = 512, seed: int = 0) -> None:
        if kind not in get_args(Kind):
            raise ValueError(f"projection.kind={kind!r} is not known; use one of {', '.join(get_args(Kind))}")
        if dim < ROWS or dim % ROWS:
            raise ValueError(f"projection.dim={dim}: use a multiple of {ROWS}")
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"projection.seed={seed}: use 0 ... 2**64 - 1")
        self.kind, self.dim, self.seed = kind, dim, seed
        self._width = {"sketched_gaussian": 1 << BUCKETS_LOG, "fastfood": fastfood.width(dim)}.get(kind, dim)

    @property
    def dense(self) -> bool:
        """Whether making P's entries is most of the work, so that several gradients should share it."""
        return self.kind in _TAGS

    def __call__(self, values: Tensor, offset: int = 0) -> Tensor:
        """The share of the coordinates offset ... offset+n-1: [B, n] or [n] -> [B, dim] or [dim], float32.

        On the CPU a row's result does not depend on the other rows or on the number of threads, to the bit.
        """
        if values.ndim not in (1, 2):
            raise ValueError(f"values of shape {tuple(values.shape)}: give [n] or [B, n]")
        batch = values[None] if values.ndim == 1 else values
        total = self.zeros(len(batch), batch.device)
        self.add(total, batch, offset)
        features = self.finish(total)
        return features[0] if values.ndim == 1 else features

    def zeros(self, batch: int, device: torch.device | str) -> Tensor:
        """The empty sum for that many gradients."""
        dtype = torch.float32 if self.kind == "sketched_gaussian" else torch.float64
        return torch.zeros((batch, self._width), dtype=dtype, device=device)

    def add(self, total: Tensor, values: Tensor, offset: int) -> None:
        """Add the share of [B, n] values, at the global coordinates from offset on, to a sum of `zeros`.

        Raises RuntimeError on a device that has no kernels: another matrix is never taken instead.
        """
        if offset < 0 or offset + values.shape[1] > 1 << 62:
            raise ValueError(f"offset={offset}: global coordinates go from 0 to 2**62")
        if not values.numel():
            return
        on_gpu = _gpu() if values.device.type == "cuda" else None
        if on_gpu is None and values.device.type != "cpu":
            raise RuntimeError(f"the projection has no kernels for {values.device.type!r}; use CPUs or CUDA")
        if self.kind == "fastfood":
            fastfood.add(values, self.seed, offset, total)
        elif self.kind == "sketched_gaussian":
            (on_gpu.sketch if on_gpu else cpu.sketch)(values, self.seed, offset, total)
        else:
            (on_gpu.dense if on_gpu else cpu.dense)(values, self.seed, offset, _TAGS[self.kind], total)

    def finish(self, total: Tensor) -> Tensor:
        """A sum of `zeros` -> features [B, dim] float32."""
        factor = scale() / self.dim**0.5
        if self.kind == "rademacher":
            factor = 1 / self.dim**0.5
        elif self.kind == "fastfood":
            total = fastfood.finish(total, self.dim)
        elif self.kind == "sketched_gaussian":
            sketched, total = total, torch.zeros((len(total), self.dim), dtype=torch.float64, device=total.device)
            dense = _gpu().dense if sketched.device.type == "cuda" else cpu.dense
            dense(sketched, self.seed, 0, Tag.SKETCH_GAUSSIAN, total)
        features: Tensor = (total * factor).float()
        return features


def _gpu() -> ModuleType:
    try:
        from pipeline.projection import gpu
    except ImportError as error:
        raise RuntimeError(
            f"the projection of a CUDA tensor needs Triton, which is not to be had here ({error}); install it, or "
            "project on the CPU. No other matrix is taken instead."
        ) from error
    return gpu
