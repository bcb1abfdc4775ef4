"""Tables of any size: which rows count, what a table holds of every clip and what it lacks, some 30 bytes a clip.

`tables.read` is for tables that fit into memory with all they hold; here narrow columns are read part by part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import tables
from pipeline.storage.parallel import in_order
from pipeline.storage.stores import place
from pipeline.tables import retries
from pipeline.tables.growing_array import Growing, Words
from pipeline.tables.part_files import naming, opened
from pipeline.tables.shuffling import Pairs, keys

BLOCK_ROWS, BLOCK_BYTES = 100_000, 64 << 20  # rows of a table that are in memory at a time, and their bytes
PART = "part"  # a column that says in which part a row lies

_NARROW = pa.schema([(name, pa.string()) for name in ("clip_id", "version", "error")])

Flags = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]


# --- keys ------------------------------------------------------------------------------------------------------------


class Keys:
    """The keys of texts, sorted, so that other texts are found among them: 16 bytes a text."""

    def __init__(self, first: Words, second: Words) -> None:
        """Both halves of the keys, in the order of the first."""
        self._first, self._second = first, second

    @classmethod
    def of(cls, blocks: Iterable[Pairs]) -> Keys:
        """Those of the blocks, which are drawn one after the other: memory does not hold all of them beside these."""
        gathered = Gathered()
        for block in blocks:
            gathered.put(block)
        return gathered.keys()

    def __len__(self) -> int:
        return len(self._first)

    @property
    def pairs(self) -> Pairs:
        return np.stack([self._first, self._second], axis=1)

    def find(self, pairs: Pairs) -> Places:
        """The place of each among the sorted keys; -1 where it is none of them."""
        if not len(self):
            return np.full(len(pairs), -1, np.int64)
        at = np.minimum(np.searchsorted(self._first, pairs[:, 0]), len(self) - 1)
        return np.where((self._first[at] == pairs[:, 0]) & (self._second[at] == pairs[:, 1]), at, -1)

    def has(self, pairs: Pairs) -> Flags:
        return self.find(pairs) >= 0


class Gathered:
    """Keys before they are sorted, as they come."""

    def __init__(self) -> None:
        self._first, self._second = Growing(), Growing()

    def put(self, pairs: Pairs) -> None:
        self._first.put(pairs[:, 0])
        self._second.put(pairs[:, 1])

    def keys(self) -> Keys:
        """All of them; none is left here."""
        first = self._first.take()
        order = np.argsort(first)
        first = first[order]  # the unsorted half goes before the other is sorted
        return Keys(first, self._second.take()[order])


# --- parts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Footer:
    """What is known of a part without reading its rows."""

    path: str
    schema: pa.Schema
    rows: int
    columns: dict[str, int]  # bytes of each when it is decompressed

    @property
    def size(self) -> int:
        return sum(self.columns.values())


def footers(folder: str) -> list[Footer]:
    fs, _ = place(folder)
    return list(in_order(lambda path: _footer(path, fs), tables.parts(folder)))


def _footer(path: str, fs: fsspec.AbstractFileSystem) -> Footer:
    with opened(path, fs) as found:
        sizes: dict[str, int] = {}
        for group in range(found.metadata.num_row_groups):
            for i in range(found.metadata.num_columns):
                column = found.metadata.row_group(group).column(i)
                name = column.path_in_schema.split(".")[0]
                sizes[name] = sizes.get(name, 0) + column.total_uncompressed_size
        return Footer(path, found.schema_arrow, found.metadata.num_rows, sizes)


def schema(found: Sequence[Footer]) -> pa.Schema:
    """The columns of all parts: those that a manifest passes through may differ from part to part."""
    return pa.unify_schemas([part.schema.remove_metadata() for part in found]) if found else pa.schema([])


def _blocks(part: Footer, fs: fsspec.AbstractFileSystem, wanted: pa.Schema) -> Iterator[pa.Table]:
    """A part's rows in bounded blocks, with the wanted columns; those that it lacks are null."""
    names = [name for name in wanted.names if name in part.schema.names]
    bytes_each = sum(part.columns[name] for name in names) / max(part.rows, 1)
    rows = int(min(BLOCK_ROWS, max(1, BLOCK_BYTES // max(bytes_each, 1))))
    with opened(part.path, fs) as file:
        for batch in file.iter_batches(rows, columns=names):
            columns = [
                batch.column(f.name).cast(f.type) if f.name in names else pa.nulls(len(batch), f.type) for f in wanted
            ]
            yield pa.table(columns, schema=wanted)


def blocks(folder: str, names: Sequence[str]) -> Iterator[pa.Table]:
    """These columns of all rows of a table, in bounded blocks; also of rows that give way to another of their clip."""
    fs, _ = place(folder)
    parts = footers(folder)
    wanted = pa.schema([schema(parts).field(name) for name in names])
    for part in parts:
        yield from _blocks(part, fs, wanted)


class Rows:
    """The rows of a table that are `kept`, in bounded blocks; a clip may have two of them.

    Columns that are left out, because they are large, can be added by `lookup` where they are used: the rows have a
    column more instead, the part that each lies in.
    """

    def __init__(self, folder: str, kept: Callable[[pa.Table], pa.Array], without: Sequence[str] = ()) -> None:
        self._fs, _ = place(folder)
        self._kept, self._parts = kept, footers(folder)
        self._columns = pa.schema([field for field in schema(self._parts) if field.name not in without])
        self.schema = self._columns.append(pa.field(PART, pa.string())) if without else self._columns

    def __iter__(self) -> Iterator[pa.Table]:
        for part in self._parts:
            path = self._fs.unstrip_protocol(part.path)
            for rows in _blocks(part, self._fs, self._columns):
                kept = rows.filter(self._kept(rows))
                yield kept.append_column(PART, pa.repeat(path, len(kept))) if PART in self.schema.names else kept


def lookup(rows: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Add columns that `Rows` left out, by clip_id. Parts are in the order of their ids, so
    that only the row groups that hold one are read."""
    found = []
    for path in rows.column(PART).unique().to_pylist():
        fs, bare = place(path)
        ids = rows.filter(pc.equal(rows.column(PART), path)).column("clip_id").to_pylist()
        with naming(bare), fs.open(bare, "rb") as file:
            wanted, some = ["clip_id", *columns], [("clip_id", "in", ids)]
            found.append(pq.read_table(file, columns=wanted, filters=some, page_checksum_verification=True))
    held = pa.concat_tables([table.replace_schema_metadata() for table in found]).combine_chunks()
    at = pc.index_in(rows.column("clip_id"), held.column("clip_id"))
    if at.null_count:
        lost = rows.column("clip_id").filter(pc.is_null(at))[0]
        raise RuntimeError(f"clip {lost} is no longer in the table it was read from: is another job writing it?")
    for name in columns:
        rows = rows.append_column(name, held.column(name).take(at))
    return rows.drop_columns([PART])


# --- what a table holds ----------------------------------------------------------------------------------------------


class Held:
    """What a table holds of every clip: its version, and whether it is a result or an error of which code.

    Of several rows of a clip one counts, as for `tables.read`: a result before an error, an error that stands before
    one that is tried again. In memory are 25 bytes a clip: in the order of `keys`, `versions` and `codes`, places among
    the `names` of codes, of which the first is that of a result.
    """

    def __init__(self, folder: str) -> None:
        fs, _ = place(folder)
        parts = footers(folder)
        count = sum(part.rows for part in parts)
        first, second, versions = (np.empty(count, np.uint64) for _ in range(3))
        codes, self.names = np.empty(count, np.uint8), [""]
        start = 0
        for rows in (
            rows for found in in_order(lambda part: list(_blocks(part, fs, _NARROW)), parts) for rows in found
        ):
            here = slice(start, start := start + rows.num_rows)
            first[here], second[here] = keys(rows.column("clip_id")).T
            versions[here] = keys(rows.column("version"))[:, 0]
            codes[here] = self._coded(rows.column("error"))
        self._again, self._once = (
            np.array([name in listed for name in self.names]) for listed in (retries.RETRIED, retries.ONCE)
        )
        order = _winners(first, second, codes.astype(bool).astype(np.uint8) + self._again[codes])
        first = first[order]  # one after the other: no more than one of them is in memory twice
        second = second[order]
        versions = versions[order]
        self.keys, self.versions, self.codes = Keys(first, second), versions, codes[order]

    def _coded(self, errors: pa.ChunkedArray) -> npt.NDArray[np.uint8]:
        """The code of each error, as its place among the names of all; 0 for a result."""
        listed = retries.codes(pc.fill_null(errors, "")).combine_chunks().dictionary_encode()
        found = listed.dictionary.to_pylist()
        self.names += [name for name in found if name not in self.names]
        places = np.array([self.names.index(name) for name in found], np.uint8)
        coded: npt.NDArray[np.uint8] = places[listed.indices.to_numpy()]
        return coded

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def errors(self) -> dict[str, int]:
        """How many clips failed, by the code their error starts with."""
        counts = np.bincount(self.codes, minlength=len(self.names)).tolist()
        return dict(sorted((name, n) for name, n in zip(self.names[1:], counts[1:], strict=True) if n))

    def lacks(self, pairs: Pairs, versions: pa.ChunkedArray) -> tuple[Flags, Flags, Flags]:
        """Of clips with these keys: those without a row of this version that stands; those of them that have another
        row, which gives way; and those whose row stays until their last try has one."""
        at = self.keys.find(pairs)
        there, same = at >= 0, self._of_version(at, versions)
        stands, tried = same.copy(), same.copy()
        stands[same] = ~self._again[self.codes[at[same]]]
        tried[same] = self._once[self.codes[at[same]]]
        return ~stands, there & ~stands & ~tried, tried

    def knows(self, rows: pa.Table) -> Flags:
        """Whether each row, of another table, is of a clip that is here in the same version."""
        return self._of_version(self.keys.find(keys(rows.column("clip_id"))), rows.column("version"))

    def _of_version(self, at: Places, versions: pa.ChunkedArray) -> Flags:
        same = at >= 0
        same[same] = self.versions[at[same]] == keys(versions.filter(pa.array(same)))[:, 0]
        return same


def _winners(first: Words, second: Words, ranks: npt.NDArray[np.uint8]) -> Places:
    """The rows that count, in the order of their keys: of those of one key the first of the lowest rank."""
    order = np.argsort(first)
    ascending = first[order]
    if not (ascending[1:] == ascending[:-1]).any():
        return order
    order = np.lexsort((ranks, second, first))  # stable: of equal rows the first
    new = np.ones(len(order), bool)
    new[1:] = (first[order[1:]] != first[order[:-1]]) | (second[order[1:]] != second[order[:-1]])
    return order[new]
