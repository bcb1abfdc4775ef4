"""Pending rows: those of one table that have no finished row in another. Memory does not grow with their texts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage.parallel import in_order
from pipeline.storage.stores import place
from pipeline.tables import retries
from pipeline.tables.ids import Digests, Flags, IdList, IdSet, Places, Words, digests
from pipeline.tables.registry import table_of
from pipeline.tables.rows import drop_where
from pipeline.tables.scanning import Scan, footers, part_blocks, schema
from pipeline.tables.shuffling import ShuffledRows


class Standing(NamedTuple):
    """How clips stand in a table, three flags for each: [n]."""

    is_pending: Flags  # it has no row of this version, or one whose error is tried again
    gives_way: Flags  # it is pending, and a row of it is to be dropped before it is worked
    last_try: Flags  # it is pending, and its row stays until its last try has one


class Outcomes:
    """What a table holds of every clip: its version, and whether it is a result or an error of which code.

    Of several rows of a clip one counts, as for `tables.read`: a result before an error, an error that stands before
    one that is tried again. In memory are 25 bytes a clip: in the order of `ids`, `versions` and `codes`, places among
    the `names` of codes, of which the first is that of a result. A table that is not there holds no clip. Raises
    ValueError for one that the registry does not have, or that has not one row a clip, a result or an error.
    """

    def __init__(self, folder: str) -> None:
        fs, _ = place(folder)
        parts = footers(folder)
        narrow = pa.schema([(name, pa.string()) for name in ("clip_id", "version", "error")])
        if parts:
            table = table_of(folder, schema(parts).names)
            if table.needed != ("clip_id", "error"):
                raise ValueError(f"{folder}: its rows are no results or errors of one clip each ({table.row}).")
        count = sum(part.rows for part in parts)
        first = np.empty(count, np.uint64)
        second = np.empty(count, np.uint64)
        versions = np.empty(count, np.uint64)
        codes = np.empty(count, np.uint8)
        self.names = [""]
        start = 0
        for blocks in in_order(lambda part: list(part_blocks(part, fs, narrow)), parts):
            for rows in blocks:
                here = slice(start, start + rows.num_rows)
                first[here], second[here] = digests(rows.column("clip_id")).T
                versions[here] = digests(rows.column("version"))[:, 0]
                codes[here] = self._coded(rows.column("error"))
                start += rows.num_rows
        self._again = np.array([name in retries.RETRIED for name in self.names])
        self._once = np.array([name in retries.ONCE for name in self.names])
        order = _winners(first, second, codes.astype(bool).astype(np.uint8) + self._again[codes])
        first = first[order]  # one after the other: no more than one of them is in memory twice
        second = second[order]
        versions = versions[order]
        self.ids, self.versions, self.codes = IdSet(first, second), versions, codes[order]

    def _coded(self, errors: pa.ChunkedArray) -> npt.NDArray[np.uint8]:
        """The code of each error, as its place among the names of all; 0 for a result."""
        listed = retries.codes(pc.fill_null(errors, "")).combine_chunks().dictionary_encode()
        names = listed.dictionary.to_pylist()
        self.names += [name for name in names if name not in self.names]
        places = np.array([self.names.index(name) for name in names], np.uint8)
        coded: npt.NDArray[np.uint8] = places[listed.indices.to_numpy()]
        return coded

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def errors(self) -> dict[str, int]:
        """How many clips failed, by the code their error starts with."""
        counts = np.bincount(self.codes, minlength=len(self.names)).tolist()
        return dict(sorted((name, n) for name, n in zip(self.names[1:], counts[1:], strict=True) if n))

    def standing(self, rows: pa.Table) -> Standing:
        """How the clips of these rows, of another table, stand here. The rows need `clip_id` and `version`."""
        return self.standing_of(digests(rows.column("clip_id")), rows.column("version"))

    def standing_of(self, ids: Digests, versions: pa.ChunkedArray) -> Standing:
        at = self.ids.find_digests(ids)
        has_row, same = at >= 0, self._of_version(at, versions)
        stands, last = same.copy(), same.copy()
        stands[same] = ~self._again[self.codes[at[same]]]
        last[same] = self._once[self.codes[at[same]]]
        return Standing(~stands, has_row & ~stands & ~last, last)

    def has_version(self, rows: pa.Table) -> Flags:
        """Whether each row, of another table, is of a clip that is here in the same version."""
        return self._of_version(self.ids.find(rows.column("clip_id")), rows.column("version"))

    def _of_version(self, at: Places, versions: pa.ChunkedArray) -> Flags:
        same = at >= 0
        same[same] = self.versions[at[same]] == digests(versions.filter(pa.array(same)))[:, 0]
        return same


def _winners(first: Words, second: Words, ranks: npt.NDArray[np.uint8]) -> Places:
    """The rows that count, in the order of their digests: of those of one digest the first of the lowest rank."""
    order = np.argsort(first)
    ascending = first[order]
    if not (ascending[1:] == ascending[:-1]).any():
        return order
    order = np.lexsort((ranks, second, first))  # stable: of equal rows the first
    new = np.ones(len(order), bool)
    new[1:] = (first[order[1:]] != first[order[:-1]]) | (second[order[1:]] != second[order[:-1]])
    return order[new]


@dataclass(frozen=True)
class Pending:
    """Rows to work, in shuffled order, and which of their clips are tried for the last time."""

    rows: ShuffledRows
    last_tries: set[str]


def pending_rows(source: Scan, folders: Sequence[str]) -> Pending:
    """The rows of a table that have no finished row in any of these tables: none of the clip, one of another version,
    or one whose error may be tried again.

    Such a row of the tables is dropped, but where this is the clip's last try: then it stays until
    `drop_superseded_errors`, so that no kill forgets it.
    """
    outcomes = [Outcomes(folder) for folder in folders]
    superseded = [IdList() for _ in folders]
    rows, last_tries = ShuffledRows(source.schema), set[str]()
    for block in source:
        ids = digests(block.column("clip_id"))
        standings = [outcome.standing_of(ids, block.column("version")) for outcome in outcomes]
        is_pending = np.logical_and.reduce([places.is_pending for places in standings])
        for old, places in zip(superseded, standings, strict=True):
            old.add_digests(ids[places.gives_way & is_pending])
            last_tries.update(block.column("clip_id").filter(pa.array(places.last_try & is_pending)).to_pylist())
        rows.add_digests(block.filter(pa.array(is_pending)), ids[is_pending])
    for folder, old in zip(folders, superseded, strict=True):
        _drop(folder, old.to_set())
    return Pending(rows, last_tries)


def drop_superseded_errors(folder: str, last_tries: Collection[str]) -> None:
    """Drop the errors of clips that were tried for the last time: each has a newer row by now."""
    if last_tries:
        ids = pa.array(sorted(last_tries), pa.string())
        drop_where(
            folder,
            lambda rows: pc.and_(pc.is_in(rows.column("clip_id"), ids), retries.tried_once(rows.column("error"))),
            ["clip_id", "error"],
        )


def _drop(folder: str, ids: IdSet) -> None:
    if len(ids):
        drop_where(folder, lambda rows: pa.array(ids.has(rows.column("clip_id"))), ["clip_id"])
