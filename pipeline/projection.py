"""The only random matrix: Gaussian projection of a gradient to a few hundred numbers.

P is never stored. Its entry for (seed, global coordinate, row) is one of 4,096 normal quantiles, picked by twelve bits
of Philox4x32-10 (Salmon et al. 2011) with the seed as key and (coordinate, block of eight rows, kind) as counter.
Nothing transcendental is computed and the quantiles are exact in bfloat16, so every machine has the same entries to the
bit, and any slice of any parameter can be projected anywhere: the shares of disjoint ranges add up to the whole.

Gaussian enough: the quantiles are the midpoints of 4,096 equally likely cells, within 1.6e-4 of the normal distribution
function, the largest 3.67; mean and odd moments are zero, the variance is set right by one factor on the result, the
kurtosis is 2.99. A feature sums over 1e6 and more entries, so what is left of the difference is far below its
1/sqrt(k) noise.
"""

from __future__ import annotations

from functools import cache
from statistics import NormalDist
from typing import Literal

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

QUANTILES = 4096
ROWS = 8  # rows to one Philox call: two entries to each of its four words
_GAUSSIAN = 0  # the kind's tag in the counter
_BLOCK = 512  # coordinates whose entries are generated at once; also where float32 sums are closed
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF

Kind = Literal["gaussian"]


@cache
def quantiles() -> npt.NDArray[np.float32]:
    """The normal quantiles at the midpoints of 4,096 equal cells, rounded to bfloat16: [4096] float32."""
    exact = [NormalDist().inv_cdf((i + 0.5) / QUANTILES) for i in range(QUANTILES)]
    rounded: npt.NDArray[np.float32] = torch.tensor(exact, dtype=torch.float64).to(torch.bfloat16).float().numpy()
    return rounded


@cache
def scale() -> float:
    """What makes the quantiles' variance one."""
    return float(1 / np.sqrt(np.mean(quantiles().astype(np.float64) ** 2)))


def entries(seed: int, dim: int, offset: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """The columns offset ... offset+count-1 of P, unscaled: [count, dim] float32, on any device.

    The plain form of the definition, with 64-bit integers for 32-bit words; the fast paths are held against it.
    """
    coordinate = torch.arange(offset, offset + count, dtype=torch.int64, device=device)[:, None]
    block = torch.arange(dim // ROWS, dtype=torch.int64, device=device)[None, :]
    c0, c1 = (coordinate & _MASK).expand(-1, dim // ROWS), (coordinate >> 32).expand(-1, dim // ROWS)
    c2, c3 = block.expand(count, -1), torch.full_like(block, _GAUSSIAN).expand(count, -1)
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        # A product of two 32-bit words wraps modulo 2**64 in int64; its words are right after masking.
        low, high = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((high >> 32) & _MASK) ^ c1 ^ k0,
            high & _MASK,
            ((low >> 32) & _MASK) ^ c3 ^ k1,
            low & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    words = torch.stack([c0, c1, c2, c3], -1)
    bits = torch.stack([words & 0xFFF, (words >> 12) & 0xFFF], -1).reshape(count, dim)
    return torch.from_numpy(quantiles()).to(device)[bits]


@numba.njit(cache=True, nogil=True, fastmath=False)
def _generate(table, k0, k1, offset, count, dim, out):  # type: ignore[no-untyped-def]
    """Fill out[:count, :dim] with the entries of those coordinates."""
    m0, m1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
    mask = np.uint64(0xFFFFFFFF)
    calls = dim // 8
    for j in range(count):
        coordinate = np.uint64(offset + j)
        for b in range(calls):
            c0, c1 = coordinate & mask, coordinate >> np.uint64(32)
            c2, c3 = np.uint64(b), np.uint64(0)
            x, y = np.uint64(k0), np.uint64(k1)
            for _ in range(10):
                low, high = c0 * m0, c2 * m1
                c0, c1 = (high >> np.uint64(32)) ^ c1 ^ x, high & mask
                c2, c3 = (low >> np.uint64(32)) ^ c3 ^ y, low & mask
                x, y = (x + np.uint64(0x9E3779B9)) & mask, (y + np.uint64(0xBB67AE85)) & mask
            row = b * 8
            out[j, row] = table[c0 & np.uint64(0xFFF)]
            out[j, row + 1] = table[(c0 >> np.uint64(12)) & np.uint64(0xFFF)]
            out[j, row + 2] = table[c1 & np.uint64(0xFFF)]
            out[j, row + 3] = table[(c1 >> np.uint64(12)) & np.uint64(0xFFF)]
            out[j, row + 4] = table[c2 & np.uint64(0xFFF)]
            out[j, row + 5] = table[(c2 >> np.uint64(12)) & np.uint64(0xFFF)]
            out[j, row + 6] = table[c3 & np.uint64(0xFFF)]
            out[j, row + 7] = table[(c3 >> np.uint64(12)) & np.uint64(0xFFF)]


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _project(values, table, k0, k1, offset, dim, block, total):  # type: ignore[no-untyped-def]
    """Add P values to total [B, dim] float64. Each row's sum runs over the coordinates in order, whatever B is."""
    rows, n = values.shape
    p = np.empty((block, dim), np.float32)
    part = np.empty(dim, np.float32)
    for start in range(0, n, block):
        count = min(block, n - start)
        _generate(table, k0, k1, offset + start, count, dim, p)
        for r in range(rows):
            part[:] = 0.0
            j = 0
            while j + 4 <= count:
                a, b = values[r, start + j], values[r, start + j + 1]
                c, d = values[r, start + j + 2], values[r, start + j + 3]
                for i in range(dim):
                    part[i] += (a * p[j, i] + b * p[j + 1, i]) + (c * p[j + 2, i] + d * p[j + 3, i])
                j += 4
            while j < count:
                a = values[r, start + j]
                for i in range(dim):
                    part[i] += a * p[j, i]
                j += 1
            for i in range(dim):
                total[r, i] += part[i]


class Projection:
    """P of dim rows: ``y = p(values, offset)``. It holds no matrix, only what its entries are a function of."""

    def __init__(self, kind: Kind = "gaussian", dim: int = 512, seed: int = 0) -> None:
        if kind != "gaussian":
            raise ValueError(f"projection.kind={kind!r} is not available in this version; use gaussian")
        if dim < ROWS or dim % ROWS:
            raise ValueError(f"projection.dim={dim}: use a multiple of {ROWS}")
        self.kind, self.dim, self.seed = kind, dim, seed

    def __call__(self, values: Tensor, offset: int = 0) -> Tensor:
        """The share of the coordinates offset ... offset+n-1: [B, n] or [n] -> [B, dim] or [dim], float32.

        E<Pg, Ph> = <g, h>. The sum runs in float32 within blocks of 512 coordinates and in float64 over them; on the
        CPU a row's result does not depend on the other rows, to the bit.
        """
        if values.ndim not in (1, 2) or offset < 0:
            raise ValueError(
                f"values {tuple(values.shape)} at offset {offset}: give [n] or [B, n] and an offset from 0"
            )
        batch = values[None] if values.ndim == 1 else values
        found = self._cpu(batch, offset) if batch.device.type == "cpu" else self._blocks(batch, offset)
        scaled: Tensor = (found * (scale() / self.dim**0.5)).float()
        return scaled[0] if values.ndim == 1 else scaled

    def _cpu(self, batch: Tensor, offset: int) -> Tensor:
        total = np.zeros((len(batch), self.dim), np.float64)
        held = np.ascontiguousarray(batch.detach().float().numpy())
        keys = np.uint64(self.seed & _MASK), np.uint64((self.seed >> 32) & _MASK)
        _project(held, quantiles(), *keys, offset, self.dim, _BLOCK, total)
        return torch.from_numpy(total)

    def _blocks(self, batch: Tensor, offset: int) -> Tensor:
        """The definition itself on an accelerator, block by block."""
        total = torch.zeros((len(batch), self.dim), dtype=torch.float64, device=batch.device)
        block = 1 << 14
        for start in range(0, batch.shape[1], block):
            part = batch[:, start : start + block].float()
            total += part @ entries(self.seed, self.dim, offset + start, part.shape[1], batch.device)
        return total
