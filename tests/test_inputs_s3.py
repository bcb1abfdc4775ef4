"""Shards and manifests in a bucket: a member costs one request for its range; no right to list is needed."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import shards, world
from pipeline.config import Data
from pipeline.decoder import Decoder
from pipeline.indexing import index
from pipeline.manifest import videos
from pipeline.video import write_mp4
from tests.s3_store import BUCKET, Store, first


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_mp4(str(path), world.render(world.scene(0, "film", "real", "slide"), 32, 48), 8.0)
    return path.read_bytes()


def _tar(members: list[tuple[str, bytes]]) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return held.getvalue()


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
    held = io.BytesIO()
    struct = pa.array([{"bytes": film, "path": "a.mp4"}, {"bytes": film[::-1], "path": "b.mp4"}])
    pq.write_table(pa.table({"video": struct, "caption": ["a", "b"]}), held, row_group_size=1)
    _put(store, "data/train.parquet", held.getvalue())
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
