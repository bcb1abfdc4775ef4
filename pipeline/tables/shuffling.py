"""Any number of rows in the order of a hash of their ids: a stopped run is then a uniform sample of its clips.

The hash is BLAKE2b of the id alone, so the order is the same on every machine and does not depend on what else there
is. Rows wait on the local disk (of TMPDIR), in a file without a name that goes with the process, however it ends.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage.stores import writable
from pipeline.tables.growing_array import Growing, Words

Pairs = npt.NDArray[np.uint64]  # [n, 2]: 128 bits for each of n texts

BITS = 7  # of the hash: 128 buckets, 80,000 rows each where there are ten million
_NULL = hashlib.blake2b(b"\xff", digest_size=16).digest()  # no text has this byte
_KEY = ("_first", "_second")


def keys(texts: pa.Array | pa.ChunkedArray) -> Pairs:
    """128 bits of each text's BLAKE2b: among ten million texts two are alike with a chance of 10^-25."""
    digest = hashlib.blake2b
    values = texts.cast(pa.binary()).to_pylist()
    found = [digest(text, digest_size=16).digest() if text is not None else _NULL for text in values]
    return np.frombuffer(b"".join(found), "<u8").reshape(-1, 2)


class Shuffled:
    """Rows that are put in by the block, in any order, and drawn by the block, in the order of their keys.

    A key counts once: where its rows have an `error` the one without, else the first. In memory are 8 bytes a row until
    the last is in.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = pa.schema([*schema, *(pa.field(name, pa.uint64()) for name in _KEY)])
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (as long as this object)
        self._pieces: list[list[tuple[int, int]]] = [[] for _ in range(1 << BITS)]  # of each bucket: place and size
        self._first = Growing()
        self._twice: Words | None = None
        self._put = 0
        self._kept: list[npt.NDArray[np.bool_]] | None = None
        self._count: int | None = None

    def put(self, rows: pa.Table, pairs: Pairs) -> None:
        """Rows of the schema, with their keys."""
        order = np.argsort(pairs[:, 0], kind="stable")
        for name, column in zip(_KEY, pairs.T, strict=True):
            rows = rows.append_column(name, pa.array(column))
        rows = rows.cast(self._schema).take(pa.array(order)).combine_chunks()
        ends = np.searchsorted(pairs[order, 0] >> np.uint64(64 - BITS), np.arange(1 << BITS), side="right")
        start = 0
        for bucket, end in enumerate(ends.tolist()):
            if end > start:
                self._write(bucket, rows.slice(start, end - start))
            start = end
        self._first.put(pairs[:, 0])
        self._put += len(pairs)

    @property
    def num_rows(self) -> int:
        """How many rows are drawn. No more may be put then."""
        if self._count is None:
            self._count = self._put
            if len(self.twice()):
                self.keep(lambda pairs: np.ones(len(pairs), bool))
        return self._count

    def twice(self) -> Words:
        """The keys, their first halves, that more than one row has. No more rows may be put then."""
        if self._twice is None:
            first = self._first.take()
            first.sort()
            self._twice = first[1:][first[1:] == first[:-1]]
        return self._twice

    def _write(self, bucket: int, rows: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self._schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as stream:
            stream.write_table(rows)
        data = sink.getvalue()
        self._pieces[bucket].append((self._file.tell(), data.size))
        with writable():
            self._file.write(data)
            self._file.flush()

    def keep(self, wanted: Callable[[Pairs], npt.NDArray[np.bool_]]) -> None:
        """Go on with those rows only whose keys are wanted."""
        self._kept = []
        for bucket in range(1 << BITS):
            pairs = _pairs(self._bucket(bucket, [*_KEY, "error"]))
            kept = wanted(pairs)
            kept[1:] &= (pairs[1:] != pairs[:-1]).any(1)
            self._kept.append(kept)
        self._count = sum(int(kept.sum()) for kept in self._kept)

    def _bucket(self, bucket: int, names: Sequence[str] | None = None) -> pa.Table:
        """Its rows, with their keys, in the order of these; of columns that are not named nothing is decompressed."""
        held = self._schema.names
        fields = None if names is None else [held.index(name) for name in names if name in held]
        options = pa.ipc.IpcReadOptions(included_fields=fields or [])
        pieces = []
        for place, size in self._pieces[bucket]:
            self._file.seek(place)
            pieces.append(pa.ipc.open_stream(self._file.read(size), options=options).read_all())
        self._file.seek(0, 2)
        rows = pa.concat_tables(pieces) if pieces else self._schema.empty_table()
        order = [(name, "ascending") for name in _KEY]
        if "error" in rows.column_names:
            order.append(("_failed", "ascending"))
            rows = rows.append_column("_failed", pc.is_valid(rows.column("error")))
        return rows.take(pc.sort_indices(rows, order)).select([name for name in rows.column_names if name != "_failed"])

    def __iter__(self) -> Iterator[pa.Table]:
        """All rows, in blocks of one part in 128 of them."""
        drawn = range(1 << BITS) if self.num_rows else ()
        for bucket in drawn:
            rows = self._bucket(bucket).drop_columns(list(_KEY))
            if self._kept is not None:
                rows = rows.filter(pa.array(self._kept[bucket]))
            if rows.num_rows:
                yield rows

    def close(self) -> None:
        self._file.close()


def _pairs(rows: pa.Table) -> Pairs:
    return np.stack([rows.column(name).to_numpy() for name in _KEY], axis=1)
