"""Addresses of clusters that are gone, or none, and folders that are too long for Ray's sockets."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from concurrent import futures

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
