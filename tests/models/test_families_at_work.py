"""What actors do with families beside Wan 2.1: features of rows, steps of training, losses and videos of an arm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import models, motion
from pipeline.attribution import fingerprints
from pipeline.attribution.decomposition import LayeredGradient, by_frame
from pipeline.attribution.gradients import ProjectedGradients, take_clip
from pipeline.attribution.workers import FeatureWorker
from pipeline.config import Finetune, Run, load
from pipeline.config.attribution import Setting
from pipeline.evaluation.held_out import EvaluationWorker
from pipeline.models.conditioning import split
from pipeline.projection import Projection
from pipeline.synthetic import world
from pipeline.training import loop
from pipeline.training.training_set import ClipSet, encode_set, kept_in
from pipeline.video.frames import write_mp4
from pipeline.video.looks import twin
from tests.support import tiny_pipelines
from tests.support.tiny_pipelines import TINY

FAMILIES = ("wan2.2-a14b", "wan2.2-ti2v-5b-image", "ltx-video", "ltx-2", "cogvideox-1.5", "hunyuanvideo")
MOTIONS = ("spin", "roll")
family, folder = tiny_pipelines.fixtures(FAMILIES)


@pytest.fixture
def run(folder: Path, family: str, tmp_path: Path) -> Run:
    tiny = TINY[family]
    frames, side, _ = tiny.geometry
    side = max(32, side)
    changes: dict[str, Any] = {
        "root": str(tmp_path / "run"),
        "data": {"videos": str(tmp_path), "frames": frames, "fps": 8, "height": side, "width": side},
        "model": {"id": str(folder), "dtype": "float32", "gradient_checkpointing": False, **tiny.settings},
        "motion.of": "all",
        "ranking.mask": "motion",
        "attribution.settings": [{"timestep": t, "mask": mask} for t in tiny.timesteps for mask in ("motion", "none")],
        "attribution.projection.dim": 32,
        "evaluate.noises": 3,
        "evaluate.steps": 2,
    }
    return load("demo", changes)


def clip(run: Run, name: str) -> np.ndarray:
    frames, _, height, width = run.geometry
    return world.render(world.scene(7, name, "real", name, frames), height, width)


def row(run: Run, name: str) -> dict[str, Any]:
    return {"clip_id": name, "version": "1", "num_frames": run.data.frames, "caption": name, "error": None}


def test_features_of_rows_do_not_depend_on_their_neighbours(run: Run) -> None:
    fingerprints.check_geometry(run)
    fingerprints.check_times(run)
    worker, shape = FeatureWorker(run, fingerprints.features(run)), models.grid(run).shape
    mask = {"mask": motion.encode_mask(torch.rand(shape)), "mask_shape": list(shape)}

    def features(*motions: str) -> np.ndarray:
        table = worker.finish([worker.take({**row(run, m), **mask}, clip(run, m)) for m in motions])
        assert table.column("error").to_pylist() == [None] * len(motions)
        return np.stack(table.column("feature").to_pylist())

    both = features(*MOTIONS)
    assert np.array_equal(features(MOTIONS[1])[0], both[1])
    assert np.abs(both).max() > 0
    assert not np.allclose(both[0], both[1])


def test_frames_and_layers_add_up_to_the_feature(run: Run) -> None:
    model = models.open_model(run.model, torch.device("cpu"))
    latent, given = split(model.encode(clip(run, "spin"), 8.0))
    conditioning = {**given, **model.text("a ball")}
    setting = Setting(timestep=run.attribution.settings[0].timestep, mask="none")
    layered = LayeredGradient(model.trained, Projection("gaussian", 32, 0), layers=True)
    parts = by_frame(layered, model, setting, latent, conditioning, None, 0)
    layered.close()
    gradients = ProjectedGradients(model.trained, Projection("gaussian", 32, 0))
    losses = take_clip(gradients, model, [setting], latent, conditioning, None, 0)
    expected = gradients.collect()[0][0].double()
    gradients.close()
    added = torch.stack([features for _, features in parts]).double().sum((0, 1))
    assert sum(loss for loss, _ in parts) == pytest.approx(float(losses[0]), rel=1e-5)
    assert float((added - expected).norm() / expected.norm()) < 1e-4
    counted = model.counted(latent.shape[1])
    if counted is not None:
        assert [loss > 0 for loss, _ in parts] == counted.bool().tolist(), "a frame that is given has a loss"


def test_training_lowers_the_loss_of_a_clip(run: Run, tmp_path: Path) -> None:
    model = models.open_model(run.model, torch.device("cpu"))
    rows = [{"clip_id": m, "version": "1", "caption": f"a ball, {m}"} for m in MOTIONS]
    cache = str(tmp_path / "cache")
    assert encode_set(model, rows, lambda one: clip(run, str(one["clip_id"])), cache, 8.0) == 2
    config = Finetune(steps=60, batch=2, learning_rate=3e-3, caption_dropout=0.3)
    clips = ClipSet(model, rows, kept_in(cache))
    losses = [line.loss for line in loop.train(loop.begin(model, config, 0), clips, config, 0)]
    assert np.mean(losses[-15:]) < np.mean(losses[:15])


def test_losses_and_videos_of_an_arm(run: Run, tmp_path: Path) -> None:
    worker = EvaluationWorker(run, str(tmp_path / "latents"))
    file = str(tmp_path / "a.mp4")
    write_mp4(file, clip(run, "spin"), 8.0)
    grid = models.grid(run)
    mask = np.full(grid.shape, 255, np.uint8)
    arm = {"arm": "base", "version": "base", "weights": "", "seed": 0, "clip_id": "a", "caption": "a ball"}
    place = {"uri": file, "start_frame": 0, "clip_version": "1", "content": ""}
    task = {**arm, **place, "mask": mask.tobytes(), "mask_shape": list(grid.shape), "kind": "loss"}
    task["twins"] = ["backwards"]
    encoded = worker.encoded(task, clip(run, "spin"))
    backwards = twin(clip(run, "spin"), "backwards", f"{run.seed} a")
    given = models.open_model(run.model, torch.device("cpu")).encode(backwards, run.geometry[1])
    assert set(given) == set(encoded[1].clip)
    assert all(torch.equal(given[name], encoded[1].clip[name]) for name in given), "a first frame is not the twin's own"
    losses = worker._held_out(task, encoded)
    assert all(np.isfinite(line["value"]) for line in losses)
    values = {line["metric"]: line["value"] for line in losses}
    assert values["masked_loss"] == pytest.approx(values["plain_loss"], rel=1e-5)
    lines = worker._video({**arm, **place})
    assert Path(lines[0]["uri"]).exists()
