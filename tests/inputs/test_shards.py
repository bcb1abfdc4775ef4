"""Videos in tar and Parquet shards are the videos that were put in, with their words, and each is fetched alone."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Data
from pipeline.errors import InputError
from pipeline.inputs.shards import members as shards
from pipeline.inputs.shards import parquet_files
from pipeline.inputs.videos import videos
from pipeline.synthetic import world
from pipeline.video.decoder import Decoder
from pipeline.video.frames import write_mp4
from pipeline.video.indexing import index

Members = list[tuple[str, bytes]]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Three different short videos."""
    folder = tmp_path_factory.mktemp("films")
    for name in ("a", "b", "c"):
        write_mp4(str(folder / f"{name}.mp4"), world.render(world.scene(0, name, "real", "slide"), 32, 48), 8.0)
    return {name: (folder / f"{name}.mp4").read_bytes() for name in ("a", "b", "c")}


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(timeout=30) as running_decoder:
        yield running_decoder


def _tar(path: Path, members: Members) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def _json(**values: Any) -> bytes:
    return json.dumps(values).encode()


def _members(films: dict[str, bytes]) -> Members:
    return [
        ("cats/a.mp4", films["a"]),
        ("cats/a.txt", b"a cat\n"),
        ("cats/b.json", _json(text="two cats", score=0.5, group="roll", deep={"x": 1}, error="none of ours")),
        ("cats/b.mp4", films["b"]),
        ("cats/poster.jpg", b"no video"),
    ]


def _data() -> Data:
    return Data.model_validate({"videos": ".", "frames": 5, "fps": 8.0, "height": 32, "width": 48})


def _fetched(uri: str, tmp_path: Path) -> bytes:
    shards.fetch(uri, str(tmp_path / "fetched"))
    return (tmp_path / "fetched").read_bytes()


# --- tar -------------------------------------------------------------------------------------------------------------


def test_a_tar_is_the_videos_in_it(tmp_path: Path, films: dict[str, bytes], decoder: Decoder) -> None:
    table = videos(_tar(tmp_path / "data" / "s-0.tar", _members(films)))
    assert table["relative"].to_pylist() == ["s-0.tar/cats/a.mp4", "s-0.tar/cats/b.mp4"]
    assert table["caption"].to_pylist() == ["a cat", "two cats"]
    assert table["group"].to_pylist() == ["cats", "roll"]
    assert table["source"].to_pylist() == ["cats", "cats"]
    assert table["score"].to_pylist() == [None, 0.5]
    assert table["deep"].to_pylist() == [None, '{"x": 1}'], "an object within an object passes as its text"
    assert table["manifest_error"].to_pylist() == [None, "none of ours"]
    assert table["error"].null_count == 2
    assert table["size"].to_pylist() == [len(films["a"]), len(films["b"])]
    for uri, name in zip(table["uri"].to_pylist(), ("a", "b"), strict=True):
        assert _fetched(uri, tmp_path) == films[name], f"{uri} leads to other bytes"
        row = index({**table.to_pylist()[0], "uri": uri}, _data(), decoder)[0]
        assert row["error"] is None, row["error"]


def test_a_shard_in_a_bucket_is_like_a_local_one(tmp_path: Path, films: dict[str, bytes]) -> None:
    local = videos(str(Path(_tar(tmp_path / "data" / "s-0.tar", _members(films))).parent))
    fs = fsspec.filesystem("memory")
    fs.put(str(tmp_path / "data") + "/", "/bucket/data/", recursive=True)
    remote = videos("memory://bucket/data")
    for column in ("relative", "size", "source", "caption", "group"):
        assert remote[column].equals(local[column]), f"{column} depends on where the data lies"
    uri = remote["uri"][1].as_py()
    assert uri.startswith("memory:///bucket/data/s-0.tar#")
    assert _fetched(uri, tmp_path) == films["b"]
    fs.rm("/bucket", recursive=True)


def test_only_the_member_is_read(tmp_path: Path, films: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    uri = videos(_tar(tmp_path / "s.tar", [("x.bin", bytes(3_000_000)), *_members(films)]))["uri"][0].as_py()
    read, fs = [], fsspec.filesystem("file")
    cat = type(fs).cat_file

    def counted(self: Any, path: str, start: int | None = None, end: int | None = None, **more: Any) -> bytes:
        data = cat(self, path, start=start, end=end, **more)
        read.append(len(data))
        return bytes(data)

    monkeypatch.setattr(type(fs), "cat_file", counted)
    assert _fetched(uri, tmp_path) == films["a"]
    assert sum(read) == len(films["a"]), "a worker reads more of the shard than its video"


def test_lists_of_shards(tmp_path: Path, films: dict[str, bytes]) -> None:
    for number in range(12):
        _tar(tmp_path / f"s-{number:03d}.tar", [("a.mp4", films["a"])])
    assert len(videos(str(tmp_path / "*.tar"))) == 12
    some = videos(str(tmp_path / "s-{008..010}.tar"))
    assert some["relative"].to_pylist() == [f"s-{n:03d}.tar/a.mp4" for n in (8, 9, 10)]
    assert len(videos(str(tmp_path / "{s-000,s-011}.tar"))) == 2


def test_videos_and_shards_in_one_folder(tmp_path: Path, films: dict[str, bytes]) -> None:
    (tmp_path / "loose.mp4").write_bytes(films["a"])
    (tmp_path / "loose.txt").write_text("loose")
    _tar(tmp_path / "deep" / "s.tar", [("b.mp4", films["b"]), ("b.txt", b"packed")])
    table = videos(str(tmp_path))
    assert table["relative"].to_pylist() == ["loose.mp4", "deep/s.tar/b.mp4"]
    assert table["caption"].to_pylist() == ["loose", "packed"]
    assert table["source"].to_pylist() == [".", "deep"], "a shard is no source of its own"


def test_several_captions_of_a_member(tmp_path: Path, films: dict[str, bytes]) -> None:
    table = videos(_tar(tmp_path / "s.tar", [("a.json", _json(caption=["one", "two", "one"])), ("a.mp4", films["a"])]))
    assert table["captions"].to_pylist() == [["one", "two"]]
    assert table["caption"].to_pylist() == ["one"]


@pytest.mark.parametrize("keep", range(0, 32_000, 1_000))
def test_a_truncated_tar_says_what_is_missing(tmp_path: Path, films: dict[str, bytes], keep: int) -> None:
    path = tmp_path / "s.tar"
    whole = Path(_tar(path, _members(films))).read_bytes()
    end = tarfile.open(path).getmembers()[-1].offset_data + 512  # noqa: SIM115
    path.write_bytes(whole[: min(keep, end)])
    table = videos(str(path))
    errors = table["error"].to_pylist()
    assert str(errors[-1]).startswith("decode: "), "a truncated shard passes as a whole one"
    for row in table.to_pylist():
        if row["error"] is None:
            assert _fetched(row["uri"], tmp_path) in films.values(), "a truncated video passes as a whole one"


def test_a_damaged_header_is_no_end(tmp_path: Path, films: dict[str, bytes]) -> None:
    path = Path(_tar(tmp_path / "s.tar", _members(films)))
    data = bytearray(path.read_bytes())
    data[data.index(b"cats/b.mp4") + 3] ^= 1
    path.write_bytes(data)
    rows = videos(str(path)).to_pylist()
    assert [row["error"] is None for row in rows] == [True, False], "members behind a damaged header vanish"


def test_hostile_members_are_rows(tmp_path: Path, films: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, kind in (("link.mp4", tarfile.SYMTYPE), ("hard.mp4", tarfile.LNKTYPE), ("dev.mp4", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        for name, content in (("../../up.mp4", films["a"]), ("big.mp4", films["b"] + bytes(100_000)), ("c.mp4", b"")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, content in (
            ("d.mp4", films["c"]),
            ("d.json", b"[" * 100_000),
            ("e.mp4", films["c"]),
            ("e.json", b"3"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    monkeypatch.setattr(shards, "LARGEST", len(films["b"]) + 50_000)
    rows = {row["relative"]: row for row in videos(str(tmp_path / "s.tar")).to_pylist()}
    codes = {name: str(row["error"]).split(":")[0] for name, row in rows.items()}
    assert codes == {
        "s.tar/link.mp4": "refused",
        "s.tar/hard.mp4": "refused",
        "s.tar/dev.mp4": "refused",
        "s.tar/../../up.mp4": "None",
        "s.tar/big.mp4": "refused",
        "s.tar/c.mp4": "None",
        "s.tar/d.mp4": "decode",
        "s.tar/e.mp4": "decode",
    }
    assert _fetched(rows["s.tar/../../up.mp4"]["uri"], tmp_path) == films["a"], "a member's name is more than a name"
    with pytest.raises(shards.ClipError, match="refused: "):
        shards.fetch(rows["s.tar/big.mp4"]["uri"], str(tmp_path / "x"))


@pytest.mark.parametrize("content", [b"", b"not a tar" * 300, bytes(10_240)])
def test_what_is_no_tar_is_a_row(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.tar").write_bytes(content)
    (tmp_path / "a.mp4").write_bytes(b"x")
    rows = videos(str(tmp_path)).to_pylist()
    assert rows[0]["relative"] == "a.mp4"
    assert all(row["error"].startswith("decode: ") for row in rows[1:])


def _rows_by_name(path: str) -> dict[str, dict[str, Any]]:
    return {row["relative"].partition("/")[2]: row for row in videos(path).to_pylist()}


@pytest.mark.parametrize("order", [1, -1])
def test_captions_go_to_their_videos_in_whatever_order(tmp_path: Path, order: int) -> None:
    members = [
        ("1.mp4", b"v"),
        ("2.mp4", b"v"),
        ("cats/1.mp4", b"v"),
        ("2.txt", b"two"),
        ("1.json", _json(caption="one", score=1)),
        ("cats/1.TXT", b"one of cats"),
        ("clip.v1.mp4", b"v"),
        ("clip.v2.mp4", b"v"),
        ("clip.v2.left.MP4", b"v"),
        ("clip.v2.txt", b"the second"),
        ("clip.txt", b"the clip"),
        ("clip.json", _json(score=7)),
        ("./dotted.mp4", b"v"),
        ("dotted.txt", b"dotted"),
    ]
    rows = _rows_by_name(_tar(tmp_path / "s.tar", members[::order]))
    assert {name: (row["caption"], row["score"]) for name, row in rows.items()} == {
        "1.mp4": ("one", 1),
        "2.mp4": ("two", None),
        "cats/1.mp4": ("one of cats", None),
        "clip.v1.mp4": ("the clip", 7),
        "clip.v2.mp4": ("the second", 7),
        "clip.v2.left.MP4": ("the second", 7),
        "./dotted.mp4": ("dotted", None),
    }


def test_what_tools_put_into_a_tar_for_themselves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = (
        "._1.mp4",
        "__MACOSX/._1.mp4",
        "__MACOSX/1.mp4",
        "PaxHeaders.42/1.mp4",
        ".DS_Store",
        ".git/1.mp4",
        "._1.txt",
    )
    members = [("1.mp4", b"v"), *((name, b"Mac OS X") for name in names), ("1.txt", b"one")]
    rows = _rows_by_name(_tar(tmp_path / "s.tar", members))
    assert {name: row["caption"] for name, row in rows.items()} == {"1.mp4": "one"}
    assert not caplog.records, "hidden members are no captions without a video"


def test_members_that_are_no_videos_captions_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _tar(
        tmp_path / "s-0.tar", [("a.mp4", b"v"), ("a.txt", b"a"), ("b.txt", b"b"), ("d/a.json", b"{}"), ("b.cls", b"3")]
    )
    _tar(tmp_path / "s-1.tar", [(f"{n}.txt", b"x") for n in range(9)] + [("a.mp4", b"v"), ("a.mp4.txt", b"a")])
    videos(str(tmp_path))
    assert "of no video: 12 (s-0.tar/b.txt, s-0.tar/d/a.json, s-1.tar/0.txt" in caplog.text


def test_of_two_members_of_one_name_the_later_counts(tmp_path: Path, films: dict[str, bytes]) -> None:
    members = [("a.mp4", films["a"]), ("a.txt", b"one"), ("a.mp4", films["b"]), ("a.txt", b"two")]
    row = _rows_by_name(_tar(tmp_path / "s.tar", members))["a.mp4"]
    assert (row["caption"], _fetched(row["uri"], tmp_path)) == ("two", films["b"])


def test_encodings_of_members(tmp_path: Path) -> None:
    members = [(f"{n}.mp4", b"v") for n in range(6)] + [
        ("0.txt", "a café".encode("utf-8-sig")),
        ("1.json", '{"caption": "a café"}'.encode("utf-16")),
        ("2.txt", "a café".encode("latin-1")),
        ("3.json", '{"caption": "a café"}'.encode("latin-1")),
        ("4.txt", b"a\0 cat"),
        ("5.json", b'{"caption": "a\\u0000 cat"}'),
    ]
    rows = _rows_by_name(_tar(tmp_path / "s.tar", members))
    assert [rows[f"{n}.mp4"]["caption"] for n in range(6)] == ["a café", "a café", "", "", "", ""]
    assert [rows[f"{n}.mp4"]["error"] for n in range(2)] == [None, None]
    for n, words in {2: "2.txt", 3: "3.json", 4: "NUL character", 5: "NUL character"}.items():
        error = str(rows[f"{n}.mp4"]["error"])
        assert error.startswith(f"decode: s.tar/{n}."), error
        assert words in error


def test_half_a_character_is_an_error_of_its_video(tmp_path: Path) -> None:
    members = [(f"{n}.mp4", b"v") for n in range(5)] + [
        ("0.json", b'{"caption": "half \\ud83d"}'),
        ("1.json", b'{"caption": "fine \\ud83d\\ude00"}'),
        ("2.json", b'{"tags": ["x", ["\\ude00"]]}'),
        ("3.json", b'{"key \\ud83d": 1}'),
        ("4.json", b'{"deep": {"x": "\\ud83d"}}'),
    ]
    rows = _rows_by_name(_tar(tmp_path / "s.tar", members))
    assert rows["1.mp4"]["caption"] == "fine 😀"
    assert {name for name, row in rows.items() if row["error"] is None} == {"1.mp4", "4.mp4", "2.mp4"}
    assert "s.tar/0.json: its `caption`" in rows["0.mp4"]["error"]
    assert "s.tar/3.json: its `key " in rows["3.mp4"]["error"]


@pytest.mark.parametrize("together", [True, False], ids=["one shard", "many shards"])
def test_a_value_of_another_kind_is_an_error_of_its_video(tmp_path: Path, together: bool) -> None:
    said: dict[str, list[Any]] = {
        "views": [1, 2.5, "1k", None, 2**70, float("inf"), None],
        "seen": [True, False, None, None, None, None, 1],
        "tags": [["a"], [], None, [1], None, ["c", None], None],
        "mixed": [[1, "a"], {"x": 1}, "text", [{"y": 2}], None, 3, None],
        "hash": [2**63, 0, None, 1, 2**64 - 1, 5, 6],
        "id": [7, "x", 2**80, None, 1.5, "y", None],
        "caption": [5, "five", float("nan"), "", None, ["one", 2], {"en": "x"}],
    }
    members = {
        n: [(f"{n}.mp4", b"v"), (f"{n}.json", _json(**{key: values[n] for key, values in said.items()}))]
        for n in range(7)
    }
    if together:
        _tar(tmp_path / "s.tar", [member for some in members.values() for member in some])
    else:
        for n, some in members.items():
            _tar(tmp_path / f"s-{n}.tar", some)
    rows = _rows_by_name(str(tmp_path))
    at = {n: "s.tar" if together else f"s-{n}.tar" for n in range(7)}
    for n, words in {
        2: [f"{at[2]}/2.json", "`views`", "text", "1k", "numbers"],
        3: [f"{at[3]}/3.json", "`tags`", "lists of numbers", "lists of text"],
        4: [f"{at[4]}/4.json", "`views`", "64 bits", str(2**70)],
        5: [f"{at[5]}/5.json", "`mixed`", "numbers", "text"],
        6: [f"{at[6]}/6.json", "`caption`", "objects", "text"],
    }.items():
        error = str(rows[f"{n}.mp4"]["error"])
        assert error.startswith("decode: "), error
        assert all(word in error for word in words), error
    assert [rows[f"{n}.mp4"]["error"] for n in (0, 1)] == [None, None]
    first, second = rows["0.mp4"], rows["1.mp4"]
    assert (first["views"], second["views"], first["seen"], first["tags"], second["tags"]) == (1, 2.5, True, ["a"], [])
    assert (first["mixed"], second["mixed"], first["hash"]) == ('[1, "a"]', '{"x": 1}', 2**63)
    assert (first["id"], second["id"], rows["2.mp4"]["id"]) == ("7", "x", str(2**80))
    assert (first["caption"], rows["2.mp4"]["caption"], rows["5.mp4"]["caption"]) == ("5", "", "one")


def test_keys_that_differ_in_case_are_one_column(tmp_path: Path) -> None:
    members = {
        "a": b'{"caption": "a", "Fps": 8, "Id": 7, "Group": 1}',
        "b": b'{"CAPTION": "b", "fps": 9, "id": "x", "group": "v1.0"}',
        "c": b'{"caption": "c", "Score": 1, "score": 2}',
        "d": b'{"caption": "d", "caption": "e"}',
        "e": b'{"caption": "e", "Caption": "f"}',
    }
    files = [(f"{name}.mp4", b"v") for name in members]
    rows = _rows_by_name(_tar(tmp_path / "s.tar", files + [(f"{name}.json", said) for name, said in members.items()]))
    known = [[rows[f"{name}.mp4"][key] for key in ("caption", "manifest_Fps", "id", "group")] for name in "ab"]
    assert known == [["a", 8, "7", "1"], ["b", 9, "x", "v1.0"]]
    assert {name for name, row in rows.items() if row["error"]} == {"c.mp4", "d.mp4", "e.mp4"}
    for name, key in (("c", "score"), ("d", "caption"), ("e", "Caption")):
        error = str(rows[f"{name}.mp4"]["error"])
        assert all(word in error for word in ("decode: ", f"s.tar/{name}.json", key, " twice")), error


def test_a_list_of_captions_is_added_to_the_others(tmp_path: Path) -> None:
    said = _json(caption=["one", "two"], captions=["two", "three"])
    rows = _rows_by_name(_tar(tmp_path / "s.tar", [("a.mp4", b"v"), ("a.json", said)]))
    assert rows["a.mp4"]["captions"] == ["one", "two", "three"]


def test_numbers_are_not_rounded_and_nan_is_no_number(tmp_path: Path) -> None:
    values = {"a": _json(n=2**60 + 1, m=1), "b": _json(n=1.5, m=float("nan")), "c": _json(n=2, m=3)}
    members = [(f"{name}.mp4", b"v") for name in values] + [(f"{name}.json", said) for name, said in values.items()]
    rows = _rows_by_name(_tar(tmp_path / "s.tar", members))
    assert [rows[f"{name}.mp4"]["n"] for name in values] == [None, 1.5, 2.0]
    assert [rows[f"{name}.mp4"]["m"] for name in values] == [1, None, 3]
    assert f"s.tar/a.json has a whole number above {2**53} for `n`" in str(rows["a.mp4"]["error"])


def test_the_kind_of_most_values_counts(tmp_path: Path) -> None:
    _tar(tmp_path / "s-0.tar", [("a.mp4", b"v"), ("a.json", _json(score="high"))])
    for n in (1, 2):
        _tar(tmp_path / f"s-{n}.tar", [("a.mp4", b"v"), ("a.json", _json(score=n))])
    rows = videos(str(tmp_path)).to_pylist()
    assert [row["score"] for row in rows] == [None, 1, 2]
    assert "s-0.tar/a.json has text for `score` (high), where the other videos have numbers" in rows[0]["error"]
    assert [row["error"] for row in rows[1:]] == [None, None]


def test_a_shard_in_capitals(tmp_path: Path, films: dict[str, bytes], decoder: Decoder) -> None:
    row = videos(_tar(tmp_path / "UP.TAR", [("a.MP4", films["a"]), ("a.TXT", b"a cat")])).to_pylist()[0]
    assert (row["relative"], row["caption"]) == ("UP.TAR/a.MP4", "a cat")
    assert _fetched(row["uri"], tmp_path) == films["a"]
    assert index(row, _data(), decoder)[0]["error"] is None
    _parquet(tmp_path / "UP.PARQUET", films)
    row = videos(str(tmp_path / "UP.PARQUET")).to_pylist()[1]
    assert _fetched(row["uri"], tmp_path) == films["b"]


@pytest.mark.parametrize("name", ["s.tar.gz", "s.tgz", "S.TAR.BZ2", "s.tar.xz", "s.tar.zst"])
def test_a_compressed_tar_is_named(tmp_path: Path, films: dict[str, bytes], name: str) -> None:
    whole = Path(_tar(tmp_path / "data" / "whole.tar", [("a.mp4", films["a"])]))
    (tmp_path / "data" / name).write_bytes(gzip.compress(whole.read_bytes()))
    rows = videos(str(tmp_path / "data")).to_pylist()
    errors = {row["relative"]: row["error"] for row in rows}
    assert errors["whole.tar/a.mp4"] is None
    assert errors[name].startswith("refused: it is a compressed tar; ")
    with pytest.raises(InputError, match=rf"data\.videos.*{name}.*unpack"):
        videos(str(tmp_path / "data" / name))


def test_a_tar_that_is_compressed_in_spite_of_its_name(tmp_path: Path) -> None:
    whole = Path(_tar(tmp_path / "s.tar", [("a.mp4", b"v")]))
    whole.write_bytes(gzip.compress(whole.read_bytes()))
    assert "compressed (gzip)" in videos(str(whole))["error"][0].as_py()


# --- Parquet ---------------------------------------------------------------------------------------------------------


def _parquet(path: Path, films: dict[str, bytes], struct: bool = False, **options: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if struct:
        column: Any = pa.array([{"bytes": films[n], "path": f"{n}.mp4"} for n in "abc"])
    else:
        column = pa.array([films[n] for n in "abc"], pa.binary())
    own = {"caption": ["x", "y", "z"], "score": [1, 2, 3], "fps": [8, 8, 8]}
    pq.write_table(pa.table({"video": column, **own}), path, **options)
    return str(path)


@pytest.mark.parametrize("struct", [False, True], ids=["binary", "struct"])
@pytest.mark.parametrize("options", [{}, {"row_group_size": 2}, {"compression": "zstd", "use_dictionary": False}])
def test_parquet_with_the_bytes_of_videos(
    tmp_path: Path, films: dict[str, bytes], struct: bool, options: dict[str, Any], decoder: Decoder
) -> None:
    table = videos(_parquet(tmp_path / "data" / "train.parquet", films, struct, **options))
    assert table["relative"].to_pylist() == [f"train.parquet/{n}" for n in range(3)]
    assert table["caption"].to_pylist() == ["x", "y", "z"]
    assert table["score"].to_pylist() == [1, 2, 3]
    assert table["manifest_fps"].to_pylist() == [8, 8, 8]
    assert not {"video", "manifest_video"} & set(table.column_names), "the bytes of videos are in the listing"
    for uri, name in zip(table["uri"].to_pylist(), "abc", strict=True):
        assert _fetched(uri, tmp_path) == films[name]
    assert index(table.to_pylist()[2], _data(), decoder)[0]["error"] is None


def test_parquet_in_a_folder_and_beside_one_without_videos(
    tmp_path: Path, films: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    _parquet(tmp_path / "train-0.parquet", films)
    _parquet(tmp_path / "train-1.parquet", films)
    pq.write_table(pa.table({"loss": [1.0]}), tmp_path / "curve.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    table = videos(str(tmp_path))
    assert "curve.parquet" in caplog.text, "a file is left out without a word"
    assert len(table) == 7
    errors = [row["error"] for row in table.to_pylist() if row["relative"] == "broken.parquet"]
    assert len(errors) == 1
    assert errors[0].startswith("decode: ")


def test_a_row_of_parquet_is_read_without_the_rest_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0)
    many = {"video": pa.array([noise.bytes(2_000_000) for _ in range(8)], pa.binary()), "caption": [""] * 8}
    path = tmp_path / "s.parquet"
    pq.write_table(pa.table(many), path, row_group_size=2)
    bytes_read = 0
    opened = pq.ParquetFile

    class Counted(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            nonlocal bytes_read
            data = super().read(-1 if size is None else size)
            bytes_read += len(data or b"")
            return data or b""

    monkeypatch.setattr(parquet_files.pq, "ParquetFile", lambda _, **more: opened(Counted(path), **more))
    assert _fetched(f"{path}#1:video", tmp_path) == many["video"][1].as_py()
    assert bytes_read < 8_000_000, f"{bytes_read} bytes read for one of 2,000,000 at the beginning of its row group"


def test_a_bomb_in_parquet_is_refused(tmp_path: Path, films: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    column = pa.array([bytes(40_000_000), films["a"]], pa.binary())
    path = tmp_path / "s.parquet"
    pq.write_table(pa.table({"video": column, "caption": ["", ""]}), path, row_group_size=1, compression="zstd")
    monkeypatch.setattr(shards, "LARGEST", 1_000_000)
    rows = videos(str(path)).to_pylist()
    assert [str(row["error"]).split(":")[0] for row in rows] == ["refused", "None"]
    with pytest.raises(shards.ClipError, match="refused: "):
        shards.fetch(rows[0]["uri"], str(tmp_path / "x"))


def test_a_row_without_bytes_is_an_error_of_its_own(tmp_path: Path, films: dict[str, bytes], decoder: Decoder) -> None:
    column = pa.array([None, films["a"]], pa.binary())
    pq.write_table(pa.table({"video": column, "caption": ["", ""]}), tmp_path / "s.parquet")
    rows = [index(row, _data(), decoder)[0] for row in videos(str(tmp_path / "s.parquet")).to_pylist()]
    assert [str(row["error"]).split(":")[0] for row in rows] == ["decode", "None"]


def test_text_that_is_no_utf8_is_an_error_of_its_row(tmp_path: Path, films: dict[str, bytes]) -> None:
    raw = pa.array([b"a caf\xe9", "a café".encode(), b"a\0cat"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    for name, column in (("text", text), ("bytes", raw)):
        columns = {"video": pa.array([films[n] for n in "abc"], pa.binary()), "caption": column}
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
        rows = videos(str(tmp_path / f"{name}.parquet")).to_pylist()
        assert [row["caption"] for row in rows] == ["", "a café", ""]
        assert [row["error"] is None for row in rows] == [False, True, False]
        assert f"{name}.parquet/0: its `caption`: it is not UTF-8" in rows[0]["error"]


def test_parquet_and_tars_that_disagree_on_a_column(tmp_path: Path, films: dict[str, bytes]) -> None:
    _parquet(tmp_path / "s.parquet", films)
    _tar(tmp_path / "s.tar", [("a.mp4", films["a"]), ("a.json", _json(score="high")), ("b.mp4", films["b"])])
    (tmp_path / "loose.mp4").write_bytes(films["a"])
    rows = {row["relative"]: row for row in videos(str(tmp_path)).to_pylist()}
    assert "s.tar/a.json has text for `score` (high)" in rows["s.tar/a.mp4"]["error"]
    assert [rows[f"s.parquet/{n}"]["score"] for n in range(3)] == [1, 2, 3]
    assert sum(row["error"] is None for row in rows.values()) == 5


@pytest.mark.parametrize("column", ["mpg", "ts", "wmv", "m4v"])
def test_columns_named_like_kinds_of_videos(tmp_path: Path, films: dict[str, bytes], column: str) -> None:
    pq.write_table(pa.table({column: pa.array([films["a"]], pa.binary())}), tmp_path / "s.parquet")
    assert _fetched(videos(str(tmp_path / "s.parquet"))["uri"][0].as_py(), tmp_path) == films["a"]


_TEXTS = st.text(st.characters(), max_size=5)  # lone surrogates, NULs and all
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-(2**70), 2**70) | st.floats() | _TEXTS,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(_TEXTS, values, max_size=2),
    max_leaves=5,
)
_NAMES = st.sampled_from(["caption", "captions", "text", "score", "tags", "error", "uri", "source", ""]) | _TEXTS


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.dictionaries(_NAMES.filter(lambda name: name != "id"), _VALUES), st.integers(0, 2))))
def test_whatever_json_says_is_a_row_of_its_video(said: list[tuple[dict[str, Any], int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for shard in range(3):
            members = [(n, values) for n, (values, at) in enumerate(said) if at == shard]
            packed = [(f"{n}.mp4", b"v") for n, _ in members] + [(f"{n}.json", _json(**v)) for n, v in members]
            _tar(Path(folder) / f"s-{shard}.tar", [("whole.mp4", b"v"), *packed])
        try:
            rows = videos(folder).to_pylist()
        except InputError as error:
            if not re.search("rename one|keep one of them", str(error)):
                raise
            return  # two names that SQL cannot tell apart, or that would be one in the tables
    assert len(rows) == 3 + len(said), "a video left no row"
    assert all(row["error"] is None or row["error"].startswith("decode: s-") for row in rows)
    assert not any("\0" in text for row in rows for text in [row["caption"], *(row.get("captions") or [])])
