"""Encoded clips on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.training import training_set


def test_a_damaged_encoding_is_named(tmp_path: Path) -> None:
    row = {"clip_id": "a", "version": "v", "caption": "a ball"}
    training_set.keep(str(tmp_path), row, training_set.EncodedClip({"latent": torch.zeros(2)}, ()))
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ValueError, match=f"{file.name} is damaged .*; delete it, and the clip is encoded anew"):
        training_set.kept_in(str(tmp_path))(row)
