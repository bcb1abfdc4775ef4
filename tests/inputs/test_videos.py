"""What videos there are: folders, globs and manifests, and the errors of each."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError, UsageError
from pipeline.inputs.videos import videos


def _touch(path: Path, text: str = "x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _folder(root: Path) -> Path:
    for name in ("a.mp4", "cats/b.MKV", "cats/deep/c.gif", ".hidden.mp4", ".git/d.mp4", "notes.md"):
        _touch(root / name, name)
    _touch(root / "cats" / "b.txt", " a cat\n")
    return root


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    _touch(path, "\n".join(json.dumps(row) for row in rows) + "\n")
    return str(path)


def test_folder(tmp_path: Path) -> None:
    table = videos(str(_folder(tmp_path)), "data.videos")
    assert table["relative"].to_pylist() == ["a.mp4", "cats/b.MKV", "cats/deep/c.gif"], "hidden or other files count"
    assert table["source"].to_pylist() == [".", "cats", "cats/deep"]
    assert table["group"].to_pylist() == ["all", "cats", "cats/deep"], "the data root is no group of its own"
    assert table["caption"].to_pylist() == ["", "a cat", ""], "the text beside a video is its caption"
    assert table["id"].null_count == 3
    assert table["error"].null_count == 3
    size, modified = table["version"][0].as_py().split("-")
    assert int(size) == 5
    assert int(modified) == (tmp_path / "a.mp4").stat().st_mtime_ns
    assert Path(table["uri"][1].as_py()).read_text() == "cats/b.MKV", "a uri does not lead to its file"


def test_moving_the_data_changes_no_relative_path(tmp_path: Path) -> None:
    here = videos(str(_folder(tmp_path / "here")))
    shutil.copytree(tmp_path / "here", tmp_path / "far" / "there")
    there = videos(str(tmp_path / "far" / "there") + "/")
    assert there["relative"].equals(here["relative"])
    assert there["group"].equals(here["group"])


def test_glob_and_single_file(tmp_path: Path) -> None:
    _folder(tmp_path)
    assert videos(str(tmp_path / "cats" / "*"))["relative"].to_pylist() == ["b.MKV"]
    assert videos(str(tmp_path / "**" / "*.gif"))["relative"].to_pylist() == ["cats/deep/c.gif"]
    one = videos(str(tmp_path / "cats" / "b.MKV"))
    assert one["relative"].to_pylist() == ["b.MKV"]
    assert one["caption"].to_pylist() == ["a cat"]


def test_a_link_to_nothing_is_a_row_with_an_error(tmp_path: Path) -> None:
    _touch(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").symlink_to(tmp_path / "unmounted" / "b.mp4")
    (tmp_path / "c.mp4").symlink_to(tmp_path / "a.mp4")
    table = videos(str(tmp_path), "data.videos")
    assert table["relative"].to_pylist() == ["a.mp4", "b.mp4", "c.mp4"]
    assert table["error"].to_pylist() == [None, "read: it is a link to a file that is not there", None]


def test_captions_beside_videos_are_files(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        _touch(tmp_path / name)
    (tmp_path / "a.txt").symlink_to(tmp_path / "unmounted" / "a.txt")
    (tmp_path / "b.txt").mkdir()
    _touch(tmp_path / "c.txt", "a cat")
    assert videos(str(tmp_path), "data.videos")["caption"].to_pylist() == ["", "", "a cat"]


def test_a_folder_named_like_a_glob(tmp_path: Path) -> None:
    _touch(tmp_path / "set [1]" / "a.mp4")
    assert videos(str(tmp_path / "set [1]"))["relative"].to_pylist() == ["a.mp4"]


def test_a_remote_folder_is_like_a_local_one(tmp_path: Path) -> None:
    local = videos(str(_folder(tmp_path)))
    fs = fsspec.filesystem("memory")
    fs.put(str(tmp_path) + "/", "/bucket/data/", recursive=True)
    remote = videos("memory://bucket/data")
    for column in ("relative", "size", "source", "caption", "group"):
        assert remote[column].equals(local[column]), f"{column} depends on where the data lies"
    assert all(uri.startswith("memory://") for uri in remote["uri"].to_pylist())
    listed = b'{"path": "a.mp4", "cap": ""}\n{"path": "memory://bucket/data/cats/b.MKV"}'
    fs.pipe_file("/bucket/data/metadata.jsonl", listed)
    assert videos("memory://bucket/data")["relative"].to_pylist() == ["a.mp4", "cats/b.MKV"]
    fs.rm("/bucket", recursive=True)


def test_metadata_of_a_folder_is_its_manifest(tmp_path: Path) -> None:
    _folder(tmp_path)
    rows: list[dict[str, Any]] = [
        {"file_name": "cats/b.MKV", "text": "two cats", "id": "b", "fps": 3, "score": 0.5, "tags": ["x"]},
        {"file_name": "a.mp4", "text": None, "group": "roll", "source": "web"},
        {"file_name": "gone.mp4", "text": "gone"},
    ]
    _jsonl(tmp_path / "metadata.jsonl", rows)
    table = videos(str(tmp_path))
    assert table["caption"].to_pylist() == ["two cats", "", "gone"]
    assert table["id"].to_pylist() == ["b", None, None]
    assert table["group"].to_pylist() == ["cats", "roll", "all"]
    assert table["source"].to_pylist() == ["cats", "web", "."]
    assert table["score"].to_pylist() == [0.5, None, None]
    assert table["tags"].to_pylist() == [["x"], None, None]
    assert "fps" not in table.column_names, "fps is ours"
    assert table["manifest_fps"].to_pylist() == [3, None, None]
    errors = table["error"].to_pylist()
    assert errors[:2] == [None, None]
    assert errors[2].startswith("read: "), "a missing file must stay as a row"


@pytest.mark.parametrize("path_column", ["file_name", "path", "video", "video_path", "url", "uri", "file"])
@pytest.mark.parametrize("caption_column", ["caption", "text", "prompt", "cap"])
def test_column_names(tmp_path: Path, path_column: str, caption_column: str) -> None:
    _touch(tmp_path / "a.mp4")
    table = videos(_jsonl(tmp_path / "list.jsonl", [{path_column: str(tmp_path / "a.mp4"), caption_column: "hello"}]))
    assert table["relative"].to_pylist() == ["a.mp4"], "an absolute path below the root is relative to it"
    assert table["caption"].to_pylist() == ["hello"]
    assert table["error"].to_pylist() == [None]


def test_every_kind_of_manifest_gives_the_same_table(tmp_path: Path) -> None:
    _folder(tmp_path)
    rows = [{"path": "a.mp4", "caption": 'says "hi",\nloudly', "id": "007"}, {"path": "cats/b.MKV", "id": "8"}]
    _jsonl(tmp_path / "l.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "l.parquet")
    _touch(tmp_path / "l.csv", 'path,caption,id\na.mp4,"says ""hi"",\nloudly",007\ncats/b.MKV,,8\n')
    tables = [videos(str(tmp_path / f"l.{end}")) for end in ("jsonl", "parquet", "csv")]
    assert tables[0]["id"].to_pylist() == ["007", "8"]
    assert tables[1].equals(tables[0]), "a parquet manifest has other content than the same one in jsonl"
    assert tables[2].equals(tables[0]), "a csv manifest has other content than the same one in jsonl"


def test_path_outside_the_root_stays_as_written(tmp_path: Path) -> None:
    _touch(tmp_path / "other" / "a.mp4")
    table = videos(_jsonl(tmp_path / "lists" / "l.jsonl", [{"path": "../other/a.mp4", "cap": "a"}]))
    assert table["relative"].to_pylist() == ["../other/a.mp4"]
    assert table["error"].to_pylist() == [None]


def test_a_bucket_that_may_not_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("memory")
    names = (b"a.mp4", b"cats/b.mp4", b"gone.mp4")
    fs.pipe_file("/closed/a.mp4", b"x")
    fs.pipe_file("/closed/cats/b.mp4", b"xy")
    fs.pipe_file("/list/l.jsonl", b"".join(b'{"path": "memory://closed/%s", "cap": "c"}\n' % n for n in names))

    def denied(*_: Any, **__: Any) -> Any:
        raise PermissionError("AccessDenied")

    open_table = videos("memory://list/l.jsonl")
    for name in ("ls", "find", "glob", "walk"):
        monkeypatch.setattr(type(fs), name, denied)
    table = videos("memory://list/l.jsonl")
    assert [str(error).split(":")[0] for error in table["error"].to_pylist()] == ["None", "None", "read"]
    for column in ("uri", "relative", "size", "caption"):
        assert table[column].equals(open_table[column]), f"{column} depends on the right to list"
    monkeypatch.undo()
    fs.rm("/closed", recursive=True)


def test_one_warning_without_captions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _touch(tmp_path / "a.mp4")
    with caplog.at_level(logging.WARNING):
        videos(str(tmp_path), "queries.videos")
    assert len(caplog.records) == 1
    assert "queries.videos" in caplog.text


def test_errors_name_key_value_and_remedy(tmp_path: Path) -> None:
    _touch(tmp_path / "notes" / "a.md")
    _touch(tmp_path / "a.mp4")
    _touch(tmp_path / "broken.jsonl", '{"path": "a.mp4"}\n{nonsense\n')
    _touch(tmp_path / "broken.parquet", "no parquet")
    _touch(tmp_path / "empty.jsonl", "")
    _touch(tmp_path / "rowless.csv", "path,caption\n")
    _jsonl(tmp_path / "pathless.jsonl", [{"clip": "a.mp4", "label": "x"}])
    _jsonl(tmp_path / "twice.jsonl", [{"path": p, "cap": "", "id": "same"} for p in ("a.mp4", "b.mp4")])
    _jsonl(tmp_path / "captionless.jsonl", [{"path": "a.mp4", "label": "x"}])
    _jsonl(tmp_path / "again.jsonl", [{"path": "a.mp4", "cap": "one"}, {"path": "./a.mp4", "cap": "two"}])
    for name, words in {
        "nowhere": ("no such file or folder",),
        "nowhere.csv": ("no such manifest",),
        "notes": ("no videos", "mp4"),
        "*.webm": ("no videos",),
        "broken.jsonl": ("cannot be read", "line 2"),
        "broken.parquet": ("cannot be read",),
        "empty.jsonl": ("no column",),
        "rowless.csv": ("no rows",),
        "pathless.jsonl": ("clip, label", "file_name"),
        "captionless.jsonl": ("path, label", "captions", "caption | text"),
        "twice.jsonl": ("same", "more than one row"),
        "again.jsonl": ("a.mp4", "listed more than once"),
    }.items():
        with pytest.raises(UsageError) as caught:
            videos(str(tmp_path / name), "data.videos")
        for word in ("data.videos", name, *words):
            assert word in str(caught.value), f"{name}: the error does not say {word!r}: {caught.value}"
    with pytest.raises(ConfigError, match="kind of place"):
        videos("nonsense://x")
