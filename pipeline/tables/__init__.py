"""The tables of a run: plain Parquet folders, local or s3://, appended part by part and read by id."""

from __future__ import annotations

from pipeline.tables.ids import IdSet
from pipeline.tables.pending import Outcomes, Pending, drop_superseded_errors, pending_rows
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
from pipeline.tables.scanning import Scan
from pipeline.tables.shuffling import ShuffledRows, shuffled

__all__ = [
    "IdSet",
    "Outcomes",
    "Pending",
    "Scan",
    "ShuffledRows",
    "append",
    "check",
    "columns",
    "drop",
    "drop_superseded_errors",
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
    "pending_rows",
    "read",
    "replace",
    "replace_streamed",
    "shuffled",
    "vectors",
]
