"""What a listing says of its videos keeps its types from run to run, and what it says anew is noticed."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from pipeline.errors import InputError
from pipeline.inputs import passed_columns
from pipeline.inputs.video_set import VideoSet

ROWS: list[dict[str, Any]] = [
    {"uri": "a", "caption": "one", "group": "g", "score": 1.5, "tags": ["x"], "more": {"k": 1}},
    {"uri": "b", "caption": "", "group": "g", "score": None, "tags": None, "more": None},
    {"uri": "c", "caption": "three", "group": None, "score": 2.0, "tags": [], "more": {"k": 2}},
]
NAMES = ["group", "score", "tags", "more"]


def _existing_clips(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([{"clip_id": f"{row['uri']}-{i}", **row} for row in rows for i in (0, 9)])


def _edited(at: int, **new: Any) -> pa.Table:
    rows = [dict(row) for row in ROWS]
    rows[at] |= new
    return pa.Table.from_pylist(rows)


def test_what_did_not_change_stands() -> None:
    assert passed_columns.changed([pa.Table.from_pylist(ROWS)], [_existing_clips(ROWS)], NAMES) == ([], [])
    fewer = [pa.Table.from_pylist(ROWS[1:2]), pa.Table.from_pylist(ROWS[2:])]
    assert passed_columns.changed(fewer, [_existing_clips(ROWS)], NAMES) == ([], []), (
        "a video that is not listed is no matter of words"
    )


@pytest.mark.parametrize(
    "new", [{"group": "h"}, {"score": None}, {"score": 1.25}, {"tags": ["x", "y"]}, {"tags": None}, {"more": {"k": 9}}]
)
def test_an_edited_column_is_noticed_and_costs_no_feature(new: dict[str, Any]) -> None:
    assert passed_columns.changed([_edited(0, **new)], [_existing_clips(ROWS)], NAMES) == ([], ["a-0", "a-9"])


def test_an_edited_caption_is_noticed_as_such() -> None:
    assert passed_columns.changed([_edited(1, caption="two")], [_existing_clips(ROWS)], NAMES) == (
        ["b-0", "b-9"],
        ["b-0", "b-9"],
    )


def test_an_edited_group_counts_as_a_caption_where_features_are_under_it() -> None:
    edited = [_edited(0, group="h")]
    assert passed_columns.changed(edited, [_existing_clips(ROWS)], NAMES, ["group"]) == (["a-0", "a-9"],) * 2
    edited = [_edited(0, score=1.0)]
    assert passed_columns.changed(edited, [_existing_clips(ROWS)], NAMES, ["group"]) == ([], ["a-0", "a-9"])


def test_captions_are_compared_as_a_whole() -> None:
    listed = pa.table({"uri": ["a"], "caption": ["one"], "captions": [["one", "two"]]})
    existing_clips = pa.table({"clip_id": ["a"], "uri": ["a"], "caption": ["two"], "captions": [["one", "two"]]})
    assert passed_columns.changed([listed], [existing_clips], []) == ([], []), (
        "the caption that a clip has of several is no edit"
    )
    more = pa.table({"uri": ["a"], "caption": ["one"], "captions": [["one", "two", "three"]]})
    assert passed_columns.changed([more], [existing_clips], []) == (["a"], ["a"])
    none_before = existing_clips.drop_columns(["captions"])
    assert passed_columns.changed([listed], [none_before], []) == (["a"], ["a"])


def test_a_column_that_is_new_is_noticed() -> None:
    old = _existing_clips(ROWS).drop_columns(["score"])
    assert passed_columns.changed([pa.Table.from_pylist(ROWS)], [old], NAMES)[1] == ["a-0", "a-9", "c-0", "c-9"]


def test_columns_of_any_type_are_told() -> None:
    odd = {
        "bytes": pa.array([b"\xff", None], pa.binary()),
        "day": pa.array([1, None], pa.date32()),
        "half": pa.array([0.5, None], pa.float32()),
        "flag": pa.array([True, None]),
        "list": pa.array([[1], None], pa.list_(pa.int32())),
        "large": pa.array(["x", None], pa.large_string()),
    }
    table = pa.table({"uri": ["a", "b"], "caption": ["", None], **odd})
    assert len(set(passed_columns.texts(table, list(odd)).to_pylist())) == 2


def test_a_column_of_another_type_is_a_clear_error() -> None:
    existing_schemas = [pa.schema([("clip_id", pa.string()), ("score", pa.int64())])]
    passed_columns.check(
        pa.schema([("score", pa.int64()), ("new", pa.string())]), existing_schemas, VideoSet("x.jsonl"), "run/clips"
    )
    passed_columns.check(pa.schema([]), existing_schemas, VideoSet("x.jsonl"), "run/clips")
    with pytest.raises(InputError) as caught:
        passed_columns.check(pa.schema([("score", pa.string())]), existing_schemas, VideoSet("x.jsonl"), "run/clips")
    for word in ("data.videos", "x.jsonl", "score", "string", "int64", "run/clips"):
        assert word in str(caught.value)
