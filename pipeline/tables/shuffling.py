"""Any number of rows in the order of a hash of their ids: a stopped run is then a uniform sample of its clips.

The hash is BLAKE2b of the id alone, so the order is the same on every machine and does not depend on what else there
is. Rows wait on the local disk (of TMPDIR), in a file without a name that goes with the process, however it ends.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage.stores import writable
from pipeline.tables.ids import Digests, Flags, GrowingArray, IdList, IdSet, Texts, Words, digests

BITS = 7  # of the hash: 128 buckets, 80,000 rows each where there are ten million
_DIGEST = ("_first", "_second")


def shuffled(schema: pa.Schema, named: Iterable[tuple[pa.Table, Texts]]) -> ShuffledRows:
    """Rows of a schema in the order of a hash of their names, which come with them by the block."""
    rows = ShuffledRows(schema)
    for block, names in named:
        rows.add_digests(block, digests(names))
    return rows


class ShuffledRows:
    """Rows that are added by the block, in any order, and drawn by the block, in the order of a hash of their names.

    A name counts once: of its rows the one without an `error`, a column that the schema must have, else the first. In
    memory are 8 bytes a row until the last is added. Rows that have a `span` are drawn together with those of the same
    `uri`, in the order of a hash of that: a remote file is fetched for many of them.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = pa.schema([*schema, *(pa.field(name, pa.uint64()) for name in _DIGEST)])
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (as long as this object)
        self._pieces: list[list[tuple[int, int]]] = [[] for _ in range(1 << BITS)]  # of each bucket: place and size
        self._first = GrowingArray()
        self._repeats: Words | None = None
        self._added = 0
        self._drawn: list[Flags] | None = None  # of each bucket, which of its rows
        self._count: int | None = None

    def add_digests(self, rows: pa.Table, names: Digests) -> None:
        """Add rows of the schema, with the digests of their names."""
        places = digests(rows.column("uri"))[:, 0] if "span" in self._schema.names else names[:, 0]
        order = np.argsort(places, kind="stable")
        for column, values in zip(_DIGEST, names.T, strict=True):
            rows = rows.append_column(column, pa.array(values))
        rows = rows.cast(self._schema).take(pa.array(order)).combine_chunks()
        ends = np.searchsorted(places[order] >> np.uint64(64 - BITS), np.arange(1 << BITS), side="right")
        start = 0
        for bucket, end in enumerate(ends.tolist()):
            if end > start:
                self._write(bucket, rows.slice(start, end - start))
            start = end
        self._first.add(names[:, 0])
        self._added += len(names)

    @property
    def num_rows(self) -> int:
        """How many rows are drawn. No more may be added then."""
        if self._count is None:
            self._count = self._added
            if self.has_repeats:
                self._choose(lambda names: np.ones(len(names), bool))
        return self._count

    @property
    def has_repeats(self) -> bool:
        """Whether several rows have one name. No more rows may be added then."""
        return len(self._repeated()) > 0

    def is_repeated(self, names: Texts) -> Flags:
        """Which of these names several rows have: [n]."""
        return np.isin(digests(names)[:, 0], self._repeated())

    def _repeated(self) -> Words:
        """The first halves of the digests that several rows have."""
        if self._repeats is None:
            first = self._first.take()
            first.sort()
            self._repeats = first[1:][first[1:] == first[:-1]]
        return self._repeats

    def names_among(self, ids: IdSet) -> IdSet:
        """Those of the ids that name a row. Reads no more of the rows than their digests."""
        shared = IdList()
        for bucket in range(1 << BITS):
            names = _digests(self._read(bucket, _DIGEST))
            shared.add_digests(names[ids.has_digests(names)])
        return shared.to_set()

    def drop(self, ids: IdSet) -> None:
        """Draw no row that one of these ids names, besides those that were dropped before."""
        self._choose(lambda names: ~ids.has_digests(names))

    def _write(self, bucket: int, rows: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self._schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as stream:
            stream.write_table(rows)
        data = sink.getvalue()
        self._pieces[bucket].append((self._file.tell(), data.size))
        with writable():
            self._file.write(data)
            self._file.flush()

    def _choose(self, condition: Callable[[Digests], Flags]) -> None:
        """Of the rows that are drawn, draw those only whose names are wanted, one of each name."""
        before, self._drawn = self._drawn, []
        for bucket in range(1 << BITS):
            names = _digests(self._bucket(bucket, [*_DIGEST, "error"]))
            drawn = condition(names)
            drawn[1:] &= (names[1:] != names[:-1]).any(1)
            if before is not None:
                drawn &= before[bucket]
            self._drawn.append(drawn)
        self._count = sum(int(drawn.sum()) for drawn in self._drawn)

    def _bucket(self, bucket: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Its rows, with their digests, in the order of these; of one name a result comes before an error. Columns that
        are not named are not decompressed; `error` has to be among those that are."""
        rows = self._read(bucket, columns)
        rows = rows.append_column("_failed", pc.is_valid(rows.column("error")))
        order = pc.sort_indices(rows, [(name, "ascending") for name in (*_DIGEST, "_failed")])
        return rows.take(order).drop_columns(["_failed"])

    def _read(self, bucket: int, columns: Sequence[str] | None) -> pa.Table:
        """Its rows in the order in which they were added."""
        places = [] if columns is None else [self._schema.names.index(name) for name in columns]
        options = pa.ipc.IpcReadOptions(included_fields=places)  # none: all
        pieces = []
        for place, size in self._pieces[bucket]:
            self._file.seek(place)
            pieces.append(pa.ipc.open_stream(self._file.read(size), options=options).read_all())
        self._file.seek(0, 2)
        return pa.concat_tables(pieces) if pieces else self._schema.empty_table()

    def __iter__(self) -> Iterator[pa.Table]:
        """All rows, in blocks of one part in 128 of them."""
        buckets = range(1 << BITS) if self.num_rows else ()
        for bucket in buckets:
            rows = self._bucket(bucket).drop_columns(list(_DIGEST))
            if self._drawn is not None:
                rows = rows.filter(pa.array(self._drawn[bucket]))
            if rows.num_rows and "span" in rows.column_names:
                rows = rows.sort_by([("uri", "ascending"), ("span", "ascending")])
            if rows.num_rows:
                yield rows

    def close(self) -> None:
        self._file.close()


def _digests(rows: pa.Table) -> Digests:
    return np.stack([rows.column(name).to_numpy() for name in _DIGEST], axis=1)
