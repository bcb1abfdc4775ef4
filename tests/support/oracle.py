"""The random matrix in the plainest terms: Philox in Python's integers, and P times vectors in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.config.attribution import Kind
from pipeline.projection import fastfood, philox
from pipeline.projection.philox import Tag

_TAGS = {"gaussian": Tag.GAUSSIAN, "sketched_gaussian": Tag.SKETCH_GAUSSIAN}


def plain_philox(counter: tuple[int, ...], key: tuple[int, int], rounds: int = 7) -> tuple[int, ...]:
    """Philox4x32 as Salmon et al. 2011 define it, in plain integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(rounds):
        first, second = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            (second >> 32) ^ c1 ^ k0,
            second & 0xFFFFFFFF,
            (first >> 32) ^ c3 ^ k1,
            first & 0xFFFFFFFF,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def drawn(seed: int, coordinate: int, block: int, tag: Tag) -> tuple[int, ...]:
    """The four words that a coordinate (or call) and block have for a purpose."""
    return plain_philox((coordinate & 0xFFFFFFFF, coordinate >> 32, block, tag), (seed & 0xFFFFFFFF, seed >> 32))


def project(kind: Kind, dim: int, seed: int, values: Tensor, offset: int = 0) -> Tensor:
    """P times values [B, n] at the coordinates offset ... offset+n-1: [B, dim] float64.

    Exact for rows of a unit matrix, which give the entries of P.
    """
    values, n = values.double(), values.shape[1]
    if kind == "rademacher":
        return values @ philox.rademacher(seed, dim, offset, n, "cpu").double() * (1 / dim**0.5)
    factor = philox.scale() / dim**0.5
    if kind == "fastfood":
        return _fastfood(dim, seed, values, offset) * factor
    coordinates = torch.arange(offset, offset + n)
    if kind == "sketched_gaussian":
        values = values * philox.signs(seed, offset, n, "cpu", Tag.SKETCH_SIGN)
        coordinates, places = philox.buckets(seed, offset, n, "cpu").unique(return_inverse=True)
        values = values.new_zeros(len(values), len(coordinates)).index_add_(1, places, values)
    blocks = torch.arange((dim + 7) // 8)
    words = philox.words(seed, (*philox.at(coordinates[:, None]), blocks), _TAGS[kind])
    entries = torch.tensor(philox.quantiles())[philox.twelves(words)].flatten(1)[:, :dim]
    return values @ entries.double() * factor


def _fastfood(dim: int, seed: int, values: Tensor, offset: int) -> Tensor:
    """H G P H B of each block of 2**14 coordinates, cut to dim rows: nothing is folded, and no step is shared."""
    size, total = fastfood.BLOCK, torch.zeros(len(values), dim, dtype=torch.float64)
    last_rows = parity(torch.arange(dim)[:, None] & torch.arange(size))
    half = parity(torch.arange(128)[:, None] & torch.arange(128))
    for block in range(offset // size, (offset + values.shape[1] - 1) // size + 1):
        x = torch.zeros(len(values), size, dtype=torch.float64)
        start, stop = max(block * size, offset), min((block + 1) * size, offset + values.shape[1])
        x[:, start - block * size : stop - block * size] = values[:, start - offset : stop - offset]
        x *= philox.signs(seed, block * size, size, "cpu", Tag.FASTFOOD_SIGN)
        x = (half @ x.view(-1, 128, 128) @ half).view(-1, size)
        x = x[:, fastfood.permutations(seed, block, 1, "cpu")[0]] * fastfood.weights(seed, block, 1, "cpu")[0]
        total += x @ last_rows.T
    return total / size**0.5


def parity(bits: Tensor) -> Tensor:
    """(-1)**(number of ones) of integers below 2**16, float64: entries of the Walsh-Hadamard matrix at row & column."""
    for shift in (8, 4, 2, 1):
        bits = bits ^ (bits >> shift)
    return (1 - 2 * (bits & 1)).double()
