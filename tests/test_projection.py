"""The random matrix: its definition, its invariances, and the statistics that the method rests on."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from pipeline.projection import QUANTILES, ROWS, Projection, entries, quantiles, scale

HIGH = (1 << 32) - 3  # coordinates from here on cross into the counter's second word


def philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox4x32-10 as Salmon et al. 2011 define it, in plain integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        first, second = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            (second >> 32) ^ c1 ^ k0,
            second & 0xFFFFFFFF,
            (first >> 32) ^ c3 ^ k1,
            first & 0xFFFFFFFF,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_the_oracle_is_the_philox_of_random123(counter: str, key: str, expected: str) -> None:
    words = [tuple(int(word, 16) for word in text.split()) for text in (counter, key, expected)]
    assert philox(words[0], words[1]) == words[2], "the oracle below is no Philox4x32-10"  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [0, 1, 0xFFFFFFFF, 0x299F31D0A4093822, (1 << 64) - 1])
@pytest.mark.parametrize("coordinate", [0, 12345, 0xFFFFFFFF, 1 << 32, (1 << 40) + 7])
def test_entries_are_philox_with_the_seed_as_key_and_coordinate_and_block_as_counter(
    seed: int, coordinate: int
) -> None:
    found = entries(seed, 5 * ROWS, coordinate, 1)[0]
    for block in range(5):
        key = (seed & 0xFFFFFFFF, seed >> 32)
        words = philox((coordinate & 0xFFFFFFFF, coordinate >> 32, block, 0), key)
        bits = [bits for word in words for bits in (word & 0xFFF, (word >> 12) & 0xFFF)]
        expected = torch.from_numpy(quantiles()[bits])
        assert torch.equal(found[block * ROWS : (block + 1) * ROWS], expected), (
            f"block {block} of coordinate {coordinate} is not Philox's output: other implementations will disagree"
        )


@pytest.mark.parametrize("offset", [0, 511, 1_418_996_700, HIGH, (1 << 41) + 5])
@pytest.mark.parametrize("seed", [0, 0x299F31D0A4093822])
def test_the_fast_path_has_the_entries_of_the_definition_to_the_bit(offset: int, seed: int) -> None:
    n, dim = 11, 24
    found = Projection(dim=dim, seed=seed)(torch.eye(n), offset)
    expected = (entries(seed, dim, offset, n).double() * (scale() / dim**0.5)).float()
    assert torch.equal(found, expected), f"the fast path and the definition differ at {offset}: P has changed"


def test_the_accelerator_path_agrees_with_the_cpu_path() -> None:
    values, p = torch.randn(3, 20_000, generator=torch.Generator().manual_seed(0)), Projection(dim=16, seed=5)
    found = (p._blocks(values, HIGH - 9000) * (scale() / 4)).float()
    assert torch.allclose(found, p(values, HIGH - 9000), rtol=1e-5, atol=1e-3), "a GPU has another P than a CPU"


def test_quantiles_are_those_of_the_normal_distribution() -> None:
    table = torch.from_numpy(quantiles()).double()
    assert torch.equal(table, table.to(torch.bfloat16).double()), "an entry is not exact in bfloat16"
    assert torch.equal(table, -table.flip(0)), "the entries are not symmetric, so odd moments are not zero"
    levels = (torch.arange(QUANTILES) + 0.5) / QUANTILES
    assert (torch.special.ndtr(table) - levels).abs().max() < 2e-3, "the entries are not normal quantiles"
    scaled = table * scale()
    assert abs(float((scaled**2).mean()) - 1) < 1e-12, "entries have another variance than one"
    assert abs(float((scaled**4).mean()) - 3) < 0.02, "entries have other tails than the normal distribution"


# --- invariances -----------------------------------------------------------------------------------------------------


@pytest.fixture
def values() -> Tensor:
    return torch.randn(6, 2000, generator=torch.Generator().manual_seed(1))


def test_a_row_does_not_depend_on_the_batch_or_its_order(values: Tensor) -> None:
    p = Projection(dim=64)
    whole = p(values, 77)
    for i in range(len(values)):
        assert torch.equal(p(values[i], 77), whole[i]), "a clip's feature depends on its batch"
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.equal(p(values[order], 77), whole[order]), "a clip's feature depends on its place in the batch"
    assert torch.equal(p(values.T.contiguous().T, 77), whole), "a feature depends on the memory layout"


@pytest.mark.parametrize("cuts", [(512, 1024), (1, 3, 700, 1999), tuple(range(100, 2000, 100))])
def test_shards_add_up_to_the_whole(values: Tensor, cuts: tuple[int, ...]) -> None:
    p, offset = Projection(dim=64, seed=9), HIGH - 900
    edges = (0, *cuts, values.shape[1])
    shares = [p(values[:, a:b], offset + a) for a, b in itertools.pairwise(edges)]
    whole = p(values, offset)
    error = (torch.stack(shares[::-1]).sum(0) - whole).norm() / whole.norm()
    assert error < 1e-6, f"the shares of {cuts} do not add up to the whole ({error:.1e}): blocks change P"


def test_projection_is_linear_and_zero_stays_zero(values: Tensor) -> None:
    p = Projection(dim=64)
    assert torch.allclose(p(2 * values[0] - 3 * values[1]), 2 * p(values[0]) - 3 * p(values[1]), atol=1e-3)
    assert not p(torch.zeros(100)).any()


def test_the_first_rows_are_a_smaller_projection(values: Tensor) -> None:
    large = Projection(dim=512)(values, 5)
    for dim in (8, 128, 256):
        small = Projection(dim=dim)(values, 5)
        cut = large[:, :dim] * (512 / dim) ** 0.5
        assert torch.allclose(small, cut, rtol=1e-6, atol=1e-6), f"the first {dim} of 512 rows are no projection"


def test_bfloat16_gradients_are_taken_at_their_values(values: Tensor) -> None:
    p, rounded = Projection(dim=64), values.bfloat16()
    assert torch.equal(p(rounded), p(rounded.float()))
    assert p(rounded).dtype == torch.float32


# --- statistics ------------------------------------------------------------------------------------------------------


def inner_products(reweighted: float) -> tuple[float, float]:
    """Over 60 seeds: how many standard errors the mean of <Pg, Ph> is off <g, h>, and its variance over theory's.

    One layer of ten of P is multiplied by `reweighted`: 1 is the product's P.
    """
    generator = torch.Generator().manual_seed(2)
    n, dim, seeds = 3000, 64, 60
    g = torch.randn(n, generator=generator)
    h = 0.6 * g + 0.8 * torch.randn(n, generator=generator)
    pair = torch.stack([g, h])
    layer = slice(0, n // 10)
    found = []
    for seed in range(seeds):
        p = Projection(dim=dim, seed=seed)
        y = p(pair) + (reweighted - 1) * p(pair[:, layer])
        found.append(float(y[0] @ y[1]))
    exact = float(g @ h)
    variance = (float(g @ g) * float(h @ h) + exact**2) / dim  # of a Gaussian P
    products = torch.tensor(found, dtype=torch.float64)
    return float((products.mean() - exact) / (variance / seeds) ** 0.5), float(products.var() / variance)


def test_inner_products_are_unbiased_and_have_the_variance_of_theory() -> None:
    bias, spread = inner_products(1.0)
    assert abs(bias) < 4, f"<Pg, Ph> is biased by {bias:.1f} standard errors"
    assert 0.45 < spread < 1.9, f"<Pg, Ph> has {spread:.2f} times the variance of a Gaussian projection"


def test_the_check_above_sees_one_layer_that_weighs_four_times_too_much() -> None:
    bias, _ = inner_products(4.0)
    assert abs(bias) > 8, f"the check for bias has no power: a reweighted layer is off by {bias:.1f} standard errors"


def test_cosines_are_kept_to_about_one_over_root_k() -> None:
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn(40, 4000, generator=generator) + torch.randn(1, 4000, generator=generator)
    exact = torch.nn.functional.normalize(vectors.double(), dim=1)
    errors = {}
    for dim in (64, 512):
        kept = torch.nn.functional.normalize(Projection(dim=dim)(vectors).double(), dim=1)
        errors[dim] = float(((kept @ kept.T) - (exact @ exact.T)).square().mean().sqrt())
    assert 0.02 < errors[512] < 0.06, f"cosines are off by {errors[512]:.3f}, theory says about 0.035"
    assert 2 < errors[64] / errors[512] < 4, f"the error does not fall as 1/sqrt(k): {errors}"


def test_rows_columns_and_seeds_are_unrelated() -> None:
    n, dim = 4000, 24
    tables = [entries(seed, dim, offset, n) for seed, offset in ((0, 0), (1, 0), (1 << 32, 0), (0, 1 << 32), (0, n))]
    rows = torch.cat(tables, 1).T.double()
    related = torch.corrcoef(rows).fill_diagonal_(0).abs().max()
    assert related < 6 / n**0.5, f"two rows, seeds or ranges of coordinates are related ({related:.3f})"
    shifted = torch.corrcoef(torch.cat([tables[0][:-1].T, tables[0][1:].T]).double()).fill_diagonal_(0).abs().max()
    assert shifted < 6 / n**0.5, f"neighbouring coordinates are related ({shifted:.3f})"


def test_different_seeds_give_unrelated_features_and_the_same_seed_the_same(values: Tensor) -> None:
    first, again, other = (Projection(dim=512, seed=seed)(values) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    cosine = torch.nn.functional.cosine_similarity(first, other)
    assert cosine.abs().max() < 5 / 512**0.5, f"two seeds give related features ({cosine.abs().max():.2f})"


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rademacher", "sketched_gaussian", "fastfood", "normal"])
def test_other_kinds_raise_rather_than_fall_back(kind: str) -> None:
    with pytest.raises(ValueError, match=kind):
        Projection(kind=kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("dim", [0, 4, 12, -8])
def test_dimensions_that_are_no_multiple_of_eight_are_refused(dim: int) -> None:
    with pytest.raises(ValueError, match=str(dim)):
        Projection(dim=dim)


def test_values_and_offsets_that_make_no_sense_are_refused() -> None:
    p = Projection(dim=8)
    for shape in ((), (2, 3, 4)):
        with pytest.raises(ValueError, match="give"):
            p(torch.zeros(shape))
    with pytest.raises(ValueError, match="offset -1"):
        p(torch.zeros(3), -1)
