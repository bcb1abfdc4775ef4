"""The compiled kernels: entry for entry the definition's, and sums as good as float64's."""

from __future__ import annotations

import numba
import numpy as np
import pytest
import torch

from pipeline.projection import Projection, cpu, philox, vectors
from pipeline.projection.philox import Tag
from tests.support.oracle import project

OFFSETS = [0, 511, 1_418_996_700, (1 << 31) - 5, (1 << 32) - 5, 1 << 32, (1 << 41) + 5, (1 << 62) - 11]
SEEDS = [0, 1, 0xFFFFFFFF, 0x299F31D0A4093822, (1 << 64) - 1]
DIMS = [8, 24, 128, 136, 512, 520]


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("seed", SEEDS)
def test_dense_entries_are_the_definitions_to_the_bit(offset: int, seed: int) -> None:
    n = 11
    for dim in DIMS:
        for tag in (Tag.GAUSSIAN, Tag.SKETCH_GAUSSIAN, Tag.RADEMACHER):
            entries = torch.zeros(n, dim, dtype=torch.float64)
            cpu.dense(torch.eye(n), seed, offset, tag, entries)
            if tag == Tag.RADEMACHER:
                expected = philox.rademacher(seed, dim, offset, n, "cpu")
            else:
                expected = philox.gaussian(seed, dim, offset, n, "cpu", tag)
            assert torch.equal(entries, expected.double()), f"{tag.name}, k={dim}, {offset=}: P is another on CPUs"


@pytest.mark.parametrize("way", ["computed", "looked up"])
def test_every_quantile_is_the_tables_to_the_bit(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processors with AVX-512 compute them, others look them up: features of both must be comparable."""
    if way == "computed" and not vectors.has_permutes():
        pytest.skip("this processor has no AVX-512")
    monkeypatch.setattr(vectors, "has_permutes", lambda: way == "computed")

    @numba.njit
    def draw(table, out, k0, k1):  # type: ignore[no-untyped-def]
        for row in range(len(out)):
            vectors.gaussian_lanes(table, out, row, k0, k1, np.uint64(row), np.uint64(0), np.uint64(0))

    entries = np.zeros((512, 128), np.float32)
    draw(philox.quantiles(), entries, *cpu.keys(SEEDS[3]))
    expected = philox.gaussian(SEEDS[3], 128, 0, 512, "cpu", Tag.GAUSSIAN).numpy()
    assert np.array_equal(entries, expected.reshape(512, 16, 8).swapaxes(1, 2).reshape(512, 128))
    assert len(np.unique(entries)) == len(np.unique(philox.quantiles())), "some quantile was not looked at"


@pytest.mark.parametrize("offset", [*OFFSETS[:-1], (1 << 18) - 700, (1 << 62) - 1500])
@pytest.mark.parametrize("seed", SEEDS)
def test_signs_and_buckets_of_the_sketch_are_the_definitions(offset: int, seed: int) -> None:
    """Values 1, 2, 3, ... tell in each bucket which coordinate came there, and with which sign."""
    values = torch.arange(1, 1501).float()[None]
    sketched, expected = torch.zeros(1, 1 << 18), torch.zeros(1, 1 << 18)
    cpu.sketch(values, seed, offset, sketched)
    signed = values * philox.signs(seed, offset, 1500, "cpu", Tag.SKETCH_SIGN)
    expected.index_add_(1, philox.buckets(seed, offset, 1500, "cpu"), signed)
    assert torch.equal(sketched, expected), f"{offset=}: a coordinate has another bucket or sign than defined"


@pytest.mark.parametrize("offset", [511, (1 << 32) - 5])
def test_entries_of_both_stages_of_the_sketch_together_are_the_definitions(offset: int) -> None:
    units = torch.eye(7)
    for dim in (24, 136):
        entries = Projection("sketched_gaussian", dim, SEEDS[3])(units, offset)
        expected = project("sketched_gaussian", dim, SEEDS[3], units, offset).float()
        assert torch.equal(entries, expected), f"k={dim}, {offset=}: sketch and dense stage do not fit together"


@pytest.mark.parametrize("n", [1, 7, 8, 9, 511, 512, 513, 4999, cpu.SEGMENT, cpu.SEGMENT + 5])
@pytest.mark.parametrize("kind", ["gaussian", "rademacher", "sketched_gaussian"])
def test_sums_of_any_length_are_those_of_float64(kind: str, n: int) -> None:
    values = torch.randn(3, n, generator=torch.Generator().manual_seed(n))
    offset = (1 << 32) - n // 2
    features = Projection(kind, 24, 2)(values, offset)  # type: ignore[arg-type]
    expected = project(kind, 24, 2, values, offset)  # type: ignore[arg-type]
    error = float((features - expected).norm() / expected.norm())
    assert error < 1e-6, f"{n} values: the sum is off by {error:.1e}: values at an end are lost or counted twice"


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
def test_long_sums_that_grow_all_the_way_lose_nothing(kind: str) -> None:
    """Against its own first row every product is positive; one float32 sum over all of them would drift by 1e-4."""
    n, dim = 400_000, 8
    if kind == "rademacher":
        row = philox.rademacher(0, dim, 0, n, "cpu")[:, 0]
    else:
        row = philox.gaussian(0, dim, 0, n, "cpu", Tag.GAUSSIAN)[:, 0]
    features, expected = Projection(kind, dim)(row), project(kind, dim, 0, row[None])[0]  # type: ignore[arg-type]
    assert abs(float(features[0] / expected[0]) - 1) < 3e-6, "a long sum drifts: it is not closed often enough"


def test_what_was_in_a_sum_stays_in_it() -> None:
    values = torch.randn(2, 100, generator=torch.Generator().manual_seed(0))
    for tag in (Tag.GAUSSIAN, Tag.RADEMACHER):
        empty, filled = torch.zeros(2, 24, dtype=torch.float64), torch.full((2, 24), 3.0, dtype=torch.float64)
        cpu.dense(values, 0, 5, tag, empty)
        cpu.dense(values, 0, 5, tag, filled)
        assert torch.equal(filled, empty + 3), f"{tag.name}: shares overwrite each other"
    empty, filled = torch.zeros(2, 1 << 18), torch.full((2, 1 << 18), 3.0)
    cpu.sketch(values, 0, 5, empty)
    cpu.sketch(values, 0, 5, filled)
    assert torch.allclose(filled, empty + 3), "shares of the sketch overwrite each other"
