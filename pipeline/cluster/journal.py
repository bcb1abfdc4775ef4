"""The journal of a stage: an actor beside the driver that every actor of the pool tells what it begins and ends.

It is the only place that sees a process die in the middle of something, since Ray Data replaces the actor and sends the
batch again without a word, for ever. `Attempts` says what follows from that. The driver asks it how the stage stands.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster.attempts import Attempts, standstill
from pipeline.cluster.nodes import GB
from pipeline.cluster.watchdog import Patience, looking, reason_of
from pipeline.config.operations import Pool
from pipeline.storage import lease
from pipeline.tables import throughput
from pipeline.tables.throughput import Figures

log = logging.getLogger(__name__)

LOOK = 5.0  # seconds between two looks
LEASE_LOOK = 1.0  # seconds between two looks at the run's lease, which cost nothing
SAVE = 60.0  # seconds between two savings of a stage's figures, which a killed job leaves behind


_SPARE: dict[tuple[str, str], list[Any]] = {}  # by Ray's node and job: the journals whose stages have ended well


@contextmanager
def begun() -> Iterator[Any]:
    """A stage's journal, on the driver's own node: while the driver lives, so does it.

    Once all actors of its stage were up and have worked, it serves the next stage, which else would wait a second for a
    process. Where the body raised, or an actor was still loading, the journal is killed: it may be told something yet.
    """
    context = ray.get_runtime_context()
    spare = _SPARE.setdefault((context.get_node_id(), context.get_job_id()), [])
    journal = _next_of(spare)
    if journal is None:
        here = NodeAffinitySchedulingStrategy(context.get_node_id(), soft=False)
        journal = ray.remote(num_cpus=0, max_restarts=0, scheduling_strategy=here)(Attempts).remote()
    try:
        yield journal
    except BaseException:
        ray.kill(journal)
        raise
    status = ray.get(journal.status.remote())
    if status["starting"] or len(status["working"]) + len(status["waiting"]) < status["expected"]:
        ray.kill(journal)
    else:
        spare.append(journal)


def _next_of(spare: list[Any]) -> Any | None:
    """A journal out of those that can be had; None where there is none that lives."""
    while spare:
        try:
            journal = spare.pop()
            ray.get(journal.forgets.remote())
        except (IndexError, ray.exceptions.RayActorError):  # another thread took it, or the node ended its process
            continue
        return journal
    return None


def figures(journal: Any) -> Figures:
    """What the stage achieved so far."""
    return Figures(**ray.get(journal.status.remote())["figures"])


class Teller:
    """One actor's side of the journal."""

    def __init__(self, journal: Any) -> None:
        context = ray.get_runtime_context()
        self._journal, self._actor = journal, context.get_actor_id()  # the id outlives a restart
        self.place = f"{ray.util.get_node_ip_address()} (node {context.get_node_id()[:8]}, process {os.getpid()})"

    def tell(self, method: str, *arguments: Any) -> Any:
        """Call a method of `Attempts` for this actor, and wait until it is noted."""
        return ray.get(getattr(self._journal, method).remote(self._actor, *arguments))


class Meters:
    """What an actor does, for Ray's dashboard; each by stage, errors by code too. The rate of `busy_seconds` is the
    number of actors at work."""

    def __init__(self, stage: str) -> None:
        self._stage = {"stage": stage}
        keys = ("stage",)
        self._rows = Counter("curation_rows", "rows that were finished", keys)
        self._errors = Counter("curation_errors", "clips that became an error row", (*keys, "code"))
        self._bytes_read = Counter("curation_bytes_read", "bytes of video files opened or fetched", keys)
        self._busy = Counter("curation_busy_seconds", "seconds that actors spent in batches", keys)

    def add(self, work: Figures, seconds: float) -> None:
        for counter, value in ((self._rows, work.rows), (self._bytes_read, work.bytes_read), (self._busy, seconds)):
            if value > 0:
                counter.inc(value, self._stage)
        for code, count in work.errors.items():
            self._errors.inc(count, {**self._stage, "code": code})


@contextmanager
def watched(journal: Any, stage: str, pool: Pool, file: str) -> Iterator[None]:
    """While the body runs, keep the stage's figures in `file` and in Ray's dashboard, and warn of a standstill: which
    actor waits for what, and which clips are being worked.

    After a body that raised, figures that cannot be saved are a warning, and the body's error is raised. After one that
    did not, they are an error of Ray or a StoreError.
    """
    share = Gauge("curation_busy_share", "of the time that a pool's actors were up, the share in batches", ("stage",))
    states = Gauge("curation_actors", "actors of a pool by what they do", ("stage", "state"))

    def note() -> dict[str, Any]:
        status: dict[str, Any] = ray.get(journal.status.remote())
        figures = Figures(**status["figures"])
        share.set(figures.busy_share or 0.0, {"stage": stage})
        counts = {state: len(status[state]) for state in ("working", "waiting", "starting")}
        for state, count in {**counts, "missing": status["expected"] - sum(counts.values())}.items():
            states.set(count, {"stage": stage, "state": state})
        return status

    def save() -> None:
        if not lease.is_lost(file):
            throughput.save(file, stage, Figures(**note()["figures"]))

    patience, saved = Patience(), time.monotonic()

    def look() -> None:
        nonlocal saved
        status = note()
        if patience.is_over(status["still"]):
            log.warning("%s", describe(status, stage, pool))
        if time.monotonic() - saved >= SAVE and not lease.is_lost(file):
            throughput.save(file, stage, Figures(**status["figures"]))
            saved = time.monotonic()

    try:
        with looking(look, LOOK, "journal"):
            yield
    except BaseException:
        try:
            save()
        except Exception as error:  # of a store or of Ray; it must not take the place of the body's own
            log.warning("%s: its figures could not be saved (%s)", stage, reason_of(error))
        raise
    save()


@contextmanager
def stopped_with_the_lease(actor: Any, root: str) -> Iterator[None]:
    """Call `stops` of an actor, whom all workers ask before they write, once the lease on the run is lost."""

    def look() -> None:
        if lease.is_lost(root):
            actor.stops.remote()

    with looking(look, LEASE_LOOK, "lost lease"):
        yield


@contextmanager
def permission(root: str) -> Iterator[Any]:
    """A journal for workers that have none of their own: they ask it whether to stop, and it says so once the lease on
    `root` is lost."""
    with begun() as journal, stopped_with_the_lease(journal, root):
        yield journal


def describe(figures: dict[str, Any], stage: str, pool: Pool) -> str:
    """What a stage waits for, with what the cluster has free. Actors whose node is gone wait for another one."""
    gone = [f"node {node['NodeID'][:8]}," for node in ray.nodes() if not node["Alive"]]

    def is_alive(entry: Any) -> bool:
        return not any(node in (entry if isinstance(entry, str) else entry[0]) for node in gone)

    figures = figures | {
        state: [h for h in figures[state] if is_alive(h)] for state in ("working", "waiting", "starting")
    }
    return standstill(stage, figures, _asked(pool), _free(pool))


def gang(pool: Pool) -> str | None:
    """What workers that start together wait for, if Ray finds no place for them; None where none wait."""
    for group in ray.util.placement_group_table().values():
        bundles = list(group["bundles"].values())
        if group["state"] in ("PENDING", "RESCHEDULING") and all(b.get("CPU") == pool.cpus for b in bundles):
            return f"{len(bundles)} workers wait for {_asked(pool)} each, together; the cluster has {_free(pool)}."
    return None


def _asked(pool: Pool) -> str:
    amounts = [f"{pool.cpus:g} CPUs"]
    if pool.gpus:
        amounts.append(f"{pool.gpus:g} GPUs")
    if pool.memory is not None:
        amounts.append(f"{pool.memory:g} GB of memory")
    return " and ".join(amounts)


def _free(pool: Pool) -> str:
    free, total = ray.available_resources(), ray.cluster_resources()
    kinds = ("CPU", "GPU") if pool.gpus else ("CPU",)
    amounts = [f"{free.get(k, 0):g} of {total.get(k, 0):g} {k}s free" for k in kinds]
    if pool.memory is not None:
        amounts.append(f"{free.get('memory', 0) / GB:.1f} of {total.get('memory', 0) / GB:.1f} GB of memory free")
    return " and ".join(amounts)
