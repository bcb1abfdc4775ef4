"""What this pipeline relies on in Ray and cannot see fail in its own tests: a Ray that answers otherwise fails here."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.data import DataContext
from ray.train import Checkpoint, ScalingConfig
from ray.train.torch import TorchTrainer

from pipeline.cluster.streaming import NO_PROGRESS


def loop() -> None:
    pytest.fail("nothing is trained here")


def test_a_stage_without_progress_would_end_after_half_an_hour() -> None:
    """Ray's own limit is shorter than a slow batch may take, so `ray_data.connect` sets another."""
    assert DataContext().execution_no_progress_timeout_s == 1800 < NO_PROGRESS


def test_training_goes_on_by_its_name_alone(tmp_path: Path) -> None:
    """Train has no other way left: what its first version had raises."""
    for call in (TorchTrainer.can_restore, TorchTrainer.restore):
        with pytest.raises(DeprecationWarning, match="restore"):
            call(str(tmp_path))
    one = ScalingConfig(num_workers=1)
    with pytest.raises(DeprecationWarning, match="resume_from_checkpoint"):
        TorchTrainer(loop, scaling_config=one, resume_from_checkpoint=Checkpoint(str(tmp_path)))
