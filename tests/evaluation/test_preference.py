"""Held-out clips against their twins: margins by a plain computation, the cache, what is left to do, and accuracies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline import config, models
from pipeline.attribution import fingerprints
from pipeline.config import Run
from pipeline.config.run import Evaluate
from pipeline.errors import ConfigError
from pipeline.evaluation import comparison
from pipeline.evaluation.comparison import ACCURACIES, HIGHER, LOSSES, LOWER, MARGINS
from pipeline.evaluation.held_out import FIRST_NOISE, TASKS, EvaluationWorker, Trained, held_out_tasks, lacking
from pipeline.models.loss import drawn_uniforms, loss_map, own_noise
from pipeline.pages import comparison as comparison_page
from pipeline.pages import sections
from pipeline.pages.comparison import Compared
from pipeline.statistics import intervals
from pipeline.synthetic import world
from pipeline.tables import schemas
from pipeline.training import training_set
from pipeline.video.frames import write_mp4
from pipeline.video.looks import TWINS, twin

BASE = Trained("base", "base", "")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return config.load("demo", {"root": str(tmp_path_factory.mktemp("run")), "evaluate.twins": list(TWINS)})


@pytest.fixture(scope="module")
def clip(run: Run) -> dict[str, Any]:
    """A row of motion/held_out/ with its video."""
    scene, mask = world.queries(5, 1, run.data.frames)[0], np.full((5, 8, 8), 255, np.uint8)
    file = Path(run.root, "a.mp4")
    write_mp4(str(file), world.render(scene, run.data.height, run.data.width), run.data.fps)
    row = {"clip_id": "a", "version": "1", "uri": str(file), "start_frame": 0, "caption": scene.caption, "error": None}
    return row | {"mask": mask.tobytes(), "mask_shape": list(mask.shape)}


@pytest.fixture(scope="module")
def worker(run: Run) -> EvaluationWorker:
    return EvaluationWorker(run, str(Path(run.root, "latents")))


def worked(worker: EvaluationWorker, tasks: list[dict[str, Any]]) -> dict[str, float]:
    """The values of tasks of one clip and arm, by metric."""
    table = pa.Table.from_pylist(tasks, schema=TASKS)
    return {row["metric"]: row["value"] for part in worker(table) for row in part["evaluation"].to_pylist()}


def decoded(worker: EvaluationWorker, run: Run, clip: dict[str, Any]) -> np.ndarray:
    frames, fps, height, width = run.geometry
    return worker.decoder.frames(clip["uri"], 0, frames, fps, height, width)


# --- margins ---------------------------------------------------------------------------------------------------------


def test_a_margin_is_that_of_two_plain_losses_at_the_same_times_and_noises(
    run: Run, worker: EvaluationWorker, clip: dict[str, Any]
) -> None:
    values = worked(worker, held_out_tasks([BASE], [clip], run.evaluate.twins))
    assert {*LOSSES, *MARGINS.values()} <= set(values)
    model = models.open_model(run.model, torch.device("cpu"))
    frames = decoded(worker, run, clip)
    key = f"{run.seed} {clip['clip_id']}"

    def plain(video: np.ndarray) -> float:
        latent = model.encode(video, run.data.fps)["latent"]
        text = {name: tensor[None] for name, tensor in model.text(clip["caption"]).items()}
        times = model.schedule.times(drawn_uniforms(key, run.evaluate.noises), latent[0].numel())
        losses = []
        with torch.no_grad():
            for n, timestep in enumerate(times):
                noise = own_noise(key, FIRST_NOISE + n, tuple(latent.shape))[None]
                losses.append(float(loss_map(model, latent[None], text, timestep[None], noise).mean()))
        return float(np.mean(losses))

    own = plain(frames)
    assert values["plain_loss"] == pytest.approx(own, rel=1e-5)
    for name, metric in MARGINS.items():
        expected = (plain(twin(frames, name, key)) - own) / own
        assert values[metric] == pytest.approx(expected, abs=1e-5), name
    assert len({round(values[metric], 6) for metric in MARGINS.values()}) == len(TWINS), "two twins are one"


def test_a_loss_that_is_not_finite_is_null_in_the_table(
    worker: EvaluationWorker, clip: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_losses", lambda *_: np.full((6, 2), np.nan))
    values = worked(worker, held_out_tasks([BASE], [clip]))
    assert {values[loss] for loss in LOSSES} == {None}


def test_losses_are_the_same_with_twins_and_without(run: Run, worker: EvaluationWorker, clip: dict[str, Any]) -> None:
    plain = worked(worker, held_out_tasks([BASE], [clip]))
    both = worked(worker, held_out_tasks([BASE], [clip], run.evaluate.twins))
    assert plain == {metric: both[metric] for metric in plain}
    assert not set(plain) & set(MARGINS.values())


# --- the cache -------------------------------------------------------------------------------------------------------


def test_a_twin_is_encoded_once_beside_its_clip(run: Run, clip: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "a.mp4"
    file.write_bytes(Path(clip["uri"]).read_bytes())
    row, cache = {**clip, "uri": str(file)}, tmp_path / "latents"
    worker = EvaluationWorker(run, str(cache))
    worked(worker, held_out_tasks([BASE], [row]))
    own = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(own) == 1
    twins = ("backwards", "shuffled")
    first = worked(worker, held_out_tasks([BASE], [row], twins))
    files = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(files) == 3, "the clip was there, its twins were not: it is decoded again"
    assert own.items() <= files.items(), "the clip was encoded again"
    assert {training_set.encoding_of_clip(name) for name in files} == set(own)
    file.unlink()
    assert worked(worker, held_out_tasks([Trained("another", "another", "")], [row], twins)) == first
    assert not worked(worker, held_out_tasks([BASE], [row], ("frozen",))), "what cannot be decoded has no margin"


def test_the_name_of_a_twins_encoding_is_no_clips_and_no_other_twins() -> None:
    row = {"clip_id": "a", "version": "1", "caption": "a ball"}
    rows = [row, *(training_set.as_twin(row, name, seed) for name in TWINS for seed in (0, 1))]
    names = training_set.encodings(rows)
    assert len(names) == len(rows) + 1
    assert {training_set.encoding_of_clip(name) for name in names} == training_set.encodings([row])


# --- what is left to do ----------------------------------------------------------------------------------------------


def test_rows_that_are_missing_are_computed_and_others_stay(
    run: Run, worker: EvaluationWorker, clip: dict[str, Any]
) -> None:
    (task,) = held_out_tasks([BASE], [clip], ("backwards", "frozen"))
    assert lacking(task, set()) == task
    whole = worked(worker, [task])
    assert lacking(task, set(whole)) is None
    rest = lacking(task, set(whole) - {MARGINS["frozen"]})
    assert rest is not None
    assert worked(worker, [rest]) == {MARGINS["frozen"]: whole[MARGINS["frozen"]]}
    (plain,) = held_out_tasks([BASE], [clip])
    assert lacking(plain, set(whole)) is None, "twins that are no longer asked for are nobody's task"


def test_the_fingerprint_is_the_same_with_twins_and_without(run: Run) -> None:
    assert fingerprints.evaluation(run) == fingerprints.evaluation(config.load("demo", {"root": run.root}))


# --- what it comes to ------------------------------------------------------------------------------------------------


def rows_of(arm: str, values: list[float], metric: str = MARGINS["backwards"]) -> list[dict[str, Any]]:
    columns = {"arm": arm, "uri": "u", "seed": 0, "metric": metric, "version": "v"}
    return [{**columns, "clip_id": f"c{n}", "value": value} for n, value in enumerate(values)]


def records_of(rows: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    records = comparison.comparison(pa.Table.from_pylist(rows, schema=schemas.EVALUATION))
    return {(record["metric"], record["arm"]): record for record in records}


def test_accuracy_is_the_share_of_clips_with_a_margin_above_zero() -> None:
    rows = rows_of("base", [0.2, -0.1, 0.0, 0.3]) + rows_of("random", [0.1, 0.1, 0.1, float("nan")])
    records = records_of(rows)
    margin, accuracy = MARGINS["backwards"], ACCURACIES["backwards"]
    assert list(records) == [(metric, arm) for metric in (accuracy, margin) for arm in ("base", "random")]
    base, random = records[accuracy, "base"], records[accuracy, "random"]
    assert (base["mean"], base["n"]) == (0.5, 4), "a margin of nothing is no preference"
    assert (random["mean"], random["n"], random["missing"]) == (1, 3, 1)
    assert records[margin, "base"]["mean"] == pytest.approx(0.1)
    assert records[margin, "random"]["missing"] == 1
    assert (random["pairs"], random["difference"]) == (3, pytest.approx(2 / 3))
    assert records[margin, "random"]["difference"] == pytest.approx((-0.1 + 0.2 + 0.1) / 3)
    expected = intervals.student([0.0, 1.0, 1.0])  # the clips that both have
    assert (random["difference_low"], random["difference_high"]) == pytest.approx((expected.low, expected.high))
    assert all(record["relative"] is record["relative_low"] is None for record in records.values())


def test_the_interval_of_a_share_lies_within_0_and_1_and_has_a_width() -> None:
    records = records_of(rows_of("base", [0.1] * 12) + rows_of("random", [0.1] * 11 + [-0.1]))
    every, most = (records[ACCURACIES["backwards"], arm] for arm in ("base", "random"))
    wilson = intervals.wilson(12, 12)
    assert (every["low"], every["high"]) == (wilson.low, wilson.high)
    assert most["low"] < 11 / 12 < most["high"] <= 1


def test_higher_is_better_on_the_pages_and_lower_is_for_losses() -> None:
    noise = np.random.default_rng(0).normal(0, 0.001, 12).tolist()
    rows = []
    for metric in (MARGINS["frozen"], "plain_loss"):
        rows += rows_of("base", [0.1] * 12, metric) + rows_of("random", [0.2 + e for e in noise], metric)
    records = comparison.comparison(pa.Table.from_pylist(rows, schema=schemas.EVALUATION))
    colours = {metric: entry["rows"][-1]["css"] for metric, entry in sections.metrics(records)}
    assert colours == {"plain_loss": "harmful", MARGINS["frozen"]: "selected", ACCURACIES["frozen"]: "neutral"}
    assert comparison.direction(ACCURACIES["frozen"]) == comparison.direction(MARGINS["frozen"]) == HIGHER
    assert comparison.direction("plain_loss") == LOWER


def test_the_text_has_points_against_base_and_says_what_a_preference_is() -> None:
    rows = rows_of("base", [0.0, -0.1, 0.1]) + rows_of("random", [0.1, 0.0, 0.21])
    records = comparison.comparison(pa.Table.from_pylist(rows, schema=schemas.EVALUATION))
    text = comparison_page.text(Compared(("random", "base"), records, [], [], {}, {}))
    assert "+10.33 points" in text
    assert comparison.PREFERENCE in text
    of_losses = comparison.comparison(
        pa.Table.from_pylist(rows_of("base", [1.0, 2.0], "plain_loss"), schema=schemas.EVALUATION)
    )
    assert comparison.PREFERENCE not in comparison_page.text(Compared(("base",), of_losses, [], [], {}, {}))


def test_margins_are_of_held_out_clips_and_not_of_generated_videos() -> None:
    assert all(comparison.is_held_out(metric) for metric in (*MARGINS.values(), *ACCURACIES.values()))
    table = pa.Table.from_pylist(rows_of("base", [0.1, 0.2]), schema=schemas.EVALUATION)
    assert comparison.videos(table) == ([], [])


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", ["evaluate", "queries"])
@pytest.mark.parametrize(
    ("twins", "says"),
    [(["mirrored"], "twins.0='mirrored'"), (["frozen", "frozen"], "each is named once")],
)
def test_unknown_twins_and_the_same_one_twice_are_refused_alike(section: str, twins: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        config.load(
            "demo", {f"{section}.twins": twins, "queries.functional": "both" if section == "queries" else "loss"}
        )
    assert f"{section}.twins" in str(error.value)


def test_twins_of_no_clips_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"held-out clips.*evaluate\.videos"):
        config.load("demo", {"evaluate.twins": ["frozen"], "evaluate.videos": None})
    assert Evaluate().twins == ()
