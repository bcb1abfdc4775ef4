"""Folders as people have them: links, brackets, captions in any encoding, metadata in subfolders, other files."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from pipeline.inputs.folders import file_tree
from pipeline.inputs.videos import videos
from pipeline.video import frames


def _touch(path: Path, content: str | bytes = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def _rows(where: Path | str, base: Path | None = None) -> dict[str, dict[str, Any]]:
    table = videos(str(where), "data.videos", None if base is None else str(base))
    return {row["relative"]: row for row in table.to_pylist()}


def _captions(where: Path | str) -> dict[str, str]:
    return {name: row["caption"] for name, row in _rows(where).items()}


# --- captions --------------------------------------------------------------------------------------------------------


def test_a_caption_is_its_text_or_an_error_of_its_video(tmp_path: Path) -> None:
    for name, content in {
        "mark": "a café".encode("utf-8-sig"),
        "wide": "a café".encode("utf-16"),
        "latin": "a café".encode("latin-1"),
        "blind": "a cat".encode("utf-16-le"),
        "nul": b"a cat\0jumps",
        "long": b"x" * (2 << 20),
    }.items():
        _touch(tmp_path / f"{name}.mp4")
        _touch(tmp_path / f"{name}.txt", content)
    _touch(tmp_path / "capital.mp4")
    _touch(tmp_path / "capital.TXT", "a cat")
    rows = _rows(tmp_path)
    fine = {name: row["caption"] for name, row in rows.items() if row["error"] is None}
    assert fine == {"mark.mp4": "a café", "wide.mp4": "a café", "capital.mp4": "a cat"}
    for name, words in {
        "latin": ["decode: ", "latin.txt", "not UTF-8", "0xe9 at 5", "Windows-1252", "save it as UTF-8"],
        "blind": ["decode: ", "blind.txt", "UTF-16 without"],
        "nul": ["decode: ", "nul.txt", "NUL character at 5"],
        "long": ["refused: ", "long.txt", "2097152 bytes"],
    }.items():
        error = str(rows[f"{name}.mp4"]["error"])
        assert all(word in error for word in words), error
        assert rows[f"{name}.mp4"]["caption"] == ""


def test_the_log_says_how_many_videos_have_no_caption(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        _touch(tmp_path / name)
    _touch(tmp_path / "a.txt", "a cat")
    videos(str(tmp_path))
    assert "without a caption: 2 of 3 videos" in caplog.text


# --- brackets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["clips", "clips [v2]", "a{b}c", "what? *all*"])
def test_names_are_no_patterns(tmp_path: Path, folder: str) -> None:
    name = "Title [dQw4w9WgXcQ]?.mp4"
    _touch(tmp_path / folder / name)
    _touch(tmp_path / folder / "Title [dQw4w9WgXcQ]?.txt", "a man sings")
    _touch(tmp_path / folder / "other.mp4")
    _touch(tmp_path / folder / "other.txt", "another")
    both = {name: "a man sings", "other.mp4": "another"}
    assert _captions(tmp_path / folder) == both
    assert _captions(tmp_path / folder / "*.mp4") == both
    assert _captions(tmp_path / folder / "{other,none}.mp4") == {"other.mp4": "another"}
    assert _captions(tmp_path / folder / name) == {name: "a man sings"}
    listed = [{"path": name, "caption": "listed"}, {"path": str(tmp_path / folder / "other.mp4"), "caption": ""}]
    _touch(tmp_path / folder / "list.jsonl", "".join(json.dumps(row) + "\n" for row in listed))
    rows = _rows(tmp_path / folder / "list.jsonl")
    assert [(row["caption"], row["error"]) for row in rows.values()] == [("listed", None), ("", None)]


# --- linked folders --------------------------------------------------------------------------------------------------


def _linked(root: Path) -> Path:
    _touch(root / "data" / "a.mp4")
    _touch(root / "elsewhere" / "b.mp4")
    _touch(root / "elsewhere" / "b.txt", "a bird")
    (root / "data" / "linked").symlink_to(root / "elsewhere")
    return root / "data"


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    data = _linked(tmp_path)
    assert _captions(data) == {"a.mp4": "", "linked/b.mp4": "a bird"}
    assert _captions(data / "*" / "*.mp4") == {"linked/b.mp4": "a bird"}
    assert _captions(data / "**" / "*.mp4") == {"a.mp4": "", "linked/b.mp4": "a bird"}


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    data = _linked(tmp_path)
    (data / "self").symlink_to(".")
    (tmp_path / "elsewhere" / "back").symlink_to(data)
    (data / "again").symlink_to(tmp_path / "elsewhere")
    assert sorted(_rows(data)) == ["a.mp4", "again/b.mp4", "linked/b.mp4"]
    assert sorted(_rows(data, tmp_path)) == ["a.mp4", "again/b.mp4", "linked/b.mp4"], "a circle is no way out"


def test_links_that_multiply_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_tree, "MOST_LINKS", 50)
    for name in "abcdefg":
        _touch(tmp_path / name / "a.mp4")
        for other in "abcdefg":
            (tmp_path / name / f"to-{other}").symlink_to(tmp_path / other)
    with pytest.raises(InputError, match=r"data\.videos.*links"):
        videos(str(tmp_path))


def test_what_lies_outside_the_base_is_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = _linked(tmp_path)
    _touch(data / "c.mp4")
    _touch(tmp_path / "secret.txt", "a secret")
    (data / "c.txt").symlink_to(tmp_path / "secret.txt")
    _touch(data / "sub" / "d.mp4")
    (data / "sub" / "metadata.csv").symlink_to(_touch(tmp_path / "m.csv", "file_name,text\nd.mp4,a secret\n"))
    rows = _rows(data, data)
    assert rows["a.mp4"]["error"] is None
    for name in ("linked", "c.mp4", "sub/metadata.csv"):
        assert str(rows[name]["error"]).startswith("refused: "), name
    assert not any(name.startswith("linked/") for name in rows), "a folder outside the base was listed"
    assert "secret" not in json.dumps(rows), "a text outside the base was read"


def test_links_and_folders_that_lead_nowhere_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = _linked(tmp_path)
    (data / "unmounted").symlink_to(tmp_path / "nowhere")
    videos(str(data))
    assert "not there: 1 (unmounted)" in caplog.text


# --- metadata in subfolders ------------------------------------------------------------------------------------------


def _splits(root: Path) -> Path:
    for name in ("train/a.mp4", "train/deep/b.mp4", "train/extra.mp4", "test/c.mp4", "test/deep/d.mp4", "loose.mp4"):
        _touch(root / name)
    _touch(root / "train" / "metadata.csv", "file_name,text,score\na.mp4,a cat,1\ndeep/b.mp4,a dog,2\n")
    rows = [{"file_name": "c.mp4", "caption": "a cow", "score": 0.5}, {"file_name": "gone.mp4", "caption": "gone"}]
    _touch(root / "test" / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.table({"path": ["d.mp4"], "prompt": ["a duck"]}), root / "test" / "deep" / "metadata.parquet")
    return root


def test_each_folder_may_have_its_metadata(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = _splits(tmp_path)
    _touch(root / "train" / "extra.txt", "extra")
    rows = _rows(root)
    assert {name: row["caption"] for name, row in rows.items()} == {
        "train/a.mp4": "a cat",
        "train/deep/b.mp4": "a dog",
        "train/extra.mp4": "extra",
        "test/c.mp4": "a cow",
        "test/gone.mp4": "gone",
        "test/deep/d.mp4": "a duck",
        "loose.mp4": "",
    }
    assert {name: row["error"] for name, row in rows.items() if row["error"]}.keys() == {"test/gone.mp4"}
    assert rows["train/a.mp4"]["score"] == 1.0, "integers and floats of two files are one column of floats"
    assert rows["test/c.mp4"]["score"] == 0.5
    assert (rows["train/a.mp4"]["source"], rows["train/deep/b.mp4"]["group"]) == ("train", "train/deep")
    assert "does not list: 1 (train/extra.mp4)" in caplog.text


@pytest.mark.parametrize(
    ("splits", "values"),
    [
        ({"a": "", "b": "3", "c": "2.5"}, {"a": None, "b": 3.0, "c": 2.5}),
        ({"a": "1", "b": "1.50", "c": "unknown"}, {"a": "1", "b": "1.50", "c": "unknown"}),
        ({"a": "TRUE", "b": "true", "c": ""}, {"a": True, "b": True, "c": None}),
        ({"a": "TRUE", "b": "1", "c": ""}, {"a": "TRUE", "b": "1", "c": None}),
        ({"a": "1", "b": "2", "c": "007"}, {"a": "1", "b": "2", "c": "007"}),
    ],
)
def test_a_column_of_several_csv_files_has_the_type_of_all_its_cells(
    tmp_path: Path, splits: dict[str, str], values: dict[str, Any]
) -> None:
    """CSV has no types: what one file alone would make a number is no error beside the text of another."""
    for name, cell in splits.items():
        _touch(tmp_path / name / "v.mp4")
        _touch(tmp_path / name / "metadata.csv", f"file_name,caption,n\nv.mp4,{name},{cell}\n")
    rows = _rows(tmp_path)
    assert {name: rows[f"{name}/v.mp4"]["n"] for name in splits} == values
    assert not any(row["error"] for row in rows.values())


def test_cells_of_a_csv_beside_numbers_of_json(tmp_path: Path) -> None:
    for name in ("a/1", "a/2", "b/3", "b/4", "b/5"):
        _touch(tmp_path / f"{name}.mp4")
    _touch(tmp_path / "a" / "metadata.csv", "file_name,caption,n\n1.mp4,,7\n2.mp4,,1k\n")
    lines = [{"file_name": f"{n}.mp4", "caption": "", "n": n} for n in (3, 4, 5)]
    _touch(tmp_path / "b" / "metadata.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    rows = _rows(tmp_path)
    assert [rows[name]["n"] for name in ("a/1.mp4", "a/2.mp4", "b/3.mp4")] == [7, None, 3]
    assert {name for name, row in rows.items() if row["error"]} == {"a/2.mp4"}
    assert "a/metadata.csv (line 3) has text for `n` (1k)" in str(rows["a/2.mp4"]["error"])


def test_metadata_and_shards_have_one_name_for_a_column(tmp_path: Path) -> None:
    """Names of the tables' own (`fps`), roles (`Id`) and versions, whatever the case and the kind of file."""
    for name in ("a/a", "b/b"):
        _touch(tmp_path / f"{name}.mp4")
    _touch(tmp_path / "a" / "metadata.csv", "file_name,caption,id,version,fps,Weight\na.mp4,a cat,007,1,24,1.5\n")
    _touch(tmp_path / "b" / "metadata.csv", "file_name,caption,version,weight\nb.mp4,a dog,2,2.5\n")
    said = json.dumps({"Caption": "a cow", "ID": 30, "Fps": 30, "version": 3, "manifest": 1}).encode()
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for member, content in {"c.mp4": b"v", "c.json": said}.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    rows = _rows(tmp_path)
    names = ("caption", "id", "manifest_fps", "manifest_version", "manifest_Weight")
    assert {name: [row[n] for n in names] for name, row in rows.items()} == {
        "a/a.mp4": ["a cat", "007", 24, 1, 1.5],
        "b/b.mp4": ["a dog", None, None, 2, 2.5],
        "s.tar/c.mp4": ["a cow", "30", 30, 3, None],
    }


def test_the_deepest_metadata_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = _splits(tmp_path)
    _touch(root / "train" / "deep" / "metadata.csv", "file_name,text\nb.mp4,a dog of its own folder\n../a.mp4,up\n")
    rows = _captions(root)
    assert rows["train/deep/b.mp4"] == "a dog of its own folder"
    assert rows["train/a.mp4"] == "up"
    assert "deeper folder has too: 2" in caplog.text


@pytest.mark.parametrize("name", ["metadata.jsonl", "METADATA.JSONL"])
def test_metadata_of_the_root_is_all_that_counts(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    root = _splits(tmp_path)
    _touch(root / name, '{"file_name": "loose.mp4", "caption": "the root\'s"}\n')
    assert _captions(root) == {"loose.mp4": "the root's"}
    assert "not read: 3" in caplog.text, "metadata files are passed over without a word"
    assert "train/metadata.csv" in caplog.text


def test_metadata_about_something_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _touch(tmp_path / "sub" / "a.mp4")
    _touch(tmp_path / "sub" / "a.txt", "a cat")
    _touch(tmp_path / "sub" / "metadata.csv", "license,year\nfree,2020\n")
    assert _captions(tmp_path) == {"sub/a.mp4": "a cat"}
    assert "sub/metadata.csv" in caplog.text
    _touch(tmp_path / "sub" / "metadata.csv", "file_name,label\na.mp4,x\n")
    with pytest.raises(InputError, match=r"sub/metadata\.csv.*captions"):
        videos(str(tmp_path))


def test_a_place_with_dots_in_its_path(tmp_path: Path) -> None:
    root = _splits(tmp_path)
    plain = _captions(root)
    assert _captions(f"{root}/train/../../{root.name}") == plain, "a video is listed twice"


def test_kinds_of_manifests_in_capitals(tmp_path: Path) -> None:
    _touch(tmp_path / "a.mp4")
    _touch(tmp_path / "LIST.CSV", "path,caption,version,id\na.mp4,a cat,1,x\n")
    _touch(tmp_path / "LIST.JSONL", '{"path": "a.mp4", "caption": "a cat"}\n')
    pq.write_table(pa.table({"path": ["a.mp4"], "caption": ["a cat"]}), tmp_path / "LIST.PARQUET")
    for end in ("CSV", "JSONL", "PARQUET"):
        assert _captions(tmp_path / f"LIST.{end}") == {"a.mp4": "a cat"}, end


# --- what is left out ------------------------------------------------------------------------------------------------


def test_what_is_left_out_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.mp4", "a.txt", "b.jpg", "c.JPG", "d.jpg", "e.docx", "stray.txt", "Makefile", ".hidden", "f.zip"):
        _touch(tmp_path / name)
    videos(str(tmp_path))
    for part in ("left out: 3 .jpg", "1 .docx", "1 .zip", "1 .txt of no video", "1 without an extension"):
        assert part in caplog.text, part
    caplog.clear()
    videos(str(tmp_path / "*.mp4"))
    assert "left out" not in caplog.text, "a pattern names what it means"


@pytest.mark.parametrize(
    ("end", "kind", "codec"),
    [
        ("mpg", "mpeg", "mpeg2video"),
        ("MPEG", "mpeg", "mpeg1video"),
        ("vob", "vob", "mpeg2video"),
        ("ts", "mpegts", "mpeg2video"),
        ("m2ts", "mpegts", "libx264"),
        ("mts", "mpegts", "libx264"),
        ("wmv", "asf", "wmv2"),
        ("asf", "asf", "msmpeg4"),
        ("flv", "flv", "flv"),
        ("f4v", "mp4", "libx264"),
        ("3gp", "3gp", "mpeg4"),
        ("3g2", "3g2", "mpeg4"),
        ("ogv", "ogg", "libtheora"),
        ("m4v", "mp4", "libx264"),
    ],
)
def test_kinds_of_videos(tmp_path: Path, end: str, kind: str, codec: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV cannot write {codec}")
    path = tmp_path / f"a.{end}"
    with av.open(str(path), "w", format=kind) as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in range(20):
            picture = np.full((48, 64, 3), 12 * level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    row = _rows(tmp_path)[f"a.{end}"]
    assert row["error"] is None
    segments = frames.segments(row["uri"], 9, 25.0)
    assert (segments[0]["height"], segments[0]["width"]) == (48, 64)


def test_an_unreadable_folder_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    _touch(tmp_path / "a.mp4")
    _touch(tmp_path / "closed" / "b.mp4")
    (tmp_path / "closed").chmod(0)
    assert sorted(_rows(tmp_path)) == ["a.mp4"]
    (tmp_path / "closed").chmod(0o700)
    assert "may not be read: 1 (closed)" in caplog.text
