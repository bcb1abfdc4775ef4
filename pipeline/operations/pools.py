"""Pools out of a pilot's measurements and a cluster's nodes: how many actors, how large, how many clips at a time.

Arithmetic only: the same measurements and nodes give the same pools. A stage has the whole cluster while it runs. An
actor computes in one thread, or on its share of a GPU, while its decoders, one for each further CPU, decode ahead.
What is chosen changes no feature: which actor works a clip, in what batch and with how many held gradients, is not
part of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from pipeline.cluster.nodes import GB, Nodes
from pipeline.config.operations import Measurable, Model, Pool
from pipeline.errors import ConfigError

MARGIN = 1.2  # memory that is planned for, over the pilot's peak
OVERHEAD = 0.05  # share of a stage's time that batches and generations of P may take
HANDING = 0.2  # seconds that Ray, the journal and a part take for a batch
BATCH_SECONDS = 60.0  # of work in a batch: what a lost actor loses
MOST_BATCH = 256
TURNS = 4  # batches of each actor, so that all of them end at about the same time
ON_ONE_GPU = 8  # actors of a stage
HOLDS = (1, 2, 4, 8, 16, 32, 64)  # held gradients that are tried; more than 64 share no last stage
HEADROOM = 1.25  # decoders of a GPU's actor can do as much more than it needs on average: clips differ
SWITCHING = 0.1  # of a GPU's time, which actors that share it are expected to cost one another
ALIKE = 0.98  # of the best rate: fewer and smaller actors are taken for the rest
SHARES = 10_000  # Ray counts GPUs in ten-thousandths


class Measure(Model):
    """What a stage takes for one of its rows on an actor of its own, by a pilot. Seconds and bytes are means, memory is
    the peak.

    A row is a video for index_clips, a clip for motion and features, a step for finetune, a generated video for
    evaluate.
    """

    rows: int  # that were measured
    compute: float  # seconds in the actor's thread or on its GPU, with P generated for every gradient
    decode: float = 0.0  # seconds in a decoder
    generation: float = 0.0  # seconds of one generation of a dense P, which held gradients share
    gradients: int = 0  # of a row, where they are projected by a dense P
    gradient_bytes: int = 0  # of one held gradient
    gpu_share: float | None = None  # of `compute` in which the GPU worked; null: not measured, or no GPU
    load: float = 0.0  # seconds until an actor is up
    memory: int = 0  # bytes of the process
    decoder_memory: int = 0  # bytes of a decoder's process
    gpu_memory: int = 0
    gpu_total: int = 0  # bytes of the GPU that was measured; 0: the actor had none
    output: int = 0  # bytes in its tables

    def seconds(self, hold: int) -> float:
        """Of `compute` where so many gradients share a generation of P."""
        return self.compute - self.gradients * self.generation * (1 - 1 / hold)


class Chosen(Model):
    """A stage's pool, and what is expected of it."""

    pool: Pool
    hold: int = 1  # attribution.hold, for extract_features
    rate: float  # rows a second of the whole pool, once it is up
    seconds: float  # of a row on one actor
    busy: float  # share of the time in which an actor is expected to work
    bottleneck: str


@dataclass(frozen=True)
class _Candidate:
    pool: Pool
    hold: int
    actors: int
    rate: float
    cycle: float


def choose(stage: str, measure: Measure, nodes: Sequence[Nodes], rows: float) -> Chosen:
    """The pool of a stage with so many rows. ConfigError where not one actor has room on any node."""
    best = _best(measure, nodes, rows)
    if best is None:
        raise ConfigError(_no_room(stage, measure, nodes))
    actors = max(1, min(best.actors, _worth_loading(measure, best.cycle, rows)))
    unloaded = _best(measure.model_copy(update={"memory": 0, "decoder_memory": 0, "gpu_memory": 0}), nodes, rows)
    assert unloaded is not None, "with no memory needed there is more room"
    batch = _batch(measure, best, actors, rows)
    turns = math.ceil(math.ceil(rows / batch) / actors)
    return Chosen(
        pool=best.pool.model_copy(update={"actors": actors, "batch": batch}),
        hold=best.hold,
        rate=best.rate * actors / best.actors,
        seconds=best.cycle,
        busy=rows / batch / (actors * turns) if turns else 1.0,
        bottleneck=_bottleneck(measure, best, actors, unloaded.rate),
    )


def _best(measure: Measure, nodes: Sequence[Nodes], rows: float) -> _Candidate | None:
    """The fastest candidate; of those about as fast the one with the fewest actors, of these the smallest."""
    candidates = list(_candidates(measure, nodes, rows))
    if not candidates:
        return None
    most = max(c.rate for c in candidates)
    quick = [c for c in candidates if c.rate >= ALIKE * most]
    return min(quick, key=lambda c: (c.actors, c.pool.cpus, c.hold))


def _candidates(measure: Measure, nodes: Sequence[Nodes], rows: float) -> Iterator[_Candidate]:
    """Every size of an actor that has room somewhere."""
    usable = [n for n in nodes if n.gpus > 0] if measure.gpu_total else list(nodes)
    most = max((n.cpus for n in usable), default=0.0)
    sizes = range(1, max(1, math.floor(most)) + 1)
    for hold in HOLDS:
        if hold > max(1.0, measure.gradients * rows / TURNS):  # a batch is whole generations
            continue
        gradients = 0 if hold == 1 else hold * measure.gradient_bytes
        seconds = measure.seconds(hold)
        for on_gpu in range(1, ON_ONE_GPU + 1) if measure.gpu_total else (0,):
            if not _gpu_fits(measure, on_gpu, gradients):
                continue
            for cpus in sizes:
                decoders = max(1, cpus - 1)
                in_process = (
                    measure.memory + decoders * measure.decoder_memory + (0 if measure.gpu_total else gradients)
                )
                pool = Pool(cpus=cpus, gpus=_share(on_gpu), memory=_gigabytes(in_process, usable))
                actors = sum(n.room(pool) for n in usable)
                if not actors:
                    continue
                decode = measure.decode * (HEADROOM if measure.gpu_total else 1.0)
                cycle = max(seconds, decode / decoders)
                rate = sum(n.count * _rate(measure, seconds, cycle, n.room(pool) / n.count, n) for n in usable)
                yield _Candidate(pool, hold, actors, rate, actors / rate)


def _rate(measure: Measure, seconds: float, cycle: float, actors: float, node: Nodes) -> float:
    """Rows a second of one node: by its actors, its cores, and its GPUs."""
    limits = [actors / cycle, node.cpus / (seconds + measure.decode)]
    if measure.gpu_total:
        share = 1.0 if measure.gpu_share is None else min(1.0, measure.gpu_share + SWITCHING)
        limits.append(node.gpus / (seconds * share))
    return min(limits) if actors else 0.0


def _gpu_fits(measure: Measure, actors: int, gradients: int) -> bool:
    """Whether so many actors have room in a GPU's memory. One that streams has: the pilot was one."""
    if not measure.gpu_total or (actors == 1 and not gradients):
        return True
    if actors > 1 and measure.gpu_share is None:
        return False  # how far one fills the GPU is not known
    return actors * MARGIN * (measure.gpu_memory + gradients) <= measure.gpu_total


def _share(on_gpu: int) -> float:
    return math.floor(SHARES / on_gpu) / SHARES if on_gpu else 0.0


def _gigabytes(needed: float, nodes: Sequence[Nodes]) -> float | None:
    """GB to ask for: with a margin where some node has as much, else what was measured. None where Ray counts none."""
    most = max((n.memory for n in nodes), default=math.inf)
    if not needed or math.isinf(most):
        return None
    planned = math.ceil(MARGIN * needed / GB * 10) / 10
    return planned if planned <= most else math.ceil(needed / GB * 10) / 10


def _worth_loading(measure: Measure, cycle: float, rows: float) -> int:
    """Actors that work at least as long as they load: at most so many are of use."""
    work = rows * cycle
    return math.floor(rows) if measure.load * rows <= work else math.floor(work / measure.load)


def _batch(measure: Measure, best: _Candidate, actors: int, rows: float) -> int:
    """Large enough that what every batch costs, among it the wait for its first clip's frames, is a small share of its
    work; small enough that little is lost with an actor, and that the actors end together."""
    least = math.ceil((HANDING + measure.decode) / (OVERHEAD * best.cycle))
    most = min(BATCH_SECONDS / best.cycle, rows / (actors * TURNS), MOST_BATCH)
    batch = max(1, math.floor(min(least, most)))
    group = best.hold // math.gcd(best.hold, measure.gradients) if measure.gradients else 1
    whole = math.ceil(batch / group) * group  # whole generations of P
    return min(whole, math.ceil(rows / actors))


def _bottleneck(measure: Measure, best: _Candidate, actors: int, without_memory: float) -> str:
    decoders = max(1, int(best.pool.cpus) - 1)
    if actors < best.actors:
        return "loading: more actors would load longer than they work"
    if measure.gpu_total and measure.decode / decoders > measure.seconds(best.hold):
        return "decoding"
    if best.rate < ALIKE * without_memory:
        return "memory"
    return "the GPUs" if measure.gpu_total else "the cores"


def _no_room(stage: str, measure: Measure, nodes: Sequence[Nodes]) -> str:
    gpu = " and a GPU" if measure.gpu_total else ""
    asked = f"{(measure.memory + measure.decoder_memory) / GB:.1f} GB of memory{gpu}"
    there = "; ".join(f"{n.count} x ({n.cpus:g} CPUs, {n.gpus:g} GPUs, {n.memory:.1f} GB)" for n in nodes) or "none"
    return (
        f"resources.{stage}: auto: one actor, with one clip at a time, took {asked} in the pilot, and no node has room "
        f"for it (there are {there}). Run on larger nodes, or take a smaller geometry or model."
    )


def choose_all(measures: Mapping[str, Measure], nodes: Sequence[Nodes], rows: Mapping[str, float]) -> dict[str, Chosen]:
    """The pools of the measured stages, in the order in which they run."""
    return {
        stage: choose(stage, measures[stage], nodes, rows[stage]) for stage in get_args(Measurable) if stage in measures
    }


def stands(chosen: Mapping[str, Chosen], before: Sequence[Nodes], now: Sequence[Nodes]) -> bool:
    """Whether pools that were chosen for some nodes suit those that are there now: as many of each kind, with enough
    memory. What Ray has of memory differs a little at every start."""
    if sorted((n.cpus, n.gpus, n.count) for n in before) != sorted((n.cpus, n.gpus, n.count) for n in now):
        return False
    return all(sum(n.room(one.pool) for n in now) >= one.pool.actors for one in chosen.values())


def sentence(stage: str, chosen: Chosen) -> str:
    """For the log: the pool, the rate that is expected of it, and what holds it up."""
    p = chosen.pool
    size = [f"{p.cpus:g} CPUs"]
    size += [f"{p.gpus:g} GPUs"] if p.gpus else []
    size += [f"{p.memory:g} GB"] if p.memory else []
    hold = f", {chosen.hold} gradients held" if chosen.hold > 1 else ""
    return (
        f"resources.{stage}: {p.actors} x ({', '.join(size)}), batches of {p.batch}{hold}; expected: {chosen.rate:.3g} "
        f"a second, {chosen.busy:.0%} busy; the bottleneck: {chosen.bottleneck}"
    )
