"""A stage on a cluster, event by event: actors that work, one driver and one journal that all of them wait for.

An actor holds one batch ahead of the one it works on, as Ray Data gives them. It calls the journal three times a batch
and waits for each answer; the driver hears of a batch that is done and gives out the next. Both answer one call after
the other. Nodes are lost at random: their batches are worked again, and their actors come back after a while.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

AHEAD = 2  # batches that an actor holds
CALLS = 3  # of the journal, a batch: begins, writes, ends


@dataclass(frozen=True)
class Costs:
    """Processor seconds: of a batch at the driver, as much more for each actor of the pool, and of a journal's call."""

    batch: float
    batch_of_actors: float
    call: float

    def driver(self, actors: int) -> float:
        return self.batch + actors * self.batch_of_actors


@dataclass(frozen=True)
class Cluster:
    """`nodes` of `gpus` actors each. A share of the nodes is lost in an hour; `away` seconds after its loss a node's
    actors have loaded their models again, elsewhere. `roots` parts of the corpus have a driver and a journal each."""

    nodes: int
    gpus: int = 8
    lost: float = 0.05
    away: float = 420.0
    roots: int = 1


@dataclass(frozen=True)
class Batch:
    """What an actor is handed at a time: `rows` clips, which take it `seconds` with a standard deviation of `spread`
    times as many; `objects` are written of it."""

    rows: int = 8
    seconds: float = 40.0
    spread: float = 0.1
    objects: int = 4


@dataclass(frozen=True)
class Outcome:
    """Of the simulated time, without the first batches. `share`: rows a second by what the actors would do alone on
    nodes that stay; `driver` and `journal`: how busy the busiest is; `idle`: share of the actors' time that they wait
    for either; `again`: share of the work that was lost with a node; `recovery`: mean seconds from a loss until the
    lost batches are done elsewhere."""

    rows_per_second: float
    share: float
    driver: float
    journal: float
    idle: float
    again: float
    objects_per_second: float
    recovery: float | None


def simulate(cluster: Cluster, batch: Batch, costs: Costs, hours: float, seed: int = 0) -> Outcome:
    """The outcome for a whole cluster. Its roots are alike and share nothing, so that one of them is simulated."""
    stage = _Stage(cluster, batch, costs, seed)
    stage.run(until=3600.0 * hours + 3 * batch.seconds)
    return stage.outcome()


class _Server:
    """Something that answers one call after the other."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._free, self.busy = seconds, 0.0, 0.0

    def answered(self, asked: float) -> float:
        """When it has answered what it was asked."""
        self._free = max(self._free, asked) + self._seconds
        self.busy += self._seconds
        return self._free


class _Stage:
    """One root's actors with their driver and journal."""

    def __init__(self, cluster: Cluster, batch: Batch, costs: Costs, seed: int) -> None:
        self._cluster, self._batch, self._random = cluster, batch, np.random.default_rng(seed)
        self._nodes = max(1, cluster.nodes // cluster.roots)
        self._actors = self._nodes * cluster.gpus
        self._driver, self._journal = _Server(costs.driver(self._actors)), _Server(costs.call)
        self._events: list[tuple[float, int, str, int, int]] = []  # when, its number, what, whom, in which life
        self._count = 0
        self._life = [0] * self._actors
        self._batches: list[list[int]] = [[] for _ in range(self._actors)]  # losses that a batch belongs to; 0: none
        self._since = [0.0] * self._actors  # when the batch under way was begun
        self._busy = [False] * self._actors
        self._orphans: list[int] = []  # batches of lost nodes, by loss
        self._losses: list[tuple[float, int]] = []  # when, and how many of its batches are not done
        self._recovered: list[float] = []
        self._worked = self._wasted = 0.0
        self._done = 0
        self._end = 0.0

    def run(self, until: float) -> None:
        for actor in range(self._actors):  # they have loaded their models at different times
            self._later(float(self._random.uniform(0, self._batch.seconds)), "up", actor)
        rate = self._nodes * self._cluster.lost / 3600.0
        when = float(self._random.exponential(1 / rate)) if rate else until
        while when < until:
            self._later(when, "lost", int(self._random.integers(self._nodes)))
            when += float(self._random.exponential(1 / rate))
        warm, begun = 3 * self._batch.seconds, False
        while self._events and self._events[0][0] < until:
            now, _, what, whom, life = heapq.heappop(self._events)
            if not begun and now >= warm:
                begun = True
                self._done, self._worked, self._wasted = 0, 0.0, 0.0
                self._driver.busy = self._journal.busy = 0.0
            if what == "lost":
                self._lose(whom, now)
            elif life == self._life[whom]:
                getattr(self, f"_{what}")(whom, now)
        self._end = until - warm

    def outcome(self) -> Outcome:
        actors, seconds, roots = self._actors, self._end, self._cluster.roots
        rows = self._done * self._batch.rows / seconds
        ideal = actors * self._batch.rows / self._batch.seconds
        worked = self._worked + self._wasted
        return Outcome(
            rows_per_second=rows * roots,
            share=rows / ideal,
            driver=min(1.0, self._driver.busy / seconds),
            journal=min(1.0, self._journal.busy / seconds),
            idle=max(0.0, 1 - worked / (actors * seconds) - self._away()),
            again=self._wasted / worked if worked else 0.0,
            objects_per_second=self._done * self._batch.objects / seconds * roots,
            recovery=float(np.mean(self._recovered)) if self._recovered else None,
        )

    def _away(self) -> float:
        """Share of the actors' time in which they were away: lost, or loading again."""
        away = sum(min(self._cluster.away, max(0.0, self._end - when)) for when, _ in self._losses)
        return away * self._cluster.gpus / (self._actors * self._end)

    # --- what happens ------------------------------------------------------------------------------------------------

    def _later(self, when: float, what: str, whom: int) -> None:
        self._count += 1
        life = 0 if what == "lost" else self._life[whom]
        heapq.heappush(self._events, (when, self._count, what, whom, life))

    def _up(self, actor: int, now: float) -> None:
        for _ in range(AHEAD):
            self._later(self._driver.answered(now), "given", actor)

    def _given(self, actor: int, now: float) -> None:
        self._batches[actor].append(self._orphans.pop(0) if self._orphans else 0)
        if not self._busy[actor]:
            self._begin(actor, now)

    def _begin(self, actor: int, now: float) -> None:
        self._busy[actor] = True
        self._later(self._journal.answered(now), "works", actor)

    def _works(self, actor: int, now: float) -> None:
        self._since[actor] = now
        spread = np.sqrt(np.log1p(self._batch.spread**2))
        seconds = self._batch.seconds * float(self._random.lognormal(-(spread**2) / 2, spread))
        self._later(now + seconds, "writes", actor)

    def _writes(self, actor: int, now: float) -> None:
        self._worked += now - self._since[actor]
        self._later(self._journal.answered(now), "ends", actor)

    def _ends(self, actor: int, now: float) -> None:
        self._later(self._journal.answered(now), "reported", actor)

    def _reported(self, actor: int, now: float) -> None:
        """The batch is done: the driver hears of it, and the next one is begun if it is here."""
        self._done += 1
        loss = self._batches[actor].pop(0)
        if loss:
            self._recover(loss, now)
        self._busy[actor] = False
        self._later(self._driver.answered(now), "given", actor)
        if self._batches[actor]:
            self._begin(actor, now)

    def _lose(self, node: int, now: float) -> None:
        self._losses.append((now, 0))
        number, batches = len(self._losses), 0
        for actor in range(node * self._cluster.gpus, (node + 1) * self._cluster.gpus):
            if self._busy[actor]:
                self._wasted += min(now - self._since[actor], self._batch.seconds)
            batches += len(self._batches[actor])
            self._orphans += [number] * len(self._batches[actor])
            self._batches[actor], self._busy[actor] = [], False
            self._life[actor] += 1
            self._later(now + self._cluster.away, "up", actor)
        self._losses[-1] = (now, batches)

    def _recover(self, loss: int, now: float) -> None:
        when, left = self._losses[loss - 1]
        self._losses[loss - 1] = (when, left - 1)
        if left == 1:
            self._recovered.append(now - when)
