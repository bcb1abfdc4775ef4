"""Ten million videos listed, subtracted from a table that has half of them, and scheduled: seconds and peak memory.

``--quick`` takes 200,000. Two cases, a process each: `index` holds a manifest of n videos against the clips of half of
them; `attribute` holds a table of n clips against the motion of half of them. What is lacking then streams through
Ray to an actor that does nothing. The ceiling of both is to read the same Parquet and nothing else. What a job imports
is in memory too. Pages of the object store that this process has written stay in its resident set after they were
freed, and are the store's: both are told, with them and without.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.benchmarks import ceilings
from jobs.benchmarks.idle import Nothing, memory
from pipeline import tables
from pipeline.cluster import streaming
from pipeline.cluster.streaming import Stage
from pipeline.config.operations import Pool
from pipeline.inputs import passed_columns
from pipeline.inputs.changes import Listing
from pipeline.inputs.video_set import VideoSet
from pipeline.tables import schemas
from pipeline.tables.ids import digests
from pipeline.tables.scanning import blocks

PART = 50_000  # rows of the parts that are there
POOL = Pool(batch=1000)
LIMITS = {"seconds": 300.0, "bytes": float(2 << 30)}
LOOK = 0.1  # seconds between two looks at the memory
Spent = dict[str, float]


# --- ten million videos ----------------------------------------------------------------------------------------------


def videos(numbers: range) -> dict[str, pa.Array]:
    """What a manifest says of these videos, the columns of `schemas.CLIPS` that it is about."""
    n = np.arange(numbers.start, numbers.stop, numbers.step)
    digits = pc.utf8_lpad(pa.array(n).cast(pa.string()), 9, "0")
    folder = pc.utf8_lpad(pa.array(n // 10_000).cast(pa.string()), 5, "0")
    return {
        "path": pc.binary_join_element_wise("batch-", folder, "/video-", digits, ".mp4", ""),
        "clip_id": pc.binary_join_element_wise("clip-", digits, ""),
        "version": pc.binary_join_element_wise("2718281-17000", digits, "000000000", ""),
        "source": pc.binary_join_element_wise("batch-", folder, ""),
        "caption": pc.binary_join_element_wise("someone throws a ball to the left, take ", digits, ""),
    }


def write_manifest(path: Path, count: int) -> None:
    schema = pa.schema([(name, pa.string()) for name in ("path", "id", "version", "source", "caption")])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, count, PART):
            rows = videos(range(start, min(start + PART, count)))
            writer.write_table(pa.table({"id": rows.pop("clip_id"), **rows}).select(schema.names))


def write_clips(folder: Path, numbers: range, root: Path, motion: bool) -> None:
    """A table of clips of these videos, or of their motion, whose masks are small."""
    schema = schemas.motion_schema(schemas.CLIPS) if motion else schemas.CLIPS
    for start in range(0, len(numbers), PART):
        listed = videos(numbers[start : start + PART])
        rows = len(listed["path"])
        columns = {**listed, "uri": pc.binary_join_element_wise(f"{root}/", listed["path"], "")}
        whole = {"start_frame": 0, "num_frames": 81, "fps": 16.0, "height": 480, "width": 832}
        filled = [
            columns[f.name]
            if f.name in columns
            else pa.repeat(pa.scalar(whole[f.name], f.type), rows)
            if f.name in whole
            else pa.nulls(rows, f.type)
            for f in schema
        ]
        tables.append(str(folder), pa.table(filled, schema=schema), {})


# --- what is measured ------------------------------------------------------------------------------------------------


class Watch:
    """Seconds, CPU seconds of this process and its peak memory, printed as a step ends."""

    def __init__(self, case: str) -> None:
        self.case, self.spent = case, Spent()
        self.start, self.cpu = time.monotonic(), time.process_time()
        self.own = self.resident = 0.0
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            resident, shared = memory()
            self.own, self.resident = max(self.own, resident - shared), max(self.resident, resident)
            time.sleep(LOOK)

    def __call__(self, step: str) -> None:
        now, cpu = time.monotonic(), time.process_time()
        self.spent |= {step: now - self.start, f"{step}_cpu": cpu - self.cpu}
        line = f"{self.case:<10} {step:<10} {now - self.start:7.1f} s, {cpu - self.cpu:6.1f} s of a CPU, at most "
        print(f"{line}{self.own / 2**20:6.0f} MiB so far, {self.resident / 2**20:.0f} with the store's", flush=True)
        self.start, self.cpu = now, cpu


def index(root: Path, count: int) -> Spent:
    watch = Watch("index")
    for batch in pq.ParquetFile(root / "manifest.parquet").iter_batches(PART):
        del batch
    watch("ceiling")
    listed = Listing(VideoSet(str(root / "manifest.parquet")))
    watch("list")
    columns = blocks(str(root / "index" / "clips"), ["clip_id", "uri", "caption", "source"])
    assert passed_columns.changed(listed.videos, columns, ["source"]) == ([], []), (
        "the manifest says the same as the table"
    )
    watch("compare")
    listed.subtract(str(root / "index" / "clips"))
    watch("subtract")
    return scheduled(listed.videos, "uri", count, watch)


def attribute(root: Path, count: int) -> Spent:
    watch = Watch("attribute")
    for path in tables.parts(str(root / "clips")):
        pq.read_table(path)
    watch("ceiling")
    indexed = tables.Scan(str(root / "clips"), lambda rows: pc.is_null(rows.column("error")))
    pending = tables.pending_rows(indexed, [str(root / "motion" / "clips")]).rows
    watch("subtract")
    return scheduled(pending, "clip_id", count, watch)


def scheduled(pending: tables.ShuffledRows, name: str, count: int, watch: Watch) -> Spent:
    """Stream what is lacking, and see that it is the odd half, in the order of its hash."""
    seen = {"rows": 0, "last": 0, "bytes": 0.0}

    def seen_blocks() -> Iterator[pa.Table]:
        for rows in pending:
            numbers = pc.cast(
                pc.utf8_slice_codeunits(pc.replace_substring(rows.column(name), ".mp4", ""), -9), pa.int64()
            )
            assert (numbers.to_numpy() % 2 == 1).all(), "a clip is scheduled that the table has"
            if name == "clip_id":
                first = digests(rows.column(name))[:, 0]
                assert first[0] > seen["last"], "blocks are not in the order of the hash"
                assert (np.diff(first.view(np.int64) ^ np.int64(-(2**63))) > 0).all(), "rows are not in that order"
                seen["last"] = int(first[-1])
            seen["rows"] += rows.num_rows
            seen["bytes"] += rows.nbytes
            yield rows

    streaming.connect()
    with tempfile.TemporaryDirectory(prefix="scale-") as root:
        streaming.stream(Stage("scale", root, POOL, Nothing), seen_blocks(), pending.num_rows, lambda *_: None)
    watch("schedule")
    assert seen["rows"] == pending.num_rows == count // 2, f"{seen['rows']} of {count // 2} were scheduled"
    window = min(min(streaming.ROWS, pending.num_rows) * seen["bytes"] / seen["rows"], streaming.BYTES)
    steps = [step for step in ("list", "compare", "subtract", "schedule") if step in watch.spent]
    whole = {f"whole{kind}": sum(watch.spent[step + kind] for step in steps) for kind in ("", "_cpu")}
    return {**watch.spent, **whole, "peak_bytes": watch.own, "resident_bytes": watch.resident, "window_bytes": window}


def alone(case: Callable[..., Any], *arguments: Any) -> Any:
    """Call it in a process of its own, with the imports of a job: its peak of memory is not another's."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _as_a_job) as process:
        return process.submit(case, *arguments).result()


def _as_a_job() -> None:
    importlib.import_module("jobs.curate")


def make(root: Path, count: int) -> None:
    write_manifest(root / "manifest.parquet", count)
    write_clips(root / "index" / "clips", range(0, count, 2), root, motion=False)
    write_clips(root / "clips", range(count), root, motion=False)
    write_clips(root / "motion" / "clips", range(0, count, 2), root, motion=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="200,000 videos instead of ten million")
    count = 200_000 if parser.parse_args().quick else 10_000_000
    machine = ceilings.machine()
    ceilings.print_machine(machine)
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        alone(make, Path(folder), count)
        print(f"{count:,} videos and their tables: {_size(Path(folder)) / 2**20:.0f} MiB on disk", flush=True)
        figures = {case.__name__: alone(case, Path(folder), count) for case in (index, attribute)}
    for name, spent in figures.items():
        print(
            f"{name}: {spent['whole']:.0f} s of {LIMITS['seconds']:.0f} allowed ({spent['whole_cpu']:.0f} s of a CPU), "
            f"{spent['peak_bytes'] / 2**20:.0f} MiB of {LIMITS['bytes'] / 2**20:.0f} allowed, "
            f"{spent['window_bytes'] / 2**20:.0f} MiB in the object store at a time"
        )
    ceilings.print_json({"benchmark": "scale", "videos": count, "machine": machine, "limits": LIMITS, "found": figures})


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    from jobs.benchmarks import scale  # by this name Ray's actors find what is sent to them, which __main__ is not

    scale.main()
