"""The tables of a run: plain Parquet folders, local or s3://, appended part by part and read by id.

A table is a folder of ``part-*.parquet``. Every part appears whole or not at all, carries its stage's fingerprint in
its metadata, and holds plain Arrow types only, so that pyarrow, pandas, polars and duckdb read it.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import FingerprintError, code_of
from pipeline.storage import lease
from pipeline.storage.stores import files, join, place, write_bytes, writing
from pipeline.tables import registry
from pipeline.tables.part_files import opened
from pipeline.tables.registry import Table
from pipeline.tables.retries import retried
from pipeline.tables.schemas import plain

Fingerprint = Mapping[str, Any]
Row = TypeVar("Row")

# Of these columns, those that rows have give their part its name. The list is fixed: a job that goes on after a kill
# must write a batch again to the file that the killed one wrote.
_NAMED_BY = ("clip_id", "arm", "seed", "metric", "version", "error")
_WHOLE = "part-all.parquet"  # the one part of a table that is always replaced
ROW_GROUP = 8 << 20  # bytes
PART_SECONDS, PART_ROWS = 60.0, 1000  # finished rows wait no longer for the next before they are written


def parts(folder: str) -> list[str]:
    """The part files of a table, in a fixed order; none where there is no such table yet."""
    return [p for p in files(folder) if re.fullmatch(r"part-.*\.parquet", p.rsplit("/", 1)[-1])]


# --- writing ----------------------------------------------------------------------------------------------------------


def _encoded(table: pa.Table, fingerprint: Fingerprint, metadata: Mapping[str, Any]) -> bytes:
    fields = {"fingerprint": dict(fingerprint), **metadata}
    table = table.replace_schema_metadata({k: json.dumps(v, sort_keys=True) for k, v in fields.items()})
    sink = pa.BufferOutputStream()
    rows = max(1, ROW_GROUP * table.num_rows // max(table.nbytes, 1))  # so that a row is found without reading the part
    pq.write_table(table, sink, compression="zstd", row_group_size=rows, write_page_checksum=True)
    return bytes(sink.getvalue().to_pybytes())


def _part_name(table: pa.Table, of: Table) -> str:
    """A name that the rows' keys determine. A result and an error of one clip have different names, so that writing
    one never takes the other away; where a table says by which column its parts are named, by the rows' key and that.
    """
    named_by = _NAMED_BY if of.named_by is None else (*of.key, of.named_by)
    columns = [table.column(name).to_pylist() for name in table.column_names if name in named_by]
    rows = sorted(map(str, zip(*columns, strict=True)))
    return f"part-{hashlib.blake2b(chr(0).join(rows).encode(), digest_size=12).hexdigest()}.parquet"


def part(folder: str, table: pa.Table) -> str:
    """The file to which `append` writes these rows."""
    return join(folder, _part_name(table, registry.table_of(folder, table.column_names)))


def append(folder: str, table: pa.Table, fingerprint: Fingerprint, **metadata: Any) -> None:
    """Add rows as one part, named by its ids: the same rows written twice are one file. Raises ValueError for a folder,
    or rows, of no table in the registry."""
    registry.table_of(folder, table.column_names)
    lease.check(folder)
    if table.num_rows:
        write_bytes(part(folder, table), _encoded(table, fingerprint, metadata))


def in_parts(rows: Iterable[Row], whole: Callable[[], bool] = lambda: True) -> Iterator[list[Row]]:
    """Rows as they are finished, in groups that make a part each: one closes with the first row after PART_SECONDS, or
    with PART_ROWS rows, at which `whole` holds."""
    group, start = list[Row](), time.monotonic()
    for row in rows:
        group.append(row)
        if (len(group) >= PART_ROWS or time.monotonic() - start >= PART_SECONDS) and whole():
            yield group
            group, start = [], time.monotonic()
    if group:
        yield group


def replace(folder: str, table: pa.Table, fingerprint: Fingerprint, **metadata: Any) -> None:
    """Put a table in the place of whatever the folder held."""
    replace_streamed(folder, table.schema, [table], fingerprint, **metadata)


def replace_streamed(
    folder: str, schema: pa.Schema, rows: Iterable[pa.Table], fingerprint: Fingerprint, **metadata: Any
) -> None:
    """Put tables that come one after the other in the place of whatever the folder held.

    However large, they are one part of a fixed name, a row group each: readers see the old rows or the new ones, never
    none or both, also after a kill. Raises ValueError for a folder, or rows, of no table in the registry.
    """
    registry.table_of(folder, schema.names)
    lease.check(folder)
    fields = {"fingerprint": dict(fingerprint), **metadata}
    schema = schema.with_metadata({k: json.dumps(v, sort_keys=True) for k, v in fields.items()})
    # Floats hardly repeat: a dictionary of them costs time and space, their bytes apart compress.
    floats = [f"{f.name}.list.element" for f in schema if pa.types.is_fixed_size_list(f.type)]
    words = [f.name for f in schema if pa.types.is_string(f.type)]
    with (
        writing(join(folder, _WHOLE)) as file,
        pq.ParquetWriter(
            file,
            schema,
            compression="zstd",
            use_dictionary=words,
            column_encoding=dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
            write_page_checksum=True,
        ) as writer,
    ):
        for table in rows:
            writer.write_table(table.replace_schema_metadata(schema.metadata))
            lease.check(folder)  # the file does not appear then
    fs, _ = place(folder)
    for path in parts(folder):
        if not path.endswith(f"/{_WHOLE}"):
            fs.rm_file(path)


# --- reading ----------------------------------------------------------------------------------------------------------


def _schema(path: str, fs: fsspec.AbstractFileSystem) -> tuple[pa.Schema, int]:
    with opened(path, fs) as file:
        return file.schema_arrow, file.metadata.num_rows


def _read_part(path: str, fs: fsspec.AbstractFileSystem, columns: Sequence[str] | None) -> pa.Table:
    with opened(path, fs) as file:
        return plain(file.read(columns=None if columns is None else list(columns)))


def columns(folder: str) -> list[pa.Schema]:
    """The schema of every part of a table: those that a manifest passes through may differ from part to part."""
    fs, _ = place(folder)
    return [_schema(path, fs)[0] for path in parts(folder)]


def metadata(folder: str) -> dict[str, Any]:
    """The metadata of a table (fingerprint, settings, query_ids, ...); empty where there is no table."""
    fs, _ = place(folder)
    for path in parts(folder)[:1]:
        schema_metadata = _schema(path, fs)[0].metadata or {}
        return {k.decode(): json.loads(v) for k, v in schema_metadata.items() if not k.startswith(b"ARROW:")}
    return {}


def check(folder: str, fingerprint: Fingerprint) -> None:
    """Raise FingerprintError, naming the field and both values, if any part was computed under another fingerprint."""
    fs, _ = place(folder)
    for path in parts(folder):
        check_fields(folder, _schema(path, fs)[0].metadata, fingerprint)


def check_fields(where: str, metadata: Mapping[bytes, bytes] | None, fingerprint: Fingerprint) -> None:
    """Raise FingerprintError unless the metadata of a part are those of this fingerprint."""
    old = json.loads((metadata or {}).get(b"fingerprint", b"{}"))
    new = json.loads(json.dumps(dict(fingerprint), sort_keys=True))
    for field in sorted(old.keys() | new.keys()):
        if old.get(field) != new.get(field):
            raise FingerprintError(
                f"{where}: its rows were computed with {field}={old.get(field)!r}, but this run has {field}="
                f"{new.get(field)!r}. Use another root, the old value, or delete that folder to compute it anew."
            )


def read(folder: str, columns: Sequence[str] | None = None) -> pa.Table | None:
    """All rows of a table, each once (`once`); None where there is no table."""
    fs, _ = place(folder)
    paths = parts(folder)
    if not paths:
        return None
    of = registry.table_of(folder, _schema(paths[0], fs)[0].names)
    needed = None if columns is None else list(dict.fromkeys([*columns, *(() if of.replaced else of.needed)]))
    tables = [_read_part(path, fs, needed).replace_schema_metadata() for path in paths]
    table = once(pa.concat_tables(tables, promote_options="default"), of)
    return table if columns is None else table.select(list(columns))


def of_clips(folder: str, ids: Iterable[str]) -> pa.Table | None:
    """The rows of a few clips; only parts that have some of them are read whole. None where there is no table."""
    fs, _ = place(folder)
    id_array, tables = pa.array(sorted(set(ids)), pa.string()), list[pa.Table]()
    for path in parts(folder):
        flags = pc.is_in(_read_part(path, fs, ["clip_id"]).column("clip_id"), id_array)
        if pc.any(flags).as_py() or not tables:
            tables.append(_read_part(path, fs, None).filter(flags).replace_schema_metadata())
    if not tables:
        return None
    table = pa.concat_tables(tables, promote_options="default")
    return once(table, registry.table_of(folder, table.column_names))


def once(rows: pa.Table, of: Table) -> pa.Table:
    """The rows of a table, each once, though a part was merged into another and not yet deleted.

    Where a row is a clip's, a result counts before an error, and rows are ordered by clip_id; of other tables' rows of
    one key a result counts before an error, then the first, and rows keep their order.
    """
    if of.replaced or not of.key:
        return rows
    if of.key == ("clip_id",):
        return rows.take(latest_rows(rows, of))
    keyed = rows.select(list(of.key)).append_column("row", pa.array(np.arange(rows.num_rows, dtype=np.int64)))
    if of.error is not None:
        keyed = keyed.append_column("failed", pc.is_valid(rows.column(of.error)))
        keyed = keyed.sort_by([("failed", "ascending"), ("row", "ascending")])
    first = keyed.group_by(list(of.key), use_threads=False).aggregate([("row", "first")]).column("row_first")
    return rows.take(first.combine_chunks().sort())


def latest_rows(rows: pa.Table, of: Table) -> pa.Array:
    """Which rows of a table with one row a clip count, ordered by id: a result before an error, an error that stands
    before one that is retried. `rows` needs no more than the columns `of.needed`."""
    errors = rows.column(of.error)
    order = pa.table(
        {
            "id": rows.column("clip_id"),
            "failed": pc.add(pc.is_valid(errors).cast(pa.int8()), retried(errors).cast(pa.int8())),
            "row": np.arange(rows.num_rows, dtype=np.int64),
        }
    ).sort_by([("id", "ascending"), ("failed", "ascending"), ("row", "ascending")])
    ids = order.column("id").combine_chunks()
    new = np.ones(len(ids), bool)
    if len(ids) > 1:
        new[1:] = pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    return order.column("row").filter(pa.array(new)).combine_chunks()


def drop(folder: str, ids: Iterable[str]) -> None:
    """Take the rows of these clips out of a table."""
    gone = pa.array(sorted(set(ids)), pa.string())
    if len(gone):
        drop_where(folder, lambda rows: pc.is_in(rows.column("clip_id"), gone), ["clip_id"])


def drop_where(folder: str, gone: Callable[[pa.Table], pa.Array | pa.ChunkedArray], columns: Sequence[str]) -> None:
    """Take the rows out of a table for which `gone`, which sees these columns, is true. Parts without such a row are
    not read any further."""
    lease.check(folder)
    fs, _ = place(folder)
    for path in parts(folder):
        flags = gone(_read_part(path, fs, columns))
        if not pc.any(flags).as_py():
            continue
        table = _read_part(path, fs, None)
        rest = table.filter(pc.invert(flags))
        fields = {k.decode(): json.loads(v) for k, v in (table.schema.metadata or {}).items()}
        append(folder, rest, fields.pop("fingerprint", {}), **fields)
        fs.rm_file(path)


def matrix(table: pa.Table, column: str) -> npt.NDArray[np.float32]:
    """A fixed_size_list<float32> column without nulls as an array [rows, size]."""
    chunk = table.column(column).combine_chunks()
    size = chunk.type.list_size
    values: npt.NDArray[np.float32] = chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, size)
    return values


def vectors(
    values: npt.NDArray[Any], valid: npt.NDArray[np.bool_] | None = None, kind: npt.DTypeLike = np.float32
) -> pa.FixedSizeListArray:
    """An array [rows, size] as fixed_size_list of float32, or of another kind; rows that are not `valid` become
    null."""
    flat = pa.array(np.ascontiguousarray(values, kind).reshape(-1))
    mask = None if valid is None else pa.array(~valid)
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1], mask=mask)


def errors_by_code(table: pa.Table) -> dict[str, int]:
    """How many rows failed, by the code their error starts with."""
    counts = Counter(code_of(error) for error in table.column("error").drop_null().to_pylist())
    return dict(sorted(counts.items()))
