"""Who works on which clips since when, and how often a process died over them: what ends a stage that would not end.

A batch whose process died is worked again clip by clip; a clip that was alone with LIMIT processes when they died is
given up. So every batch ends: its first death is its own, and every further one is charged to one clip, LIMIT times at
most. An actor that dies STARTS times in a row while it starts ends the stage. No Ray here: `journal` lends this an
actor beside the driver, so that what it knows dies with the driver, whose death is no clip's fault.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pipeline.errors import LostError, StoreError
from pipeline.tables.throughput import Figures

LIMIT = 2  # deaths with a clip alone, after which it is given up
STARTS = 3  # deaths of one actor in a row while it starts, after which the stage ends
NAMED = 3  # clips of a batch that a description names


@dataclass
class _Entry:
    """A batch, or a clip of a batch that is worked clip by clip."""

    deaths: int = 0
    under_way: bool = True
    done: bool = False
    parts: list[str] = field(default_factory=list)  # that this attempt writes


@dataclass
class _Actor:
    place: str  # node and process
    died_starting: int = 0
    up: float | None = None  # when it could take its first batch, in this life
    lived: float = 0.0  # seconds that its earlier lives were up
    busy: float = 0.0  # seconds in batches
    names: tuple[str, ...] = ()  # what it works on
    since: float = 0.0


class Attempts:
    """The attempts of a stage, and then of another. `clock` gives seconds and never goes back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.forgets()

    def forgets(self) -> None:
        """Another stage begins."""
        self._entries: dict[str, _Entry] = {}
        self._actors: dict[str, _Actor] = {}
        self._done = Figures()  # its seconds and deaths are counted below
        self._deaths = 0
        self._expected = 0
        self._failure: StoreError | None = None
        self._stopped = False
        self._begun = self._moved = self._clock()

    # --- told by the actors -------------------------------------------------------------------------------------------

    def starts(self, actor: str, place: str) -> int:
        """An actor begins to load what it needs. Returns how often it died doing so since it was last up."""
        record = self._actors.get(actor)
        if record is None:
            self._actors[actor] = _Actor(place)
            return 0
        self._deaths += 1
        if record.up is None:
            record.died_starting += 1
        else:
            record.lived += self._clock() - record.up
        record.place, record.up, record.names = place, None, ()
        return record.died_starting

    def is_up(self, actor: str) -> None:
        record = self._actors[actor]
        record.up, record.died_starting = self._clock(), 0

    def begins(self, actor: str, names: Sequence[str]) -> tuple[int, list[str]] | None:
        """An actor turns to these rows. Returns how many processes died over them and the parts that the last of those
        may have written; None where the rows are done."""
        entry = self._entries.get(_key(names))
        if entry is None:
            entry = self._entries[_key(names)] = _Entry()
        elif entry.done:
            return None
        elif entry.under_way:
            entry.deaths += 1
        entry.under_way = True
        record = self._actors[actor]
        record.names, record.since = tuple(names), self._clock()
        return entry.deaths, list(entry.parts)

    def removed(self, actor: str, names: Sequence[str]) -> None:
        """What an earlier attempt wrote of these rows is gone."""
        self._entries[_key(names)].parts = []

    def writes(self, actor: str, names: Sequence[str], parts: Sequence[str]) -> None:
        """An actor is about to write what it found on some of these rows. LostError once the stage is stopped."""
        if self._stopped:
            raise LostError("the driver has lost the run's lease")
        self._entries[_key(names)].parts += parts
        self._moved = self._clock()

    def ends(self, actor: str, names: Sequence[str], work: Figures, of_batch: bool) -> None:
        """These rows are written. One clip `of_batch` is remembered until its batch ends."""
        self._count(self._actors[actor], work)
        if of_batch:
            self._entries[_key(names)] = _Entry(done=True)
            return
        if self._entries.pop(_key(names)).deaths:  # it was worked clip by clip
            for name in names:
                self._entries.pop(_key([name]), None)

    def fails(self, actor: str, failure: StoreError) -> None:
        """A store failed this actor, which ends the stage."""
        self._failure = self._failure or failure

    def _count(self, record: _Actor, work: Figures) -> None:
        now = self._clock()
        record.busy += now - record.since
        record.names, record.since = (), now
        self._moved = now
        self._done += work

    # --- asked by the driver ------------------------------------------------------------------------------------------

    def expects(self, actors: int) -> None:
        """A pool of so many actors begins, and the one before it has ended."""
        self._done += self._pool()
        self._actors, self._expected = {}, actors

    def stops(self) -> None:
        """From now on nothing may be written."""
        self._stopped = True

    def stopped(self) -> bool:
        return self._stopped

    def failure(self) -> StoreError | None:
        """The first failure of a store that an actor told of."""
        return self._failure

    def _pool(self) -> Figures:
        """What the present pool had of its actors' time."""
        now = self._clock()
        lived = sum(a.lived + (now - a.up if a.up is not None else 0.0) for a in self._actors.values())
        busy = sum(a.busy + (now - a.since if a.names else 0.0) for a in self._actors.values())
        return Figures(actors=self._expected, actor_seconds=lived, busy_seconds=min(busy, lived))

    def status(self) -> dict[str, Any]:
        """How the stage stands, in plain values: the figures of `Figures`, and who does what since when."""
        now = self._clock()
        figures = replace(self._done + self._pool(), seconds=now - self._begun, deaths=self._deaths)
        up = [a for a in self._actors.values() if a.up is not None]
        return {
            "figures": asdict(figures),
            "still": now - self._moved,
            "expected": self._expected,
            "working": [(a.place, list(a.names), now - a.since) for a in up if a.names],
            "waiting": [a.place for a in up if not a.names],
            "starting": [(a.place, a.died_starting) for a in self._actors.values() if a.up is None],
        }


def standstill(stage: str, figures: dict[str, Any], asked: str, free: str) -> str:
    """What a stage that makes no progress waits for: one paragraph. `asked` is what an actor needs, `free` what there
    is."""
    missing = figures["expected"] - len(figures["working"]) - len(figures["waiting"]) - len(figures["starting"])
    parts = [f"{stage}: nothing was finished for {figures['still']:.0f} s."]
    for place, names, seconds in sorted(figures["working"], key=lambda w: -w[2])[:NAMED]:
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        parts.append(f"The actor on {place} has worked for {seconds:.0f} s on {', '.join(names[:NAMED])}{more}.")
    if len(figures["working"]) > NAMED:
        parts.append(f"{len(figures['working']) - NAMED} more actors are at work.")
    for place, died in figures["starting"]:
        parts.append(f"The actor on {place} is loading" + (f" (it died {died} times doing so)." if died else "."))
    if figures["waiting"]:
        parts.append(f"{len(figures['waiting'])} actors are up and wait for rows.")
    if missing > 0:
        parts.append(f"{missing} of {figures['expected']} actors wait for {asked} each; the cluster has {free}.")
    return " ".join(parts)


def _key(names: Sequence[str]) -> str:
    return hashlib.blake2b("\0".join(names).encode(), digest_size=16).hexdigest()
