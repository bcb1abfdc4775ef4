"""The names of generated videos, which captions are generated, and the times of held-out losses."""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import config
from pipeline.evaluation.comparison import BANDS, LOSSES, banded, comparison, direction, is_held_out
from pipeline.evaluation.held_out import TASKS, EvaluationWorker, Trained, held_out_tasks, video_place, video_tasks
from pipeline.models.loss import drawn_uniforms
from pipeline.synthetic import world
from pipeline.tables import schemas
from pipeline.video.frames import write_mp4

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(TEXT, st.integers(0, 2**31))
def test_any_caption_names_one_visible_file_of_its_arm(caption: str, seed: int) -> None:
    place = PurePosixPath(video_place("/runs/x", "base", caption, seed))
    assert place.parent == PurePosixPath("/runs/x/generated/base")
    assert not place.name.startswith(".")
    assert len(place.name.encode()) < 255
    assert place.name.endswith(f"-{seed}.mp4")


def test_captions_that_differ_have_files_that_differ() -> None:
    captions = [
        "a ball",
        "a/ball",
        "a_ball",
        "a?ball",
        ".a ball",
        "..a ball",
        "../a ball",
        "\N{FIRE}",
        "?",
        "_",
        "..",
        ".",
    ]
    captions += ["x" * 200, "x" * 200 + "y"]
    places = [video_place("r", "base", caption, 0) for caption in captions]
    assert len(set(places)) == len(captions)


def test_a_plain_caption_is_the_name_that_vbench_reads() -> None:
    assert video_place("r", "base", "A ball, that (slowly) rolls - home.", 7).endswith(
        "/base/A ball, that (slowly) rolls - home.-7.mp4"
    )


def test_queries_without_a_group_are_generated_with_the_others() -> None:
    rows = [
        {"clip_id": c, "caption": c, "group": g, "error": None} for c, g in (("a", None), ("b", "01"), ("c", "all"))
    ]
    tasks = video_tasks([Trained("base", "base", "")], rows, 3, [0])
    assert [task["clip_id"] for task in tasks] == ["b", "a", "c"]


@given(st.text(min_size=1), st.integers(1, 12))
def test_drawn_times_are_one_from_each_equal_part_and_the_clips_own(name: str, count: int) -> None:
    uniforms = drawn_uniforms(name, count)
    assert [math.floor(u * count - 1e-5) in (n - 1, n) for n, u in enumerate(uniforms.tolist())] == [True] * count
    assert torch.equal(uniforms, drawn_uniforms(name, count))
    assert not torch.equal(uniforms, drawn_uniforms(name + "'", count))


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], float]:
    """What the demo's model loses on two clips, by clip and metric."""
    run = config.load("demo")
    worker, mask = EvaluationWorker(run, str(tmp_path_factory.mktemp("latents"))), np.full((5, 8, 8), 255, np.uint8)
    mask[:, :4] = 0
    scenes = world.queries(5, 1, run.data.frames)[:2]
    values = {}
    for scene in scenes:
        row = {**Trained("base", "base", "")._asdict(), "clip_id": scene.name, "clip_version": "1", "content": ""}
        row |= {"uri": "", "seed": 0, "caption": scene.caption, "mask": mask.tobytes(), "mask_shape": list(mask.shape)}
        row |= {"kind": "loss", "twins": []}
        for line in worker._held_out(row, worker.encoded(row, world.render(scene, run.data.height, run.data.width))):
            values[scene.name, line["metric"]] = line["value"]
    return values


def test_a_clip_is_decoded_and_encoded_once_for_all_arms(tmp_path: Path) -> None:
    run = config.load("demo", {"root": str(tmp_path)})
    scene, mask = world.queries(5, 1, run.data.frames)[0], np.full((5, 8, 8), 255, np.uint8)
    file = tmp_path / "a.mp4"
    write_mp4(str(file), world.render(scene, run.data.height, run.data.width), run.data.fps)
    clip = {"clip_id": "a", "version": "1", "uri": str(file), "start_frame": 0, "caption": scene.caption, "error": None}
    clip |= {"mask": mask.tobytes(), "mask_shape": list(mask.shape)}
    arms = [Trained(arm, arm, "") for arm in ("base", "another")]
    tasks = [pa.Table.from_pylist([task], schema=TASKS) for task in held_out_tasks(arms, [clip])]
    worker = EvaluationWorker(run, str(tmp_path / "latents"))
    first = [row["value"] for part in worker(tasks[0]) for row in part["evaluation"].to_pylist()]
    file.unlink()
    second = [row["value"] for part in worker(tasks[1]) for row in part["evaluation"].to_pylist()]
    assert len(first) == 8
    assert second == first
    newer = pa.Table.from_pylist(held_out_tasks(arms, [{**clip, "version": "2"}]), schema=TASKS)
    assert not any(part["evaluation"].num_rows for part in worker(newer)), "of another version nothing is known"


def test_a_loss_at_drawn_times_is_the_mean_of_its_bands(lines: dict[tuple[str, str], float]) -> None:
    assert len({clip for clip, _ in lines}) == 2
    for (clip, metric), value in lines.items():
        if metric in LOSSES:
            parts = [lines[clip, banded(metric, band)] for band in BANDS]
            assert value == pytest.approx(np.mean(parts), rel=1e-6)
            assert len({round(part, 6) for part in parts}) == len(BANDS)


def test_bands_of_a_loss_follow_the_losses(lines: dict[tuple[str, str], float]) -> None:
    columns = {"arm": "base", "version": "base", "uri": "", "seed": 0}
    rows = [{**columns, "clip_id": clip, "metric": metric, "value": v} for (clip, metric), v in lines.items()]
    metrics = [r["metric"] for r in comparison(pa.Table.from_pylist(rows, schema=schemas.EVALUATION))]
    assert metrics[:2] == list(LOSSES)
    assert len(metrics) == 8
    assert all(is_held_out(metric) and direction(metric) == "lower is better" for metric in metrics)
