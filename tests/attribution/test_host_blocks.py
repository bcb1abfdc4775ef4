"""A transformer whose blocks wait in main memory has the features of one that lies on its device whole."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline import config
from pipeline.attribution import host_blocks
from pipeline.attribution.decomposition import LayeredGradient, by_frame
from pipeline.attribution.gradients import ProjectedGradients, restrict, take_clip
from pipeline.attribution.host_blocks import HostBlocks
from pipeline.config.attribution import Setting
from pipeline.errors import ConfigError
from pipeline.models.conditioning import split
from pipeline.models.diffusers_model import DiffusersModel
from pipeline.projection import Projection
from tests.support import tiny_pipelines

CPU, DIM = torch.device("cpu"), 64
FAMILIES = ["wan2.1", "wan2.2-a14b", "ltx-video", "ltx-2", "cogvideox-5b"]


def opened(factory: pytest.TempPathFactory, family: str, **changes: object) -> DiffusersModel:
    path = tiny_pipelines.folder(factory, family)
    return tiny_pipelines.opened(path, family, **{"gradient_checkpointing": True, **changes})


def features(
    model: DiffusersModel, family: str, host: HostBlocks | None, parameters: str = ".*"
) -> tuple[Tensor, Tensor]:
    """Features and norms of two clips under both masks."""
    tiny = tiny_pipelines.TINY[family]
    restrict(model.trained, parameters, model.family.idle)
    gradients = ProjectedGradients(model.trained, Projection("gaussian", DIM, seed=4), host=host)
    settings = [Setting(timestep=t, mask=m) for t in tiny.timesteps for m in ("motion", "none")]
    for seed in (0, 1):
        frames, height, width = tiny.geometry
        video = np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)
        latent, given = split(model.encode(video, 8.0))
        mask = torch.rand(latent.shape[1:], generator=torch.Generator().manual_seed(seed)).to(latent.device)
        take_clip(gradients, model, settings, latent, {**given, **model.text("a ball")}, mask, 0)
    features_and_norms = gradients.collect()
    gradients.close()
    return features_and_norms


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_same_to_the_bit(tmp_path_factory: pytest.TempPathFactory, family: str) -> None:
    """Of every counted parameter: also those outside the blocks, and of two experts."""
    whole = features(opened(tmp_path_factory, family), family, None)
    model = opened(tmp_path_factory, family)
    streamed = features(model, family, HostBlocks(model, CPU))
    assert float(whole[1].min()) > 0
    for name, one, other in zip(("features", "norms"), whole, streamed, strict=True):
        assert torch.equal(one, other), f"{name} of {family} differ by {float((one - other).abs().max()):g}"
    assert all(parameter.grad is None for parameter in model.trained.parameters()), "a gradient is left behind"


def test_an_explanation_is_the_same_to_the_bit(tmp_path_factory: pytest.TempPathFactory) -> None:
    """By layers and latent frames."""
    parts = []
    for on_host in (False, True):
        model = opened(tmp_path_factory, "wan2.1")
        host = HostBlocks(model, CPU) if on_host else None
        gradient = LayeredGradient(model.trained, Projection("gaussian", DIM, seed=4), True, host)
        latent, given = split(model.encode(np.zeros((5, 16, 32, 3), np.uint8), 8.0))
        conditioning = {**given, **model.text("a ball")}
        parts.append(by_frame(gradient, model, Setting(mask="none"), latent, conditioning, None, 0))
        gradient.close()
    for (loss, feature), (other_loss, other) in zip(*parts, strict=True):
        assert loss == other_loss
        assert torch.equal(feature, other)
        assert bool((feature != 0).any(1).all()), "a layer has no share"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_they_are_the_same_but_for_rounding(tmp_path_factory: pytest.TempPathFactory) -> None:
    whole = features(opened(tmp_path_factory, "wan2.1"), "wan2.1", None)[0]
    model = opened(tmp_path_factory, "wan2.1")
    host = HostBlocks(model, torch.device("cuda"))
    assert {p.device.type for p in model.blocks(model.trained)[0].parameters()} == {"cpu"}
    streamed = features(model, "wan2.1", host)[0]
    assert float(torch.cosine_similarity(whole, streamed).min()) > 0.999


def test_parameters_share_a_few_pieces_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any type and size, one that is larger than a piece too; and each is what it was."""
    monkeypatch.setattr(host_blocks, "CHUNK", 1024)
    requests: list[int] = []

    def allocate(count: int) -> Tensor:
        requests.append(count)
        return torch.empty(count, dtype=torch.uint8)

    shapes = [(3, 5), (700,), (2, 2), (), (10, 10)]
    types = [torch.float32, torch.float32, torch.bfloat16, torch.float32, torch.bfloat16]
    parameters = [nn.Parameter(torch.randn(s).to(t)) for s, t in zip(shapes, types, strict=True)]
    before = [p.data.clone() for p in parameters]
    host_blocks.pack(parameters, allocate)
    assert requests == [1024, 2816, 768], "the last piece is as large as what is left"
    for parameter, values in zip(parameters, before, strict=True):
        assert parameter.data.equal(values)
        assert parameter.dtype == values.dtype
    assert len({p.untyped_storage().data_ptr() for p in parameters}) == 3


def test_a_part_of_the_parameters(tmp_path_factory: pytest.TempPathFactory) -> None:
    pattern, family = r"blocks\.1\.", "wan2.1"
    whole = features(opened(tmp_path_factory, family), family, None, pattern)
    model = opened(tmp_path_factory, family)
    assert torch.equal(features(model, family, HostBlocks(model, CPU), pattern)[0], whole[0])


def test_without_a_sink_gradients_are_the_parameters_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    models = [opened(tmp_path_factory, "wan2.1") for _ in range(2)]
    HostBlocks(models[1], CPU)
    for model in models:
        latent, given = split(model.encode(np.zeros((5, 16, 32, 3), np.uint8), 8.0))
        batch = {name: value[None] for name, value in {**given, **model.text("a ball")}.items()}
        model.predict(latent[None], torch.tensor([751.0]), batch).square().mean().backward()
    named = [dict(model.trained.named_parameters()) for model in models]
    assert list(named[0]) == list(named[1]), "names of parameters changed"
    for name, parameter in named[0].items():
        other = named[1][name].grad
        assert (parameter.grad is None) == (other is None), name
        assert parameter.grad is None or torch.equal(parameter.grad, other), name


def resident() -> int:
    """Bytes of this process that are in memory, without those that were freed and kept for later."""
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_one_block_is_there_at_a_time(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Eight blocks whose copies and gradients would be seen in the process's memory."""
    model = opened(tmp_path_factory, "wan2.1")
    small = model.trained.config
    heads = {"num_attention_heads": 6, "attention_head_dim": 128, "ffn_dim": 3072, "num_layers": 8}
    model.trained = diffusers.WanTransformer3DModel.from_config({**small, **heads}).eval()
    model.trained.enable_gradient_checkpointing()
    host = HostBlocks(model, CPU)
    size = 4 * sum(p.numel() for p in model.blocks(model.trained)[0].parameters())
    seen = list[int]()
    host.sink = lambda parameter, gradient: seen.append(resident())
    latent, given = split(model.encode(np.zeros((5, 16, 32, 3), np.uint8), 8.0))
    batch = {name: value[None] for name, value in {**given, **model.text("a ball")}.items()}
    for _ in range(2):  # the first time warms what libraries keep
        before = resident()
        loss = model.predict(latent[None], torch.tensor([751.0]), batch).square().mean()
        after_forward = resident() - before
        loss.backward()
        model.trained.zero_grad(set_to_none=True)
    assert after_forward < size, f"the forward pass leaves {after_forward / size:.1f} blocks"
    assert max(seen) - before < 2.5 * size, f"the backward pass holds {(max(seen) - before) / size:.1f} blocks"


def test_what_cannot_be_streamed_is_refused(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    model = opened(tmp_path_factory, "wan2.1", gradient_checkpointing=False)
    with pytest.raises(ConfigError, match="gradient_checkpointing"):
        HostBlocks(model, CPU)
    with pytest.raises(ConfigError, match="DiffusersModel"):
        HostBlocks(object(), CPU)
    changes = {"root": str(tmp_path), "attribution.blocks": "host", "model.gradient_checkpointing": False}
    with pytest.raises(ConfigError, match=r"attribution\.blocks='host' needs model\.gradient_checkpointing"):
        config.load("demo", changes)
