"""Which tasks of an evaluation are left to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline import tables
from pipeline.evaluation.held_out import Trained, held_out_tasks, video_tasks
from pipeline.stages.evaluation import pending_tasks
from pipeline.tables import schemas

Row = dict[str, Any]
ARMS = [Trained("base", "base", ""), Trained("selected", "v1", "/weights")]
MOVING = {"mask": b"\xff", "mask_shape": [1, 1, 1], "start_frame": 0, "error": None}
CLIPS = [{"clip_id": i, "uri": f"/{i}.mp4", "version": "1", "caption": f"about {i}", **MOVING} for i in "ab"]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """evaluation/ as it is once every task of these clips is done."""
    write(str(tmp_path / "evaluation"), held_out_tasks(ARMS, CLIPS))
    return str(tmp_path / "evaluation")


def write(folder: str, tasks: list[Row], **changes: Any) -> None:
    names = ("arm", "clip_id", "uri", "seed", "version", "content")
    rows = [{**{n: t[n] for n in names}, "metric": "masked_loss", "value": 1.0, **changes} for t in tasks]
    tables.append(folder, pa.Table.from_pylist(rows, schemas.EVALUATION), {})


def left(folder: str, tasks: list[Row]) -> list[tuple[str, str]]:
    return [(task["arm"], task["clip_id"]) for task in pending_tasks(tasks, folder)]


def rows(folder: str) -> list[tuple[str, str]]:
    table = tables.read(folder)
    return [] if table is None else sorted((r["arm"], r["clip_id"]) for r in table.to_pylist())


def test_what_is_there_is_not_done_again(folder: str) -> None:
    assert left(folder, held_out_tasks(ARMS, CLIPS)) == []
    assert left(folder, held_out_tasks([*ARMS, Trained("random", "v1", "/w")], CLIPS)) == [
        ("random", "a"),
        ("random", "b"),
    ]


@pytest.mark.parametrize("change", [{"version": "2"}, {"caption": "another"}, {"mask": b"\x01"}], ids=str)
def test_a_clip_that_changed_is_evaluated_anew_under_every_arm(folder: str, change: Row) -> None:
    """Else a new arm's loss of the new clip would be held against the old arms' of the old one."""
    tasks = held_out_tasks(ARMS, [{**CLIPS[0], **change}, CLIPS[1]])
    assert left(folder, tasks) == [("base", "a"), ("selected", "a")]
    assert rows(folder) == [("base", "b"), ("selected", "b")]
    write(folder, [task for task in tasks if task["clip_id"] == "a"])
    assert left(folder, tasks) == []


def test_another_training_is_evaluated_anew(folder: str) -> None:
    tasks = held_out_tasks([ARMS[0], Trained("selected", "v2", "/weights")], CLIPS)
    assert left(folder, tasks) == [("selected", "a"), ("selected", "b")]


def test_rows_of_before_there_was_a_content_stand(tmp_path: Path) -> None:
    folder, tasks = str(tmp_path / "evaluation"), held_out_tasks(ARMS, CLIPS)
    write(folder, tasks[:2], content=None)
    old = tables.read(folder)
    assert old is not None
    tables.replace(folder, old.drop_columns(["content"]), {})
    assert left(folder, tasks) == [("selected", "a"), ("selected", "b")]
    write(folder, tasks[2:])
    assert left(folder, tasks) == []


def test_a_query_and_a_held_out_clip_may_have_one_id(folder: str) -> None:
    videos = video_tasks(ARMS, [{**CLIPS[0], "group": None}], 1, [1])
    write(folder, videos)
    assert left(folder, [*held_out_tasks(ARMS, CLIPS), *videos]) == []


def test_a_video_is_of_its_caption_and_of_a_first_frame_where_the_model_takes_one(tmp_path: Path) -> None:
    folder, query = str(tmp_path / "evaluation"), {**CLIPS[0], "group": "roll"}
    write(folder, video_tasks(ARMS[:1], [query], 1, [0]))
    assert left(folder, video_tasks(ARMS[:1], [{**query, "version": "2"}], 1, [0])) == []
    assert left(folder, video_tasks(ARMS[:1], [{**query, "caption": "another"}], 1, [0])) == [("base", "a")]
    write(folder, video_tasks(ARMS[:1], [query], 1, [0], of_image=True))
    assert left(folder, video_tasks(ARMS[:1], [{**query, "version": "2"}], 1, [0], of_image=True)) == [("base", "a")]
