"""Too little memory: smaller parts, then clip by clip, then an error row; a stage for which it never does ends."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from pipeline import tables
from pipeline.cluster import streaming
from pipeline.cluster.alone import call_alone
from pipeline.cluster.streaming import OUT_OF_MEMORY, Stage
from pipeline.config.operations import Pool
from pipeline.errors import ClipError, ConfigError, is_out_of_memory
from tests.support.stage_workers import Hungry


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        pa.ArrowMemoryError("malloc of size 64 failed"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_what_says_that_memory_is_out_is_known(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_torchs_own_allocator_says_so() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes do not fit"), ValueError("out of memory"), ClipError("memory", "out of memory")]
)
def test_other_errors_surface(error: Exception) -> None:
    assert not is_out_of_memory(error)


def streamed(root: Path, ids: list[str], batch: int) -> list[dict[str, str | None]]:
    folder = str(root / "movement" / "clips")
    stage = Stage(
        "s", str(root), Pool(actors=1, batch=batch), partial(Hungry, 8), {"movement": folder}, {"movement": {}}
    )
    streaming.stream(stage, [pa.table({"clip_id": ids})], len(ids), lambda *_: None)
    table = tables.read(folder)
    assert table is not None
    rows: list[dict[str, str | None]] = table.select(["clip_id", "error"]).to_pylist()
    return rows


def starve() -> None:
    raise MemoryError


@pytest.mark.slow
def test_a_call_alone_that_has_too_little_memory_says_so_whatever_its_error_says(cluster: None) -> None:
    with pytest.raises(ConfigError, match=r"had not enough memory of the node: MemoryError\. "):
        call_alone("resources.x", starve, Pool())


@pytest.mark.slow
def test_smaller_parts_then_one_clip_alone(tmp_path: Path, cluster: None) -> None:
    ids = ["a9", "b2", "c0", "d9", "e4", "f9"]
    rows = streamed(tmp_path / "some", ids, batch=3)
    assert sorted(str(row["clip_id"]) for row in rows) == ids, "none is lost or doubled"
    assert {row["clip_id"] for row in rows if row["error"]} == {"c0"}
    error = next(row["error"] for row in rows if row["error"])
    assert str(error).startswith("memory: alone, and in the smallest parts")
    parts = [path for path in (tmp_path / "some" / "movement" / "clips").iterdir() if path.suffix == ".parquet"]
    assert len(parts) == 6, "what was written before memory was out is gone"

    with pytest.raises(ConfigError, match=f"the first {OUT_OF_MEMORY} clips all took more memory") as refused:
        streamed(tmp_path / "all", [f"{i}-0" for i in range(3 * OUT_OF_MEMORY)], batch=8)
    assert "\n" not in str(refused.value)
