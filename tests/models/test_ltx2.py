"""What is LTX-2's own: a branch of sound, from which the picture is isolated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline import models
from pipeline.config import Finetune
from pipeline.errors import ConfigError
from pipeline.models.conditioning import batched
from pipeline.models.diffusers_model import DiffusersModel
from pipeline.operations import model_checks
from pipeline.operations.model_checks import CheckError, Subject
from pipeline.training import loop
from tests.support import tiny_pipelines
from tests.support.tiny_pipelines import TINY

NAME = "ltx-2"
# What 2.5 has beside 2.3
LATER = {"ff_bias": False, "use_prompt_adaln_single": False, "use_keyframes_abs_pos_embedding": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipelines.folder(tmp_path_factory, NAME)


@pytest.fixture
def subject(folder: Path) -> Subject:
    return subject_of(tiny_pipelines.opened(folder, NAME))


def subject_of(model: DiffusersModel) -> Subject:
    return Subject(model, TINY[NAME].geometry, 12.0, TINY[NAME].timesteps, 2e-5)


def pictures(subject: Subject, isolated: bool) -> Tensor:
    """Predictions of the picture beside silence and beside noise, [2, tokens, C]."""
    latent, conditioning = subject.clip()
    arguments = subject.model.arguments(subject.noise(latent)[None], subject.time(751.0), batched([conditioning]))
    arguments |= {"isolate_modalities": isolated, "return_dict": False}
    silence = arguments["audio_hidden_states"]
    sounds = (silence, torch.randn(silence.shape, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        return torch.cat([subject.model.trained(**{**arguments, "audio_hidden_states": s})[0] for s in sounds])


def test_sound_changes_the_picture_unless_they_are_isolated(subject: Subject) -> None:
    silent, noisy = pictures(subject, isolated=True)
    assert torch.equal(silent, noisy)
    silent, noisy = pictures(subject, isolated=False)
    assert float((silent - noisy).norm() / silent.norm()) > 1e-3, "nothing had to be isolated"


def test_the_check_notices_arguments_that_are_no_idle_ones(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Controls: sound that is not isolated, and a caption that is called idle and left out."""
    arguments: Callable[..., dict[str, Any]] = subject.model.arguments

    def joint(*given: Any) -> dict[str, Any]:
        return {**arguments(*given), "isolate_modalities": False}

    def untold(*given: Any) -> dict[str, Any]:
        own = arguments(*given)
        return {**own, "encoder_hidden_states": torch.zeros_like(own["encoder_hidden_states"])}

    monkeypatch.setattr(subject.model, "arguments", joint)
    with pytest.raises(CheckError, match=r"audio_hidden_states changes the prediction.*isolate_modalities differs"):
        model_checks.check_arguments(subject)
    monkeypatch.setattr(subject.model, "arguments", untold)
    monkeypatch.setattr(type(subject.model), "idle_arguments", ("encoder_hidden_states",))
    with pytest.raises(CheckError, match="encoder_hidden_states changes the prediction"):
        model_checks.check_arguments(subject)


@pytest.mark.parametrize("rank", [None, 2])
def test_what_belongs_to_the_sound_is_not_trained(subject: Subject, rank: int | None) -> None:
    trained = loop.begin(subject.model, Finetune(steps=1, lora_rank=rank), 0).parameters
    assert trained
    assert [name for name in trained if "audio" in name or "a2v" in name or "v2a" in name] == []


def test_what_captions_are_filled_up_with_decides_how_long_they_are(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.text_tokens=12: .* a multiple of 8"):
        models.family(tiny_pipelines.config(folder, NAME, text_tokens=12))


def test_isolation_is_part_of_the_fingerprint(folder: Path) -> None:
    config = tiny_pipelines.config(folder, NAME)
    assert models.family(config).record(config)["model.audio"] == "isolated"


def test_switches_of_later_versions_are_known(tmp_path: Path) -> None:
    """The transformer alone: Gemma 4, which encodes their captions, is not made here."""
    made = tiny_pipelines.ltx2(later=True)
    settings = {k: v for k, v in made.transformer.config.items() if not k.startswith("_")}
    torch.manual_seed(0)
    transformer = tiny_pipelines.filled(type(made.transformer)(**{**settings, **LATER}))
    made.register_modules(transformer=transformer)
    made.save_pretrained(tmp_path / "later")
    subject = subject_of(tiny_pipelines.opened(tmp_path / "later", NAME))
    names = ("arguments of the pipeline", "perfect model", "gradients", "features")
    assert [check for check in model_checks.run(subject, names) if not check.passed] == []
