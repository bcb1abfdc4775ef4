"""Videos in tar and Parquet shards are the videos that were put in, with their words, and each is fetched alone."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import parquet_shards, shards, world
from pipeline.config import ConfigError, Data
from pipeline.decoder import Decoder
from pipeline.indexing import index
from pipeline.manifest import videos
from pipeline.video import write_mp4

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
    with Decoder(timeout=30) as kept:
        yield kept


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


def test_shards_that_disagree_on_a_column_are_a_clear_error(tmp_path: Path, films: dict[str, bytes]) -> None:
    _tar(tmp_path / "s-0.tar", [("a.mp4", films["a"]), ("a.json", _json(score="high"))])
    _tar(tmp_path / "s-1.tar", [("a.mp4", films["a"]), ("a.json", _json(score=3))])
    with pytest.raises(ConfigError, match=r"(?s)data\.videos.*score"):
        videos(str(tmp_path))


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
    taken = 0
    opened = pq.ParquetFile

    class Counted(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            nonlocal taken
            data = super().read(-1 if size is None else size)
            taken += len(data or b"")
            return data or b""

    monkeypatch.setattr(parquet_shards.pq, "ParquetFile", lambda _, **more: opened(Counted(path), **more))
    assert _fetched(f"{path}#1:video", tmp_path) == many["video"][1].as_py()
    assert taken < 8_000_000, f"{taken} bytes read for one of 2,000,000 at the beginning of its row group"


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
