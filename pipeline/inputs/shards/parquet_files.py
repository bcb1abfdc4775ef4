"""Parquet files with the bytes of videos in a column: plain binary, or Hugging Face's struct of bytes and path."""

from __future__ import annotations

import posixpath
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ClipError
from pipeline.inputs import extensions
from pipeline.inputs.video_columns import Part, of_table
from pipeline.tables.schemas import plain, without_views

COLUMNS = ("video", *(end[1:] for end in extensions.VIDEOS), "bytes", "video_bytes")
_BOMB = 100  # times as large unpacked as packed: no video is
_BUFFER = 1 << 20  # bytes that are read of a column at a time

Row = dict[str, Any]


def _column(schema: pa.Schema) -> str | None:
    """The column with the bytes: its name, or that of the struct and `.bytes`."""
    for name in COLUMNS:
        if name in schema.names:
            kind = schema.field(name).type
            if _binary(kind):
                return name
            if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _binary(kind.field("bytes").type):
                return f"{name}.bytes"
    return None


def _binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def holds_videos(fs: fsspec.AbstractFileSystem, bare: str) -> bool:
    with fs.open(bare, "rb") as file:
        try:
            return _column(pq.ParquetFile(file).schema_arrow) is not None
        except (pa.ArrowException, OSError):
            return False  # whoever reads it as a manifest says what is wrong with it


def listed(fs: fsspec.AbstractFileSystem, bare: str, shard: Row, largest: int) -> Part | None:
    """A row for each row of the file, and its other columns; None where no column holds videos. A file that cannot be
    read is one row with an error. Raises ValueError for columns that are more than plain values."""
    with fs.open(bare, "rb") as file:
        try:
            parquet = pq.ParquetFile(file)
            column = _column(parquet.schema_arrow)
            if column is None:
                return None
            table = parquet.read([name for name in parquet.schema_arrow.names if name != column.split(".")[0]])
        except (pa.ArrowException, OSError) as error:
            return Part([{**shard, "error": f"decode: this shard cannot be read ({error})"}], {})
        errors = _bombs(parquet, column, largest)
    folder = posixpath.dirname(shard["relative"])
    rows = [
        {
            **shard,
            "uri": f"{shard['uri']}#{row}:{column}",
            "relative": f"{shard['relative']}/{row}",
            "size": 0,
            "error": error,
            "folder": folder,
        }
        for row, error in enumerate(errors)
    ]
    table = plain(table)
    return of_table(rows, table.cast(without_views(table.schema)))


def _bombs(parquet: pq.ParquetFile, column: str, largest: int) -> list[str | None]:
    """An error for the rows of every group whose videos would be far more than what is there of them."""
    errors: list[str | None] = []
    for number in range(parquet.metadata.num_row_groups):
        group = parquet.metadata.row_group(number)
        chunks = [group.column(i) for i in range(group.num_columns)]
        chunk = next(c for c in chunks if c.path_in_schema == column)
        bomb = chunk.total_uncompressed_size > max(largest, _BOMB * chunk.total_compressed_size)
        error = f"refused: its row group unpacks from {chunk.total_compressed_size} to {chunk.total_uncompressed_size}"
        errors += [f"{error} bytes" if bomb else None] * group.num_rows
    return errors


def fetch(fs: fsspec.AbstractFileSystem, bare: str, row: int, column: str, file: BinaryIO, largest: int) -> None:
    """Write the video in a row to a local file. Its row group's column is read up to it, page by page; most writers put
    a whole row group on one page, so row groups should hold few videos (Hugging Face's hold ten)."""
    with fs.open(bare, "rb") as source:
        parquet = pq.ParquetFile(source, buffer_size=_BUFFER, pre_buffer=False)
        group = 0
        while group < parquet.metadata.num_row_groups and row >= parquet.metadata.row_group(group).num_rows:
            row -= parquet.metadata.row_group(group).num_rows
            group += 1
        if group == parquet.metadata.num_row_groups:
            raise OSError("its shard has fewer rows by now")
        for number, batch in enumerate(parquet.iter_batches(1, row_groups=[group], columns=[column])):
            if number == row:
                value = batch.column(0)
                break
    if pa.types.is_struct(value.type):
        value = value.field("bytes")
    if not value[0].is_valid:
        raise ClipError("decode", "its row holds no bytes")
    size = value[0].as_buffer().size
    if size > largest:
        raise ClipError("refused", f"it has {size} bytes; a video in a shard may have {largest}")
    file.write(value[0].as_buffer())
