"""The statistics that the method rests on: inner products unbiased, with a Gaussian projection's variance."""

from __future__ import annotations

from functools import cache
from typing import get_args

import pytest
import torch
from torch import Tensor

from pipeline.config.attribution import Kind
from pipeline.projection import Projection

KINDS: tuple[Kind, ...] = get_args(Kind)
every_kind = pytest.mark.parametrize("kind", KINDS)
Slices = list[tuple[int, Tensor]]  # where values lie, and [B, n] of them; all else is zero

SIZES = {"gaussian": 100_000, "rademacher": 100_000, "sketched_gaussian": 3 << 18, "fastfood": 50_000}
SEEDS, ROWS = 96, 64


@cache
def errors_of_inner_products(kind: Kind, reweighted: float = 1.0, distinct: int = ROWS) -> Tensor:
    """(<Pg, Ph> - <g, h>) over theory's standard deviation: [seeds, 36] for all pairs of eight vectors.

    Of the product's P for the controls: a fortieth of the coordinates, a layer, has its part of it multiplied by
    `reweighted`; only so many rows are `distinct`, the others are the first ones again.
    """
    whole, layer, vectors = projected(kind)
    exact = vectors @ vectors.T
    norms = exact.diagonal()
    deviation = ((norms[:, None] * norms + exact**2) / ROWS).sqrt()  # of a Gaussian P
    y = (whole + (reweighted - 1) * layer).double()
    y = torch.cat([y[..., :distinct], y[..., : ROWS - distinct]], 2)
    return ((y @ y.mT - exact) / deviation)[:, *torch.triu_indices(8, 8)]


@cache
def projected(kind: Kind) -> tuple[Tensor, Tensor, Tensor]:
    """Features of eight related vectors and of their parts in one layer [seeds, 8, k], and the vectors."""
    generator, n = torch.Generator().manual_seed(2), SIZES[kind]
    vectors = torch.randn(8, n, generator=generator) + 0.8 * torch.randn(1, n, generator=generator)
    layer = vectors[:, n // 2 : n // 2 + n // 40]
    whole, part = [], []
    for seed in range(SEEDS):
        p = Projection(kind, ROWS, seed)
        whole.append(p(vectors))
        part.append(p(layer, n // 2))
    return torch.stack(whole), torch.stack(part), vectors.double()


def bias(errors: Tensor) -> float:
    """How many standard errors the mean over seeds of a pair is off, at the worst of all pairs."""
    return float(errors.mean(0).abs().max() * SEEDS**0.5)


@every_kind
def test_inner_products_are_unbiased(kind: Kind) -> None:
    off = bias(errors_of_inner_products(kind))
    assert off < 4, f"{kind}: <Pg, Ph> is biased by {off:.1f} standard errors"


@every_kind
def test_the_check_for_bias_sees_one_layer_that_weighs_four_times_too_much(kind: Kind) -> None:
    off = bias(errors_of_inner_products(kind, reweighted=4.0))
    assert off > 8, f"the check for bias has no power: a reweighted layer is off by {off:.1f} standard errors"


@every_kind
def test_inner_products_have_the_variance_of_theory(kind: Kind) -> None:
    ratio = float(errors_of_inner_products(kind).square().mean())
    assert 0.8 < ratio < 1.25, f"{kind}: <Pg, Ph> has {ratio:.2f} times the variance of a Gaussian projection"


@every_kind
def test_the_check_for_variance_sees_that_a_quarter_of_the_rows_comes_twice(kind: Kind) -> None:
    ratio = float(errors_of_inner_products(kind, distinct=ROWS * 3 // 4).square().mean())
    assert ratio > 1.3, f"the check for variance has no power: repeated rows have {ratio:.2f} times the variance"


@every_kind
def test_errors_of_cosines_fall_as_one_over_root_k(kind: Kind) -> None:
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn(32, 4000, generator=generator) + 0.3 * torch.randn(1, 4000, generator=generator)
    for dim in (64, 512):
        ratio = cosine_error(kind, [(0, vectors)], dim, seeds=8)
        assert 0.9 < ratio < 1.1, f"{kind}, k={dim}: errors of cosines are {ratio:.2f} times a Gaussian's"


# --- gradients that are not like noise -------------------------------------------------------------------------------


def cosine_error(kind: Kind, slices: Slices, dim: int, seeds: int) -> float:
    """RMS error of the cosines between B vectors over that of a true Gaussian P, (1 - cos^2) / sqrt(k)."""
    exact = torch.nn.functional.normalize(torch.cat([v for _, v in slices], 1).double(), dim=1)
    cosines = exact @ exact.T
    pairs = torch.triu_indices(len(exact), len(exact), 1)
    errors = []
    for seed in range(seeds):
        p = Projection(kind, dim, 100 + seed)
        total = p.zeros(len(exact), "cpu")
        for offset, values in slices:
            p.add(total, values, offset)
        unit_features = torch.nn.functional.normalize(p.finish(total).double(), dim=1)
        errors.append((unit_features @ unit_features.T - cosines)[*pairs])
    theory = ((1 - cosines[*pairs] ** 2).square().mean() / dim).sqrt()
    return float(torch.stack(errors).square().mean().sqrt() / theory)


BATCH = 16
FIRST = (1 << 32) - (3 << 18)  # later slices of every case lie beyond 2**32


def spikes() -> Slices:
    """One entry, of each vector another, holds 99 % of the norm."""
    generator = torch.Generator().manual_seed(4)
    values = torch.randn(BATCH, 5000, generator=generator) / 5000**0.5 * 0.14
    values[torch.arange(BATCH), torch.randperm(5000, generator=generator)[:BATCH]] = 1
    return [(FIRST + (1 << 18) - 2500, values)]


def one_place_of_each_stretch() -> Slices:
    """Vector b is one entry, at the same place of its own stretch of 2**18: nothing but hashing keeps them apart."""
    return [(FIRST + (b << 18) + 777, torch.eye(BATCH)[:, b : b + 1]) for b in range(BATCH)]


def one_place_of_all_stretches() -> Slices:
    generator = torch.Generator().manual_seed(5)
    return [(FIRST + (s << 18) + 777, torch.randn(BATCH, 1, generator=generator)) for s in range(24)]


def neighbours() -> Slices:
    """Vector b is one entry, next to the others': signs and entries of one call of Philox."""
    return [(FIRST + 4096, torch.eye(BATCH))]


def outer_products(rows: int, columns: int) -> Slices:
    generator = torch.Generator().manual_seed(6)
    u, v = torch.randn(BATCH, rows, generator=generator), torch.randn(BATCH, columns, generator=generator)
    return [(FIRST, torch.einsum("br,bc->brc", u, v).flatten(1))]


def outer_products_of_one_input() -> Slices:
    """Every vector is u v^T with the same v: they differ by one number a row."""
    u, v = (torch.randn(n, 128, generator=torch.Generator().manual_seed(7)) for n in (BATCH, 1))
    return [(FIRST, torch.einsum("br,bc->brc", u, v.expand(BATCH, -1)).flatten(1))]


def columns(width: int) -> Slices:
    """A column of a weight matrix of that width, 32 rows: the same lane, or place in a block, again and again."""
    generator = torch.Generator().manual_seed(8)
    return [(FIRST + r * width + 3, torch.randn(BATCH, 1, generator=generator)) for r in range(32)]


def constant_blocks() -> Slices:
    """Vector b is constant over its own 128 numbers: a Walsh function as Hadamard matrices know it."""
    return [(FIRST, torch.eye(BATCH).repeat_interleave(128, 1))]


CASES = {
    "spikes": spikes(),
    "one place of each stretch": one_place_of_each_stretch(),
    "one place of all stretches": one_place_of_all_stretches(),
    "neighbours": neighbours(),
    "outer products, width 128": outer_products(40, 128),
    "outer products, width 2**14": outer_products(3, 1 << 14),
    "outer products of one input": outer_products_of_one_input(),
    "columns, width 128": columns(128),
    "columns, width 2**14": columns(1 << 14),
    "constant blocks": constant_blocks(),
}


@every_kind
@pytest.mark.parametrize("case", CASES)
def test_spiky_and_rank_one_gradients_are_as_safe_as_any(kind: Kind, case: str) -> None:
    ratio = cosine_error(kind, CASES[case], 128, seeds=16)
    assert 0.85 < ratio < 1.15, f"{kind}: errors of cosines of {case} are {ratio:.2f} times a Gaussian's"
