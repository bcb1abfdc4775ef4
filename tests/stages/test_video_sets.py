"""Held-out videos that are among the data or the queries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from jobs import curate
from pipeline import tables
from pipeline.cluster import resources, streaming
from pipeline.config import Run
from pipeline.errors import InputError
from pipeline.stages import attribution, curation, evaluation, indexing, pilots, run_record, two_stages, video_sets
from pipeline.tables import schemas

MakeRun = Callable[..., Run]


def test_held_out_videos_among_the_data_are_refused(small_run: MakeRun, tmp_path: Path) -> None:
    run = small_run(tmp_path)
    for name, uri in (("clips", "/a.mp4"), ("queries", "/b.mp4"), ("held_out", "/a.mp4")):
        row = {"clip_id": name, "uri": uri, "version": "1"}
        tables.append(str(tmp_path / name), pa.Table.from_pylist([row], schemas.CLIPS), {})
    with pytest.raises(InputError, match=r"data\.videos as well, such as /a\.mp4"):
        video_sets.check_disjoint(run)
    for name, uri in (("held_out", "s3://x/c.mp4"), ("queries", "s3://y/d.mp4")):
        row = {"clip_id": name, "uri": uri, "version": "2026-11-30"}
        tables.replace(str(tmp_path / name), pa.Table.from_pylist([row], schemas.CLIPS), {})
    video_sets.check_disjoint(run)  # a date may be that of several videos
    for name, uri in (("held_out", "s3://x/c.mp4"), ("queries", "s3://y/d.mp4")):
        row = {"clip_id": name, "uri": uri, "version": "9e107d9d372bb6826bd81d3542a419d6"}
        tables.replace(str(tmp_path / name), pa.Table.from_pylist([row], schemas.CLIPS), {})
    with pytest.raises(InputError, match=r"queries\.videos as well, such as s3://x/c\.mp4"):
        video_sets.check_disjoint(run)


def test_held_out_spans_of_a_file_may_be_others_than_those_of_the_data(small_run: MakeRun, tmp_path: Path) -> None:
    run = small_run(tmp_path)
    schema = schemas.CLIPS.append(pa.field("span", pa.string()))

    def write(name: str, span: str | None) -> None:
        row = {"clip_id": name, "uri": "s3://x/a.mp4", "version": "1", "span": span}
        tables.replace(str(tmp_path / name), pa.Table.from_pylist([row], schema), {})

    write("clips", "0s-2s")
    write("held_out", "2s-4s")
    video_sets.check_disjoint(run)
    for span in ("1.5s-4s", "30f-60f", None):
        write("held_out", span)
        with pytest.raises(InputError, match=r"data\.videos as well, such as s3://x/a\.mp4"):
            video_sets.check_disjoint(run)


def test_a_clip_that_was_indexed_in_parts_is_refused_once(small_run: MakeRun, tmp_path: Path) -> None:
    run = small_run(tmp_path)
    for name, count in (("clips", 3), ("held_out", 2)):
        rows = [{"clip_id": f"{name}-{n}", "uri": "/a.mp4", "version": "1"} for n in range(count)]
        for row in rows:
            tables.append(str(tmp_path / name), pa.Table.from_pylist([row], schemas.CLIPS), {})
    with pytest.raises(InputError, match=r"^evaluate\.videos=.*: 1 of its videos are in data\.videos"):
        video_sets.check_disjoint(run)


@pytest.mark.parametrize("job", [curate.curate, evaluation.evaluate])
def test_held_out_videos_among_the_data_end_a_job_before_long_work(
    small_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: Callable[[Run], None]
) -> None:
    run = small_run(tmp_path, evaluate__arms=["base"])
    for name in ("clips", "held_out"):
        rows = [{"clip_id": name, "uri": "/a.mp4", "version": "1"}]
        tables.append(str(tmp_path / name), pa.Table.from_pylist(rows, schemas.CLIPS), {})
    for module, function in (
        *((attribution, function) for function in ("check", "estimate_motion")),
        *((curation, function) for function in ("attribute_queries", "index_data")),
        (indexing, "index"),
        (resources, "check"),
        (run_record, "record"),
        (streaming, "connect"),
    ):
        monkeypatch.setattr(module, function, lambda *_: None)
    monkeypatch.setattr(pilots, "with_pools", lambda run, _: run)
    monkeypatch.setattr(two_stages, "clips", lambda _: pytest.fail("clips were attributed"))
    with pytest.raises(InputError, match=r"1 of its videos are in data\.videos as well, such as /a\.mp4"):
        job(run)
