"""All Ray Data code: stream rows through a pool of actors that write their tables themselves.

A stage is restarted by running it again: the ids that its table has are subtracted from the rows before they stream,
and every batch becomes a part that appears whole or not at all. Only ids and errors travel back, frames never travel.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data.exceptions import ExecutionTimeoutError

from pipeline import tables
from pipeline.cluster import connection, failures, local_ray
from pipeline.cluster import journal as ray_journal
from pipeline.cluster.attempts import LIMIT, STARTS
from pipeline.cluster.loading import collector_at_rest
from pipeline.cluster.nodes import GB
from pipeline.config.operations import Pool
from pipeline.errors import ClipError, ConfigError, StageError, code_of, first_line, is_out_of_memory
from pipeline.storage import lease, stores
from pipeline.tables import retries, throughput
from pipeline.tables.merging import merge
from pipeline.tables.registry import table_of
from pipeline.tables.throughput import Figures
from pipeline.video.decoder import Decoder

log = logging.getLogger(__name__)

ROWS, BYTES = 500_000, 128 << 20  # in the object store at a time: the window closes with the block that reaches one
BATCHES, BATCHES_OF_ACTOR = 10_000, 500  # of a window: all in all, or for each actor where that is more
AT_ONCE = 2  # batches that Ray gives to an actor that is up: of fewer, the first one up would work all
AGAIN = "What it wrote is kept; once the cause is gone, run the same command again."
OUT_OF_MEMORY = 32  # rows, the first of a stage, after which it ends if memory did for none of them
NO_PROGRESS = 3600.0  # seconds without a finished batch after which a stage fails: far above the slowest one

Report = Callable[[int, int, dict[str, int]], None]  # rows done, rows in all, errors by code
Checkpoint = Callable[[int, int], None]  # rows done, rows in all; raises to end the stage here


class Worker(Protocol):
    """The body of an actor: a batch of rows in, tables by name out, each as soon as it is worth a part."""

    def __call__(self, rows: pa.Table, /) -> Iterable[dict[str, pa.Table]]: ...

    def refuse(self, rows: pa.Table, error: ClipError) -> dict[str, pa.Table]:
        """The tables of rows that are not tried any more: each with this error."""


@runtime_checkable
class Shrinking(Protocol):
    """A worker that can take less memory for a clip."""

    def shrink(self) -> bool:
        """Drop what is not finished, and work in smaller parts from now on; False where there are no smaller ones."""


@dataclass(frozen=True)
class Stage:
    """What rows stream through, and where what becomes of them is written.

    `worker()` is called once in each of `pool.actors` actors. Its tables are named as the keys of `folders`; each part
    carries the fingerprint and the metadata of its table. Figures of the stage are noted under `root`.
    """

    title: str
    root: str
    pool: Pool
    worker: Callable[[], Worker]
    folders: Mapping[str, str] = field(default_factory=dict)
    fingerprints: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    metadata: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def connect() -> None:
    """Join the cluster of RAY_ADDRESS, or start one on this machine's cores. Raises ConfigError where it cannot."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its remarks on actor restarts are not for users
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    stop = signal.getsignal(signal.SIGTERM)
    address = connection.cluster_address()
    if address is not None:
        try:
            ray.init(address, **quiet)
        except (RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            raise connection.rejected(error) from error
    else:
        local_ray.start(**quiet)
    if callable(stop):  # Ray's own handler would wait 30 s for the node to drain before it lets go
        signal.signal(signal.SIGTERM, stop)
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = NO_PROGRESS


class _Actor:
    """A worker with its tables: what it finds is written before the batch is called done.

    It tells the stage's journal what it begins and ends. A batch that the journal knows as begun and not ended took its
    process with it: it is worked clip by clip, and a clip that did so alone LIMIT times becomes an error row.
    """

    def __init__(self, stage: Stage, journal: Any, tried: Collection[str]) -> None:
        self.tried = tried
        self.journal = ray_journal.Teller(journal)
        self.place = self.journal.place
        died = self.journal.tell("starts", self.place)
        if died >= STARTS:
            raise RuntimeError(
                f"{stage.title}: an actor died {died} times in a row while it loaded what it needs, now on "
                f"{self.place}. Too little memory, or a driver or library that crashes? Ray's logs of that node say "
                "which."
            )
        self.meters = ray_journal.Meters(stage.title)
        with failures.noted(self.journal), collector_at_rest():
            self.worker = stage.worker()
        self.folders, self.fingerprints, self.metadata = stage.folders, stage.fingerprints, stage.metadata
        self.journal.tell("is_up")

    def __call__(self, rows: pa.Table) -> pa.Table:
        with failures.noted(self.journal):
            errors = self._attempt(rows, of_batch=False)
        return pa.table({"rows": pa.array([rows.num_rows]), "errors": pa.array([errors], pa.list_(pa.string()))})

    def _attempt(self, rows: pa.Table, of_batch: bool) -> list[str]:
        """Work these rows, or each of them alone if a process died over them; returns the errors that were written."""
        names = _names(rows)
        attempt = self.journal.tell("begins", names)
        if attempt is None:  # it was finished by a process that died later
            return []
        deaths, torn = attempt
        begun, read = time.monotonic(), Decoder.bytes_read()
        if torn:  # parts of an attempt that did not end: its rows are worked again
            for part in torn:
                stores.remove(part)
            self.journal.tell("removed", names)
        if deaths and rows.num_rows > 1:
            errors = [e for i in range(rows.num_rows) for e in self._attempt(rows.slice(i, 1), of_batch=True)]
            work = Figures()
        else:
            if deaths < LIMIT:
                errors = self._work(names, rows)
            else:
                errors = self._write(names, [self.worker.refuse(rows, self._died(deaths))], [])
            codes = Counter(code_of(error) for error in errors)
            work = Figures(rows=rows.num_rows, errors=dict(codes), bytes_read=Decoder.bytes_read() - read)
            self.meters.add(work, time.monotonic() - begun)
        self.journal.tell("ends", names, work, of_batch)
        return errors

    def _work(self, names: list[str], rows: pa.Table) -> list[str]:
        """Work these rows. Where memory does not do, again in smaller parts as long as there are such, then clip by
        clip; a clip for which it does not do alone gets an error row. Returns the errors that were written."""
        while True:
            paths = list[str]()
            try:
                return self._write(names, self.worker(rows), paths)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                reason = first_line(error)
            # Outside of the handler, whose traceback holds what filled the memory.
            for path in paths:
                stores.remove(path)
            gc.collect()
            smaller = isinstance(self.worker, Shrinking) and self.worker.shrink()
            log.warning("%s: out of memory over %d rows: %s", self.journal.place, rows.num_rows, reason)
            if not smaller:
                break
        if rows.num_rows > 1:
            return [e for i in range(rows.num_rows) for e in self._work(names, rows.slice(i, 1))]
        lacking = ClipError("memory", f"alone, and in the smallest parts, it takes more memory than there is: {reason}")
        return self._write(names, [self.worker.refuse(rows, lacking)], [])

    def _write(self, names: list[str], parts: Iterable[dict[str, pa.Table]], paths: list[str]) -> list[str]:
        """Write the tables as they come, and add their parts' paths to `paths`. A clip that fails in several tables of
        one pass is one error."""
        errors: dict[str, str] = {}
        for part in parts:
            outputs = dict(part)
            for name, rows in part.items():
                column = table_of(self.folders[name], rows.column_names).error
                if column is not None:
                    outputs[name] = retries.mark_second_failures(rows, column, self.tried)
                    failed = outputs[name].filter(rows.column(column).is_valid())
                    ids, why = failed.column("clip_id").to_pylist(), failed.column(column).to_pylist()
                    errors.update(zip(ids, why, strict=True))
            paths += [tables.part(self.folders[n], t) for n, t in outputs.items()]
            self.journal.tell("writes", names, paths[-len(outputs) :])
            for name, rows in outputs.items():
                tables.append(self.folders[name], rows, self.fingerprints[name], **self.metadata.get(name, {}))
        return list(errors.values())

    def _died(self, deaths: int) -> ClipError:
        return ClipError(
            "crashed",
            f"the process that worked on this clip alone died {deaths} times, and it was given up on {self.place}: "
            "native code that crashes, or a node without memory; Ray's logs say which",
        )


def _names(rows: pa.Table) -> list[str]:
    """What the journal calls these rows, each by another name; no address, which may carry a signature."""
    columns = ("arm", "kind", "seed", "clip_id", "id", "relative", "file_name")  # a manifest may name a file twice
    texts = [rows.column(name).cast(pa.string()) for name in columns if name in rows.column_names]
    names: list[str] = pc.binary_join_element_wise(*texts, " ", null_handling="skip").to_pylist()
    return names


def windows(blocks: Iterable[pa.Table], rows: int, size: int = BYTES) -> Iterator[list[pa.Table]]:
    """Blocks drawn as they are wanted, in groups of at least so many rows or bytes."""
    window, count, weight = list[pa.Table](), 0, 0
    for block in blocks:
        window.append(block)
        count, weight = count + block.num_rows, weight + block.nbytes
        if count >= rows or weight >= size:
            yield window
            window, count, weight = [], 0, 0
    if count:
        yield window


def stream(
    stage: Stage,
    blocks: Iterable[pa.Table],
    total: int,
    report: Report,
    tried: Collection[str] = (),
    checkpoint: Checkpoint | None = None,
) -> Figures:
    """Send the `total` rows of `blocks` through a stage's actors, `pool.batch` at a time, into its tables.

    `report` hears of every batch; then `checkpoint` is asked, and what it raises ends the stage between two batches.
    Rows already in the tables must have been subtracted; clips that were `tried` before get no third try. What the
    stage achieved is returned, and noted under its root. LostError where the run's lease was lost, StageError where the
    pool fails or makes no progress for NO_PROGRESS seconds.

    The rows are drawn a window at a time: about ROWS or BYTES are in the object store, and what Ray remembers of every
    batch is forgotten with the window. At its end actors wait for the last of them and the next window's load their
    models again: a minute or two in the hour or more that an actor takes for 500 batches of clips.
    """
    lease.check(stage.root)
    if not total:
        return Figures()
    report(0, total, {})
    if checkpoint is not None:
        checkpoint(0, total)
    done, errors = 0, dict[str, int]()
    title, pool = stage.title, stage.pool
    most = min(ROWS, pool.batch * max(BATCHES, BATCHES_OF_ACTOR * pool.actors))
    packed = replace(stage, worker=partial(_unpacked, ray.cloudpickle.dumps(stage.worker)))
    with (
        ray_journal.begun() as journal,
        ray_journal.watched(journal, title, pool, throughput.new_file(stage.root, title)),
        ray_journal.stopped_with_the_lease(journal, stage.root),
        _named(stage, journal),
    ):
        for window in windows(blocks, most):
            for folder in stage.folders.values() if done else ():
                merge(folder)  # a part for each batch: else the next job would have to open them all
            ray.get(journal.expects.remote(_actors(pool, sum(block.num_rows for block in window))))
            for batch in _through(window, pool, (packed, journal, tried)):
                done += sum(batch.column("rows").to_pylist())
                for error in (e for row in batch.column("errors").to_pylist() for e in row):
                    code = code_of(error)
                    errors[code] = errors.get(code, 0) + 1
                report(done, total, errors)
                lease.check(stage.root)
                if errors.get("memory", 0) == done >= OUT_OF_MEMORY:
                    raise ConfigError(_no_memory(title, pool, done))
                if checkpoint is not None:
                    checkpoint(done, total)
        return ray_journal.figures(journal)


def _unpacked(worker: bytes) -> Worker:
    """A stage's worker, which this job's driver has packed as Ray would. What it imports is imported here, and not as
    Ray hands the stage to an actor."""
    made: Worker = ray.cloudpickle.loads(worker)()
    return made


def _no_memory(title: str, pool: Pool, count: int) -> str:
    return (
        f"{title}: the first {count} clips all took more memory than an actor of {pool.cpus:g} CPUs and {pool.gpus:g} "
        "GPUs has, each alone and in the smallest parts; their rows say what was asked for. Take larger nodes, fewer "
        "actors on each, a smaller geometry (attribution.height, width and frames) or model, or "
        "model.gradient_checkpointing: true."
    )


def _actors(pool: Pool, rows: int) -> int:
    """How many of a pool's actors have something to do."""
    return min(pool.actors, math.ceil(rows / pool.batch))


def _batch(pool: Pool, rows: int, actors: int) -> int:
    """How many rows a batch has, at most `pool.batch`: every actor of a short stage gets its share."""
    shares = AT_ONCE * actors if actors > 1 else 1
    return min(pool.batch, math.ceil(rows / shares))


def _through(window: list[pa.Table], pool: Pool, actor: tuple[Any, ...]) -> Iterator[pa.Table]:
    """One window through a pool of its own; a line comes back for each batch when it is written."""
    rows = sum(block.num_rows for block in window)
    actors = _actors(pool, rows)
    dataset = _stored(window, _batch(pool, rows, actors)).map_batches(
        _Actor,
        fn_constructor_args=actor,
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
        memory=None if pool.memory is None else pool.memory * GB,
    )
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def _stored(window: list[pa.Table], size: int) -> Any:
    """A dataset of the window's rows in blocks of this size. They are in the object store then, and not in this process
    any more: its list is emptied."""
    rows = pa.concat_tables(window)
    window.clear()
    batches = [rows.slice(i, size).combine_chunks() for i in range(0, rows.num_rows, size)]
    # Not from_arrow: it asks a task of one CPU about each batch and waits for them without a limit or a word.
    return ray.data.from_blocks(batches)


@contextlib.contextmanager
def _named(stage: Stage, journal: Any) -> Iterator[None]:
    """Ray's errors with the stage's name first, and with the store's failure as their cause where they came of one."""
    try:
        yield
    except ExecutionTimeoutError as error:
        waits = ray_journal.describe(ray.get(journal.status.remote()), stage.title, stage.pool)
        raise StageError(stage.title, f"no progress for {NO_PROGRESS / 60:.0f} minutes. {waits}\n{AGAIN}") from error
    except ray.exceptions.RayError as error:
        lease.check(stage.root)  # the actors were stopped for it
        failure = ray.get(journal.failure.remote())
        if failure is not None:
            raise StageError(stage.title, f"{failure}\n{AGAIN}") from failure
        raise StageError(stage.title, f"{failures.sentence(str(error))}\n{AGAIN}") from error
