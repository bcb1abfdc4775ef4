"""What the stages ask of the cluster, held against what its nodes have: said at once, instead of waiting for ever.

Ray waits without a word for a resource that no node has, and an actor lives on one node: the sum over nodes says
nothing.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources

from pipeline.cluster.nodes import GB, Nodes
from pipeline.config import Run
from pipeline.config.operations import Pool
from pipeline.errors import ConfigError
from pipeline.storage.parallel import cores

log = logging.getLogger(__name__)

UNBOUNDED = 1 << 20  # nodes, where the autoscaler knows no limit


def check(run: Run, stages: Iterable[str]) -> None:
    """Raise ConfigError with a table of what is asked and what can be had, if a stage asks for more than there is.

    Then wait, at most `resources.wait` seconds, until what the autoscaler must start is there.
    """
    pools = {stage: _pool(run, stage) for stage in stages}
    groups, nodes = _groups(), _nodes()
    lacking = beyond(pools, groups, nodes)
    if lacking:
        pool_lines = "\n".join(
            f"  resources.{stage}: {pool.actors} x ({_asked(pool)})"
            + (f"   <- {lacking[stage]}" if stage in lacking else "")
            for stage, pool in pools.items()
        )
        node_lines = "\n".join(f"  {named(n)}" for n in [*groups, *nodes])
        raise ConfigError(
            f"resources.{next(iter(lacking))} asks for more than this cluster can reach. Asked for:\n{pool_lines}\n"
            f"Within reach:\n{node_lines}\nLower actors, cpus or gpus, or run on a larger cluster."
        )
    _wait_for(pools, run.resources.wait)


def beyond(pools: Mapping[str, Pool], groups: list[Nodes], nodes: list[Nodes]) -> dict[str, str]:
    """The stages that neither the autoscaler's node groups nor the nodes that are up can ever hold, and why.

    Actors on GPUs, and the workers of fine-tuning, which start together, must all find room; of those on CPUs one must.
    """
    reasons = {}
    for stage, pool in pools.items():
        room = max(sum(n.room(pool) for n in kind) for kind in (groups, nodes))
        if not room:
            reasons[stage] = "more than any one node has"
        elif room < pool.actors and (pool.gpus or stage == "finetune"):
            reasons[stage] = f"more than there is: room for {room}"
    return reasons


def room(pool: Pool) -> int:
    """How many actors of a pool the nodes that are up hold, were nothing else on them."""
    return sum(nodes.room(pool) for nodes in _nodes())


def reachable() -> list[Nodes]:
    """The nodes that a job may have: those of the autoscaler where there is one and it knows their number, else those
    that are up."""
    groups = [n for n in _groups() if n.count != UNBOUNDED]
    return groups or _nodes()


def _groups() -> list[Nodes]:
    """The cluster at its largest, where there is an autoscaler."""
    from ray._private.state import state  # the only place that knows the autoscaler's maximum; Ray Train asks it too

    config = state.get_cluster_config()
    groups = config.node_group_configs if config is not None else ()
    return [_of(g.resources, g.max_count if g.max_count >= 0 else UNBOUNDED) for g in groups]


def _nodes() -> list[Nodes]:
    """The nodes that are up; of those with as many CPUs and GPUs the least memory counts."""
    up = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    counts = Counter((float(r.get("CPU", 0)), float(r.get("GPU", 0))) for r in up)
    memory: dict[tuple[float, float], float] = {}
    for node in map(_of, up):
        kind = (node.cpus, node.gpus)
        memory[kind] = min(node.memory, memory.get(kind, node.memory))
    return [Nodes(*kind, count, memory[kind]) for kind, count in sorted(counts.items())]


def _of(amounts: Mapping[str, Any], count: int = 1) -> Nodes:
    """Nodes of such resources. Where memory is not named, Ray does not count it."""
    memory = amounts.get("memory")
    gigabytes = math.inf if memory is None else float(memory) / GB
    return Nodes(float(amounts.get("CPU", 0)), float(amounts.get("GPU", 0)), count, gigabytes)


def with_real_cores(nodes: list[Nodes]) -> list[Nodes]:
    """The nodes with no more CPUs than there are cores: a Ray that a job starts counts four on a smaller machine."""
    if os.environ.get("RAY_ADDRESS", "") not in ("", "local"):
        return nodes
    return [dataclasses.replace(n, cpus=min(n.cpus, float(cores()))) for n in nodes]


def named(nodes: Nodes) -> str:
    count = "any number of" if nodes.count == UNBOUNDED else f"{nodes.count}"
    return f"{count} node{'' if nodes.count == 1 else 's'} of {nodes.cpus:g} CPUs, {nodes.gpus:g} GPUs"


def _wait_for(pools: Mapping[str, Pool], seconds: float) -> None:
    """Until each pool's first actor, and all workers of fine-tuning, find room on the nodes that are up."""
    deadline = time.monotonic() + seconds
    needed = {stage: pool.actors if stage == "finetune" else 1 for stage, pool in pools.items()}
    has_request = False
    try:
        while True:
            nodes = _nodes()
            short = [s for s, p in pools.items() if sum(n.room(p) for n in nodes) < needed[s]]
            if not short:
                return
            node_text = "; ".join(named(n) for n in nodes)
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"resources.wait={seconds:g}: the cluster did not start what resources.{short[0]} asks for by then "
                    f"(there are {node_text}). Wait longer or ask for less."
                )
            log.warning("waiting for the cluster to start what %s asks for; there are %s", ", ".join(short), node_text)
            _ask_for([pools[s] for s in short for _ in range(needed[s])])
            has_request = True
            time.sleep(min(10.0, max(seconds, 0.1)))
    finally:
        if has_request:
            _ask_for([])


def _ask_for(pools: list[Pool]) -> None:
    """Tell the autoscaler, which starts nothing for a job that only waits; it remembers until it is told otherwise."""
    request_resources(bundles=[bundle(p) for p in pools])


def bundle(pool: Pool) -> dict[str, float]:
    """What an actor of a pool asks of its node, as Ray names it."""
    asked = {"CPU": pool.cpus}
    if pool.gpus:
        asked["GPU"] = pool.gpus
    if pool.memory is not None:
        asked["memory"] = int(pool.memory * GB)
    return asked


def _asked(pool: Pool) -> str:
    memory = "" if pool.memory is None else f", {pool.memory:g} GB"
    return f"{pool.cpus:g} CPUs, {pool.gpus:g} GPUs{memory}"


def _pool(run: Run, stage: str) -> Pool:
    pool: Pool = getattr(run.resources, stage)
    fewest = run.finetune.min_workers or run.finetune.workers
    return pool.model_copy(update={"actors": fewest}) if stage == "finetune" else pool
