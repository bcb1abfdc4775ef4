"""The contract of all kinds of projection: linear, the same however it is cut, and never another matrix in silence."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import get_args

import pytest
import torch
from torch import Tensor

import pipeline.projection
from pipeline.config.attribution import Kind
from pipeline.projection import Projection
from tests.support.oracle import project

KINDS: tuple[Kind, ...] = get_args(Kind)
N = 2000
# Just below 2**14, 2**18 and 2**32: ends of Fastfood's blocks, of the sketch's stretches, of the counter's first word.
OFFSETS = [0, (1 << 14) - 900, (1 << 18) - 900, (1 << 32) - 900]
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def values() -> Tensor:
    return torch.randn(6, N, generator=torch.Generator().manual_seed(1))


def error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


# --- invariances -----------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("offset", OFFSETS)
def test_features_are_the_explicit_matrix_times_the_values(kind: Kind, offset: int, values: Tensor) -> None:
    features = Projection(kind, 24, 9)(values, offset)
    assert features.dtype == torch.float32
    assert error(features, project(kind, 24, 9, values, offset)) < 1e-6, f"{kind} at {offset} is another matrix"


@every_kind
def test_a_row_does_not_depend_on_the_batch_or_its_order_or_layout(kind: Kind, values: Tensor) -> None:
    p = Projection(kind, 64)
    whole = p(values, 77)
    for i in range(len(values)):
        assert torch.equal(p(values[i], 77), whole[i]), "a clip's feature depends on its batch"
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.equal(p(values[order], 77), whole[order]), "a clip's feature depends on its place in the batch"
    assert torch.equal(p(values.T.contiguous().T, 77), whole), "a feature depends on the memory layout"
    assert torch.equal(p(values.repeat(5, 1), 77), whole.repeat(5, 1)), "a feature depends on the size of its batch"


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@every_kind
@pytest.mark.usefixtures("_threads")
def test_the_number_of_threads_changes_no_bit(kind: Kind) -> None:
    long = torch.randn(3, 140_000, generator=torch.Generator().manual_seed(2))
    p, features = Projection(kind, 264), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        features.append(p(long, (1 << 32) - 70_000))
    assert torch.equal(features[0], features[1]), "two threads give other features than one"
    assert torch.equal(features[0], features[2]), "three threads give other features than one"


@every_kind
@pytest.mark.parametrize("cuts", [(900,), (512, 1024), (1, 3, 700, 1999), tuple(range(100, N, 100))])
def test_shares_of_chunks_add_up_to_the_whole(kind: Kind, cuts: tuple[int, ...], values: Tensor) -> None:
    p, edges = Projection(kind, 64, 9), (0, *cuts, N)
    for offset in OFFSETS:
        total, whole = p.zeros(len(values), "cpu"), p(values, offset)
        for a, b in reversed(list(itertools.pairwise(edges))):
            p.add(total, values[:, a:b], offset + a)
        off = error(p.finish(total), whole)
        assert off < 1e-5, f"{kind}: the shares of {cuts} at {offset} do not add up to the whole ({off:.1e})"
    shares = [p(values[:, a:b], offset + a) for a, b in itertools.pairwise(edges[:3])]
    off = error(torch.stack(shares).sum(0), p(values[:, : edges[2]], offset))
    assert off < 1e-5, f"{kind}: features of two ranks do not add up to the whole's ({off:.1e})"


@every_kind
def test_projection_is_linear_and_nothing_stays_nothing(kind: Kind, values: Tensor) -> None:
    p = Projection(kind, 64)
    off = error(p(2 * values[0] - 3 * values[1], 5), 2 * p(values[0], 5) - 3 * p(values[1], 5))
    assert off < 1e-5, f"{kind} is not linear ({off:.1e})"
    assert not p(torch.zeros(100)).any()
    assert not p(torch.zeros(2, 0), 7).any()
    assert p(torch.zeros(2, 0)).shape == (2, 64)


@every_kind
def test_the_first_rows_are_a_smaller_projection(kind: Kind, values: Tensor) -> None:
    """Fastfood folds to another power of two at each of these dimensions."""
    large = Projection(kind, 512)(values, 5)
    for dim in (8, 24, 128, 264):
        small = Projection(kind, dim)(values, 5)
        off = error(small, large[:, :dim] * (512 / dim) ** 0.5)
        assert off < 1e-6, f"{kind}: the first {dim} of 512 rows are no projection of their own ({off:.1e})"


@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_taken_at_their_values(kind: Kind, dtype: torch.dtype, values: Tensor) -> None:
    p, rounded = Projection(kind, 64), values.to(dtype)
    assert torch.equal(p(rounded), p(rounded.float())), f"{kind}: {dtype} is not taken at its values"
    assert p(rounded).dtype == torch.float32


@every_kind
def test_gradients_of_the_projection_are_not_recorded(kind: Kind, values: Tensor) -> None:
    recorded = values.clone().requires_grad_()
    features = Projection(kind, 64)(recorded)
    assert not features.requires_grad, f"{kind}: features hold on to the graph of the model"
    assert torch.equal(features, Projection(kind, 64)(values))


@every_kind
def test_seeds_give_unrelated_features_and_one_seed_the_same(kind: Kind, values: Tensor) -> None:
    first, again, *others = (Projection(kind, 512, seed)(values) for seed in (0, 0, 1, 1 << 32, (1 << 64) - 1))
    assert torch.equal(first, again)
    for other in others:
        cosine = torch.nn.functional.cosine_similarity(first, other).abs().max()
        assert cosine < 5 / 512**0.5, f"{kind}: two seeds give related features ({cosine:.2f})"


def test_kinds_of_one_seed_give_unrelated_features(values: Tensor) -> None:
    """The sketch's dense stage reads coordinates 0 ... 2**18 under the seed that the Gaussian kind has."""
    features = {kind: Projection(kind, 512, 3)(values) for kind in KINDS}
    for one, two in itertools.combinations(KINDS, 2):
        cosine = torch.nn.functional.cosine_similarity(features[one], features[two]).abs().max()
        assert cosine < 5 / 512**0.5, f"{one} and {two} of one seed share their entries ({cosine:.2f})"


@every_kind
def test_coordinates_beyond_two_to_the_32_are_others_and_need_no_memory(kind: Kind, values: Tensor) -> None:
    """The ends of a gradient of 2**62 numbers, of which nothing but the values at hand is ever allocated."""
    p, far = Projection(kind, 128, 1), [0, 1 << 32, 1 << 33, 1 << 41, (1 << 62) - N]
    features = [p(values[0], offset) for offset in far]
    for one, two in itertools.combinations(features, 2):
        cosine = float(torch.nn.functional.cosine_similarity(one, two, dim=0).abs())
        assert cosine < 5 / 128**0.5, f"{kind}: coordinates 2**32 apart have the same entries ({cosine:.2f})"


def test_another_process_gives_the_same_bytes(values: Tensor) -> None:
    code = """
import torch
from pipeline.projection import Projection
torch.manual_seed(12345); torch.rand(7); torch.set_num_threads(2)
values = torch.randn(6, 2000, generator=torch.Generator().manual_seed(1))
for kind in ("gaussian", "rademacher", "sketched_gaussian", "fastfood"):
    print(Projection(kind, 24, 2**64 - 3)(values, 2**32 - 900).numpy().tobytes().hex())
"""
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    for kind, line in zip(KINDS, result.stdout.split(), strict=True):
        here = Projection(kind, 24, (1 << 64) - 3)(values, (1 << 32) - 900).numpy().tobytes().hex()
        assert line == here, f"{kind}: two actors project with different matrices"


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["normal", "Gaussian", "", None])
def test_unknown_kinds_raise_rather_than_fall_back(kind: str) -> None:
    with pytest.raises(ValueError, match=f"{kind!r}.*use one of {', '.join(KINDS)}"):
        Projection(kind)  # type: ignore[arg-type]


@every_kind
@pytest.mark.parametrize("dim", [0, 4, 12, -8])
def test_dimensions_that_are_no_multiple_of_eight_are_refused(kind: Kind, dim: int) -> None:
    with pytest.raises(ValueError, match=f"dim={dim}.*multiple of 8"):
        Projection(kind, dim)


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_seeds_that_do_not_fit_into_the_key_are_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=f"seed={seed}"):
        Projection(seed=seed)


@every_kind
def test_values_and_offsets_that_make_no_sense_are_refused(kind: Kind) -> None:
    p = Projection(kind, 8)
    for shape in ((), (2, 3, 4)):
        with pytest.raises(ValueError, match=r"give \[n\] or \[B, n\]"):
            p(torch.zeros(shape))
    for offset in (-1, (1 << 62) - 2):
        with pytest.raises(ValueError, match=f"offset={offset}"):
            p(torch.zeros(3), offset)


@every_kind
def test_a_device_without_kernels_is_an_error(kind: Kind) -> None:
    with pytest.raises(RuntimeError, match="no kernels for 'meta'"):
        Projection(kind, 8)(torch.zeros(3, device="meta"))


class OnCuda(Tensor):
    """A tensor that says it is on a GPU where there is none."""

    device = torch.device("cuda")


@every_kind
def test_cuda_without_triton_is_an_error_rather_than_another_matrix(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)  # importing it now fails as where it is not installed
    monkeypatch.delitem(sys.modules, "pipeline.projection.gpu", raising=False)
    monkeypatch.delattr(pipeline.projection, "gpu", raising=False)
    p = Projection(kind, 8)
    with pytest.raises(RuntimeError, match=r"needs Triton.*No other matrix"):
        p.add(p.zeros(1, "cpu"), torch.zeros(1, 3).as_subclass(OnCuda), 0)
    assert p(torch.ones(3)).isfinite().all(), "the CPU needs Triton as well"
