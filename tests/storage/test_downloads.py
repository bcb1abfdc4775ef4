"""Models and weights from s3:// or the hub are fetched once a machine, whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import config, models, motion
from pipeline.attribution import fingerprints
from pipeline.config import VideoModelConfig
from pipeline.errors import ConfigError
from pipeline.storage import downloads
from tests.support.s3_store import BUCKET, Request, Store, environment, first, seen_by

URL = f"s3://{BUCKET}/models/wan [1]"
FILES = {
    "model_index.json": b'{"_class_name": "WanPipeline"}',
    "vae/config.json": b'{"scale_factor_temporal": 4, "scale_factor_spatial": 8}',
    "transformer/a.safetensors": b"a" * 200_000,
    "transformer/b.safetensors": b"b" * 300_000,
    "transformer/c.safetensors": b"c" * 10,
}


@pytest.fixture
def store(s3_server: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    s3_server.clear()
    seen_by(monkeypatch, s3_server)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    raw = s3_server.client()
    for name, data in FILES.items():
        raw.put_object(Bucket=BUCKET, Key=f"models/wan [1]/{name}", Body=data)
    raw.put_object(Bucket=BUCKET, Key="models/wan [1]/", Body=b"")
    raw.put_object(Bucket=BUCKET, Key="models/wan [1]/transformer/pickled.bin", Body=b"no")
    downloads.local.cache_clear()
    yield s3_server
    downloads.local.cache_clear()


def begun(store: Store, url: str = URL) -> subprocess.Popen[str]:
    code = "import logging; logging.basicConfig()\n"
    code += f"from pipeline.storage import downloads; print(downloads.local({url!r}))"
    env = {**os.environ, **environment(store)}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def copies() -> list[str]:
    return sorted(path.name for path in downloads.folder().iterdir() if path.is_dir())


def test_a_model_is_fetched_once_without_its_pickles(store: Store) -> None:
    store.fault = first(3, "503", "GET.*safetensors")
    folder = models.folder(URL)
    assert contents(folder) == FILES
    of = models.family(VideoModelConfig(id=URL))
    assert of.path == folder
    assert of.strides == (4, 8)
    store.requests.clear()
    downloads.local.cache_clear()  # as in another process
    assert models.folder(URL) == folder
    assert not store.asked("^GET.*(safetensors|json)"), "it was fetched again"


def test_two_processes_at_once_fetch_once(store: Store) -> None:
    store.fault = lambda request: 0.5 if request.method == "GET" and "safetensors" in request.path else None
    both = [begun(store), begun(store)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert contents(Path(outputs[0][0].strip())) == FILES
    for name in FILES:
        assert store.asked(f"^GET .*{name}") == 1, f"{name} was fetched twice"


def test_a_killed_download_leaves_nothing_half_and_is_gone_on_with(store: Store) -> None:
    def slow(request: Request) -> float | None:
        return 60.0 if "b.safetensors" in request.path else None

    store.fault = slow
    process = begun(store)
    deadline = time.monotonic() + 60
    while not store.asked("b.safetensors") and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [name.rpartition(".")[2] for name in copies()] == ["partial"], "a half copy looks whole"
    store.fault = lambda request: None
    store.requests.clear()
    assert contents(downloads.local(URL)) == FILES
    assert not store.asked("^GET .*a.safetensors"), "what was whole was fetched again"
    assert len(copies()) == 1


def test_a_changed_model_is_another_copy_and_a_damaged_copy_is_mended(store: Store) -> None:
    before = downloads.local(URL)
    (before / "transformer/a.safetensors").write_bytes(b"cut off")
    (before / "vae/config.json").unlink()
    downloads.local.cache_clear()
    store.requests.clear()
    assert downloads.local(URL) == before
    assert contents(before) == FILES
    assert not store.asked("^GET .*b.safetensors")
    store.client().put_object(Bucket=BUCKET, Key="models/wan [1]/transformer/a.safetensors", Body=b"A" * 200_000)
    downloads.local.cache_clear()
    after = downloads.local(URL)
    assert after != before
    assert contents(after)["transformer/a.safetensors"][:1] == b"A"


def test_a_model_that_changes_while_it_is_fetched_is_refused(store: Store) -> None:
    raw = store.client()

    def changing(request: Request) -> None:
        if "b.safetensors" in request.path:
            raw.put_object(Bucket=BUCKET, Key="models/wan [1]/transformer/a.safetensors", Body=b"A" * 200_000)

    store.fault = changing  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="changed while it was fetched"):
        models.folder(URL)
    store.fault = lambda request: None
    files = contents(models.folder(URL))
    assert files["transformer/a.safetensors"] == b"A" * 200_000


def test_what_cannot_be_fetched_is_a_clear_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"model\.id='s3://bucket/none'.*model_index\.json"):
        models.folder(f"s3://{BUCKET}/none")
    store.fault = lambda request: "403"
    with pytest.raises(ConfigError, match="AccessDenied"):
        models.folder(URL)
    store.fault = lambda request: None
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(ConfigError, match="XDG_CACHE_HOME"):
        models.folder(URL)


def test_weights_of_the_flow_come_from_s3_too(store: Store, tmp_path: Path) -> None:
    data = (config.PACKAGE / "weights" / "raft_small_world.safetensors").read_bytes()
    (tmp_path / "own.safetensors").write_bytes(data)
    store.client().put_object(Bucket=BUCKET, Key="weights/own.safetensors", Body=data)
    there = config.load("demo", {"motion.weights": f"s3://{BUCKET}/weights/own.safetensors"}).motion
    here = config.load("demo", {"motion.weights": str(tmp_path / "own.safetensors")}).motion
    assert fingerprints.flow_hash(there) == fingerprints.flow_hash(here)
    motion.check_weights(there)
    with pytest.raises(ConfigError, match=r"motion\.weights.*none\.safetensors"):
        motion.check_weights(config.load("demo", {"motion.weights": f"s3://{BUCKET}/none.safetensors"}).motion)
