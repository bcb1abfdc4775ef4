"""Actors that do nothing, and the memory of a driver that hands them rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from pipeline.errors import ClipError


class Nothing:
    """An actor that finds nothing in any clip."""

    def __call__(self, rows: pa.Table) -> Iterator[dict[str, pa.Table]]:
        yield {}

    def refuse(self, rows: pa.Table, error: ClipError) -> dict[str, pa.Table]:
        raise error


def memory() -> tuple[float, float]:
    """Bytes that are resident for this process, and those of them that are shared memory: here the object store's."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    sizes = {line[0]: float(line[1]) * 1024 for line in lines if line[-1] == "kB"}
    return sizes["VmRSS:"], sizes["RssShmem:"]
