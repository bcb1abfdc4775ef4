"""Compiled blocks: the same features and training, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pipeline import models
from pipeline.attribution import fingerprints
from pipeline.attribution.gradients import ProjectedGradients, take_clip
from pipeline.config import Finetune, Run, load
from pipeline.config.attribution import Setting
from pipeline.errors import ConfigError
from pipeline.models import VideoModel
from pipeline.models.conditioning import split
from pipeline.projection import Projection
from pipeline.stages import attribution
from pipeline.training import loop
from pipeline.training.training_set import ClipSet, EncodedClip
from tests.support import tiny_wan

SETTINGS = (Setting(mask="motion"), Setting(mask="none"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_wan.folder(tmp_path_factory)


def run(folder: Path, compiled: bool, **changes: object) -> Run:
    return load("demo", {"model.id": str(folder), "model.compile": compiled, **changes})


def feature(model: VideoModel) -> torch.Tensor:
    """Of two settings, after another of one alone, as an actor takes its canary first."""
    drawn = torch.Generator().manual_seed(5)
    latent, text = torch.randn(8, 3, 4, 4, generator=drawn), torch.randn(6, 64, generator=drawn)
    gradients = ProjectedGradients(model.trained, Projection("gaussian", 32, 0))
    take_clip(gradients, model, SETTINGS[1:], latent, {"text": text}, None, seed=0)
    take_clip(gradients, model, SETTINGS, latent, {"text": text}, torch.rand(3, 4, 4, generator=drawn), seed=0)
    features, _ = gradients.collect()
    gradients.close()
    return features


def losses(model: VideoModel, rank: int | None) -> list[float]:
    frames = np.random.default_rng(0).integers(0, 255, (9, 32, 32, 3), np.uint8)
    latent, given = split(model.encode(frames, 8.0))
    encoded = EncodedClip({"latent": latent, **given}, (model.text("a ball"),))
    config = Finetune(steps=3, batch=2, learning_rate=1e-3, lora_rank=rank)
    clips = ClipSet(model, [{"clip_id": "a clip"}], lambda row: encoded)
    return [line.loss for line in loop.train(loop.begin(model, config, 0), clips, config, 0)]


@pytest.mark.whole
def test_compiled_blocks_give_the_same_features_and_training(folder: Path) -> None:
    plain, compiled = (models.open_model(run(folder, way).model, torch.device("cpu")) for way in (False, True))
    assert torch.nn.functional.cosine_similarity(feature(plain), feature(compiled)).min() > 0.999999
    np.testing.assert_allclose(losses(compiled, None), losses(plain, None), rtol=1e-4)
    plain, compiled = (models.open_model(run(folder, way).model, torch.device("cpu")) for way in (False, True))
    np.testing.assert_allclose(losses(compiled, 4), losses(plain, 4), rtol=1e-4)


def test_features_of_both_ways_do_not_mix(folder: Path) -> None:
    plain, compiled = run(folder, False), run(folder, True)
    assert fingerprints.features(compiled) == {**fingerprints.features(plain), "model.compile": True}
    assert fingerprints.evaluation(compiled) == {**fingerprints.evaluation(plain), "model.compile": True}


def test_without_a_compiler_it_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"this machine has no (clan)?g\+\+.*model.compile: false"):
        models.open_model(run(folder, True).model, torch.device("cpu"))
    with pytest.raises(ConfigError, match="this machine has no"):
        attribution.check(run(folder, True), "curate")


def test_blocks_of_main_memory_are_not_compiled(folder: Path) -> None:
    changes = {"attribution.blocks": "host", "model.gradient_checkpointing": True}
    with pytest.raises((ConfigError, ValidationError), match=r"model\.compile: false"):
        run(folder, True, **changes)
