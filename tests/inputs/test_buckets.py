"""Shards and manifests in a bucket: a member costs one request for its range; no right to list is needed."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.config import Data
from pipeline.inputs.changes import Listing
from pipeline.inputs.shards import members as shards
from pipeline.inputs.video_set import VideoSet
from pipeline.inputs.videos import videos
from pipeline.storage import stores
from pipeline.synthetic import world
from pipeline.video.decoder import Decoder
from pipeline.video.frames import write_mp4
from pipeline.video.indexing import index
from tests.support import numbered
from tests.support.s3_store import BUCKET, Store, first


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_mp4(str(path), world.render(world.scene(0, "film", "real", "slide"), 32, 48), 8.0)
    return path.read_bytes()


def _tar(members: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _put(store: Store, key: str, data: bytes) -> None:
    store.client().put_object(Bucket=BUCKET, Key=key, Body=data)


def test_a_member_of_a_tar_is_one_request(store: Store, film: bytes, tmp_path: Path) -> None:
    rest = [(f"{n}.mp4", film + bytes(300_000)) for n in range(9)]
    words = ("a.json", json.dumps({"caption": "a film"}).encode())
    _put(store, "data/s-0.tar", _tar([*rest[:5], ("a.mp4", film), words, *rest[5:]]))
    table = videos(f"s3://{BUCKET}/data")
    row = next(row for row in table.to_pylist() if row["relative"] == "s-0.tar/a.mp4")
    assert (len(table), row["caption"], row["error"]) == (10, "a film", None)
    store.requests.clear()
    store.fault = first(2, "503", "s-0.tar")
    shards.fetch(row["uri"], str(tmp_path / "fetched"))
    assert (tmp_path / "fetched").read_bytes() == film
    assert store.asked("^GET.*s-0.tar") == 3, "a member takes more than one request, or it is not tried again"


def test_a_shard_that_vanished_is_an_error_of_its_clips(store: Store, film: bytes) -> None:
    _put(store, "data/s-0.tar", _tar([("a.mp4", film)]))
    row = videos(f"s3://{BUCKET}/data").to_pylist()[0]
    store.clear()
    data = Data.model_validate({"videos": ".", "frames": 5, "fps": 8.0, "height": 32, "width": 48})
    with Decoder(timeout=30) as decoder:
        assert index(row, data, decoder)[0]["error"].startswith("read: ")


def test_parquet_in_a_bucket(store: Store, film: bytes, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    struct = pa.array([{"bytes": film, "path": "a.mp4"}, {"bytes": film[::-1], "path": "b.mp4"}])
    pq.write_table(pa.table({"video": struct, "caption": ["a", "b"]}), buffer, row_group_size=1)
    _put(store, "data/train.parquet", buffer.getvalue())
    table = videos(f"s3://{BUCKET}/data/train.parquet")
    assert table["caption"].to_pylist() == ["a", "b"]
    shards.fetch(table["uri"][1].as_py(), str(tmp_path / "fetched"))
    assert (tmp_path / "fetched").read_bytes() == film[::-1]


def test_a_bucket_without_the_right_to_list(store: Store, film: bytes) -> None:
    _put(store, "closed/a.mp4", film)
    lines = [{"path": "closed/a.mp4", "caption": "a"}, {"path": f"s3://{BUCKET}/closed/gone.mp4", "caption": "b"}]
    _put(store, "list.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    store.fault = lambda request: "403" if request.lists else None
    table = videos(f"s3://{BUCKET}/list.jsonl")
    assert [str(error).split(":")[0] for error in table["error"].to_pylist()] == ["None", "read"]
    assert table["size"].to_pylist() == [len(film), 0]
    assert table["version"][0].as_py()


@pytest.mark.parametrize("folder", ["clips", "clips [v2]", "a{b}c", "what? *all*"])
def test_names_in_a_bucket_are_no_patterns(store: Store, folder: str, tmp_path: Path) -> None:
    name = "Title [dQw4w9WgXcQ]?"
    for key, data in {f"{name}.mp4": b"v", f"{name}.txt": b"a man sings", "b.mp4": b"v", "b.txt": b"caf\xe9"}.items():
        _put(store, f"{folder}/{key}", data)
    _put(store, f"{folder}/list/l.jsonl", json.dumps({"path": f"../{name}.mp4", "caption": "listed"}).encode())
    place = f"s3://{BUCKET}/{folder}"
    for where in (place, f"{place}/*.mp4"):
        rows = {row["relative"]: row for row in videos(where).to_pylist()}
        assert rows.keys() == {"b.mp4", f"{name}.mp4"}
        assert (rows[f"{name}.mp4"]["caption"], rows[f"{name}.mp4"]["error"]) == ("a man sings", None)
        assert rows["b.mp4"]["error"].startswith("decode: its caption b.txt: it is not UTF-8")
    assert videos(f"{place}/{name}.mp4")["caption"].to_pylist() == ["a man sings"]
    row = videos(f"{place}/list/l.jsonl").to_pylist()[0]
    assert (row["caption"], row["error"], row["size"]) == ("listed", None, 1)
    stores.fetch(row["uri"], str(tmp_path / "fetched"))
    assert (tmp_path / "fetched").read_bytes() == b"v"


def test_objects_that_stand_for_folders_are_no_files(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    for key, data in {"data/": b"", "data/cats/": b"", "data/cats/a.mp4": b"v", "data/cats/a.txt": b"a cat"}.items():
        _put(store, key, data)
    assert [row["caption"] for row in videos(f"s3://{BUCKET}/data").to_pylist()] == ["a cat"]
    assert "left out" not in caplog.text


def test_metadata_in_every_folder_of_a_bucket(store: Store) -> None:
    for split, caption in (("train", "a cat"), ("test", "a dog")):
        _put(store, f"hf [1]/{split}/a.mp4", b"v")
        _put(store, f"hf [1]/{split}/metadata.csv", f"file_name,text\na.mp4,{caption}\n".encode())
    table = videos(f"s3://{BUCKET}/hf [1]")
    captions = dict(zip(table["relative"].to_pylist(), table["caption"].to_pylist(), strict=True))
    assert captions == {"train/a.mp4": "a cat", "test/a.mp4": "a dog"}
    assert table["error"].null_count == 2


def test_a_caption_that_may_not_be_read_is_an_error_of_its_video(store: Store) -> None:
    for key in ("a.mp4", "a.txt", "b.mp4", "b.txt"):
        _put(store, f"data/{key}", b"text")
    store.fault = lambda request: "403" if request.path.endswith("/a.txt") else None
    errors = videos(f"s3://{BUCKET}/data")["error"].to_pylist()
    assert [str(error).split(":")[0] for error in errors] == ["read", "None"]


def _captions(where: str) -> dict[str, tuple[str, str | None]]:
    return {row["relative"]: (row["caption"], row["error"]) for row in videos(where).to_pylist()}


def test_layouts_in_a_bucket(store: Store, film: bytes) -> None:
    """Configurations, lists, curators' and robots' folders are recognised there as on a disk."""
    for name in ("list/a.mp4", "lines/a.mp4", "curated/clips/u1.mp4", "robot/v/c-000.mp4"):
        _put(store, name, film)
    _put(store, "list/metadata.json", b'[{"video": "a.mp4", "prompt": "one"}]')
    _put(store, "lines/prompts.txt", b"one\n")
    _put(store, "lines/videos.txt", b"a.mp4\n")
    toml = f'[[directory]]\npath = "s3://{BUCKET}/list"\n[[directory]]\npath = "lines"\n'
    _put(store, "all.toml", toml.encode())
    meta = {"span_uuid": "u1", "source_video": "x", "windows": [{"start_frame": 0, "end_frame": 9, "m_caption": "one"}]}
    _put(store, "curated/metas/v0/u1.json", json.dumps(meta).encode())
    feature = {"dtype": "video"}
    info = {
        "codebase_version": "v2.1",
        "features": {"c": feature},
        "video_path": "v/{video_key}-{episode_index:03d}.mp4",
    }
    _put(store, "robot/meta/info.json", json.dumps(info).encode())
    _put(store, "robot/meta/episodes.jsonl", b'{"episode_index": 0, "tasks": ["one"]}\n')
    assert _captions(f"s3://{BUCKET}/list") == {"a.mp4": ("one", None)}
    assert _captions(f"s3://{BUCKET}/lines") == {"a.mp4": ("one", None)}
    assert _captions(f"s3://{BUCKET}/all.toml") == {"list/a.mp4": ("one", None), "lines/a.mp4": ("one", None)}
    assert _captions(f"s3://{BUCKET}/curated") == {"clips/u1.mp4": ("one", None)}
    assert _captions(f"s3://{BUCKET}/robot") == {"v/c-000.mp4": ("one", None)}


def test_a_folder_of_pictures_in_a_bucket(store: Store, tmp_path: Path) -> None:
    for number in range(12):
        Image.fromarray(numbered.picture(number)).save(tmp_path / "picture.png")
        _put(store, f"frames/x/{number}.png", (tmp_path / "picture.png").read_bytes())
    _put(store, "frames/x.txt", b"numbers")
    (row,) = videos(f"s3://{BUCKET}/frames", fps=8.0).to_pylist()
    assert (row["relative"], row["caption"], row["error"]) == ("x", "numbers", None)
    with Decoder() as decoder:
        (clip,) = index(row, Data(videos="x", frames=9, fps=8.0, height=32, width=64), decoder)
        assert clip["error"] is None
        assert numbered.numbers(decoder.frames(row["uri"], 0, 9, 8.0, 32, 64)) == list(range(9))


def test_a_remote_file_is_fetched_once_for_the_spans_that_come_together(store: Store, film: bytes) -> None:
    for name in "abc":
        _put(store, f"data/{name}.mp4", film)
    rows = [
        {"video": f"{n}.mp4", "caption": "c", "start_frame": i, "end_frame": i + 5} for i in range(4) for n in "abc"
    ]
    _put(store, "data/list.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    listed = [row for block in Listing(VideoSet(f"s3://{BUCKET}/data/list.jsonl")).videos for row in block.to_pylist()]
    store.requests.clear()
    with Decoder() as decoder:
        clips = [clip for row in listed for clip in index(row, Data(videos="x", frames=5, fps=8.0), decoder)]
    assert [clip["error"] for clip in clips] == [None] * 12
    assert store.asked("^GET.*mp4") == 3
