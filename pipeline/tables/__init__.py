"""The tables of a run: plain Parquet folders, local or s3://, appended part by part and read by id."""

from __future__ import annotations

from pipeline.tables.rows import (
    append,
    check,
    columns,
    drop,
    drop_where,
    errors_by_code,
    in_parts,
    latest_rows,
    matrix,
    metadata,
    of_clips,
    once,
    part,
    parts,
    read,
    replace,
    replace_streamed,
    vectors,
)

__all__ = [
    "append",
    "check",
    "columns",
    "drop",
    "drop_where",
    "errors_by_code",
    "in_parts",
    "latest_rows",
    "matrix",
    "metadata",
    "of_clips",
    "once",
    "part",
    "parts",
    "read",
    "replace",
    "replace_streamed",
    "vectors",
]
