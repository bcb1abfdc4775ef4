"""The Triton kernels against the CPU's: by Triton's interpreter anywhere, and on CUDA where there is one."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple, get_args

import pytest
import torch
from torch import Tensor

import pipeline.projection
from pipeline.config.attribution import Kind
from pipeline.projection import Projection, cpu, philox
from pipeline.projection.philox import BUCKETS_LOG, Tag

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton has no build for this system"
)
on_cuda = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

STRETCH = 1 << BUCKETS_LOG
SEED = 0x299F31D0A4093822
TAGS = [Tag.GAUSSIAN, Tag.RADEMACHER, Tag.SKETCH_GAUSSIAN]
OFFSETS = [0, 511, 1_418_996_700, (1 << 31) - 77, (1 << 32) - 77, (1 << 41) + 5]


class Kernels(NamedTuple):
    module: Any
    device: str


@contextmanager
def interpreted() -> Iterator[ModuleType]:
    """`pipeline.projection.gpu` for Triton's interpreter, on CPU tensors.

    Triton decides at its import whether its own language is interpreted, so all of it but the compiled core is
    imported once more; afterwards every other module has the Triton that it had.
    """

    def ours(name: str) -> bool:
        mine = name == "triton" or name.startswith("triton.") or name == "pipeline.projection.gpu"
        return mine and not name.startswith("triton._C")

    before = {name: module for name, module in sys.modules.items() if ours(name)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for name in before:
            del sys.modules[name]
        attribute = pipeline.projection.__dict__.pop("gpu", None)
        try:
            yield importlib.import_module("pipeline.projection.gpu")
        finally:
            for name in [name for name in sys.modules if ours(name)]:
                del sys.modules[name]
            sys.modules.update(before)
            pipeline.projection.__dict__.pop("gpu", None)
            if attribute is not None:
                pipeline.projection.gpu = attribute


@pytest.fixture(scope="module", params=["interpreter", pytest.param("cuda", marks=on_cuda)])
def kernels(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    if request.param == "cuda":
        yield Kernels(importlib.import_module("pipeline.projection.gpu"), "cuda")
        return
    with interpreted() as module:
        module._TILE = 1 << 15  # type: ignore[attr-defined] # the interpreter's time goes by the number of programs
        yield Kernels(module, "cpu")


def dense(kernels: Kernels, values: Tensor, offset: int, tag: Tag, dim: int) -> Tensor:
    total = torch.zeros(len(values), dim, dtype=torch.float64, device=kernels.device)
    kernels.module.dense(values.to(kernels.device), SEED, offset, tag, total)
    return total.cpu()


def dense_on_cpu(values: Tensor, offset: int, tag: Tag, dim: int) -> Tensor:
    total = torch.zeros(len(values), dim, dtype=torch.float64)
    cpu.dense(values, SEED, offset, tag, total)
    return total


def sketch(kernels: Kernels, values: Tensor, offset: int) -> Tensor:
    total = torch.zeros(len(values), STRETCH, device=kernels.device)
    kernels.module.sketch(values.to(kernels.device), SEED, offset, total)
    return total.cpu()


def sketch_on_cpu(values: Tensor, offset: int) -> Tensor:
    total = torch.zeros(len(values), STRETCH)
    cpu.sketch(values, SEED, offset, total)
    return total


def error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def values(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("tag", TAGS)
def test_dense_entries_are_the_definitions_to_the_bit(kernels: Kernels, tag: Tag, offset: int) -> None:
    n, dim = 16, 24
    entries = dense(kernels, torch.eye(n), offset, tag, dim)
    if tag == Tag.RADEMACHER:
        expected = philox.rademacher(SEED, dim, offset, n, "cpu")
    else:
        expected = philox.gaussian(SEED, dim, offset, n, "cpu", tag)
    assert torch.equal(entries, expected.double()), f"{tag.name} at {offset}: a GPU has another P than a CPU"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 3, 17])
@pytest.mark.parametrize("dim", [24, 520])
@pytest.mark.parametrize("tag", [Tag.GAUSSIAN, Tag.RADEMACHER])
def test_dense_shares_are_the_cpus(kernels: Kernels, tag: Tag, dim: int, batch: int, dtype: torch.dtype) -> None:
    given = values(batch, 150).to(dtype)
    for offset in (3, (1 << 32) - 77):
        off = error(dense(kernels, given, offset, tag, dim), dense_on_cpu(given, offset, tag, dim))
        assert off < 1e-5, f"{tag.name}, k={dim}, {batch} x {dtype} at {offset}: off by {off:.1e}, float32 is cut short"


def test_dense_sums_over_several_closings_and_programs_are_the_cpus(kernels: Kernels) -> None:
    given = values(2, 2 * 1024 + 70)
    for tag in (Tag.GAUSSIAN, Tag.RADEMACHER):
        off = error(dense(kernels, given, 7, tag, 24), dense_on_cpu(given, 7, tag, 24))
        assert off < 1e-5, f"{tag.name}: coordinates at the seams of programs are lost or counted twice ({off:.1e})"


@pytest.mark.parametrize("offset", [*OFFSETS, STRETCH - 100, (1 << 31) - 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sketch_is_the_cpus(kernels: Kernels, offset: int, dtype: torch.dtype) -> None:
    """Offsets a little below 2**31: an argument that Triton takes for 32 bits wide overflows there."""
    given = values(2, 1100).to(dtype)
    sketched, expected = sketch(kernels, given, offset), sketch_on_cpu(given, offset)
    assert bool(sketched.any()), f"{offset=}: nothing of the gradient reaches the sketch"
    assert error(sketched, expected) < 1e-5, f"{offset=}: a GPU sketches with other signs or buckets than a CPU"


def test_the_sketch_sums_stretches_as_the_cpu_does(kernels: Kernels) -> None:
    given = values(1, 8 * STRETCH + 1000)  # more stretches than one program sums
    offset = (1 << 32) - 3 * STRETCH - 500
    off = error(sketch(kernels, given, offset), sketch_on_cpu(given, offset))
    assert off < 1e-5, f"stretches are lost, or two programs write to the same bucket ({off:.1e})"


def test_the_memory_layout_of_gradients_does_not_matter(kernels: Kernels) -> None:
    wide = values(7, 400)
    for given in (wide[:, 5:155], wide[::2, 1:151], wide[:5, :150].T.contiguous().T, wide[2:3].expand(3, -1)):
        for tag in (Tag.GAUSSIAN, Tag.RADEMACHER):
            features, expected = dense(kernels, given, 9, tag, 24), dense_on_cpu(given, 9, tag, 24)
            assert error(features, expected) < 1e-5, f"{tag.name}: strides {given.stride()} are read as others"
        assert error(sketch(kernels, given, 9), sketch_on_cpu(given, 9)) < 1e-5, f"sketch: strides {given.stride()}"


def test_what_was_in_a_sum_stays_in_it(kernels: Kernels) -> None:
    total = torch.full((2, 24), 3.0, dtype=torch.float64, device=kernels.device)
    kernels.module.dense(values(2, 100).to(kernels.device), SEED, 5, Tag.GAUSSIAN, total)
    expected = dense_on_cpu(values(2, 100), 5, Tag.GAUSSIAN, 24) + 3
    assert error(total.cpu(), expected) < 1e-5, "shares overwrite each other"
    total = torch.full((2, STRETCH), 3.0, device=kernels.device)
    kernels.module.sketch(values(2, 100).to(kernels.device), SEED, 5, total)
    assert error(total.cpu(), sketch_on_cpu(values(2, 100), 5) + 3) < 1e-5, "shares of the sketch overwrite each other"


def test_other_float_types_go_through_float32(kernels: Kernels) -> None:
    for dtype in (torch.float16, torch.float64):
        given = values(2, 100).to(dtype)
        off = error(dense(kernels, given, 5, Tag.GAUSSIAN, 24), dense_on_cpu(given, 5, Tag.GAUSSIAN, 24))
        assert off < 1e-5, f"{dtype} is taken for another type ({off:.1e})"


def test_the_interpreter_leaves_triton_as_it_was() -> None:
    importlib.import_module("pipeline.projection.gpu")
    before = {
        name: module for name, module in sys.modules.items() if name.startswith(("triton", "pipeline.projection"))
    }
    with interpreted() as module:
        assert type(module._gaussian).__name__ == "InterpretedFunction", "this is no test of the interpreter"
    changed = [name for name, module in before.items() if sys.modules.get(name) is not module]
    assert changed == [], "the rest of the session has another Triton"
    assert pipeline.projection.gpu is before["pipeline.projection.gpu"], (
        "a GPU session goes on with interpreted kernels"
    )


# --- on CUDA only: sizes at which tensor cores and many programs matter ----------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_on_cuda_are_those_on_cpu(kind: Kind, dtype: torch.dtype) -> None:
    given, p = values(3, 3_000_001).to(dtype), Projection(kind, 512, 7)
    for offset in (5, (1 << 31) - 1_000_000, (1 << 32) - 1_000_000):
        off = error(p(given.cuda(), offset).cpu(), p(given, offset))
        assert off < 1e-5, f"{kind}, {dtype}, {offset=}: features on CUDA are off by {off:.1e}"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
def test_tensor_cores_do_not_drift_on_long_sums_that_grow_all_the_way(kind: Kind) -> None:
    """Against its own first row every product is positive, and rounding toward zero would add up."""
    n = 4_000_000
    if kind == "rademacher":
        row = philox.rademacher(0, 8, 0, n, "cpu")[:, 0]
    else:
        row = philox.gaussian(0, 8, 0, n, "cpu", Tag.GAUSSIAN)[:, 0]
    p = Projection(kind, 8)
    drift = abs(float(p(row.cuda())[0]) / float(p(row)[0]) - 1)
    assert drift < 1e-5, f"{kind}: a long sum on CUDA loses {drift:.1e}: it is not closed often enough"
