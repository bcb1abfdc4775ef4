"""What a query asks for: over looks, and against its spoiled twins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import models, motion
from pipeline.attribution import fingerprints
from pipeline.attribution.functionals import query_feature
from pipeline.attribution.gradients import ProjectedGradients, take_clip
from pipeline.attribution.workers import AttributionWorker, FeatureWorker
from pipeline.config import Run, load
from pipeline.errors import ConfigError
from pipeline.projection import Projection
from pipeline.synthetic import world
from pipeline.video import looks

DIM = 32
SETTINGS = [{"timestep": 501, "noise": 0, "mask": "motion"}, {"timestep": 501, "noise": 0, "mask": "none"}]


def unit(rows: Any) -> np.ndarray:
    return np.asarray(rows) / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_one_look_is_its_own_feature_to_the_bit() -> None:
    real = np.random.default_rng(0).standard_normal((1, 8), dtype=np.float32)
    assert query_feature(real, np.empty((0, 1, 8), np.float32), "loss") is not None
    assert np.array_equal(query_feature(real, np.empty((0, 1, 8), np.float32), "loss"), real[0])


@pytest.mark.parametrize("functional", ["loss", "preference", "both"])
def test_a_functional_is_its_formula(functional: Any) -> None:
    rng = np.random.default_rng(1)
    real, twins = rng.standard_normal((3, 8), dtype=np.float32), rng.standard_normal((2, 3, 8), dtype=np.float32)
    mean = unit(real).mean(0)
    parts = {"loss": [unit(mean)], "preference": [unit(mean - unit(twin).mean(0)) for twin in twins]}
    parts["both"] = parts["loss"] + parts["preference"]
    feature = query_feature(real, twins, functional)
    np.testing.assert_allclose(unit(feature), unit(np.sum(parts[functional], axis=0)), atol=1e-5)
    assert np.linalg.norm(feature) == pytest.approx(np.linalg.norm(real, axis=1).mean(), rel=1e-5)


@pytest.fixture(scope="module")
def run(small_run: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    projection = {"kind": "gaussian", "dim": DIM, "seed": 0}
    made: Run = small_run(
        tmp_path_factory.mktemp("functionals"),
        attribution__settings=SETTINGS,
        attribution__projection=projection,
        attribution__captions="empty",
        attribution__hold=4,
        queries__looks=2,
        queries__twins=["backwards", "slow_start"],
        queries__functional="both",
    )
    return made


def worker(run: Run) -> AttributionWorker:
    return AttributionWorker(run, models.grid(run), fingerprints.features(run))


def test_a_query_is_taken_in_every_look_of_itself_and_its_twins(run: Run) -> None:
    """Its feature is the formula over gradients that are taken one by one."""
    scenes = [world.scene(3, name, "real", "roll", 9) for name in ("a", "b")]
    videos = {scene.name: world.render(scene, 32, 32) for scene in scenes}
    attribution = worker(run.of("queries"))
    columns = {"version": "v", "num_frames": 9, "caption": "a red ball rolling", "error": None}
    rows = [attribution.take({"clip_id": name, **columns}, video)[1] for name, video in videos.items()]
    table = attribution.features.finish([row for row in rows if row is not None])
    assert table.column("error").to_pylist() == [None, None]
    features = table.column("feature").combine_chunks().flatten().to_numpy().reshape(2, 2, DIM)
    attribution.features.gradients.close()
    model = attribution.features.model
    gradients = ProjectedGradients(model.trained, Projection("gaussian", DIM, 0))
    for n, (name, video) in enumerate(videos.items()):
        key, kinds, first_losses = f"{run.seed} {name}", [], []
        for kind in (None, "backwards", "slow_start"):
            of_kind = video if kind is None else looks.twin(video, kind, key)
            flow = motion.estimate(of_kind, attribution.motion.raft, run.motion, attribution.motion.device)
            mask = motion.motion_mask(flow, run.motion, models.Grid((1, 2, 2, 2, 2), 8, 8))
            assert mask is not None
            mask = motion.decode_mask(motion.encode_mask(mask), list(mask.shape))
            for look in range(2):
                latent = model.encode(looks.recoloured(of_kind, key, look), 8.0)["latent"]
                losses = take_clip(gradients, model, run.attribution.settings, latent, model.text(""), mask, run.seed)
                first_losses += [float(losses[0])] if kind is None else []
            kinds.append(gradients.collect()[0].numpy().reshape(2, 2, DIM))  # looks, settings
        for setting in range(2):
            real, twins = kinds[0][:, setting], np.stack([kind[:, setting] for kind in kinds[1:]])
            np.testing.assert_allclose(features[n, setting], query_feature(real, twins, "both"), rtol=1e-4, atol=1e-6)
        assert table.column("loss")[n].as_py()[0] == pytest.approx(np.mean(first_losses))
    gradients.close()


def test_looks_differ_in_what_the_configuration_says(run: Run) -> None:
    """Backgrounds are exchanged by the query's own flow; every second look is mirrored with its mask and caption."""
    queries = run.queries.model_copy(
        update={"looks": 3, "changes": ("background", "mirrored"), "twins": (), "functional": "loss"}
    )
    attribution = run.attribution.model_copy(update={"captions": "own"})
    features = FeatureWorker(run.model_copy(update={"queries": queries, "attribution": attribution}).of("queries"), {})
    video = world.render(world.scene(3, "a", "real", "roll", 9), 32, 32)
    mask = torch.arange(5 * 8 * 8).reshape(5, 8, 8) / 320
    row = {"clip_id": "a", "version": "v", "num_frames": 9, "caption": "a ball rolling to the left", "error": None}
    versions = list(features._versions(row, video, mask, features.caption(row)))
    assert [place for place, *_ in versions] == [(0, 0), (0, 1), (0, 2)]
    assert np.array_equal(versions[0][1], video)
    flow = motion.estimate(video, features.motion.raft, run.motion, features.device)
    moving = motion.moving_region(flow - motion.camera_motion(flow), 32, 32).numpy()
    key = f"{run.seed} a"
    first, second = (looks.before_another_background(video, moving, key, look) for look in (1, 2))
    assert np.array_equal(versions[1][1], first[:, :, ::-1])
    assert torch.equal(versions[1][2], mask.flip(-1))
    assert versions[1][3] == "a ball rolling to the right"
    assert np.array_equal(versions[2][1], second)
    assert torch.equal(versions[2][2], mask)
    assert versions[2][3] == row["caption"]


def test_a_clip_in_several_looks_is_the_mean_of_their_directions(run: Run) -> None:
    """Its looks are its own and not those that the queries have."""
    attribution = run.attribution.model_copy(update={"looks": 3})
    of_clips = run.model_copy(update={"attribution": attribution}).of("clips")
    assert of_clips.looks == (3, ("colours", "background"))
    assert of_clips.queries.twins == ()
    assert run.model_copy(update={"attribution": attribution}).of("queries").looks == (2, ("colours",))
    features = FeatureWorker(of_clips, {})
    video = world.render(world.scene(3, "a", "real", "roll", 9), 32, 32)
    mask = motion.encode_mask(torch.ones(5, 8, 8))
    columns = {"clip_id": "a", "version": "v", "num_frames": 9, "caption": "a ball", "error": None}
    row = {**columns, "mask": mask, "mask_shape": [5, 8, 8]}
    clip_row = features.take(row, video)
    assert len(clip_row["losses"]) == 3 * len(SETTINGS)
    table = features.finish([clip_row])
    feature = table.column("feature").combine_chunks().flatten().to_numpy().reshape(len(SETTINGS), DIM)
    versions = list(features._versions(row, video, torch.ones(5, 8, 8), ""))
    assert len({version[1].tobytes() for version in versions}) == 3
    for place, frames, of_version, _ in versions:
        latent = features.encode(frames)["latent"]
        losses = take_clip(
            features.gradients, features.model, of_clips.attribution.settings, latent, features.text(""), of_version, 0
        )
        assert float(losses[0]) == pytest.approx(clip_row["losses"][(*place, 0)], rel=1e-5)
    gradients = features.gradients.collect()[0].numpy().reshape(3, len(SETTINGS), DIM)
    for setting in range(len(SETTINGS)):
        expected = query_feature(gradients[:, setting], np.empty((0, 3, DIM), np.float32), "loss")
        np.testing.assert_allclose(feature[setting], expected, rtol=1e-4, atol=1e-6)


def test_a_query_may_be_attributed_under_the_name_of_its_group(run: Run) -> None:
    attribution = run.attribution.model_copy(update={"captions": "group"})
    grouped = run.model_copy(update={"attribution": attribution})
    assert grouped.of("clips").attribution.captions == "own"
    assert fingerprints.features(grouped.of("queries"))["attribution.captions"] == "group"
    assert "attribution.captions" not in fingerprints.features(grouped.of("clips"))
    worker_of_queries = FeatureWorker(grouped.of("queries"), {})
    assert worker_of_queries.caption({"clip_id": "a", "caption": "a red ball", "group": "free_fall"}) == "free fall"
    assert worker_of_queries.caption({"clip_id": "a", "caption": "a red ball", "group": None}) == ""


def test_clips_are_taken_as_they_are(run: Run) -> None:
    clips = run.of("clips")
    assert (clips.queries.looks, clips.queries.twins, clips.queries.functional) == (1, (), "loss")
    assert run.of("queries").queries == run.queries


def test_what_is_unusual_is_in_the_fingerprint_and_nothing_else_is(run: Run) -> None:
    plain = load("demo")
    assert not [key for key in fingerprints.features(plain.of("queries")) if "looks" in key or "captions" in key]
    unusual = fingerprints.features(run.of("queries"))
    assert unusual["queries.looks"] == 2
    assert unusual["queries.twins"] == ["backwards", "slow_start"]
    assert "queries.changes" not in unusual
    looks_of_clips = run.model_copy(update={"attribution": run.attribution.model_copy(update={"looks": 4})})
    assert fingerprints.features(looks_of_clips.of("clips"))["attribution.looks"] == 4
    assert "attribution.looks" not in fingerprints.features(looks_of_clips.of("queries"))
    other = run.model_copy(update={"queries": run.queries.model_copy(update={"changes": ("background",)})})
    assert fingerprints.features(other.of("queries"))["queries.changes"] == ["background"]
    assert unusual["attribution.captions"] == "empty"
    of_clips = fingerprints.features(run.of("clips"))
    assert of_clips["attribution.captions"] == "empty"
    assert "queries.looks" not in of_clips


def test_a_twin_that_does_not_move_is_an_error_of_its_query(run: Run) -> None:
    still = run.model_copy(update={"motion": run.motion.model_copy(update={"still": 1e6})})
    features = FeatureWorker(still.of("queries"), {})
    video = world.render(world.scene(3, "a", "real", "roll", 9), 32, 32)
    mask = motion.encode_mask(torch.ones(5, 8, 8))
    row = {"clip_id": "a", "version": "v", "num_frames": 9, "caption": "", "mask": mask, "mask_shape": [5, 8, 8]}
    query_row = features.take({**row, "error": None}, video)
    assert query_row["error"].startswith("no_motion: its twin 'backwards' (queries.twins) has no motion mask")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"queries.looks": 0}, r"queries\.looks"),
        ({"queries.changes": ["mirrored"]}, "looks=1 is the query as it is"),
        ({"queries.looks": 8, "queries.changes": []}, r"queries\.changes"),
        ({"queries.looks": 8, "queries.changes": ["outline"]}, "outline"),
        ({"queries.looks": 8, "queries.changes": ["colours", "colours"]}, "each is named once"),
        ({"queries.twins": ["mirrored"], "queries.functional": "both"}, "mirrored"),
        ({"queries.twins": ["frozen"]}, "no part in functional: loss"),
        ({"queries.functional": "preference"}, "there are none"),
        ({"queries.twins": ["frozen", "frozen"], "queries.functional": "both"}, "each is named once"),
    ],
)
def test_what_cannot_be_asked_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load("demo", changes)
