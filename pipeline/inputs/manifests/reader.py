"""The one reader of manifests: JSON lines, CSV, TSV and Parquet as typed rows, in bounded blocks; and JSON, whole.

JSON and Parquet have types. CSV and TSV have none: what passes through is a number or a truth value where every
value of its column is one, and else text, as it was typed. Ids, captions, groups and sources are texts, also those that
look like dates or numbers. A column has one type in the whole file; since its last line may tell what that is, rows
wait on the local disk until the file is read.
"""

from __future__ import annotations

import contextlib
import posixpath
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError, UsageError
from pipeline.inputs.manifests import csv_blocks, json_blocks, json_documents
from pipeline.inputs.manifests.columns import Columns, check_described, columns
from pipeline.inputs.manifests.json_blocks import FAULT, LINE
from pipeline.inputs.manifests.numbers import CellTypes
from pipeline.storage.stores import writable
from pipeline.tables.schemas import check_plain, without_views

BLOCK = 100_000  # rows of Parquet
ENDS = (".jsonl", ".csv", ".tsv", ".parquet", ".json")
UNTYPED = (".csv", ".tsv")


@dataclass(frozen=True)
class ManifestFile:
    """A manifest's rows. Beside its own columns every block has LINE, where a row begins (in Parquet: which row it is),
    and FAULT, a sentence about a row that cannot be used."""

    columns: Columns
    schema: pa.Schema
    _blocks: Callable[[], Iterator[pa.Table]]
    _naming: Callable[[], Any]
    _named: str
    entries: str = "line"  # what LINE counts

    def check_columns(self) -> None:
        """Raise InputError unless there are a column with paths and one with captions."""
        try:
            check_described(self.columns, [name for name in self.schema.names if name not in (LINE, FAULT)])
        except ValueError as error:
            raise InputError(f"{self._named}: {error}.") from error

    def blocks(self) -> Iterator[pa.Table]:
        """Raises InputError for what is wrong further down in the file, and where there are no rows."""
        rows = 0
        with self._naming():
            for block in self._blocks():
                rows += block.num_rows
                yield block
            if not rows:
                raise ValueError("it has no rows. List at least one video")

    def table(self) -> pa.Table:
        return pa.concat_tables(self.blocks())

    def renamed(self, names: Mapping[str, str]) -> ManifestFile:
        """The manifest with other names for some of its columns. Raises InputError where it lacks one of them."""
        missing = [name for name in names if name not in self.schema.names]
        if missing:
            raise InputError(
                f"{self._named}: it has no column {missing[0]!r}, but {', '.join(self.schema.names[:-2])}."
            )
        new = [names.get(name, name) for name in self.schema.names]
        schema = pa.schema([field.with_name(name) for field, name in zip(self.schema, new, strict=True)])
        roles = columns([name for name in new if name not in (LINE, FAULT)])
        blocks = self._blocks
        return replace(
            self, columns=roles, schema=schema, _blocks=lambda: (block.rename_columns(new) for block in blocks())
        )


def read(fs: fsspec.AbstractFileSystem, path: str, where: str, key: str, typed: bool = True) -> ManifestFile:
    """A manifest's columns and rows. Without `typed`, what CSV and TSV have is texts: a column's type is decided where
    those of all files are known. Raises InputError, naming `key`."""

    @contextmanager
    def naming() -> Iterator[None]:
        try:
            yield
        except UsageError:
            raise
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            raise InputError(
                f"{key}={where!r}: the manifest {posixpath.basename(path)} cannot be read: {error}. Correct it, or "
                "write it anew as .jsonl with one object a line."
            ) from error

    with naming():
        schema, blocks = _opened(fs, path, typed)
        roles = columns([name for name in schema.names if name not in (LINE, FAULT)])
    entries = {".parquet": "row", ".json": "entry"}.get(posixpath.splitext(path.lower())[1], "line")
    return ManifestFile(roles, schema, blocks, naming, f"{key}={where!r}", entries)


def of_rows(rows: Sequence[Mapping[str, Any]], where: str, key: str) -> ManifestFile:
    """Rows that stand in no manifest of their own, as one; LINE counts them from 1. Raises InputError."""
    kinds = json_blocks.Kinds()
    try:
        block = json_blocks.block_of([dict(row) for row in rows], list(range(1, len(rows) + 1)), kinds)
        schema = pa.schema([*kinds.schema(), (LINE, pa.int64()), (FAULT, pa.string())])
        table = kinds.cast(block, schema)
        roles = columns([name for name in schema.names if name not in (LINE, FAULT)])
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise InputError(f"{key}={where!r}: what it lists cannot be used: {error}.") from error
    return ManifestFile(roles, schema, lambda: iter([table]), contextlib.nullcontext, f"{key}={where!r}", "entry")


def _opened(
    fs: fsspec.AbstractFileSystem, path: str, typed: bool
) -> tuple[pa.Schema, Callable[[], Iterator[pa.Table]]]:
    end = posixpath.splitext(path.lower())[1]
    if end == ".parquet":
        return _parquet(fs, path)
    if end in UNTYPED:
        delimiter = "\t" if end == ".tsv" else ","
        return _csv(fs, path, delimiter) if typed else csv_blocks.opened(fs, path, delimiter)
    with fs.open(path, "rb") as file:
        spool = _Spool()
        kinds = json_blocks.Kinds()
        read = json_documents.blocks if end == ".json" else json_blocks.blocks
        for block in read(file, kinds):
            spool.put(block)
    schema = pa.schema([*kinds.schema(), (LINE, pa.int64()), (FAULT, pa.string())])
    return schema, lambda: (kinds.cast(block, schema) for block in spool)


def _csv(
    fs: fsspec.AbstractFileSystem, path: str, delimiter: str
) -> tuple[pa.Schema, Callable[[], Iterator[pa.Table]]]:
    texts, blocks = csv_blocks.opened(fs, path, delimiter)
    types = CellTypes(texts, columns([name for name in texts.names if name not in (LINE, FAULT)]))
    spool = _Spool()
    for block in blocks():
        types.learn(block)
        spool.put(block)
    return types.schema(), lambda: types.cast(spool)


def _parquet(fs: fsspec.AbstractFileSystem, path: str) -> tuple[pa.Schema, Callable[[], Iterator[pa.Table]]]:
    with fs.open(path, "rb") as file:
        schema = pq.ParquetFile(file).schema_arrow.remove_metadata()
    check_plain(schema)
    _check_twice(schema.names)
    own = without_views(schema)
    whole = pa.schema([*own, (LINE, pa.int64()), (FAULT, pa.string())])

    def blocks() -> Iterator[pa.Table]:
        start = 0
        with fs.open(path, "rb") as file:
            for batch in pq.ParquetFile(file).iter_batches(BLOCK):
                places = pa.array(range(start + 1, start + len(batch) + 1), pa.int64())
                columns = [column.cast(field.type) for column, field in zip(batch.columns, own, strict=True)]
                yield pa.table([*columns, places, pa.nulls(len(batch), pa.string())], schema=whole)
                start += len(batch)

    return whole, blocks


def _check_twice(names: Sequence[str]) -> None:
    for name in names:
        if list(names).count(name) > 1:
            raise ValueError(f"it has the column `{name}` twice; keep one of them, or rename one")


class _Spool:
    """Blocks of rows whose types need not agree, on the local disk (of TMPDIR)."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (as long as this object)
        self._pieces: list[tuple[int, int]] = []

    def put(self, rows: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as stream:
            stream.write_table(rows)
        data = sink.getvalue()
        self._pieces.append((self._file.seek(0, 2), data.size))
        with writable():
            self._file.write(data)
            self._file.flush()

    def __iter__(self) -> Iterator[pa.Table]:
        for place, size in self._pieces:
            self._file.seek(place)
            yield pa.ipc.open_stream(self._file.read(size)).read_all()
