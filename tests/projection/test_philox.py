"""Philox and the numbers made of it: known answers, the table of quantiles, and that nothing is related to anything."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.models.loss import shared_noise
from pipeline.projection import cpu, fastfood, philox
from pipeline.projection.philox import (
    QUANTILES,
    Tag,
    buckets,
    by_cubics,
    gaussian,
    quantiles,
    rademacher,
    scale,
    signs,
    words,
)
from tests.support.oracle import drawn, plain_philox

SEEDS = [0, 1, 0xFFFFFFFF, 0x299F31D0A4093822, (1 << 64) - 1]
COORDINATES = [0, 511, 12345, 1_418_996_700, 0xFFFFFFFF, 1 << 32, (1 << 41) + 5, (1 << 62) - 1]
ZEROS = ("00000000 00000000 00000000 00000000", "00000000 00000000")
ONES = ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff")
PI = ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0")
KNOWN = [  # kat_vectors of Random123
    (7, *ZEROS, "5f6fb709 0d893f64 4f121f81 4f730a48"),
    (7, *ONES, "5207ddc2 45165e59 4d8ee751 8c52f662"),
    (7, *PI, "4dfccaba 190a87f0 c47362ba b6b5242a"),
    (10, *ZEROS, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (10, *ONES, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (10, *PI, "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def hexadecimal(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("rounds", "counter", "key", "expected"), KNOWN)
def test_philox_gives_the_known_answers_of_random123(rounds: int, counter: str, key: str, expected: str) -> None:
    (c0, c1, c2, c3), (k0, k1), answer = map(hexadecimal, (counter, key, expected))
    assert plain_philox((c0, c1, c2, c3), (k0, k1), rounds) == tuple(answer), f"the oracle is no Philox4x32-{rounds}"
    outputs = words(k0 | (k1 << 32), (torch.tensor([c0, c0]), c1, c2), c3, rounds)  # type: ignore[arg-type]
    assert outputs.tolist() == [answer, answer], f"`words` is no Philox4x32-{rounds}"


@pytest.mark.parametrize(("counter", "key", "expected"), [row[1:] for row in KNOWN if row[0] == 7])
def test_the_compiled_philox_gives_the_known_answers_too(counter: str, key: str, expected: str) -> None:
    given = torch.tensor(hexadecimal(counter) + hexadecimal(key)).numpy().astype("uint64")
    assert [int(word) for word in cpu.philox(*given)] == hexadecimal(expected), "the CPU has another generator"


def test_the_projection_has_seven_rounds() -> None:
    assert philox.ROUNDS == 7, "another number of rounds is another matrix: raise config.NUMERICS"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("coordinate", COORDINATES)
def test_entries_are_philox_with_the_seed_as_key_and_coordinate_block_and_purpose_as_counter(
    seed: int, coordinate: int
) -> None:
    for tag in (Tag.GAUSSIAN, Tag.SKETCH_GAUSSIAN):
        entries = gaussian(seed, 36, coordinate, 1, "cpu", tag)[0]
        twelve_bits = [
            bits
            for block in range(5)
            for word in drawn(seed, coordinate, block, tag)
            for bits in (word & 0xFFF, (word >> 12) & 0xFFF)
        ]
        expected = torch.from_numpy(quantiles()[twelve_bits[:36]])
        assert torch.equal(entries, expected), f"{tag.name} at {coordinate} is not Philox's output by the table"
    ones = [bit for block in range(2) for bit in all_bits(seed, coordinate, block, Tag.RADEMACHER)]
    rademacher_signs = rademacher(seed, 200, coordinate, 1, "cpu")[0]
    assert torch.equal(rademacher_signs, 1 - 2 * torch.tensor(ones[:200]).float()), (
        f"signs at {coordinate} are not Philox's bits"
    )


def all_bits(seed: int, coordinate: int, block: int, tag: Tag) -> list[int]:
    return [(word >> bit) & 1 for word in drawn(seed, coordinate, block, tag) for bit in range(32)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("offset", COORDINATES)
def test_signs_and_buckets_of_a_coordinate_are_philox_of_its_run_and_its_stretch(seed: int, offset: int) -> None:
    count = 3 if offset == COORDINATES[-1] else 300
    coordinates = range(offset, offset + count)
    for tag in (Tag.SKETCH_SIGN, Tag.FASTFOOD_SIGN):
        calls = {call: all_bits(seed, call, 0, tag) for call in {c >> 7 for c in coordinates}}
        expected = torch.tensor([1.0 - 2 * calls[c >> 7][c & 127] for c in coordinates])
        assert torch.equal(signs(seed, offset, count, "cpu", tag), expected), f"{tag.name}: signs are of other bits"
    shifts = {s: drawn(seed, s, 0, Tag.SKETCH_SHIFT)[0] for s in {c >> 18 for c in coordinates}}
    places = [(c ^ shifts[c >> 18]) % (1 << 18) for c in coordinates]
    assert buckets(seed, offset, count, "cpu").tolist() == places, "buckets are not the coordinate xor its stretch's"


def test_coordinates_of_one_stretch_never_share_a_bucket_and_two_stretches_lie_differently() -> None:
    stretches = buckets(7, 5 << 18, 2 << 18, "cpu").view(2, -1)
    assert all(len(row.unique()) == 1 << 18 for row in stretches), "two coordinates of one stretch fall into one bucket"
    assert not (stretches[0] == stretches[1]).any(), "every coordinate meets the one 2**18 further on: layers add up"


def test_a_range_of_coordinates_does_not_depend_on_where_it_is_cut() -> None:
    offset = (1 << 32) - 150
    for draw in (
        lambda start, n: gaussian(3, 24, start, n, "cpu", Tag.GAUSSIAN),
        lambda start, n: rademacher(3, 24, start, n, "cpu"),
        lambda start, n: signs(3, start, n, "cpu", Tag.SKETCH_SIGN),
        lambda start, n: buckets(3, start, n, "cpu"),
    ):
        pieces = [draw(offset, 1), draw(offset + 1, 149), draw(offset + 150, 1), draw(offset + 151, 149)]
        assert torch.equal(torch.cat(pieces), draw(offset, 300)), "an entry depends on the range it was asked with"


# --- the table -------------------------------------------------------------------------------------------------------


def test_the_cubics_give_every_quantile_to_the_bit() -> None:
    assert np.array_equal(by_cubics(), quantiles())


def test_entries_are_symmetric_and_exact_in_bfloat16() -> None:
    table = torch.tensor(quantiles()).double()
    assert len(table) == QUANTILES == 4096
    assert torch.equal(table, table.to(torch.bfloat16).double()), "an entry is not exact in bfloat16: GPUs round it"
    assert torch.equal(table, -table.flip(0)), "the entries are not symmetric, so odd moments are not zero"
    assert bool((table.diff() >= 0).all()), "the table is not sorted: it is no quantile function"


def test_the_moments_of_the_entries_are_the_normal_distributions() -> None:
    scaled = torch.tensor(quantiles()).double() * scale()
    assert abs(float(scaled.square().mean()) - 1) < 1e-12, "entries have another variance than one"
    assert abs(float((scaled**4).mean()) - 2.991) < 5e-4, "the kurtosis is not the one that the docstring states"
    assert abs(float((scaled**6).mean()) / 15 - 1) < 0.02, "entries have other tails than the normal distribution"
    assert abs(float(torch.tensor(quantiles()).max()) - 3.67) < 0.005, "the largest is not what the docstring states"


def test_the_distribution_function_of_the_entries_is_within_the_stated_distance_of_the_normal_one() -> None:
    exact = torch.special.ndtri((torch.arange(QUANTILES) + 0.5).double() / QUANTILES)
    assert kolmogorov(exact) < 1.25e-4, "4,096 midpoints are further from the normal distribution than stated"
    assert kolmogorov(torch.tensor(quantiles()).double()) < 1.05e-3, "rounding moves the entries further than stated"
    assert (torch.tensor(quantiles()) - exact).abs().max() < 2**-7, "an entry is not its quantile rounded to 8 bits"


def kolmogorov(table: Tensor) -> float:
    """Largest distance of the step function of equally likely entries from the normal distribution function."""
    places, counts = table.unique(return_counts=True)
    above = counts.cumsum(0) / len(table)
    normal = torch.special.ndtr(places)
    return float(torch.stack([(above - normal).abs(), (above - counts / len(table) - normal).abs()]).max())


# --- independence ----------------------------------------------------------------------------------------------------


def largest_correlation(rows: list[Tensor]) -> float:
    return float(torch.corrcoef(torch.cat([row.double() for row in rows])).fill_diagonal_(0).abs().max())


def test_rows_neighbours_seeds_and_ranges_are_unrelated() -> None:
    n = 4000
    places = ((0, 0), (1, 0), (1 << 32, 0), (0, 1 << 32), (0, n), (0, 1 << 18))
    tables = [gaussian(seed, 24, offset, n, "cpu", Tag.GAUSSIAN).T for seed, offset in places]
    related = largest_correlation(tables)
    assert related < 6 / n**0.5, f"two rows, seeds or ranges of coordinates are related ({related:.3f})"
    related = largest_correlation([tables[0][:, :-1], tables[0][:, 1:]])
    assert related < 6 / n**0.5, f"neighbouring coordinates are related ({related:.3f})"


@pytest.mark.parametrize("seed", [0, 5])
def test_what_is_drawn_for_different_purposes_is_unrelated_to_each_other_and_to_the_data_noise(seed: int) -> None:
    """All of it comes of Philox under one seed: shared words would tie the kinds to each other, or to the noise."""
    n = 8192
    drawn_rows = [
        gaussian(seed, 8, 0, n, "cpu", Tag.GAUSSIAN).T,
        gaussian(seed, 8, 0, n, "cpu", Tag.SKETCH_GAUSSIAN).T,
        rademacher(seed, 8, 0, n, "cpu").T,
        signs(seed, 0, n, "cpu", Tag.SKETCH_SIGN)[None],
        signs(seed, 0, n, "cpu", Tag.FASTFOOD_SIGN)[None],
        fastfood.weights(seed, 0, 1, "cpu")[:, :n],
        torch.cat([shared_noise(seed, index, (8, 1, 32, 32)).view(1, -1) for index in (0, 1)]),
    ]
    related = largest_correlation(drawn_rows)
    assert related < 5 / n**0.5, f"two purposes share their random numbers (correlation {related:.3f})"


def test_every_purpose_has_a_tag_of_its_own() -> None:
    """An alias of IntEnum would vanish from its members, and its words would be another purpose's."""
    assert [tag.value for tag in Tag] == list(range(len(Tag.__members__))), "two purposes draw the same words"
