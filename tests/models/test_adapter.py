"""A family of the user's own, which `model.adapter` names: the worked example of docs/models.md."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline import models
from pipeline.attribution import fingerprints
from pipeline.config import load
from pipeline.errors import ConfigError
from pipeline.models.diffusers_model import DiffusersModel
from pipeline.operations import model_checks
from pipeline.operations.model_checks import Subject
from tests.support import tiny_pipelines
from tests.support.documents import ROOT, blocks

ADAPTER = "tests.support.in_house:Family"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipelines.folder(tmp_path_factory, "wan2.1")


def test_the_example_of_the_page_is_the_one_that_is_tested() -> None:
    (block,) = (b for b in blocks(ROOT / "docs" / "models.md") if b.language == "python")
    assert block.text.split("class Family")[1].strip() in (ROOT / "tests/support/in_house.py").read_text()


def test_the_battery_passes(folder: Path) -> None:
    config = tiny_pipelines.config(folder, "wan2.1", adapter=ADAPTER)
    model = models.open_model(config, torch.device("cpu"))
    assert isinstance(model, DiffusersModel)
    assert model.family.name == "our video model"
    assert model.schedule.times(torch.tensor([0.5])).tolist() == pytest.approx([5000 / 6])
    checks = list(model_checks.run(Subject(model, (5, 32, 64), 12.0, (751.0,), 2e-5)))
    assert [f"{check.name}: {check.detail}" for check in checks if not check.passed] == []


def test_its_features_are_not_those_of_the_architecture(folder: Path) -> None:
    values = {"model.id": str(folder), "model.text_tokens": 16, "data.height": 64, "data.width": 64}
    plain = fingerprints.features(load("demo", values))
    own = load("demo", {**values, "model.adapter": ADAPTER})
    assert set(fingerprints.features(own)) - set(plain) == {"model.adapter", "model.family", "model.schedule"}
    with pytest.raises(ConfigError, match=r"data.height=48: the model takes multiples of 32"):
        fingerprints.check_geometry(load("demo", {**values, "model.adapter": ADAPTER, "data.height": 48}))


def test_compiled_blocks_that_it_does_not_know_of_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fingerprints say that blocks are compiled: a model that took no notice would be another one under their name."""
    config = tiny_pipelines.config(folder, "wan2.1", adapter=ADAPTER).model_copy(update={"compile": True})
    monkeypatch.setattr(DiffusersModel, "compile", lambda model: None)
    with pytest.raises(ConfigError, match=r"model.compile: .* does not compile its blocks"):
        models.open_model(config, torch.device("cpu"))


@pytest.mark.parametrize("name", ["no.such.module:Family", "tests.support.in_house:Other"])
def test_what_cannot_be_imported_is_named(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        models.family(tiny_pipelines.config(folder, "wan2.1", adapter=name))
