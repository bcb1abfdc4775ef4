"""Fastfood: its parts against their definition, and the transform against the matrix made of its parts."""

from __future__ import annotations

import itertools

import pytest
import torch

from pipeline.projection import Projection, fastfood
from pipeline.projection.fastfood import BLOCK, hadamard, permutations, weights
from pipeline.projection.philox import Tag, quantiles
from tests.support.oracle import drawn, parity, project

BLOCKS = [0, 1, (1 << 32) // BLOCK - 1, (1 << 32) // BLOCK, 1 << 41]
SEEDS = [0, 0x299F31D0A4093822, (1 << 64) - 1]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_has_a_permutation_of_six_feistel_rounds(seed: int, block: int) -> None:
    permutation = permutations(seed, block, 1, "cpu")[0]
    assert torch.equal(permutation.sort().values, torch.arange(BLOCK)), (
        f"block {block}: coordinates are lost or taken twice"
    )
    calls = [drawn(seed, block, call, Tag.FASTFOOD_PERMUTATION) for call in range(6 * 128 // 16)]
    functions = [(word >> shift) & 127 for call in calls for word in call for shift in (0, 8, 16, 24)]
    for place in range(0, BLOCK, 97):
        left, right = place >> 7, place & 127
        for r in range(6):
            left, right = right, left ^ functions[128 * r + right]
        assert int(permutation[place]) == 128 * left + right, (
            f"block {block}: place {place} goes elsewhere than defined"
        )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("block", BLOCKS)
def test_weights_are_eight_to_a_call_in_the_order_of_coordinates(seed: int, block: int) -> None:
    block_weights = weights(seed, block, 1, "cpu")[0]
    for call in (0, 1, 77, BLOCK // 8 - 1):
        given = drawn(seed, block * BLOCK // 8 + call, 0, Tag.FASTFOOD_GAUSSIAN)
        bits = [bits for word in given for bits in (word & 0xFFF, (word >> 12) & 0xFFF)]
        assert torch.equal(block_weights[8 * call : 8 * call + 8], torch.tensor(quantiles()[bits])), (
            f"call {call} of {block}"
        )


def test_a_blocks_parts_do_not_depend_on_the_blocks_it_is_made_with() -> None:
    first = (1 << 32) // BLOCK - 2
    for part in (permutations, weights):
        together, alone = part(9, first, 4, "cpu"), [part(9, first + i, 1, "cpu") for i in range(4)]
        assert torch.equal(together, torch.cat(alone)), f"{part.__name__} change with the size of a batch of blocks"
        assert all(not torch.equal(a, b) for a, b in itertools.pairwise(alone)), "two blocks are the same"


def test_the_hadamard_matrix_is_sylvesters_with_orthogonal_rows() -> None:
    h, size = hadamard(torch.device("cpu")), 128
    assert torch.equal(h, parity(torch.arange(size)[:, None] & torch.arange(size)).float()), "H is in another order"
    assert torch.equal(h @ h.T, size * torch.eye(size)), "H is not orthogonal"


@pytest.mark.parametrize("offset", [0, 511, BLOCK - 5, 1_418_996_700, (1 << 32) - 5, (1 << 41) + 5])
@pytest.mark.parametrize("seed", SEEDS)
def test_entries_are_to_the_bit_those_of_the_matrix_made_of_its_parts(offset: int, seed: int) -> None:
    """Offsets a little below a block's end take columns of two blocks."""
    units = torch.eye(11)
    for dim in (8, 24, 128, 136, 512, 520):
        entries, expected = (
            Projection("fastfood", dim, seed)(units, offset),
            project("fastfood", dim, seed, units, offset),
        )
        assert torch.equal(entries, expected.float()), f"k={dim}, {offset=}: the transform is not H G P H B"


def test_a_dimension_in_the_thousands_folds_less_and_is_the_same_matrix() -> None:
    units = torch.eye(2)
    entries, expected = Projection("fastfood", 2048, 1)(units, 7), project("fastfood", 2048, 1, units, 7)
    assert torch.equal(entries, expected.float()), "with other folding the transform is another"


def test_long_vectors_are_projected_as_by_the_explicit_matrix() -> None:
    values = torch.randn(3, 3 * BLOCK + 100, generator=torch.Generator().manual_seed(0))
    for offset in (0, 5000, (1 << 32) - BLOCK - 50):
        features, expected = Projection("fastfood", 136, 2)(values, offset), project("fastfood", 136, 2, values, offset)
        error = float((features - expected).norm() / expected.norm())
        assert error < 1e-6, f"{offset=}: the transform is off by {error:.1e}"


def test_the_accelerators_way_gives_the_cpus_sums() -> None:
    """What runs on CUDA, several blocks at a time by products of matrices, is plain torch: it runs here as well."""
    values = torch.randn(3, 4 * BLOCK, generator=torch.Generator().manual_seed(1))
    first = (1 << 32) // BLOCK - 2
    for m in (8, 512, BLOCK):
        sums, expected = torch.zeros(3, m, dtype=torch.float64), torch.zeros(3, m, dtype=torch.float64)
        fastfood._add(values, 5, first, 4, sums)
        fastfood.add(values, 5, first * BLOCK, expected)
        error = float((sums - expected).norm() / expected.norm())
        assert error < 1e-6, f"m={m}: an accelerator has other sums than the CPU ({error:.1e})"


def test_the_last_transform_of_a_row_does_not_depend_on_the_other_rows() -> None:
    """In float64, before rounding hides it: a difference there is one in the feature for one number in 1e8."""
    total = torch.randn(64, 512, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = fastfood.finish(total, 512)
    alone = torch.cat([fastfood.finish(row[None], 512) for row in total])
    assert torch.equal(together, alone), "a clip's feature depends, in some bit, on the clips collected with it"


def test_more_rows_than_a_block_has_are_refused() -> None:
    assert Projection("fastfood", BLOCK).dim == BLOCK
    with pytest.raises(ValueError, match=rf"{BLOCK + 8}.*{BLOCK} rows"):
        Projection("fastfood", BLOCK + 8)
