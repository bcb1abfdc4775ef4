"""What is Kandinsky 5's own: captions of several lengths in a batch, and models with sparse attention."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.models.conditioning import batched
from pipeline.models.loss import shared_noise
from pipeline.models.registry import family
from tests.support import tiny_pipelines

NAME = "kandinsky-5"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipelines.folder(tmp_path_factory, NAME)


def test_a_clips_prediction_does_not_depend_on_how_long_its_neighbours_caption_is(folder: Path) -> None:
    model = tiny_pipelines.opened(folder, NAME)
    short, long = model.text("a ball"), model.text("a red ball that rolls down a long green hill")
    assert int(short["tokens"]) < int(long["tokens"]) <= model.text_tokens
    noise = torch.stack([shared_noise(0, n, (4, 2, 2, 4)) for n in range(2)])
    t = torch.tensor([751.0, 501.0])
    both = model.predict(noise, t, batched([short, long]))
    for n, caption in enumerate((short, long)):
        alone = model.predict(noise[n : n + 1], t[n : n + 1], batched([caption]))
        torch.testing.assert_close(both[n : n + 1], alone)
    with pytest.raises(ValueError, match="cannot share a call of Kandinsky 5"):
        model.arguments(noise, t, batched([short, long]))


def test_tokens_that_are_cut_off_are_counted(folder: Path) -> None:
    model = tiny_pipelines.opened(folder, NAME)
    assert model.cut("a ball") == 0
    assert model.cut("ball " * 200) > 0


def test_sparse_attention_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "nabla"
    shutil.copytree(folder, copy)
    place = copy / "transformer" / "config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "attention_type": "nabla"}))
    with pytest.raises(ConfigError, match="attention_type='nabla', which needs compiled kernels"):
        family(tiny_pipelines.config(copy, NAME))
