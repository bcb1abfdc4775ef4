"""Spans of a table that are files already: each file has the caption of its span, and what is not clear is an error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.inputs.videos import videos


def _panda(folder: Path, names: Sequence[str], lines: Sequence[str] = ()) -> str:
    """Panda-70M's table of x1 with three spans and x2 with two, beside files of these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    header = "videoID,url,timestamp,caption,matching_score"
    own = (
        "x1,https://www.youtube.com/watch?v=x1,"
        "\"[['0:00:01.000', '0:00:02.000'], ['0:01:00.000', '0:01:02.500'], ['0:02:00.000', '0:02:01.000']]\","
        "\"['a man', 'a dog', 'a cat']\",\"[0.5, 0.25, 0.125]\"",
        "x2,https://www.youtube.com/watch?v=x2,\"[['0:00:03.000', '0:00:04.000'], ['0:00:05.000', '0:00:06.000']]\","
        "\"['a sea', 'a hill']\",\"[1.0, 0.75]\"",
    )
    (folder / "panda70m.csv").write_text("\n".join([header, *(lines or own)]) + "\n")
    return str(folder / "panda70m.csv")


@pytest.mark.parametrize("below", ["", "videos/"])
def test_spans_that_are_files_already_are_whole(tmp_path: Path, below: str, caplog: pytest.LogCaptureFixture) -> None:
    names = ("x1_000000.mp4", "x1_000001.mp4", "x1_000002.mp4", "x2_0.webm", "x2_1.webm")
    rows = videos(_panda(tmp_path, [below + name for name in names])).to_pylist()
    names_of_rows = ("caption", "matching_score", "span", "error")
    assert [(Path(row["uri"]).name, *(row[name] for name in names_of_rows)) for row in rows] == [
        ("x1_000000.mp4", "a man", 0.5, None, None),
        ("x1_000001.mp4", "a dog", 0.25, None, None),
        ("x1_000002.mp4", "a cat", 0.125, None, None),
        ("x2_0.webm", "a sea", 1.0, None, None),
        ("x2_1.webm", "a hill", 0.75, None, None),
    ]
    assert "0:01:00.000" in rows[1]["timestamp"], "the place in the source passes through"
    assert "spans that are files already, VIDEO_NUMBER, from 0: 5 of 5" in caplog.text
    assert "stretches of their videos" not in caplog.text


def test_a_table_of_whole_and_of_cut_videos(tmp_path: Path) -> None:
    rows = videos(_panda(tmp_path, ("x1.mp4", "x2_000000.mp4", "x2_000001.mp4"))).to_pylist()
    assert [(Path(row["uri"]).name, row["caption"], row["span"], row["error"]) for row in rows] == [
        ("x1.mp4", "a man", "1s-2s", None),
        ("x1.mp4", "a dog", "60s-62.5s", None),
        ("x1.mp4", "a cat", "120s-121s", None),
        ("x2_000000.mp4", "a sea", None, None),
        ("x2_000001.mp4", "a hill", None, None),
    ]


def test_a_cut_file_that_is_missing_is_a_row_with_an_error(tmp_path: Path) -> None:
    rows = videos(_panda(tmp_path, ("x1_000000.mp4", "x1_000002.mp4"))).to_pylist()
    missing = "read: the manifest names this file, but it is not there"
    assert [(Path(row["uri"]).name, row["caption"], row["error"]) for row in rows] == [
        ("x1_000000.mp4", "a man", None),
        ("x1_000001.mp4", "a dog", missing),
        ("x1_000002.mp4", "a cat", None),
        ("x2", "a sea", missing),
        ("x2", "a hill", missing),
    ]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (("x1.mp4", "x1_000000.mp4"), r"x1\.mp4 and x1_000000\.mp4 are both there"),
        (("x1_000001.mp4", "x1_000002.mp4", "x1_000003.mp4"), r"x1_000003\.mp4 is there, and x1 has 3 spans"),
        (("x1_000001.mp4", "x1_000002.mp4"), r"no file of a span ends in number 0: .* x1_000001\.mp4"),
        (("x1_0.mp4", "x1_000000.mp4"), r"x1_0\.mp4 and x1_000000\.mp4 are both the same span of x1"),
    ],
)
def test_cut_files_that_are_not_clear_are_an_error_that_names_them(
    tmp_path: Path, names: Sequence[str], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        videos(_panda(tmp_path, names))


def test_a_video_whose_id_looks_like_a_cut_file_is_itself(tmp_path: Path) -> None:
    lines = [
        "x,https://u/x,\"[['0:00:01', '0:00:02']]\",['one'],[1]",
        "x_0,https://u/x_0,\"[['0:00:03', '0:00:04']]\",['two'],[1]",
    ]
    rows = videos(_panda(tmp_path, ("x.mp4", "x_0.mp4"), lines)).to_pylist()
    assert [(Path(row["uri"]).name, row["span"]) for row in rows] == [("x.mp4", "1s-2s"), ("x_0.mp4", "3s-4s")]


def test_two_rows_of_one_video_that_was_cut_are_an_error(tmp_path: Path) -> None:
    lines = [
        "x,https://u/x,\"[['0:00:01', '0:00:02']]\",['one'],[1]",
        "x,https://u/x,\"[['0:00:03', '0:00:04']]\",['two'],[1]",
    ]
    with pytest.raises(InputError, match=r"two rows have spans of it, 2 and 3"):
        videos(_panda(tmp_path, ("x_0.mp4",), lines))
