"""All Ray Data code: stream rows through a pool of actors that write their tables themselves.

A stage is restarted by running it again: the ids that its table has are subtracted from the rows before they stream,
and every batch becomes a part that appears whole or not at all. Only ids and errors travel back, frames never travel.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import ray

from pipeline import tables
from pipeline.config import ConfigError, Pool, Run

log = logging.getLogger(__name__)

WINDOW, WINDOW_OF_ACTOR = 100_000, 2_000  # rows in the object store at a time: all in all, or for each actor if more

Report = Callable[[int, int, dict[str, int]], None]  # rows done, rows in all, errors by code


# The bodies of workers.py: a batch of rows in, tables by name out, each as soon as it is worth a part.
Worker = Callable[[pa.Table], Iterable[dict[str, pa.Table]]]


def connect() -> None:
    """Join the cluster of RAY_ADDRESS, or start one on this machine's cores."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its remarks on actor restarts are not for users
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    stop = signal.getsignal(signal.SIGTERM)
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
    else:
        with _on_loopback():
            # Pools of fractional demand and Ray's own bookkeeping share two cores best when Ray counts at least four.
            ray.init(num_cpus=max(4, os.cpu_count() or 1), include_dashboard=False, **quiet)
    if callable(stop):  # Ray's own handler would wait 30 s for the node to drain before it lets go
        signal.signal(signal.SIGTERM, stop)
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """A Ray that starts here listens on 127.0.0.1 alone: on Linux it would answer any host, and run what that sends.

    `_node_ip_address="127.0.0.1"` does not do: Ray 2.60 replaces it by the machine's address. What it does on macOS and
    Windows has no switch of its own on Linux.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def check_resources(run: Run, stages: list[str]) -> None:
    """Raise ConfigError with a table of what is asked and what can be had, if a stage asks for more than there is.

    Then wait, at most `resources.wait` seconds, until what the autoscaler must start is there.
    """
    reach = _within_reach()
    pools = {stage: _pool(run, stage) for stage in stages}
    lacking = [s for s, p in pools.items() if p.cpus > reach["CPU"] or p.gpus > reach["GPU"]]
    lacking += [s for s, p in pools.items() if s not in lacking and p.gpus * p.actors > reach["GPU"]]
    gang = pools.get("finetune")  # its workers start together or not at all
    if gang is not None and "finetune" not in lacking and gang.cpus * gang.actors > reach["CPU"]:
        lacking.append("finetune")
    if lacking:
        asked = "\n".join(
            f"  resources.{stage}: {pool.actors} x ({pool.cpus:g} CPUs, {pool.gpus:g} GPUs)"
            + ("   <- more than there is" if stage in lacking else "")
            for stage, pool in pools.items()
        )
        raise ConfigError(
            f"resources.{lacking[0]} asks for more than this cluster can reach. Asked for:\n{asked}\nWithin reach: "
            f"{reach['CPU']:g} CPUs, {reach['GPU']:g} GPUs. Lower actors, cpus or gpus, or run on a larger cluster."
        )
    _wait_for(pools, run.resources.wait)


def _within_reach() -> dict[str, float]:
    """CPUs and GPUs of the cluster at its largest: the autoscaler's maximum where there is one, else what is up."""
    from ray._private.state import state  # the only place that knows the autoscaler's maximum; Ray Train asks it too

    most = state.get_max_resources_from_cluster_config() or {}
    now = ray.cluster_resources()
    return {kind: float(max(most.get(kind, 0), now.get(kind, 0))) for kind in ("CPU", "GPU")}


def _wait_for(pools: Mapping[str, Pool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        now = ray.cluster_resources()
        short = [s for s, p in pools.items() if p.gpus > now.get("GPU", 0) or p.cpus > now.get("CPU", 0)]
        if not short:
            return
        if time.monotonic() > deadline:
            raise ConfigError(
                f"resources.wait={seconds:g}: the cluster did not start what resources.{short[0]} asks for by then "
                f"(there are {now.get('CPU', 0):g} CPUs and {now.get('GPU', 0):g} GPUs). Wait longer or ask for less."
            )
        log.warning("waiting for the cluster to start what %s asks for", ", ".join(short))
        time.sleep(min(10.0, seconds))


def _pool(run: Run, stage: str) -> Pool:
    pool: Pool = getattr(run.resources, stage)
    fewest = run.finetune.min_workers or run.finetune.workers
    return pool.model_copy(update={"actors": fewest}) if stage == "finetune" else pool


class _Actor:
    """A worker with its tables: what it finds is written before the batch is called done."""

    def __init__(
        self,
        worker: Callable[..., Worker],
        arguments: tuple[Any, ...],
        folders: Mapping[str, str],
        fingerprints: Mapping[str, Mapping[str, Any]],
        metadata: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self.worker = worker(*arguments)
        self.folders, self.fingerprints, self.metadata = folders, fingerprints, metadata

    def __call__(self, rows: pa.Table) -> pa.Table:
        errors: dict[str, str] = {}  # a clip that fails in several tables of one pass is one error
        for found in self.worker(rows):
            for name, table in found.items():
                tables.append(self.folders[name], table, self.fingerprints[name], **self.metadata.get(name, {}))
                if "error" in table.column_names:
                    failed = table.select(["clip_id", "error"]).filter(table.column("error").is_valid())
                    errors |= {row["clip_id"]: row["error"] for row in failed.to_pylist()}
        listed = pa.array([list(errors.values())], pa.list_(pa.string()))
        return pa.table({"rows": pa.array([rows.num_rows]), "errors": listed})


def windows(blocks: Iterable[pa.Table], rows: int) -> Iterator[list[pa.Table]]:
    """Blocks drawn as they are wanted, in groups of at least so many rows."""
    window, held = list[pa.Table](), 0
    for block in blocks:
        window.append(block)
        held += block.num_rows
        if held >= rows:
            yield window
            window, held = [], 0
    if held:
        yield window


def stream(
    blocks: Iterable[pa.Table],
    total: int,
    pool: Pool,
    worker: Callable[..., Worker],
    arguments: tuple[Any, ...],
    folders: Mapping[str, str],
    fingerprints: Mapping[str, Mapping[str, Any]],
    report: Report,
    metadata: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Send `total` rows through `pool.actors` workers, `pool.batch` at a time, into the tables that `folders` names.

    `worker(*arguments)` is called once in each actor; its tables are named as the keys of `folders`. `report` hears of
    every batch. Rows already in the tables must have been subtracted.

    The rows are drawn a window at a time, WINDOW of them or WINDOW_OF_ACTOR for each actor: no more are in the object
    store, and what Ray remembers of every block is forgotten with the window. At its end actors wait for the last of
    them and the next window's load their models again, a few minutes in the hours that an actor takes for its share.
    """
    if not total:
        return
    report(0, total, {})
    done, errors = 0, dict[str, int]()
    actor = (worker, arguments, folders, fingerprints, metadata or {})
    for window in windows(blocks, max(WINDOW, WINDOW_OF_ACTOR * pool.actors)):
        for batch in _through(pa.concat_tables(window), pool, actor):
            done += sum(batch.column("rows").to_pylist())
            for error in (e for row in batch.column("errors").to_pylist() for e in row):
                code = str(error).split(":")[0]
                errors[code] = errors.get(code, 0) + 1
            report(done, total, errors)


def _through(rows: pa.Table, pool: Pool, actor: tuple[Any, ...]) -> Iterator[pa.Table]:
    """One window through a pool of its own; a line comes back for each batch when it is written."""
    actors = min(pool.actors, math.ceil(rows.num_rows / pool.batch))
    size = min(pool.batch, math.ceil(rows.num_rows / actors))
    batches = [rows.slice(i, size).combine_chunks() for i in range(0, rows.num_rows, size)]
    found = ray.data.from_arrow(batches).map_batches(
        _Actor,
        fn_constructor_args=actor,
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
    )
    yield from found.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
