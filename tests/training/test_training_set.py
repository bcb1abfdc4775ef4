"""Encoded clips on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline import config
from pipeline.training import training_set


def test_a_damaged_encoding_is_named(tmp_path: Path) -> None:
    row = {"clip_id": "a", "version": "v", "caption": "a ball"}
    training_set.keep(str(tmp_path), row, training_set.EncodedClip({"latent": torch.zeros(2)}, ()))
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ValueError, match=f"{file.name} is damaged .*; delete it, and the clip is encoded anew"):
        training_set.kept_in(str(tmp_path))(row)


def test_encodings_of_another_geometry_lie_in_another_folder() -> None:
    """Evaluation has that of attribution, which may differ from that of the data, whose encodings training has."""
    run = config.load("demo")
    training = training_set.cache_folder("root", run, "model")
    assert training_set.cache_folder("root", run, "model", run.geometry) == training
    for key, value in (("fps", 16), ("frames", 5), ("height", 16), ("width", 16)):
        other = config.load("demo", {f"attribution.{key}": value})
        assert training_set.cache_folder("root", other, "model") == training
        assert training_set.cache_folder("root", other, "model", other.geometry) != training, key
