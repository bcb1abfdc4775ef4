"""Tables of any size, read part by part in bounded blocks, with no more of their columns than are asked for.

`tables.read` is for tables that fit into memory with all they hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.storage.parallel import in_order
from pipeline.storage.stores import place
from pipeline.tables.part_files import naming, opened
from pipeline.tables.rows import parts

BLOCK_ROWS, BLOCK_BYTES = 100_000, 64 << 20  # rows of a table that are in memory at a time, and their bytes
PART = "part"  # a column that says in which part a row lies


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
    return list(in_order(lambda path: _footer(path, fs), parts(folder)))


def _footer(path: str, fs: fsspec.AbstractFileSystem) -> Footer:
    with opened(path, fs) as file:
        sizes: dict[str, int] = {}
        for group in range(file.metadata.num_row_groups):
            for i in range(file.metadata.num_columns):
                column = file.metadata.row_group(group).column(i)
                name = column.path_in_schema.split(".")[0]
                sizes[name] = sizes.get(name, 0) + column.total_uncompressed_size
        return Footer(path, file.schema_arrow, file.metadata.num_rows, sizes)


def schema(parts: Sequence[Footer]) -> pa.Schema:
    """The columns of all parts: those that a manifest passes through may differ from part to part."""
    return pa.unify_schemas([part.schema.remove_metadata() for part in parts]) if parts else pa.schema([])


def part_blocks(part: Footer, fs: fsspec.AbstractFileSystem, schema: pa.Schema) -> Iterator[pa.Table]:
    """A part's rows in bounded blocks, with the wanted columns; those that it lacks are null."""
    names = [name for name in schema.names if name in part.schema.names]
    bytes_each = sum(part.columns[name] for name in names) / max(part.rows, 1)
    rows = int(min(BLOCK_ROWS, max(1, BLOCK_BYTES // max(bytes_each, 1))))
    with opened(part.path, fs) as file:
        for batch in file.iter_batches(rows, columns=names):
            columns = [
                batch.column(f.name).cast(f.type) if f.name in names else pa.nulls(len(batch), f.type) for f in schema
            ]
            yield pa.table(columns, schema=schema)


def blocks(folder: str, names: Sequence[str]) -> Iterator[pa.Table]:
    """These columns of all rows of a table, in bounded blocks; also of rows that give way to another of their clip."""
    fs, _ = place(folder)
    footers_of_parts = footers(folder)
    block_schema = pa.schema([schema(footers_of_parts).field(name) for name in names])
    for part in footers_of_parts:
        yield from part_blocks(part, fs, block_schema)


class Scan:
    """The rows of a table that `keep` is true for, in bounded blocks; a clip may have two of them.

    Columns that are left out, because they are large, can be added by `lookup` where they are used: the rows have a
    column more instead, the part that each lies in.
    """

    def __init__(self, folder: str, keep: Callable[[pa.Table], pa.Array], without: Sequence[str] = ()) -> None:
        self._fs, _ = place(folder)
        self._keep, self._parts = keep, footers(folder)
        self._columns = pa.schema([field for field in schema(self._parts) if field.name not in without])
        self.schema = self._columns.append(pa.field(PART, pa.string())) if without else self._columns

    def __iter__(self) -> Iterator[pa.Table]:
        for part in self._parts:
            path = self._fs.unstrip_protocol(part.path)
            for block in part_blocks(part, self._fs, self._columns):
                rows = block.filter(self._keep(block))
                yield rows.append_column(PART, pa.repeat(path, len(rows))) if PART in self.schema.names else rows


def lookup(rows: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Add columns that a `Scan` left out, by clip_id. Parts are in the order of their ids, so that only the row groups
    that hold one are read."""
    read = []
    for path in rows.column(PART).unique().to_pylist():
        fs, bare = place(path)
        ids = rows.filter(pc.equal(rows.column(PART), path)).column("clip_id").to_pylist()
        with naming(bare), fs.open(bare, "rb") as file:
            names, some = ["clip_id", *columns], [("clip_id", "in", ids)]
            read.append(pq.read_table(file, columns=names, filters=some, page_checksum_verification=True))
    large = pa.concat_tables([table.replace_schema_metadata() for table in read]).combine_chunks()
    at = pc.index_in(rows.column("clip_id"), large.column("clip_id"))
    if at.null_count:
        lost = rows.column("clip_id").filter(pc.is_null(at))[0]
        raise RuntimeError(f"clip {lost} is no longer in the table it was read from: is another job writing it?")
    for name in columns:
        rows = rows.append_column(name, large.column(name).take(at))
    return rows.drop_columns([PART])
