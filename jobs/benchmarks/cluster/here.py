"""What can be measured on one machine: a stage by a plain loop and by actors, and what a batch costs the driver, the
journal and Ray's own processes, for more and more actors that do nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray

from jobs.benchmarks.idle import Nothing, memory
from jobs.demo import write_world
from pipeline import config, models, tables
from pipeline.attribution import fingerprints
from pipeline.cluster import streaming
from pipeline.cluster.streaming import Stage
from pipeline.config import Run
from pipeline.config.operations import Pool
from pipeline.motion.worker import MotionWorker
from pipeline.stages import indexing
from pipeline.synthetic import world

TABLES = ("pictures", "movement", "motion")
JOURNAL, CONTROL = "Attempts", "gcs_server"
FEW = 0.01  # CPUs of an actor that does nothing


# --- a stage by a plain loop and by actors ---------------------------------------------------------------------------


def segments(folder: Path, clips: int) -> tuple[Run, pa.Table]:
    """The demo's recipe on a synthetic world that is written and indexed, and the rows of its clips."""
    run = config.load("demo", {"root": str(folder / "run"), "data.videos": str(folder / "world" / "clips")})
    write_world(Path(str(run.data.videos)), world.corpus(1, clips, run.data.frames), run)
    indexing.index(run, "clips")
    rows = tables.read(str(folder / "run" / "clips"))
    assert rows is not None, "all of them were indexed"
    return run, rows


def seconds_a_clip(run: Run, rows: pa.Table, folder: Path, actors: int) -> float:
    """Seconds a clip of estimating motion, by so many actors or by a plain loop (0): of three quarters of the rows
    beyond those of the first quarter, so that what a process loads is in neither."""
    count = int(rows.num_rows)
    few = count // 4
    first = _seconds_of(run, rows.slice(0, few), folder / f"{actors}-few", actors)
    whole = _seconds_of(run, rows, folder / f"{actors}-all", actors)
    return (whole - first) / (count - few)


def _seconds_of(run: Run, rows: pa.Table, folder: Path, actors: int) -> float:
    return _streamed(run, rows, folder, actors) if actors else _looped(run, rows, folder)


def _looped(run: Run, rows: pa.Table, folder: Path) -> float:
    begun, pool = time.monotonic(), run.resources.estimate_motion
    worker = MotionWorker(run, models.grid(run), pool.gpus)
    for start in range(0, rows.num_rows, pool.batch):
        for parts in worker(rows.slice(start, pool.batch)):
            for name, part in parts.items():
                tables.append(str(folder / name / "clips"), part, {})
    return time.monotonic() - begun


def _streamed(run: Run, rows: pa.Table, folder: Path, actors: int) -> float:
    begun = time.monotonic()
    pool = run.resources.estimate_motion.model_copy(update={"actors": actors})
    stage = Stage(
        title="motion",
        root=str(folder),
        pool=pool,
        worker=partial(MotionWorker, run, models.grid(run), pool.gpus),
        folders={name: str(folder / name / "clips") for name in TABLES},
        fingerprints={name: fingerprints.motion(run) for name in TABLES},
    )
    streaming.stream(stage, [rows], rows.num_rows, lambda *_: None)
    return time.monotonic() - begun


# --- what a batch costs the driver and the journal -------------------------------------------------------------------


@dataclass(frozen=True)
class Spent:
    """Processor seconds of a batch of one row: at the driver, in the journal, which is called three times, and in Ray's
    control service; bytes that the driver grows by with each batch of a window; batches a second."""

    actors: int
    driver: float
    journal: float
    control: float
    driver_bytes: float
    batches_per_second: float


class _Meter:
    """Processor seconds of this process, of the journal and of Ray's control service, this one's memory, the time."""

    def __init__(self) -> None:
        children = list(_descendants(os.getpid()))  # of a Ray that was started here, all there is
        self._others = [next(pid for pid in children if name in _command(pid)) for name in (JOURNAL, CONTROL)]

    def read(self) -> npt.NDArray[np.float64]:
        resident, shared = memory()
        return np.array([time.process_time(), *map(_seconds, self._others), resident - shared, time.monotonic()])


def _descendants(pid: int) -> Iterator[int]:
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        children: list[int] = []
        with suppress(FileNotFoundError, ProcessLookupError):  # of a thread that ends meanwhile
            children = [int(child) for child in listing.read_text().split()]
        for child in children:
            yield child
            yield from _descendants(child)


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def _seconds(pid: int) -> float:
    """Processor seconds of a process: the 14th and 15th field of its stat, of which the second may hold spaces."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def spent(folder: Path, actors: int, batches: int) -> Spent:
    """What a stage of `actors` that do nothing costs a batch, from its second tenth on, when all actors are up."""
    rows = pa.table({"clip_id": [f"clip-{n:08d}" for n in range(batches)]})
    stage = Stage("nothing", str(folder / f"{actors}"), Pool(actors=actors, cpus=FEW, batch=1), Nothing)
    readings: list[tuple[int, npt.NDArray[np.float64]]] = []
    meter: list[_Meter] = []

    def report(done: int, total: int, errors: dict[str, int]) -> None:
        if done >= total // 10 and not meter:
            meter.append(_Meter())
            readings.append((done, meter[0].read()))
        elif done == total:
            readings.append((done, meter[0].read()))

    streaming.stream(stage, [rows], batches, report)
    (first, before), (last, after) = readings
    driver, journal, control, own, seconds = ((after - before) / (last - first)).tolist()
    return Spent(actors, driver, journal, control, own, 1 / seconds)


def started() -> None:
    """A Ray of this machine alone."""
    ray.shutdown()
    streaming.connect()
