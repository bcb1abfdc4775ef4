"""Philox4x32-7 and the numbers made of its words: the plain definition that every fast path is held against.

Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") turns a key and a counter into four words of
32 bits. Seven rounds are the fewest that pass TestU01's BigCrush by that paper (table 2); ten are its default with a
margin that matters to nothing here and costs a third of all the work there is. The key is the seed; the counter is a
global coordinate (64 bits), a block of rows, and a tag that keeps apart what is drawn for different purposes.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

ROUNDS = 7
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF
BUCKETS_LOG = 18  # of the sketch
QUANTILES = 4096  # two of twelve bits each from a word: eight entries to a call


class Tag(IntEnum):
    """The counter's last word: what a call is for."""

    GAUSSIAN = 0
    RADEMACHER = 1
    SKETCH_SIGN = 2
    SKETCH_SHIFT = 3
    SKETCH_GAUSSIAN = 4
    FASTFOOD_SIGN = 5
    FASTFOOD_PERMUTATION = 6
    FASTFOOD_GAUSSIAN = 7


def words(
    seed: int, counter: tuple[Tensor | int, Tensor | int, Tensor | int], tag: Tag, rounds: int = ROUNDS
) -> Tensor:
    """The four words of Philox for counters (low, high, block), int64 tensors that broadcast: [..., 4] int64.

    64-bit integers stand for 32-bit words, so that any device that torch knows computes the same.
    """
    tensors = [c for c in counter if isinstance(c, Tensor)]
    device = tensors[0].device if tensors else torch.device("cpu")
    c0, c1, c2 = torch.broadcast_tensors(*(torch.as_tensor(c, dtype=torch.int64, device=device) for c in counter))
    c3 = torch.full_like(c0, int(tag))
    k0, k1 = seed & MASK, (seed >> 32) & MASK
    for _ in range(rounds):
        # A product of two 32-bit words wraps modulo 2**64 in int64; its words are right after masking.
        low, high = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((high >> 32) & MASK) ^ c1 ^ k0,
            high & MASK,
            ((low >> 32) & MASK) ^ c3 ^ k1,
            low & MASK,
        )
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return torch.stack([c0, c1, c2, c3], -1)


def at(coordinates: Tensor) -> tuple[Tensor, Tensor]:
    """The counter's first two words for global coordinates."""
    return coordinates & MASK, coordinates >> 32


def twelves(drawn: Tensor) -> Tensor:
    """The bits 0-11 and 12-23 of each word: [..., 4] -> [..., 8], indices of quantiles."""
    return torch.stack([drawn & 0xFFF, (drawn >> 12) & 0xFFF], -1).flatten(-2)


def bits(drawn: Tensor) -> Tensor:
    """All 128 bits of a call, the lowest of each word first: [..., 4] -> [..., 128], 0 or 1."""
    shifts = torch.arange(32, device=drawn.device)
    return ((drawn[..., None] >> shifts) & 1).flatten(-2)


@cache
def quantiles() -> npt.NDArray[np.float32]:
    """The normal quantiles at the midpoints of 4,096 equal cells, rounded to bfloat16: [4096] float32."""
    exact = [NormalDist().inv_cdf((i + 0.5) / QUANTILES) for i in range(QUANTILES)]
    rounded: npt.NDArray[np.float32] = torch.tensor(exact, dtype=torch.float64).to(torch.bfloat16).float().numpy()
    rounded.setflags(write=False)
    return rounded


FIRST = 13  # places of a half of the quantiles begin here: see `cubics`


@cache
def cubics() -> npt.NDArray[np.float32]:
    """Quantile i < 2048 is the cubic of t = i + FIRST with coefficients [:, s], rounded to bfloat16, where s are the
    five bits of t, as float32, below its sign and three of its exponent: [4, 32] float32. The other half mirrors it.

    The cubics interpolate the exact quantiles at Chebyshev's points of each quarter of a power of two. Evaluated in
    float32 by fused multiply-add they are off by far less than bfloat16 resolves, and FIRST is such that each of the
    2,048 is rounded as the quantile is: `by_cubics` says so.
    """
    inverse, half = NormalDist().inv_cdf, QUANTILES // 2
    t = np.arange(FIRST, FIRST + half, dtype=np.float32)
    segments = (t.view(np.uint32) >> 21) & 31
    coefficients = np.zeros((4, 32), np.float32)
    nodes = np.cos(np.pi * (2 * np.arange(4) + 1) / 8)
    for s in np.unique(segments):
        first, last = t[segments == s][[0, -1]].astype(np.float64)
        last = max(last, first + 1)
        x = (first + last) / 2 + (last - first) / 2 * nodes
        y = [inverse((place - FIRST + 0.5) / QUANTILES) for place in x]
        coefficients[:, s] = np.linalg.solve(np.vander(x, increasing=True), y)
    coefficients.setflags(write=False)
    return coefficients


def by_cubics() -> npt.NDArray[np.float32]:
    """What the cubics give for every index, with each multiply-add rounded once: [4096] float32, as `quantiles`."""
    t = np.arange(FIRST, FIRST + QUANTILES // 2, dtype=np.float32)
    segments = (t.view(np.uint32) >> 21) & 31
    value, *rest = (row[segments] for row in cubics()[::-1])
    for coefficient in rest:
        value = (value.astype(np.float64) * t + coefficient).astype(np.float32)
    lower = ((value.view(np.uint32) + 0x8000) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return np.concatenate([lower, -lower[::-1]])


@cache
def scale() -> float:
    """What makes the quantiles' variance one."""
    return float(1 / np.sqrt(np.mean(quantiles().astype(np.float64) ** 2)))


def gaussian(seed: int, dim: int, offset: int, count: int, device: torch.device | str, tag: Tag) -> Tensor:
    """Rows 0 ... dim-1 of the columns offset ... offset+count-1, before `scale`: [count, dim] float32."""
    coordinates = torch.arange(offset, offset + count, dtype=torch.int64, device=device)[:, None]
    blocks = torch.arange((dim + 7) // 8, dtype=torch.int64, device=device)[None]
    drawn = twelves(words(seed, (*at(coordinates), blocks), tag))
    return torch.tensor(quantiles(), device=device)[drawn].flatten(1)[:, :dim]


def rademacher(seed: int, dim: int, offset: int, count: int, device: torch.device | str) -> Tensor:
    """The same of random signs, one bit each: [count, dim] float32 of -1 and 1."""
    coordinates = torch.arange(offset, offset + count, dtype=torch.int64, device=device)[:, None]
    blocks = torch.arange((dim + 127) // 128, dtype=torch.int64, device=device)[None]
    return 1 - 2 * bits(words(seed, (*at(coordinates), blocks), Tag.RADEMACHER)).flatten(1)[:, :dim].float()


def signs(seed: int, offset: int, count: int, device: torch.device | str, tag: Tag) -> Tensor:
    """One sign for every coordinate, 128 of them to a call: [count] float32 of -1 and 1."""
    first, last = offset >> 7, (offset + count + 127) >> 7
    calls = torch.arange(first, last, dtype=torch.int64, device=device)
    sign_bits = bits(words(seed, (*at(calls), 0), tag)).flatten()[offset - (first << 7) :][:count]
    return 1 - 2 * sign_bits.float()


def buckets(seed: int, offset: int, count: int, device: torch.device | str) -> Tensor:
    """The bucket of every coordinate in the sketch: [count] int64 in [0, 2**18).

    Each stretch of 2**18 coordinates is laid over the buckets as it is but for an exclusive or with 18 random bits of
    its own. Two coordinates of one stretch never meet, two of different ones meet with a probability of 2**-18: the
    variance is CountSketch's, and neighbours stay neighbours, so that no memory is touched at random.
    """
    coordinates = torch.arange(offset, offset + count, dtype=torch.int64, device=device)
    stretch = coordinates >> BUCKETS_LOG
    stretches = torch.arange(offset >> BUCKETS_LOG, int((offset + count - 1) >> BUCKETS_LOG) + 1, device=device)
    shifts = words(seed, (*at(stretches), 0), Tag.SKETCH_SHIFT)[:, 0]
    return (coordinates ^ shifts[stretch - (offset >> BUCKETS_LOG)]) & ((1 << BUCKETS_LOG) - 1)
