"""RAFT over a whole clip against torchvision's own forward, and bfloat16 against float32."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.optical_flow import raft_large

from jobs.benchmarks.agreement import compare, masks
from pipeline.config import load
from pipeline.motion import load_raft
from pipeline.motion.raft import clip_flow
from pipeline.synthetic import world

CPU = torch.device("cpu")
RECIPE = load("demo").motion
MODELS = ("small, trained", "large, random")


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"small, trained": load_raft(RECIPE, CPU), "large, random": raft_large(weights=None).eval()}


def images(frames: int = 5, motion: str = "slide") -> Tensor:
    clip = world.render(world.scene(0, "x", "real", motion, frames=frames), 32, 32)
    return F.interpolate(torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 127.5 - 1, (128, 136), mode="bilinear")


@torch.no_grad()
def by_torchvision(model: nn.Module, clip: Tensor, updates: int) -> Tensor:
    return torch.cat([model(a[None], b[None], updates)[-1] for a, b in pairwise(clip)])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("updates", [1, 3])
def test_it_is_torchvisions_forward_in_float32(models: dict[str, nn.Module], name: str, updates: int) -> None:
    clip = images(4)
    expected = by_torchvision(models[name], clip, updates)
    flow = clip_flow(models[name], clip, updates, 8)
    assert flow.dtype == torch.float32
    assert flow.shape == expected.shape == (3, 2, 128, 136)
    assert float((flow - expected).abs().max()) < 1e-4 * float(expected.abs().max()), "another flow than torchvision's"


@pytest.mark.parametrize("name", MODELS)
def test_a_pair_does_not_depend_on_the_pairs_beside_it(models: dict[str, nn.Module], name: str) -> None:
    clip = images(5)
    whole = clip_flow(models[name], clip, 2, 8)
    assert torch.equal(clip_flow(models[name], clip, 2, 8), whole), "the same call gives other bits"
    scale = float(whole.abs().max())
    for batch in (1, 3):
        assert float((clip_flow(models[name], clip, 2, batch) - whole).abs().max()) < 1e-4 * scale, f"batch {batch}"
    other = torch.cat([clip[:2], images(5, "spin")[2:]])
    assert float((clip_flow(models[name], other, 2, 8)[0] - whole[0]).abs().max()) < 1e-4 * scale, "pairs mix"


def test_every_frame_is_encoded_once_and_one_flow_is_enlarged(models: dict[str, nn.Module]) -> None:
    """Less work, which is what it is for: frames not pairs through the encoder, the mask head once."""
    model, seen = models["large, random"], {"frames": 0, "enlarged": 0}
    handles = [
        model.feature_encoder.register_forward_hook(lambda m, i, o: seen.update(frames=seen["frames"] + len(o))),
        model.mask_predictor.register_forward_hook(lambda m, i, o: seen.update(enlarged=seen["enlarged"] + len(o))),
    ]
    clip = images(5)
    with FlopCounterMode(display=False) as own:
        clip_flow(model, clip, 2, 2)
    for handle in handles:
        handle.remove()
    assert seen == {"frames": 5, "enlarged": 4}
    with FlopCounterMode(display=False) as theirs:
        by_torchvision(model, clip, 2)
    assert own.get_total_flops() < 0.85 * theirs.get_total_flops()


@pytest.mark.slow
def test_masks_in_bfloat16_stay_within_two_per_cent(models: dict[str, nn.Module]) -> None:
    """With the shipped weights, on clips of all ten motions that training has not seen. A CPU that only emulates
    bfloat16 takes half a minute for each, so there are three of them there."""
    motions = world.MOTIONS if torch.ops.mkldnn._is_mkldnn_bf16_supported() else world.MOTIONS[:3]
    clips = [
        world.render(world.scene(1_000_003, f"agreement-{m}", "real", m, pan=float(i % 2)), 64, 64)
        for i, m in enumerate(motions)
    ]
    made = {
        dtype: masks(clips, models["small, trained"], RECIPE.model_copy(update={"dtype": dtype}), (32, 32), 2, CPU)
        for dtype in ("float32", "bfloat16")
    }
    assert any(
        not torch.equal(a, b) for a, b in zip(made["float32"], made["bfloat16"], strict=True) if a is not None
    ), "bfloat16 is not in use"
    for motion, exact, rounded in zip(motions, made["float32"], made["bfloat16"], strict=True):
        agreement = compare([rounded], [exact])
        assert agreement.lost == 0, f"{motion}: still under one dtype, moving under the other"
        assert agreement.difference < 0.02, f"{motion}: the mask differs by {agreement.difference:.1%} of its mean"
        assert agreement.pearson > 0.999, f"{motion}: {agreement.pearson:.5f}"


@pytest.mark.parametrize("name", MODELS)
def test_what_must_be_exact_is_float32_in_bfloat16(models: dict[str, nn.Module], name: str) -> None:
    """Coordinates of 416 columns need nine bits and their fractions; bfloat16 has eight in all."""
    model, seen = models[name], {}
    lookup = model.corr_block.index_pyramid

    def watched(centroids_coords: Tensor) -> Tensor:
        seen["coordinates"], seen["volume"] = centroids_coords.dtype, model.corr_block.corr_pyramid[0].dtype
        correlation: Tensor = lookup(centroids_coords)
        seen["looked up"] = correlation.dtype
        return correlation

    handles = [
        model.update_block.register_forward_hook(
            lambda m, given, out: seen.update(hidden=out[0].dtype, inner=out[1].dtype)
        ),
        model.feature_encoder.register_forward_hook(lambda m, given, out: seen.update(features=out.dtype)),
    ]
    model.corr_block.index_pyramid = watched
    try:
        flow = clip_flow(model, images(3), 2, 8, torch.bfloat16)
    finally:
        del model.corr_block.index_pyramid
        for handle in handles:
            handle.remove()
    assert seen.pop("inner") == torch.bfloat16, "the convolutions are not in bfloat16"
    assert set(seen.values()) == {torch.float32}, f"not all of these are exact: {seen}"
    assert flow.dtype == torch.float32


def test_a_model_that_is_not_raft_is_refused() -> None:
    with pytest.raises(TypeError, match="Identity"):
        clip_flow(nn.Identity(), images(2), 1, 1)
