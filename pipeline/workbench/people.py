"""What people say, read from and written to a run's tables: decisions, weights of queries, likes.

Every batch is a part of its own, on disk or in the bucket before it is acknowledged, and named by the batch, so that
one that is sent twice is one. Several servers may append at once; `refresh` reads what others wrote.
"""

from __future__ import annotations

import datetime
import threading
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from pipeline import tables
from pipeline.ranking import decisions, query_weights
from pipeline.storage.stores import join, place
from pipeline.tables import registry
from pipeline.tables.part_files import opened
from pipeline.tables.rows import check_fields
from pipeline.workbench.index import DECISIONS, NOT_RANKED, Index

WORDS = ("kept", "dropped", "disputed", "nobody has said")
_CODE = {"keep": 0, "drop": 1, "disputed": 2}
NOBODY = 3
LONGEST_BATCH = 200_000  # clips that are decided on at once

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=60)]
Batch = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{8,64}$")]
Flags = npt.NDArray[np.bool_]
Now = datetime.datetime


class ReadOnlyError(ValueError):
    """Nothing can be said here: the server is for guests, or a part of what was said cannot be read."""


class Words(BaseModel):
    """What is said at once."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    batch: Batch
    by: Text


class Decision(Words):
    say: Literal["keep", "drop", "clear"]
    group: str = "all"
    clips: list[str] = Field(min_length=1, max_length=LONGEST_BATCH)
    note: Annotated[str, StringConstraints(max_length=2000)] | None = None
    blind: bool = False


class Undo(Words):
    undone: Batch


class Weighing(Words):
    weights: dict[str, Annotated[float, Field(ge=-1, le=1)]] = Field(min_length=1)


class Like(Words):
    clip: str
    group: str = "all"
    sign: Literal[-1, 0, 1]
    exact: bool = False  # by a gradient of its own, once a job has taken it


class Log:
    """The rows of one append-only table. `problems` says which parts cannot be read; nothing is written then."""

    def __init__(self, root: str, table: registry.Table) -> None:
        self.folder, self._table = join(root, table.folders[0]), table
        self._fingerprint, self._parts = decisions.fingerprint(root), set[str]()
        self.rows: pa.Table = table.schema.empty_table()
        self.problems: list[str] = []
        self.batches = set[str]()

    def refresh(self) -> bool:
        """Read the parts that others have written; whether there were any."""
        paths = set(tables.parts(self.folder))
        if paths == self._parts:
            return False
        if self._parts - paths:  # merged, or purged
            self.rows, self._parts, self.problems = self._table.schema.empty_table(), set(), []
        read = [self.rows]
        for path in sorted(paths - self._parts):
            try:
                read.append(self._read(path))
            except FileNotFoundError:  # merged since it was listed: the next refresh reads what it became
                continue
            except (OSError, ValueError, pa.ArrowException) as error:
                self.problems.append(str(error))
            self._parts.add(path)
        self._take(tables.once(pa.concat_tables(read), self._table))
        return True

    def _read(self, path: str) -> pa.Table:
        fs, _ = place(self.folder)
        with opened(path, fs) as file:
            rows = file.read()
        if self._table is registry.DECISIONS:
            check_fields(path, rows.schema.metadata, self._fingerprint)
        return rows.replace_schema_metadata().select(self._table.schema.names).cast(self._table.schema)

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Write rows as a part and hold them. Raises OSError where they cannot be written; nothing is held then."""
        table = pa.Table.from_pylist(rows, schema=self._table.schema)
        tables.append(self.folder, table, self._fingerprint)
        _, bare = place(tables.part(self.folder, table))
        self._parts.add(bare)
        self._take(pa.concat_tables([self.rows, table]))

    def _take(self, rows: pa.Table) -> None:
        self.rows = rows
        self.batches = set(pc.unique(rows.column("batch")).to_pylist())

    def after_all(self) -> Now:
        """A moment after every row that is known: now, or just after the last one where another clock is ahead."""
        now = datetime.datetime.now(datetime.UTC)
        last = pc.max(self.rows.column("at")).as_py()
        return now if last is None or last < now else last + datetime.timedelta(microseconds=1)


class People:
    """What people have said of a run's clips. Threads share it.

    `write` false: nothing is written. Raises ReadOnlyError then, ValueError for what cannot be said, OSError where it
    cannot be written.
    """

    def __init__(self, index: Index, write: bool) -> None:
        self._index, self._write = index, write
        root = index.run.root
        self.decisions = Log(root, registry.DECISIONS)
        self.weights = Log(root, registry.QUERY_WEIGHTS)
        self.likes = Log(root, registry.LIKES)
        self._codes: dict[str, npt.NDArray[np.int8]] = {}
        self._lock = threading.RLock()
        self.refresh()

    @property
    def problems(self) -> list[str]:
        return [*self.decisions.problems, *self.weights.problems, *self.likes.problems]

    @property
    def read_only(self) -> str | None:
        """Why nothing can be written; None where it can."""
        if not self._write:
            return "this server is for looking only (workbench.write is false)"
        if self.problems:
            return f"nothing is written while a part cannot be read: {self.problems[0]}"
        return None

    def refresh(self) -> None:
        """Read what other servers and jobs have written since."""
        with self._lock:
            if self.decisions.refresh():
                self._codes.clear()
            self.weights.refresh()
            self.likes.refresh()

    # --- looking ---

    def codes(self, group: str) -> npt.NDArray[np.int8]:
        """Each clip's place among WORDS, for a group [N]."""
        with self._lock:
            if group not in self._codes:
                codes = np.full(len(self._index), NOBODY, np.int8)
                if self.decisions.rows.num_rows:
                    self._put(codes, self._verdicts(self.decisions.rows, group))
                self._codes[group] = codes
            return self._codes[group]

    def _verdicts(self, rows: pa.Table, group: str) -> pa.Table:
        """`decisions.verdicts`, with the versions of the clips that the rows name and of no others."""
        clip_ids = pc.unique(rows.column("clip_id")).to_pylist()
        return decisions.verdicts(rows, group, self._versions(clip_ids))

    def _put(self, codes: npt.NDArray[np.int8], verdicts: pa.Table) -> None:
        places = self._index.places(verdicts.column("clip_id").to_pylist())
        codes[places] = [_CODE[word] for word in verdicts.column("verdict").to_pylist()]

    def said(self, clip_ids: Sequence[str], group: str) -> dict[str, dict[str, Any]]:
        """What people say of these clips: clip_id -> verdict, by, at, note."""
        rows = self._rows_of(clip_ids)
        verdicts = decisions.verdicts(rows, group, self._versions(clip_ids))
        return {row["clip_id"]: row for row in verdicts.to_pylist()}

    def history(self, clip_id: str) -> list[dict[str, Any]]:
        """Every row about a clip, the last first."""
        listed: list[dict[str, Any]] = self._rows_of([clip_id]).sort_by([("at", "descending")]).to_pylist()
        return listed

    def spoken_by(self, by: str, group: str) -> Flags:
        """Which clips a person has said something of that stands [N]."""
        rows = self.decisions.rows.filter(pc.equal(self.decisions.rows.column("by"), by))
        flags = np.zeros(len(self._index), bool)
        if rows.num_rows:
            verdicts = self._verdicts(rows, group)
            flags[self._index.places(verdicts.column("clip_id").to_pylist())] = True
        return flags

    def query_weights(self) -> dict[str, float]:
        return query_weights.weights(self.weights.rows)

    def own_weights(self, by: str) -> dict[str, float]:
        return query_weights.weights(self.weights.rows.filter(pc.equal(self.weights.rows.column("by"), by)))

    def liked(self, by: str, group: str) -> dict[str, int]:
        """The clips that a person wants more of (1) or less (-1)."""
        rows = self.likes.rows
        rows = rows.filter(pc.and_(pc.equal(rows.column("by"), by), pc.equal(rows.column("group"), group)))
        latest = {row["clip_id"]: row["sign"] for row in rows.sort_by([("at", "ascending")]).to_pylist()}
        return {clip_id: sign for clip_id, sign in latest.items() if sign}

    def _rows_of(self, clip_ids: Sequence[str]) -> pa.Table:
        rows = self.decisions.rows
        return rows.filter(pc.is_in(rows.column("clip_id"), pa.array(list(clip_ids), pa.string())))

    def _versions(self, clip_ids: Sequence[str]) -> pa.Table:
        places = self._index.places(clip_ids)
        return self._index.clips.select(["clip_id", "version"]).take(pa.array(places[places >= 0], pa.int64()))

    # --- saying ---

    def decide(self, said: Decision) -> dict[str, str]:
        """Write a batch of decisions. The verdicts on its clips afterwards."""
        self._check(said.group)
        places = self._index.places(said.clips)
        if (places < 0).any():
            unknown = said.clips[int(np.argmax(places < 0))]
            raise ValueError(f"the run has no clip {unknown!r}")
        if len(set(said.clips)) < len(said.clips):
            raise ValueError("a clip is named twice")
        with self._lock:
            if said.batch not in self.decisions.batches:
                standing = self._index.standing(said.group)
                versions = self._index.rows(places, ["version"])
                common = {name: getattr(said, name) for name in ("batch", "group", "say", "by", "blind")}
                common |= {"note": said.note or None, "at": self.decisions.after_all(), "ranking": self._index.ranking}
                rows = [
                    {
                        **common,
                        **version,
                        "clip_id": clip_id,
                        "seen_rank": None if standing.rank[at] == NOT_RANKED else int(standing.rank[at]),
                        "seen_decision": DECISIONS[standing.decision[at]],
                    }
                    for clip_id, version, at in zip(said.clips, versions, places.tolist(), strict=True)
                ]
                self.decisions.append(rows)
                self._renew(said.clips)
            return self._words(said.clips, said.group)

    def undo(self, said: Undo) -> dict[str, str]:
        """Take a batch of one's own back. The verdicts on its clips afterwards."""
        self._check()
        with self._lock:
            rows = self.decisions.rows
            of_batch = rows.filter(pc.equal(rows.column("batch"), said.undone))
            if not of_batch.num_rows:
                raise ValueError(f"there is no batch {said.undone!r}")
            first = of_batch.slice(0, 1).to_pylist()[0]
            if first["by"] != said.by:
                raise ValueError(f"the batch is {first['by']}'s, and nobody else takes it back")
            if said.batch not in self.decisions.batches:
                at = self.decisions.after_all()
                restored = decisions.undo(rows, said.undone).to_pylist()
                if restored:
                    self.decisions.append([{**row, "batch": said.batch, "at": at} for row in restored])
            clips = of_batch.column("clip_id").to_pylist()
            self._renew(clips)
            return self._words(clips, first["group"])

    def weigh(self, said: Weighing) -> None:
        self._check()
        unknown = sorted(set(said.weights) - set(self._index.query_ids))
        if unknown:
            raise ValueError(f"the ranking has no query {unknown[0]!r}")
        with self._lock:
            if said.batch not in self.weights.batches:
                common = {"batch": said.batch, "by": said.by, "at": self.weights.after_all()}
                rows = [{**common, "query_id": query, "weight": weight} for query, weight in said.weights.items()]
                self.weights.append(rows)

    def like(self, said: Like) -> None:
        self._check(said.group)
        if self._index.places([said.clip])[0] < 0:
            raise ValueError(f"the run has no clip {said.clip!r}")
        with self._lock:
            if said.batch not in self.likes.batches:
                row = {"batch": said.batch, "by": said.by, "clip_id": said.clip, "group": said.group, "sign": said.sign}
                state = "asked" if said.exact else "approximate"
                self.likes.append([{**row, "at": self.likes.after_all(), "state": state}])

    def _check(self, group: str = "all") -> None:
        if self.read_only is not None:
            raise ReadOnlyError(self.read_only)
        if group != "all" and group not in self._index.groups:
            raise ValueError(f"no motion is called {group!r}")

    def _renew(self, clip_ids: Sequence[str]) -> None:
        rows, versions, places = self._rows_of(clip_ids), self._versions(clip_ids), self._index.places(clip_ids)
        for group, codes in self._codes.items():
            changed = codes.copy()  # a view that is being made sees the old ones or the new ones
            changed[places[places >= 0]] = NOBODY
            self._put(changed, decisions.verdicts(rows, group, versions))
            self._codes[group] = changed

    def _words(self, clip_ids: Sequence[str], group: str) -> dict[str, str]:
        said = self.said(clip_ids, group)
        return {clip_id: said[clip_id]["verdict"] if clip_id in said else "" for clip_id in clip_ids}
