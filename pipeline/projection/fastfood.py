"""Fastfood (Le, Sarlos and Smola 2013), the projection of the paper, one-sided and block by block.

A block of n = 2**14 coordinates becomes H G P H B x: random signs B, the Walsh-Hadamard transform H, a permutation P,
Gaussian weights G, and H again, of which the first k rows are kept. A row of H below m, a power of two, repeats itself
every m columns, so G P H B x is folded to m sums, and as these do not depend on the block any more, they are added over
all blocks before the last H is applied once. Without Fastfood's diagonal S, which only evens out the lengths of rows,
E<Pg, Ph> = k n <g, h>; `finish` divides by its root.
"""

from __future__ import annotations

from functools import cache, partial

import numba
import torch
from torch import Tensor

from pipeline.projection import cpu
from pipeline.projection.philox import Tag, at, quantiles, signs, twelves, words

LOG = 14
BLOCK = 1 << LOG
_HALF_LOG = LOG // 2
_HALF = 1 << _HALF_LOG
_ROUNDS = 6
_CHUNK = 64  # blocks at a time on an accelerator


def width(dim: int) -> int:
    """m, the number of sums kept."""
    if dim > BLOCK:
        raise ValueError(f"projection.dim={dim}: fastfood has at most {BLOCK} rows")
    return int(1 << (dim - 1).bit_length())


def permutations(seed: int, first: int, count: int, device: torch.device | str) -> Tensor:
    """P of blocks first ... first+count-1: [count, n] int64, by six Feistel rounds with random functions of 7 bits."""
    blocks = torch.arange(first, first + count, dtype=torch.int64, device=device)[:, None]
    calls = torch.arange(_ROUNDS * _HALF // 16, dtype=torch.int64, device=device)[None]
    drawn = words(seed, (*at(blocks), calls), Tag.FASTFOOD_PERMUTATION)
    eights = torch.stack([(drawn >> shift) & (_HALF - 1) for shift in (0, 8, 16, 24)], -1)
    functions = eights.reshape(count, _ROUNDS, _HALF)
    places = torch.arange(BLOCK, device=device).expand(count, -1)
    left, right = places >> _HALF_LOG, places & (_HALF - 1)
    for r in range(_ROUNDS):
        left, right = right, left ^ functions[:, r].gather(1, right)
    return (left << _HALF_LOG) | right


def weights(seed: int, first: int, count: int, device: torch.device | str) -> Tensor:
    """G of those blocks: [count, n] float32."""
    calls = torch.arange(first * BLOCK // 8, (first + count) * BLOCK // 8, dtype=torch.int64, device=device)
    drawn = twelves(words(seed, (*at(calls), 0), Tag.FASTFOOD_GAUSSIAN))
    return torch.tensor(quantiles(), device=device)[drawn].reshape(count, BLOCK)


@cache
def hadamard(device: torch.device) -> Tensor:
    """The Walsh-Hadamard matrix of sqrt(n) = 128 in Sylvester's order, float32."""
    matrix = torch.ones(1, 1, device=device)
    while len(matrix) < _HALF:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def add(values: Tensor, seed: int, offset: int, total: Tensor) -> None:
    """Add the share of [B, n] values to the folded sums total [B, m] float64."""
    values = values.detach()
    first, last = offset >> LOG, (offset + values.shape[1] - 1) >> LOG
    step = _CHUNK if values.device.type != "cpu" else 1
    for block in range(first, last + 1, step):
        count = min(step, last + 1 - block)
        start, stop = max(block * BLOCK, offset), min((block + count) * BLOCK, offset + values.shape[1])
        blocks = values.new_zeros((len(values), count * BLOCK), dtype=torch.float32)
        blocks[:, start - block * BLOCK : stop - block * BLOCK] = values[:, start - offset : stop - offset]
        (_add_cpu if values.device.type == "cpu" else _add)(blocks, seed, block, count, total)


def _add(values: Tensor, seed: int, block: int, count: int, total: Tensor) -> None:
    device, batch = values.device, len(values)
    flipped = values * signs(seed, block * BLOCK, count * BLOCK, device, Tag.FASTFOOD_SIGN)
    h = hadamard(device)
    mixed = (h @ flipped.view(batch, count, _HALF, _HALF) @ h).view(batch, count, BLOCK)  # H of n is H x H of sqrt(n)
    order = permutations(seed, block, count, device).expand(batch, -1, -1)
    weighted = mixed.gather(2, order) * weights(seed, block, count, device)
    total += weighted.view(batch, -1, total.shape[1]).sum(1, dtype=torch.float64)


def _add_cpu(values: Tensor, seed: int, block: int, count: int, total: Tensor) -> None:
    order, scaled = permutations(seed, block, 1, "cpu")[0].numpy(), weights(seed, block, 1, "cpu")[0].numpy()
    flipped = (values * signs(seed, block * BLOCK, BLOCK, "cpu", Tag.FASTFOOD_SIGN)).numpy()
    cpu.run([partial(_fold, v, order, scaled, t) for v, t in zip(flipped, total.numpy(), strict=True)], values.numel())


@numba.njit(cache=True, nogil=True)
def _fold(values, order, scaled, total):  # type: ignore[no-untyped-def]
    """Add fold(G P H values) to total; values are overwritten."""
    half = 1
    while half < len(values):
        for start in range(0, len(values), 2 * half):
            for i in range(start, start + half):
                a, b = values[i], values[i + half]
                values[i], values[i + half] = a + b, a - b
        half *= 2
    m = len(total)
    for j in range(len(values)):
        total[j & (m - 1)] += values[order[j]] * scaled[j]


def finish(total: Tensor, dim: int) -> Tensor:
    """The folded sums [B, m] -> the unscaled share [B, dim] float64, with E<Pg, Ph> = dim <g, h>.

    The last H by butterflies, sum by sum: a matrix product's bits would depend on B.
    """
    half = 1
    while half < total.shape[1]:
        pairs = total.view(len(total), total.shape[1] // (2 * half), 2, half)
        total = torch.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], 2).flatten(1)
        half *= 2
    share: Tensor = total[:, :dim] / BLOCK**0.5
    return share
