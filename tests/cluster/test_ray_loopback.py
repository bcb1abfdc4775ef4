"""A Ray that a job starts on this machine is not to be reached from any other."""

from __future__ import annotations

import ipaddress

import psutil
import pytest
import ray

from pipeline.cluster import streaming


def _listening() -> list[tuple[str, str, int]]:
    """Process, address and port of whatever this process and its children listen on."""
    listeners = []
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            listeners += [(process.name(), *c.laddr) for c in process.net_connections("inet") if c.status == "LISTEN"]
        except psutil.NoSuchProcess:
            continue
    return listeners


def test_every_port_is_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    streaming.connect()
    try:
        assert ray.get(ray.remote(lambda: 1).remote()) == 1, "workers have been started"
        ports = _listening()
    finally:
        ray.shutdown()
    assert any("raylet" in name for name, *_ in ports), f"Ray's own ports are not among {ports}"
    open_to_all = [port for port in ports if not _loopback(port[1])]
    assert not open_to_all, "Ray listens on addresses that other machines reach"


def _loopback(text: str) -> bool:
    address = ipaddress.ip_address(text)
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
