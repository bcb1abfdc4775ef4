"""Stores on s3://: bounded retries of every request, whole files, honest listings, errors without secrets."""

from __future__ import annotations

import hashlib
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pytest

from pipeline import tables
from pipeline.errors import ClipError, StoreError
from pipeline.inputs import videos
from pipeline.storage import s3, stores
from pipeline.tables.merging import merge
from pipeline.video.decoder import Decoder
from tests.support.s3_store import BUCKET, KEY, SECRET, Store, first, forget

ROOT = f"s3://{BUCKET}/a run/[x]"


def table(ids: list[str]) -> pa.Table:
    return pa.table({"clip_id": ids, "value": np.arange(len(ids)), "error": pa.nulls(len(ids), pa.string())})


# --- retries ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["503", "500", "reset", "cut"])
@pytest.mark.parametrize("operation", ["write", "read", "list", "table", "fetch", "delete"])
def test_passing_faults_pass(store: Store, tmp_path: Path, operation: str, fault: str) -> None:
    """A fault in each of the first requests changes nothing but the time."""
    path, data = f"{ROOT}/file", np.random.default_rng(0).bytes(100_000)
    stores.write_bytes(path, data)
    tables.append(f"{ROOT}/clips", table(["a", "b"]), {"numerics": 1})
    store.fault = first(4, fault)
    match operation:
        case "write":
            stores.write_bytes(f"{ROOT}/other", data)
            assert store.client().get_object(Bucket=BUCKET, Key="a run/[x]/other")["Body"].read() == data
        case "read":
            assert stores.read_bytes(path) == data
        case "list":
            assert [p.rsplit("/", 1)[1] for p in stores.files(ROOT)] == ["clips", "file"]
        case "table":
            tables.append(f"{ROOT}/clips", table(["c"]), {"numerics": 1})
            tables.check(f"{ROOT}/clips", {"numerics": 1})
            stored_table = tables.read(f"{ROOT}/clips")
            assert stored_table is not None
            assert stored_table.column("clip_id").to_pylist() == ["a", "b", "c"]
        case "fetch":
            stores.fetch(path, str(tmp_path / "file"))
            assert (tmp_path / "file").read_bytes() == data
        case "delete":
            stores.remove(ROOT)
            assert not store.keys()
    assert len(store.requests) > 4, "the faults were not met"


def test_tries_are_bounded_and_the_error_says_what_and_where(store: Store) -> None:
    store.fault = lambda request: "503"
    with pytest.raises(StoreError, match=r"put_object s3://bucket/a run/\[x\]/file: SlowDown: .*tried 10 times"):
        stores.write_bytes(f"{ROOT}/file", b"x")
    assert len(store.requests) == s3.TRIES


def test_waits_grow_and_differ() -> None:
    waits = np.array([[s3.wait(tries) for tries in range(1, s3.TRIES)] for _ in range(200)])
    assert (waits >= 0).all()
    assert waits.max() <= s3.LONGEST_WAIT
    assert len(np.unique(waits)) == waits.size, "waits of several workers are the same: they come back at once"
    mean = waits.mean(axis=0)
    assert (mean[1:6] > 1.5 * mean[:5]).all(), f"the waits do not grow: {mean}"
    assert waits.sum(axis=1).max() < 70, "a try that cannot succeed would hold a worker too long"


def test_a_connection_that_is_refused_and_an_answer_that_does_not_come(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {**s3.OPTIONS["config_kwargs"], "read_timeout": 0.2, "connect_timeout": 0.2}  # type: ignore[dict-item]
    monkeypatch.setitem(s3.OPTIONS, "config_kwargs", quick)
    stores.write_bytes(f"{ROOT}/file", b"data")
    store.fault = first(2, 0.6, "GET")
    assert stores.read_bytes(f"{ROOT}/file") == b"data"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    forget()
    with pytest.raises(StoreError, match=r"EndpointConnectionError.*tried 10 times.*Check AWS_ENDPOINT_URL"):
        stores.read_bytes(f"{ROOT}/file")


def test_what_is_not_there_or_not_allowed_keeps_its_kind(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        stores.read_bytes(f"{ROOT}/nothing")
    assert not stores.exists(f"{ROOT}/nothing")
    assert store.asked("nothing") < 6, "what is not there is not to be asked for again and again"
    store.requests.clear()
    store.fault = lambda request: "403"
    with pytest.raises(PermissionError, match="AccessDenied"):
        stores.write_bytes(f"{ROOT}/file", b"x")
    assert len(store.requests) == s3.DENIED_TRIES
    store.fault = first(2, "403")  # as some stores answer while they are throttled
    stores.write_bytes(f"{ROOT}/file", b"x")


def test_large_files_travel_in_parts_each_tried_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = np.random.default_rng(1).bytes(3 * s3.BLOCK + 5)
    stores.write_bytes(f"{ROOT}/large", data)
    for fault in ("cut", "503", "reset"):
        store.fault = first(3, fault, "GET")
        stores.fetch(f"{ROOT}/large", str(tmp_path / "large"))
        assert hashlib.sha256((tmp_path / "large").read_bytes()).digest() == hashlib.sha256(data).digest(), fault
        store.fault = first(3, fault, "GET")
        assert stores.read_bytes(f"{ROOT}/large") == data, fault
    fs, bare = stores.place(f"{ROOT}/streamed")
    store.fault = first(2, "503", "PUT.*partNumber")
    with fs.open(bare, "wb", block_size=6 << 20) as file:  # as checkpoints are written
        file.write(data)
    assert stores.read_bytes(f"{ROOT}/streamed") == data


def test_a_deletion_that_fails_for_one_key_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """s3fs passes over the errors in the answer to a bulk deletion."""
    original = s3.s3fs.S3FileSystem._call_s3

    async def refused(self: object, method: str, *a: object, **k: object) -> object:
        if method == "delete_objects":
            return {"Errors": [{"Code": "AccessDenied", "Message": "no", "Key": "plain/file"}]}
        return await original(self, method, *a, **k)

    stores.write_bytes(f"s3://{BUCKET}/plain/file", b"x")
    fs, bare = stores.place(f"s3://{BUCKET}/plain")
    monkeypatch.setattr(s3.s3fs.S3FileSystem, "_call_s3", refused)
    with pytest.raises(OSError, match="AccessDenied"):
        fs.rm(bare, recursive=True)


def test_local_runs_do_not_pay_for_s3_and_neither_module_needs_the_other_first() -> None:
    """s3fs and botocore take half a second to import, which is why `stores` imports `s3` where it is first needed."""
    words = "import sys, {0}; print('s3fs' in sys.modules)"
    said = [
        subprocess.run([sys.executable, "-c", words.format(name)], capture_output=True, text=True, check=True).stdout
        for name in ("pipeline.storage.stores, pipeline.storage.lease", "pipeline.storage.s3")
    ]
    assert said == ["False\n", "True\n"]
    assert "storage" not in "".join(re.findall("^.*import.*$", Path(s3.__file__).read_text(), re.MULTILINE))


def test_a_stores_error_comes_whole_from_another_process() -> None:
    """Ray pickles what a worker raises: the class and the sentence have to survive that."""
    denied = s3._DeniedError("put_object s3://b/k: AccessDenied: no")
    again = pickle.loads(pickle.dumps(denied))
    assert type(again) is s3._DeniedError
    assert str(again) == str(denied)


# --- a clip ----------------------------------------------------------------------------------------------------------


def test_a_clip_that_vanished_is_asked_for_again_and_then_an_error(store: Store) -> None:
    with Decoder(10) as decoder, pytest.raises(ClipError) as error:
        decoder.index(f"{ROOT}/gone.mp4", 9, 8.0)
    assert error.value.code == "read"
    assert "gone.mp4" in error.value.sentence
    assert store.asked("^GET.*gone.mp4") == s3.DENIED_TRIES


def test_a_clip_behind_a_store_that_stays_down_is_an_error_without_secrets(store: Store) -> None:
    store.fault = lambda request: "503"
    with Decoder(10) as decoder, pytest.raises(ClipError) as error:
        decoder.index(f"{ROOT}/a.mp4", 9, 8.0)
    assert str(error.value).startswith("read: ")
    assert "SlowDown" in str(error.value)
    assert KEY not in str(error.value)
    assert "feedc0ffee" not in str(error.value)


# --- listings --------------------------------------------------------------------------------------------------------


def test_a_listing_hides_no_part_that_another_wrote(store: Store) -> None:
    folder = f"{ROOT}/clips"
    tables.append(folder, table(["a"]), {})
    fs, bare = stores.place(folder)
    assert len(fs.ls(bare)) == 1
    written = tables.parts(folder)[0]
    raw = store.client()
    raw.copy_object(Bucket=BUCKET, Key="a run/[x]/clips/part-b.parquet", CopySource=written)
    assert len(fs.ls(bare)) == 2
    assert len(fs.find(bare)) == 2
    assert len(fs.glob(f"s3://{BUCKET}/a run/*/clips/*.parquet")) == 2
    raw.delete_object(Bucket=BUCKET, Key="a run/[x]/clips/part-b.parquet")
    assert len(tables.parts(folder)) == 1
    assert not stores.exists(f"{folder}/part-b.parquet")


def test_long_listings_come_in_pages(store: Store) -> None:
    raw = store.client()
    names = [f"part-{n:05d}.parquet" for n in range(25)]
    for name in names:
        raw.put_object(Bucket=BUCKET, Key=f"many/{name}", Body=b"")
    store.page = 10
    store.fault = first(2, "503", "continuation")
    assert [p.rsplit("/", 1)[1] for p in tables.parts(f"s3://{BUCKET}/many")] == names
    assert store.asked("list-type") == 3 + 2, "three pages, and two tries that failed"


def test_directory_markers_and_unfinished_uploads_are_no_rows(store: Store) -> None:
    folder = f"{ROOT}/clips"
    arrow = pyarrow.fs.S3FileSystem(endpoint_override=store.moto, access_key="x", secret_key="x", region="us-east-1")
    arrow.create_dir(f"{BUCKET}/a run/[x]/clips/deeper", recursive=True)
    raw = store.client()
    raw.put_object(Bucket=BUCKET, Key="a run/[x]/clips/", Body=b"")  # as consoles make folders
    key = "a run/[x]/clips/part-half.parquet"
    upload = raw.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
    raw.upload_part(Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=1, Body=b"P" * (5 << 20))
    assert tables.parts(folder) == []
    assert tables.read(folder) is None
    assert tables.metadata(folder) == {}
    tables.append(folder, table(["a"]), {"numerics": 1})
    tables.append(folder, table(["b"]), {"numerics": 1})
    merge(folder)
    stored_table = tables.read(folder)
    assert stored_table is not None
    assert stored_table.column("clip_id").to_pylist() == ["a", "b"]
    assert len(raw.list_multipart_uploads(Bucket=BUCKET)["Uploads"]) == 1, "the leftover was meant to be there"
    raw.abort_multipart_upload(Bucket=BUCKET, Key=key, UploadId=upload)


def test_a_write_that_fails_leaves_nothing_that_can_be_seen(store: Store) -> None:
    data = b"x" * (101 << 20)  # so large that it is sent in parts
    store.fault = lambda request: "503" if "partNumber=2" in request.path else None
    with pytest.raises(StoreError):
        stores.write_bytes(f"{ROOT}/part-x.parquet", data)
    assert store.keys() == []
    assert not store.client().list_multipart_uploads(Bucket=BUCKET).get("Uploads"), "what was sent was not taken back"


def test_a_manifest_in_a_bucket_that_may_not_be_listed(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    raw = store.client()
    names = [f"a {n}.mp4" for n in range(20)]
    for name in names:
        raw.put_object(Bucket=BUCKET, Key=f"closed/{name}", Body=name.encode())
    lines = [f"path,caption\n{names[0]},x", *(f"s3://{BUCKET}/closed/{name},x" for name in names[1:]), "gone.mp4,x"]
    raw.put_object(Bucket=BUCKET, Key="closed/m.csv", Body="\n".join(lines).encode())
    listed = videos.videos(f"s3://{BUCKET}/closed/m.csv")
    passing = first(5, "503", "HEAD")
    store.fault = lambda request: "403" if request.lists else passing(request)
    asked = videos.videos(f"s3://{BUCKET}/closed/m.csv")
    assert asked.drop_columns("error").equals(listed.drop_columns("error")), "uri, version or size differ"
    assert asked.column("error").to_pylist()[:-1] == [None] * 20
    assert asked.column("error").to_pylist()[-1] == "read: it is not there, or may not be read"
    assert caplog.text.count("asked for one by one") == 1


# --- secrets ---------------------------------------------------------------------------------------------------------


def test_errors_hold_no_secret(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    store.fault = lambda request: "503"
    caplog.set_level("INFO")
    with pytest.raises(OSError) as error:  # noqa: PT011
        stores.write_bytes(f"{ROOT}/file", b"x")
    texts = [str(error.value), repr(error.value), caplog.text]
    assert error.value.__cause__ is None, "a traceback would print what the store said"
    assert error.value.__suppress_context__
    for text in texts:
        assert not re.search(rf"{KEY}|{re.escape(SECRET)}|feedc0ffee|AKIA", text), text
    assert "try 5 of 10" in caplog.text


def test_without_credentials_the_error_says_what_to_give(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    begin = time.monotonic()
    with pytest.raises(PermissionError, match=r"NoCredentialsError.*a profile or a role"):
        stores.read_bytes(f"{ROOT}/file")
    assert time.monotonic() - begin < 5


def test_a_table_that_streams_to_a_bucket_shows_when_it_is_whole(store: Store) -> None:
    """A writer that fails, or dies, leaves the old object alone."""
    folder, schema = f"{ROOT}/influence", pa.schema([("clip_id", pa.string()), ("text", pa.string())])
    tables.replace(folder, pa.table([["old"], [""]], schema=schema), {})
    text = np.random.default_rng(0).bytes(s3.BLOCK).hex()  # more than one part of an upload

    def coming(fail: bool) -> Iterator[pa.Table]:
        for i in range(3):
            yield pa.table([[f"new{i}"], [text]], schema=schema)
            old_table = tables.read(folder, ["clip_id"])
            assert old_table is not None
            assert old_table.column("clip_id").to_pylist() == ["old"]
        if fail:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        tables.replace_streamed(folder, schema, coming(True), {})
    stored_table = tables.read(folder, ["clip_id"])
    assert stored_table is not None
    assert stored_table.column("clip_id").to_pylist() == ["old"]
    tables.replace_streamed(folder, schema, coming(False), {})
    stored_table = tables.read(folder, ["clip_id"])
    assert stored_table is not None
    assert stored_table.column("clip_id").to_pylist() == ["new0", "new1", "new2"]
