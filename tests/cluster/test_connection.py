"""Addresses of clusters that are gone, or none, and folders that are too long for Ray's sockets."""

from __future__ import annotations

import http.server
import logging
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from ray._private import services

from pipeline.cluster import connection, streaming
from pipeline.errors import ConfigError


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "TRY", 2.0)


def refused(monkeypatch: pytest.MonkeyPatch, address: str) -> str:
    monkeypatch.setenv("RAY_ADDRESS", address)
    start = time.monotonic()
    with pytest.raises(ConfigError) as error:
        streaming.connect()
    assert time.monotonic() - start < 15
    assert f"RAY_ADDRESS={address!r}" in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "6379", "host:", ":6379", "host:0", "host:99999", "host:port", "a b:1", " ", "[::1:6379"]
)
def test_what_is_no_address_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    assert "it is no address. Give HOST:PORT" in refused(monkeypatch, address)


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265", "anyscale://x"])
def test_a_url_is_refused_with_what_it_is_for(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    assert "ray job submit" in refused(monkeypatch, address)


def test_a_password_in_a_url_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://user:secret@host:8265")
    with pytest.raises(ConfigError) as error:
        connection.cluster_address()
    assert "secret" not in str(error.value)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "no-such-host.invalid"])
def test_a_cluster_that_is_gone_is_soon_told(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    message = refused(monkeypatch, f"{host}:{free_port()}")
    assert "no Ray cluster answered there within 2 s" in message
    assert "unset RAY_ADDRESS" in message


def test_no_cluster_on_this_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "find_gcs_addresses", set)
    monkeypatch.setattr(services, "find_bootstrap_address", lambda folder: None)
    assert "Could not find any running Ray instance" in refused(monkeypatch, "auto")


def test_the_record_of_a_cluster_that_is_gone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "find_gcs_addresses", set)
    monkeypatch.setattr(services, "find_bootstrap_address", lambda folder: f"127.0.0.1:{free_port()}")
    assert "no Ray cluster answered there" in refused(monkeypatch, "auto")


@pytest.fixture(params=["http", "silent", "grpc"])
def other_server(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of something that answers, or only takes connections, and is no Ray."""
    if request.param == "http":
        web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield web.server_port
        web.shutdown()
        web.server_close()
    elif request.param == "silent":
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            yield silent.getsockname()[1]
    else:
        server = grpc.server(futures.ThreadPoolExecutor(1))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield port
        server.stop(None)


def test_an_open_port_that_is_no_cluster_is_told(monkeypatch: pytest.MonkeyPatch, other_server: int) -> None:
    assert "what answers there is no Ray cluster's head" in refused(monkeypatch, f"127.0.0.1:{other_server}")


@pytest.mark.parametrize("address", [None, "", "local"])
def test_without_an_address_a_ray_starts_here(monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    if address is None:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
    else:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert connection.cluster_address() is None


# --- folders ---------------------------------------------------------------------------------------------------------


def long_folder(base: Path, length: int) -> Path:
    return base / ("x" * max(1, length - len(str(base)) - 1))


def test_a_short_tmpdir_is_left_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    for name in ("/tmp", "/var/tmp"):
        monkeypatch.setenv("TMPDIR", name)
        assert connection.folders() == {}
    monkeypatch.delenv("TMPDIR")
    assert connection.folders() == {}


def test_a_long_tmpdir_keeps_the_objects_and_not_the_sockets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    given = tmp_path / "job_123456" / "local_scratch_directory"
    monkeypatch.setenv("TMPDIR", str(given))
    with caplog.at_level(logging.WARNING):
        options = connection.folders()
    assert options["object_spilling_directory"] == str(given / "ray")
    own = Path(options["_temp_dir"]).parent
    assert own.name == f"ray-{os.getuid()}"
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert str(own) in caplog.text
    assert str(given) in caplog.text
    assert connection.folders() == options, "a second run on this machine has another folder"


def test_a_long_ray_tmpdir_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = str(long_folder(tmp_path, 60))
    monkeypatch.setenv("RAY_TMPDIR", given)
    with pytest.raises(ConfigError, match=r"RAY_TMPDIR=.*Ray's sockets need a folder of at most \d\d"):
        connection.folders()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_tmpdir_that_cannot_be_written_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with pytest.raises(ConfigError, match=r"TMPDIR=.*cannot keep its files there"):
        connection.folders()


def test_a_tmpdir_that_is_a_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"TMPDIR=.*cannot keep its files there"):
        connection.folders()


def test_a_folder_that_others_may_enter_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere"
    link.mkdir(mode=0o755)
    monkeypatch.setattr(connection, "SHORT", (str(tmp_path / "a"), str(tmp_path / "b")))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / f"ray-{os.getuid()}").symlink_to(link)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / f"ray-{os.getuid()}").mkdir(mode=0o755)
    with pytest.raises(ConfigError, match="Set RAY_TMPDIR to a short one"):
        connection._short_folder()


A_RAY = """
import os

import ray

from pipeline.cluster import connection, streaming

streaming.connect()
spilling = ray._private.worker._global_node._object_spilling_config
os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
print(ray.get(ray.remote(lambda: os.environ["TMPDIR"]).remote()))
print(spilling)
print(connection.cluster_address() == os.environ["RAY_ADDRESS"])
ray.shutdown()
"""


def test_ray_runs_with_a_long_tmpdir_and_can_be_joined(tmp_path: Path) -> None:
    """In a process of its own: Ray waits for its own processes in native code, which no time limit of a test ends."""
    given = tmp_path / "slurm" / "job_123456" / "local_scratch_directory"
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_TMPDIR")}
    environment |= {"TMPDIR": str(given), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", A_RAY], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    seen, spilling, joined = done.stdout.splitlines()[-3:]
    assert seen == str(given)
    assert str(given / "ray") in spilling
    assert joined == "True"
