"""The part of a clip whose motion counts: how it is written, which frames and pixels it holds, what is no box."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import ClipError
from pipeline.inputs import passed_columns, videos
from pipeline.inputs.manifests.mask_boxes import MaskBox, of_row, parse


@pytest.mark.parametrize(
    "box", [MaskBox(0.25, 0.5, 0.75), MaskBox(), MaskBox(first=0.5, last=1.25), MaskBox(0.1, 0, 0.9, 1, 0.125)]
)
def test_a_box_is_read_as_it_was_written(box: MaskBox) -> None:
    assert parse(str(box)) == box
    assert of_row(str(box)) == (None if box.is_whole else box)


@pytest.mark.parametrize(
    "text",
    ["left", "0,0,1", "0,0,1,1,2", "0,0,0.04,1", "0,0,1,1.5", "0.5,0,0.2,1", "nan,0,1,1", "0,0,1,1,2,1", "-1,0,1,1"],
)
def test_what_is_no_box_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ClipError, match=r"refused: mask_box="):
        of_row(text)


def test_a_row_without_a_box_has_none() -> None:
    assert of_row(None) is None
    assert of_row(" ") is None


def test_frames_and_pixels_inside() -> None:
    keep = parse("0.25,0.5,0.75,1,0.25,0.5").keep(9, 8.0, 4, 8)
    inside = np.zeros((9, 4, 8), bool)
    inside[2:4, 2:, 2:6] = True
    assert (keep == inside).all()
    with pytest.raises(ClipError, match="fewer than two of the 9 frames"):
        parse("0,0,1,1,0.25,0.37").keep(9, 8.0, 4, 8)


def test_another_box_is_another_query_to_compute() -> None:
    def rows(*boxes: str | None) -> pa.Table:
        named = {"clip_id": [f"q-{n}" for n in range(len(boxes))], "uri": [f"{n}.mp4" for n in range(len(boxes))]}
        return pa.table({**named, "caption": ["a ball"] * len(boxes), "mask_box": pa.array(boxes, pa.string())})

    before, now = rows(None, "0,0,0.5,1", "0,0,0.5,1"), rows(None, "0,0,0.5,1", "0,0,1,0.5")
    assert passed_columns.changed([now], [before], ["mask_box"]) == (["q-2"], ["q-2"])
    assert passed_columns.changed([now.drop_columns("mask_box")], [rows(None, None, None)], ["mask_box"]) == ([], [])


def test_a_manifest_keeps_the_column_whatever_its_case(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "l.csv").write_text('path,caption,Mask_Box\na.mp4,x,"0,0,0.5,1"\n')
    listed = videos.videos(str(tmp_path / "l.csv"), "queries.videos")
    assert listed.column("mask_box").to_pylist() == ["0,0,0.5,1"]
