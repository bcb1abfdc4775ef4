"""Adapters are read and held against a model before it is loaded, and are all there afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from pipeline import config, models
from pipeline.config import VideoModelConfig
from pipeline.errors import ConfigError
from pipeline.models import lora, trained_weights
from pipeline.training import loop
from tests.support import tiny_pipelines, tiny_wan

RANK = 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_wan.folder(tmp_path_factory)


@pytest.fixture
def asked(checkpoint: Path) -> VideoModelConfig:
    return config.load("demo", {"model.id": str(checkpoint)}).model


def warmed_up(checkpoint: Path, folder: Path, amount: float = 0.05) -> Path:
    """Adapters as training writes them, after a change of every number."""
    training = loop.begin(tiny_wan.opened(checkpoint), config.Finetune(lora_rank=RANK), 0)
    with torch.no_grad():
        for parameter in training.parameters.values():
            parameter.add_(amount)
    loop.save_weights(training, str(folder))
    return folder / trained_weights.LORA


def rewritten(file: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    safetensors.torch.save_file(change(safetensors.torch.load_file(file)), file)


def test_names_are_those_of_the_file_and_all_are_loaded(
    checkpoint: Path, asked: VideoModelConfig, tmp_path: Path
) -> None:
    file = warmed_up(checkpoint, tmp_path)
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in safetensors.torch.load_file(file).items()}
    assert lora.adapters(asked, str(tmp_path)).shapes == {name: tuple(t.shape) for name, t in tensors.items()}
    model = tiny_wan.opened(checkpoint)
    lora.load_adapters(model, asked, str(tmp_path))
    loaded = dict(lora.adapter_parameters(model.trained))
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert not model.trained.training, "dropout of adapters would make features of chance"


def test_a_transformers_own_file_is_read_as_a_pipelines_is(
    checkpoint: Path, asked: VideoModelConfig, tmp_path: Path
) -> None:
    file = warmed_up(checkpoint, tmp_path)
    before = lora.adapters(asked, str(tmp_path))
    rewritten(file, lambda tensors: {name.removeprefix("transformer."): t for name, t in tensors.items()})
    after = lora.adapters(asked, str(tmp_path))
    assert after.shapes == before.shapes
    assert after.digest != before.digest
    lora.load_adapters(tiny_wan.opened(checkpoint), asked, str(tmp_path))


def test_the_hash_is_of_the_files(checkpoint: Path, asked: VideoModelConfig, tmp_path: Path) -> None:
    for name, amount in (("one", 0.05), ("three", 0.06)):
        warmed_up(checkpoint, tmp_path / name, amount)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one, two, three = (lora.adapters(asked, str(tmp_path / name)).digest for name in ("one", "two", "three"))
    assert one == two, "the hash is of the folder's name"
    assert one != three
    shutil.copy(tmp_path / "three" / trained_weights.LORA, tmp_path / "one")
    assert lora.adapters(asked, str(tmp_path / "one")).digest == three, "a file that changed was not read again"


def first(tensors: dict[str, Tensor], side: str) -> str:
    return min(name for name in tensors if f"lora_{side}" in name)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda tensors: {f"other.{n}": t for n, t in tensors.items()},
            r"adapts other\.transformer.*which this model has not",
        ),
        (
            lambda tensors: {n.replace("lora_A", "lora_down"): t for n, t in tensors.items()},
            "neither a lora_A nor a lora_B",
        ),
        (
            lambda tensors: {n: t for n, t in tensors.items() if n != first(tensors, "A")},
            "a lora_A or a lora_B and not both",
        ),
        (
            lambda tensors: {**tensors, first(tensors, "A"): torch.ones(RANK, 5)},
            r"lora_A \[2, 5\].* are no change of its \[",
        ),
        (lambda tensors: {**tensors, first(tensors, "B"): torch.ones(4, RANK)}, r"lora_B \[4, 2\]"),
        (lambda tensors: {n: t * ("lora_A" in n) for n, t in tensors.items()}, "every lora_B there is zero"),
    ],
    ids=["modules", "layout", "half", "shape of A", "shape of B", "untrained"],
)
def test_adapters_of_another_model_and_untrained_ones_are_refused(
    checkpoint: Path,
    asked: VideoModelConfig,
    tmp_path: Path,
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    sentence: str,
) -> None:
    rewritten(warmed_up(checkpoint, tmp_path), change)
    with pytest.raises(ConfigError, match=sentence) as refused:
        lora.adapters(asked, str(tmp_path))
    assert str(refused.value).startswith(f"attribution.lora={str(tmp_path)!r}: ")
    assert "\n" not in str(refused.value)


def test_folders_without_adapters_and_files_that_are_none_are_refused(asked: VideoModelConfig, tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ConfigError, match=r"attribution\.lora=.*there are no adapters there.*finetune\.lora_rank"):
            lora.adapters(asked, str(folder))
    (tmp_path / trained_weights.LORA).write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match=r"attribution\.lora=.*does not fit model\.id"):
        lora.adapters(asked, str(tmp_path))


def test_adapters_of_another_family_are_refused(
    asked: VideoModelConfig, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tiny_pipelines.opened(tiny_pipelines.folder(tmp_path_factory, "cogvideox-2b"), "cogvideox-2b")
    training = loop.begin(other, config.Finetune(lora_rank=RANK), 0)
    loop.save_weights(training, str(tmp_path))
    with pytest.raises(ConfigError, match=r"which this model has not"):
        lora.adapters(asked, str(tmp_path))


@pytest.mark.parametrize("name", ["wan2.2-a14b", "hunyuanvideo-1.5"])
def test_families_with_files_of_their_own(name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Two experts have a file each, and HunyuanVideo 1.5 names without a prefix."""
    folder = tiny_pipelines.folder(tmp_path_factory, name)
    training = loop.begin(tiny_pipelines.opened(folder, name), config.Finetune(lora_rank=RANK), 0)
    with torch.no_grad():
        for parameter in training.parameters.values():
            parameter.add_(0.05)
    loop.save_weights(training, str(tmp_path))
    asked = tiny_pipelines.config(folder, name)
    shapes = lora.adapters(asked, str(tmp_path)).shapes
    model = tiny_pipelines.opened(folder, name)
    lora.load_adapters(model, asked, str(tmp_path))
    loaded = {bare: tuple(p.shape) for bare, p in lora.adapter_parameters(model.trained)}
    assert loaded == shapes
    parts = {expert.part for expert in models.family(asked).experts}
    assert len(parts) == 1 or {bare.split(".")[0] for bare in loaded} == parts
