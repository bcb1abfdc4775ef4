"""The battery of checks on a tiny pipeline of every family, and what fingerprints and folders say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from pipeline import models
from pipeline.errors import ConfigError
from pipeline.models.diffusers_model import DiffusersModel
from pipeline.operations import model_checks
from pipeline.operations.model_checks import Subject
from tests.support import tiny_pipelines
from tests.support.tiny_pipelines import TINY

EXACT = 2e-5  # what the order of sums may change in float32
family, folder = tiny_pipelines.fixtures(tuple(TINY))


@pytest.fixture
def model(folder: Path, family: str) -> DiffusersModel:
    return tiny_pipelines.opened(folder, family)


def test_the_battery_passes(model: DiffusersModel, family: str) -> None:
    tiny = TINY[family]
    subject = Subject(model, tiny.geometry, 12.0, tiny.timesteps, EXACT)
    failed = [f"{check.name}: {check.detail}" for check in model_checks.run(subject) if not check.passed]
    assert failed == []


def test_what_a_recipe_computes_in_bfloat16(folder: Path, family: str) -> None:
    tiny = TINY[family]
    model = tiny_pipelines.opened(folder, family, dtype="bfloat16")
    subject = Subject(model, tiny.geometry, 12.0, tiny.timesteps, 5e-2)
    names = ("loss", "arguments of the pipeline", "features")
    assert [check for check in model_checks.run(subject, names) if not check.passed] == []


def test_two_ways_to_open_it_give_one_fingerprint(folder: Path, family: str, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    of = models.family(tiny_pipelines.config(folder, family))
    again = models.family(tiny_pipelines.config(copy, family))
    assert of.record(tiny_pipelines.config(folder, family)) == again.record(tiny_pipelines.config(copy, family))
    assert of.folds(TINY[family].geometry[0])[0] == 1


def test_one_byte_of_any_part_changes_the_hash(folder: Path, family: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    config = tiny_pipelines.config(copy, family)
    first = models.weights_hash(config)
    assert models.weights_hash(tiny_pipelines.config(folder, family)) == first, "moving a model changes its hash"
    index = json.loads((copy / "model_index.json").read_text())
    parts = [name for name, value in index.items() if isinstance(value, list) and any(value)]
    unhashed = {"guider", "audio_vae", "vocoder"} | ({"scheduler"} if family == "wan2.1" else set())
    for part in parts:
        files = sorted((copy / part).glob("*.json")) + sorted((copy / part).glob("*.safetensors"))
        for file in files[:1] + files[-1:]:
            before = file.read_bytes()
            file.write_bytes(before + b" " if file.suffix == ".json" else before[:-1] + bytes([before[-1] ^ 1]))
            changed = models.weights_hash(config) != first
            assert changed == (part not in unhashed), f"{part}/{file.name}: a change goes unseen"
            file.write_bytes(before)


def test_times_of_the_schedule_are_the_schedulers(model: DiffusersModel) -> None:
    """In closed form from the configuration, against what the scheduler object was built with."""
    scheduler = model.pipeline.scheduler
    if model.schedule.kind == "vp":
        assert model.schedule.betas is not None
        cumulated, expected = model.schedule.betas.cumulated(), scheduler.alphas_cumprod.double()
        assert torch.allclose(cumulated, expected, rtol=1e-12, atol=1e-12)
        assert model.schedule.times(torch.tensor([0.0, 0.25, 0.9999])).tolist() == [0, 250, 999]
        with pytest.raises(ConfigError, match="use 633 or 634"):
            model.schedule.check(633.5, "attribution.settings")
        return
    uniform = torch.linspace(0.01, 0.99, 9)
    times = model.schedule.times(uniform, 5000)
    shift = model.schedule.shift_at(5000)
    assert torch.allclose(times, 1000 * shift / (shift + 1 / uniform - 1), rtol=1e-6)
    back = [model.schedule.quantile(t, 5000) for t in times.tolist()]
    assert back == pytest.approx(uniform.tolist(), rel=1e-5)
    inside = model.schedule.times(uniform, 5000, (200.0, 600.0))
    assert 200 < float(inside.min()) < float(inside.max()) < 600


def test_the_check_of_weights_leaves_a_model_in_bfloat16_as_it_was(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Training makes float32 of what it trains, and the checks after it generate with the same model."""
    path = tiny_pipelines.folder(tmp_path_factory, "ltx-2")
    model = tiny_pipelines.opened(path, "ltx-2", dtype="bfloat16")
    before = {name: weight.clone() for name, weight in model.trained.state_dict().items()}
    subject = Subject(model, TINY["ltx-2"].geometry, 12.0, TINY["ltx-2"].timesteps, 5e-2)
    checks = list(model_checks.run(subject, ("full weights", "generation")))
    assert [check for check in checks if not check.passed] == []
    after = model.trained.state_dict()
    assert {name for name, weight in before.items() if weight.dtype != after[name].dtype} == set()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
