"""Weights of a byte each: what storing them costs, and that gradients are those of a model that was rounded before."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.config import Finetune
from pipeline.errors import ConfigError
from pipeline.models import fp8
from pipeline.models.conditioning import batched, split
from pipeline.models.diffusers_model import DiffusersModel
from pipeline.models.loss import loss_map
from pipeline.training import loop
from tests.support import tiny_pipelines

QUICK = ("wan2.1", "wan2.2-a14b", "ltx-video", "cogvideox-5b", "hunyuanvideo-1.5")
FAMILIES = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in tiny_pipelines.TINY]


def weights(deviation: float = 0.02) -> Tensor:
    weight = deviation * torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    weight[5] *= 1e-30
    weight[7, 0] = 5.0
    return weight


def layer(dtype: torch.dtype = torch.float32) -> nn.Linear:
    linear = nn.Linear(96, 64).to(dtype).requires_grad_(False)
    linear.weight.copy_(weights())
    return linear


def rounded(linear: nn.Linear) -> None:
    """Give a layer the numbers that storing them would leave of its own."""
    weight = linear.weight
    weight.data = fp8.restored(*fp8.compressed(weight.data), weight.dtype)


def round_linears(model: DiffusersModel) -> None:
    """The oracle: an ordinary model with rounded weights."""
    for transformer in model.transformers().values():
        for name, module in transformer.named_modules():
            inside = any(name.startswith(f"{n}.") for n, m in transformer.named_children() if type(m) is nn.ModuleList)
            if type(module) is nn.Linear and inside and not re.search("norm|modulation", name):
                rounded(module)


# --- one weight -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_storing_rounds_each_number_by_a_sixteenth_at_most(dtype: torch.dtype) -> None:
    weight = weights().to(dtype)
    codes, scale = fp8.compressed(weight)
    restored = fp8.restored(codes, scale, dtype)
    assert codes.dtype == torch.uint8
    assert codes.shape == weight.shape
    assert scale.dtype == dtype
    near = weight.abs() > weight.abs().amax(1, keepdim=True) / 8192
    assert ((restored - weight).abs()[near] <= weight.abs()[near] / 16).all()
    rows = [row for row in range(64) if row != 7]
    assert (restored - weight)[rows].norm() / weight[rows].norm() < 0.03
    assert torch.equal(restored[3], torch.zeros_like(restored[3])), "a row of zeros stays one"
    assert torch.equal(fp8.restored(codes, scale, torch.float32).to(dtype), restored), "a byte is turned back exactly"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_storing_again_changes_nothing(dtype: torch.dtype) -> None:
    once = fp8.restored(*fp8.compressed(weights().to(dtype)), dtype)
    assert torch.equal(fp8.restored(*fp8.compressed(once), dtype), once)


def test_the_scale_of_a_model_does_not_matter() -> None:
    """Without scales, weights of a deviation of 0.005 would lose four times as much: they are among the smallest."""
    errors = []
    for deviation in (0.5, 0.005):
        weight = weights(deviation)[10:]
        errors.append(float((fp8.restored(*fp8.compressed(weight), weight.dtype) - weight).norm() / weight.norm()))
    assert errors[0] == pytest.approx(errors[1], rel=0.05)
    assert (weight.to(fp8.FLOAT8).float() - weight).norm() / weight.norm() > 3 * errors[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_is_one_with_rounded_weights(dtype: torch.dtype) -> None:
    linear, stored = layer(dtype), fp8.Fp8Linear(layer(dtype))
    stored.bias = linear.bias
    rounded(linear)
    values = []
    for module in (linear, stored):
        inputs = torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
        output = module(inputs)
        output.square().sum().backward()
        values.append((output, inputs.grad))
    assert all(torch.equal(a, b) for a, b in zip(*values, strict=True))


def test_a_layer_computes_in_the_dtype_of_autocast() -> None:
    linear, stored = layer(), fp8.Fp8Linear(layer())
    stored.bias = linear.bias
    rounded(linear)
    inputs = torch.randn(3, 96, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        expected, outputs = linear(inputs), stored(inputs)
    assert outputs.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(outputs, expected)
    (gradient,) = torch.autograd.grad(outputs.sum(), inputs)
    (other,) = torch.autograd.grad(expected.sum(), inputs)
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(gradient, other)


def test_nothing_of_full_width_waits_for_the_backward_pass() -> None:
    stored, saved_tensors = fp8.Fp8Linear(layer()), list[Tensor]()

    def note(tensor: Tensor) -> Tensor:
        saved_tensors.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        stored(torch.randn(3, 96, requires_grad=True))
    assert sorted(tensor.nbytes for tensor in saved_tensors) == [4 * 64, 64 * 96], "the bytes and the scales"


def test_a_change_of_the_models_dtype_leaves_the_bytes_alone() -> None:
    stored = fp8.Fp8Linear(layer(torch.bfloat16))
    before = stored.weight.clone()
    stored.to(torch.float32)
    assert stored.weight.dtype == torch.uint8
    assert torch.equal(stored.weight, before)
    assert [name for name, p in stored.named_parameters() if p.requires_grad] == []


# --- a model ----------------------------------------------------------------------------------------------------------


def gradients(model: DiffusersModel, family: str, how: Any) -> tuple[float, dict[str, Tensor]]:
    """The loss of a clip at all of the family's times, and the gradients of adapters that have learnt something."""
    tiny = tiny_pipelines.TINY[family]
    training = loop.begin(model, Finetune(lora_rank=4, steps=1, frozen_weights=how), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in training.parameters.values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    frames = np.random.default_rng(0).integers(0, 256, (*tiny.geometry, 3), np.uint8)
    latent, given = split(model.encode(frames, 8.0))
    conditioning = batched([{**given, **model.text("a ball")}])
    noise = torch.randn(latent[None].shape, generator=generator)
    total = torch.zeros(())
    for timestep in tiny.timesteps:
        total = total + loss_map(model, latent[None], conditioning, torch.tensor([timestep]), noise).mean()
    total.backward()
    return total.item(), {n: p.grad for n, p in training.parameters.items() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_adapters_are_those_of_a_rounded_model(
    family: str, checkpointing: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tiny_pipelines.folder(tmp_path_factory, family)
    oracle = tiny_pipelines.opened(folder, family)
    round_linears(oracle)
    expected, own = gradients(oracle, family, "full")
    model = tiny_pipelines.opened(folder, family, gradient_checkpointing=checkpointing)
    loss, stored = gradients(model, family, "fp8")
    assert loss == pytest.approx(expected, rel=1e-6)
    assert stored.keys() == own.keys()
    assert len(own) > 0
    for name, gradient in own.items():
        assert (stored[name] - gradient).norm() <= 1e-5 * gradient.norm(), name
    whole, _ = gradients(tiny_pipelines.opened(folder, family), family, "full")
    assert whole != pytest.approx(expected, rel=1e-6), "rounding changes nothing, so that this test shows nothing"


@pytest.mark.parametrize("family", FAMILIES)
def test_linear_layers_of_blocks_are_stored_and_nothing_else(
    family: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = tiny_pipelines.opened(tiny_pipelines.folder(tmp_path_factory, family), family)
    before = {name: p.dtype for name, p in model.trained.named_parameters()}
    fp8.compress(model)
    fp8.compress(model)
    stored = {n for n, m in model.trained.named_modules() if isinstance(m, fp8.Fp8Linear)}
    parameters = dict(model.trained.named_parameters())
    assert {n for n, p in parameters.items() if p.dtype == torch.uint8} == {f"{n}.weight" for n in stored}
    assert all(parameters[n].dtype == dtype for n, dtype in before.items() if n.removesuffix(".weight") not in stored)
    assert all("block" in name for name in stored)
    assert not [name for name in stored if "norm" in name or "modulation" in name]
    assert {n.rpartition(".")[2] for n in stored} >= {
        t for t in model.lora_targets() if "." not in t and "add" not in t
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_are_counted_before_a_weight_is_loaded(
    family: str, dtype: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = tiny_pipelines.opened(tiny_pipelines.folder(tmp_path_factory, family), family, dtype=dtype)
    parts = model.transformers()
    skeleton = model.family.skeleton()
    skeletons = dict(skeleton.named_children()) if len(parts) > 1 else {"transformer": skeleton}
    for stored in (False, True):
        if stored:
            fp8.compress(model)
        for part, transformer in parts.items():
            parameter_bytes = sum(p.nbytes for p in transformer.parameters())
            assert fp8.frozen_bytes(skeletons[part], getattr(torch, dtype), stored) == parameter_bytes, part


def test_a_transformer_without_linear_layers_in_blocks_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = tiny_pipelines.opened(tiny_pipelines.folder(tmp_path_factory, "wan2.1"), "wan2.1")
    model.trained.blocks = nn.Sequential(*model.trained.blocks)  # type: ignore[operator,misc]
    with pytest.raises(ConfigError, match=r"finetune\.frozen_weights='fp8': transformer, a WanTransformer3DModel"):
        fp8.compress(model)


def test_a_model_is_stored_before_it_comes_to_its_device(tmp_path_factory: pytest.TempPathFactory) -> None:
    """On the meta device no number can be read, so that what is stored there was stored before."""
    folder = Path(tiny_pipelines.folder(tmp_path_factory, "wan2.2-a14b"))
    asked = tiny_pipelines.config(folder, "wan2.2-a14b")
    model = loop.opened(asked, Finetune(lora_rank=2, frozen_weights="fp8"), torch.device("meta"))
    assert {p.device.type for p in model.trained.parameters()} == {"meta"}
    for transformer in model.transformers().values():
        assert any(isinstance(m, fp8.Fp8Linear) for m in transformer.modules())
