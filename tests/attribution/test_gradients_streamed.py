"""Gradients taken as they arrive: what they cost in memory, and what is done once for all losses of a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline import config
from pipeline.attribution.gradients import LAST_STAGE, ProjectedGradients, squared_norm
from pipeline.config.attribution import Kind
from pipeline.errors import ConfigError
from pipeline.projection import Projection, cpu, fastfood
from tests.support.oracle import project

every_kind = pytest.mark.parametrize("kind", get_args(Kind))
LAYERS, SIDE = 8, 1024
ONE = SIDE * SIDE * 4  # bytes of one parameter's gradient


class Deep(nn.Module):
    """Eight parameters of 4 MiB each, and activations that are small beside them."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.ParameterList(torch.randn(SIDE, SIDE, generator=generator) / SIDE**0.5 for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(x @ layer)
        return x.square().sum()


class Alive(TorchDispatchMode):
    """The most bytes that were alive at once of all that operations gave while this was on, but for the parameters."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.peak = 0
        self._parameters = {StorageWeakRef(p.untyped_storage()).cdata for p in module.parameters()}
        self._known: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._known = {k: (ref, size) for k, (ref, size) in self._known.items() if not ref.expired()}
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                if reference.cdata not in self._parameters:
                    self._known[reference.cdata] = (reference, storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self._known.values()))
        return result


@pytest.fixture(scope="module")
def deep() -> Deep:
    return Deep()


@contextmanager
def hooked(module: nn.Module, hook: Callable[[Tensor], None]) -> Iterator[None]:
    handles = [p.register_post_accumulate_grad_hook(hook) for p in module.parameters()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        module.zero_grad()


def drop(parameter: Tensor) -> None:
    parameter.grad = None


def peak_of_backward(module: Deep, hook: Callable[[Tensor], None]) -> float:
    with Alive(module) as alive, hooked(module, hook):
        module(torch.ones(2, SIDE)).backward()
    return alive.peak / ONE


@every_kind
def test_streaming_takes_one_gradient_more_than_forward_and_backward(deep: Deep, kind: Kind) -> None:
    """Beside the sums; what tensors of torch take, not the kernels' own few KiB."""
    gradients = ProjectedGradients(deep, Projection(kind, 64))
    with Alive(deep) as alive:
        gradients.take(deep(torch.ones(2, SIDE)))
    gradients.close()
    sums = gradients.projection.zeros(LAST_STAGE, "cpu").nbytes
    more = (alive.peak - sums) / ONE - peak_of_backward(deep, drop)
    assert more < 1.1, f"{kind}: {more:.1f} gradients lie in memory beside the one in work"


def test_the_measure_of_memory_sees_gradients_that_stay(deep: Deep) -> None:
    retained, dropped = peak_of_backward(deep, lambda parameter: None), peak_of_backward(deep, drop)
    assert retained - dropped > LAYERS - 2, (
        f"gradients that stay in memory are not seen: {retained:.1f}, {dropped:.1f} at most"
    )
    assert dropped < 2, f"gradients that are freed are seen as if they stayed: {dropped:.1f} at most"


@every_kind
def test_no_gradient_waits_for_another(deep: Deep, kind: Kind) -> None:
    waiting = []
    gradients = ProjectedGradients(deep, Projection(kind, 8))
    with hooked(deep, lambda _: waiting.append(sum(p.grad is not None for p in deep.parameters()))):
        gradients.take(deep(torch.ones(1, SIDE)))
    gradients.close()
    assert waiting == [0] * LAYERS, f"{kind}: up to {max(waiting)} gradients are there after one has been projected"


# --- what losses of a block share ------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.first = nn.Parameter(torch.randn(150, 130, generator=generator))
        self.second = nn.Parameter(torch.randn(130, generator=generator))

    def loss(self, clip: int) -> Tensor:
        x = torch.randn(150, generator=torch.Generator().manual_seed(clip))
        return torch.tanh(x @ self.first / 150**0.5 + self.second).square().sum()


def collected(kind: Kind, every: int, hold: int = 1) -> tuple[Tensor, Tensor]:
    """Features and norms of five losses, collected after so many each."""
    module = Small()
    gradients, parts = ProjectedGradients(module, Projection(kind, 136, seed=3), hold), []
    for clip in range(5):
        gradients.take(module.loss(clip))
        if (clip + 1) % every == 0:
            parts.append(gradients.collect())
    gradients.close()
    return torch.cat([f for f, _ in parts]), torch.cat([n for _, n in parts])


@every_kind
def test_collecting_one_by_one_or_all_at_once_gives_the_same_bits(kind: Kind) -> None:
    singly, together = collected(kind, 1), collected(kind, 5)
    assert torch.equal(singly[0], together[0]), f"{kind}: a feature depends on what it is collected with"
    assert torch.equal(singly[1], together[1]), f"{kind}: a norm depends on what it is collected with"


@pytest.mark.parametrize(("kind", "hold"), [*((kind, 1) for kind in get_args(Kind)), ("gaussian", 2)])
def test_more_losses_than_the_last_stage_takes_at_once_give_the_same_bits(
    kind: Kind, hold: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = collected(kind, 5, hold)
    for at_once in (1, 2, 3):
        monkeypatch.setattr("pipeline.attribution.gradients.LAST_STAGE", at_once)
        actual = collected(kind, 5, hold)
        assert torch.equal(actual[0], expected[0]), f"{kind}: sums of {at_once} losses mix with the next ones"
        assert torch.equal(actual[1], expected[1]), f"{kind}: norms of {at_once} losses mix with the next ones"


class Mixed(nn.Module):
    """Small parameters of two types; one of them does not count, and one gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        types = [torch.float32, torch.float32, torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
        self.parts = nn.ParameterList(torch.randn(70 + i, generator=generator).to(t) for i, t in enumerate(types))
        self.parts[4].requires_grad_(False)

    def loss(self, clip: int) -> Tensor:
        used = [p.float() for i, p in enumerate(self.parts) if i != 1]
        return torch.cat([((clip + 2) * p).sin() for p in used]).sum()


@pytest.mark.parametrize("hold", [1, 2])
@pytest.mark.parametrize("joined", [0, 100, 145, 1 << 20])
def test_small_parameters_that_are_projected_together_keep_their_coordinates(
    hold: int, joined: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.attribution.gradients.JOINED", joined)
    module = Mixed()
    gradients = ProjectedGradients(module, Projection("gaussian", 16, seed=4), hold)
    for clip in range(3):
        gradients.take(module.loss(clip))
    features, norms = gradients.collect()
    gradients.close()
    for clip in range(3):
        module.zero_grad()
        module.loss(clip).backward()
        full = torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.float() for p in module.parameters()])
        expected = project("gaussian", 16, 4, full[None])[0]
        off = float((features[clip] - expected).norm() / expected.norm())
        assert off < 1e-6, f"joined up to {joined}: a parameter is projected at another's coordinates ({off:.1e})"
        assert abs(float(norms[clip] / full.double().norm()) - 1) < 1e-6, f"joined up to {joined}: another norm"


@pytest.mark.parametrize(
    ("kind", "module", "stage"), [("sketched_gaussian", cpu, "dense"), ("fastfood", fastfood, "finish")]
)
def test_the_last_stage_runs_once_for_all_losses_of_a_block(
    kind: Kind, module: Any, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    real = getattr(module, stage)

    def counted(values: Tensor, *others: Any) -> Any:
        rows.append(len(values))
        return real(values, *others)

    monkeypatch.setattr(module, stage, counted)
    collected(kind, 5)
    assert rows == [5], f"{kind}: the last stage ran {len(rows)} times for one block of five losses"


@pytest.mark.parametrize("kind", ["sketched_gaussian", "fastfood"])
def test_kinds_that_share_no_generation_cannot_be_held(kind: Kind) -> None:
    with pytest.raises(ValueError, match=f"hold=2.*{kind}.*hold=1"):
        ProjectedGradients(Small(), Projection(kind, 16), hold=2)
    values = {"root": "runs/none", "attribution.hold": 2, "attribution.projection.kind": kind}
    with pytest.raises(ConfigError, match=f"hold=2.*{kind}.*use 1"):
        config.load("demo", values)
    assert config.load("demo", values | {"attribution.hold": 1}).attribution.projection.kind == kind


@pytest.mark.parametrize("n", [1, 4095, 4096, 4097, 10_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_squared_norms_are_those_of_float64(n: int, dtype: torch.dtype) -> None:
    flat = (torch.randn(n, generator=torch.Generator().manual_seed(n)) * 1e-3).to(dtype)
    exact = float(flat.double().square().sum())
    squared = squared_norm(flat)
    assert squared.dtype == torch.float64
    assert abs(float(squared) / exact - 1) < 3e-6, f"{n} values of {dtype}: |g|^2 is off, or its end is left out"


def test_squared_norms_of_long_gradients_do_not_drift() -> None:
    flat = torch.full((3_000_001,), 0.1, dtype=torch.bfloat16)
    exact = float(flat[0].double() ** 2 * len(flat))
    assert abs(float(squared_norm(flat)) / exact - 1) < 1e-5, "the norm of a long gradient loses its small numbers"
