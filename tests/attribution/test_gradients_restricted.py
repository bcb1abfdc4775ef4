"""Parameters that do not count cost nothing: neither their gradients nor the backward through what lies before them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.attribution.gradients import restrict
from pipeline.models.adapters.wan import Wan
from pipeline.models.loss import loss_map, masked_mean
from tests.support import tiny_wan

BLOCKS, COUNTED = 6, r"blocks\.[45]\."


@pytest.fixture(params=[False, True], ids=["plain", "checkpointing"])
def wan(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Wan:
    """A model of six blocks of which the last two will count."""
    model = tiny_wan.opened(tiny_wan.folder(tmp_path_factory))
    torch.manual_seed(0)
    model.trained = WanTransformer3DModel.from_config({**model.trained.config, "num_layers": BLOCKS}).eval()
    if request.param:
        model.trained.enable_gradient_checkpointing()
    return model


def loss_of(model: Wan) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    latent, noise = (torch.randn(1, 8, 5, 16, 16, generator=generator) for _ in range(2))
    text = {"text": torch.randn(1, 32, 64, generator=generator)}
    return masked_mean(loss_map(model, latent, text, torch.tensor([751.0]), noise), None)


@contextmanager
def outputs(model: Wan) -> Iterator[dict[int, Tensor]]:
    """What each block gave, by its number, in the forward pass that runs meanwhile."""
    tensors: dict[int, Tensor] = {}

    def keep(number: int) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _module, _given, output: tensors.__setitem__(number, output)

    handles = [block.register_forward_hook(keep(i)) for i, block in enumerate(model.trained.blocks)]
    try:
        yield tensors
    finally:
        for handle in handles:
            handle.remove()


def work(call: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def test_the_gradients_that_count_are_those_of_the_whole_model(wan: Wan) -> None:
    restrict(wan.trained, ".*")
    loss_of(wan).backward()
    whole = {name: p.grad.clone() for name, p in wan.trained.named_parameters() if p.grad is not None}
    wan.trained.zero_grad()
    restrict(wan.trained, COUNTED)
    loss_of(wan).backward()
    gradients = {name: p.grad for name, p in wan.trained.named_parameters() if p.grad is not None}
    expected = [name for name in whole if name.startswith(("blocks.4.", "blocks.5."))]
    assert list(gradients) == expected, "other parameters have a gradient than those that count"
    for name, gradient in gradients.items():
        assert torch.equal(gradient, whole[name]), f"{name}: its gradient changes when others are left out"


def test_no_graph_is_made_before_the_first_block_that_counts(wan: Wan) -> None:
    restrict(wan.trained, COUNTED)
    with outputs(wan) as tensors:
        loss = loss_of(wan)
    for number in range(4):
        assert not tensors[number].requires_grad, f"block {number} is kept for a backward that nothing needs"
    assert tensors[4].requires_grad
    assert tensors[5].requires_grad
    assert not wan.trained.patch_embedding.weight.requires_grad
    loss.backward()
    with_gradient = {name.split(".")[1] for name, p in wan.trained.named_parameters() if p.grad is not None}
    assert with_gradient == {"4", "5"}


def test_what_lies_before_the_first_block_that_counts_is_not_kept(wan: Wan) -> None:
    """Memory: the output of a block is alive after the forward pass only if backward will ask for it."""
    alive = {}
    for pattern in (".*", COUNTED):
        restrict(wan.trained, pattern)
        with outputs(wan) as tensors:
            loss = loss_of(wan)
        watched = {number: weakref.ref(output) for number, output in tensors.items()}
        tensors.clear()
        alive[pattern] = {number for number in range(4) if watched[number]() is not None}
        del loss
    assert alive[".*"] == {0, 1, 2, 3}, "this is no test: nothing is kept for a whole backward either"
    assert alive[COUNTED] <= {3}, f"the outputs of blocks {sorted(alive[COUNTED])} take memory for nothing"


def test_blocks_before_the_first_that_counts_are_not_computed_again(wan: Wan) -> None:
    forward, backward = {}, {}
    for pattern in (".*", COUNTED):
        restrict(wan.trained, pattern)
        losses: list[Tensor] = []
        forward[pattern] = work(lambda losses=losses: losses.append(loss_of(wan)))
        backward[pattern] = work(losses[0].backward)
    assert forward[COUNTED] == forward[".*"]
    assert backward[COUNTED] < 0.42 * backward[".*"], (
        f"backward of two blocks of six takes {backward[COUNTED] / backward['.*']:.0%} of the whole's: earlier blocks "
        "are gone through or computed again"
    )


def test_a_single_late_tensor_costs_next_to_no_backward(wan: Wan) -> None:
    restrict(wan.trained, r"^proj_out\.")
    loss = loss_of(wan)
    assert work(loss.backward) < 0.01 * work(lambda: loss_of(wan)), "the blocks are gone through for the last layer"
