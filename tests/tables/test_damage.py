"""Parts that are damaged and disks that are full: one sentence that says which file and what to do, no traceback."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline import tables
from pipeline.errors import DamagedError, StoreError
from pipeline.ranking import feature_table
from pipeline.ranking.column_file import Columns
from pipeline.storage import stores
from pipeline.tables import ShuffledRows, merging, rows, scanning, schemas
from pipeline.tables.ids import digests

N, K = 200, 64


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """features/clips of two parts."""
    for start in (0, N):
        values = np.random.default_rng(start).standard_normal((N, K), np.float32)
        ones = tables.vectors(np.ones((N, 1), np.float32))
        ids, frames = pa.array([f"{start + i:05d}" for i in range(N)]), pa.array([9] * N, pa.int32())
        columns = [ids, pa.array(["v"] * N), tables.vectors(values), ones, ones, frames, pa.nulls(N, pa.string())]
        settings = [{"timestep": 751, "noise": 0, "mask": "motion"}]
        table = pa.table(columns, schema=schemas.features_schema(1, K))
        tables.append(f"{tmp_path}/features/clips", table, {}, settings=settings)
    return tmp_path


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    """One bit of the features is another."""
    at = len(data) // 3
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def empty(data: bytes) -> bytes:
    return b""


def footless(data: bytes) -> bytes:
    return data[:-200] + bytes(190) + data[-10:]


READ: dict[str, Callable[[str], object]] = {
    "tables": lambda root: tables.read(f"{root}/features/clips"),
    "ranking": lambda root: feature_table.under_mask(root, "clips", "motion").rows(),
    "scanning": lambda root: list(scanning.blocks(f"{root}/features/clips", ["clip_id", "feature"])),
    "merging": lambda root: merging.merge(f"{root}/features/clips"),
}


@pytest.mark.parametrize("reader", READ)
@pytest.mark.parametrize("damage", [cut, flipped, empty, footless])
def test_a_damaged_part_is_named_with_the_remedy(root: Path, damage: Callable[[bytes], bytes], reader: str) -> None:
    READ["tables"](str(root))
    part = sorted((root / "features" / "clips").iterdir())[1]
    part.write_bytes(damage(part.read_bytes()))
    with pytest.raises(DamagedError, match=rf"{part.name}: .*damaged .*Delete the file") as error:
        READ[reader](str(root))
    assert "\n" not in str(error.value)
    assert len(list((root / "features" / "clips").iterdir())) == 2, "something was deleted"
    part.unlink()
    READ[reader](str(root))


def test_a_missing_part_is_not_a_damaged_one(root: Path) -> None:
    part = next((root / "features" / "clips").iterdir())
    fs, _ = stores.place(str(part))
    part.unlink()
    with pytest.raises(FileNotFoundError):
        rows._read_part(str(part), fs, None)


def full(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_told_with_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"table/part: it cannot be written \(No space left on device\)"):
        stores.write_bytes(str(tmp_path / "table" / "part"), b"x")
    assert list((tmp_path / "table").iterdir()) == [], "half a file is left"
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StoreError, match=r"temporary file in .* \(TMPDIR\): .*No space left"):
        Columns(2, 2).add(np.ones((2, 2), np.float32))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_rows_that_wait_on_a_full_disk_say_where(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = pa.table({"clip_id": [f"{i}" for i in range(10)]})
    rows = ShuffledRows(ids.schema)
    with open("/dev/full", "wb", buffering=0) as monkey:
        monkeypatch.setattr(rows, "_file", monkey)
        with pytest.raises(StoreError, match="TMPDIR"):
            rows.add_digests(ids, digests(ids.column("clip_id")))
