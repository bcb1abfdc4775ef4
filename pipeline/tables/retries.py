"""Which rows with an error the next run tries again, by the codes of `errors`.

A clip that is tried once more and ends with the same kind of error again has `crashed again` or `memory again` in its
row, which is no code that is tried.
"""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import CODES, Retry

ONCE = tuple(code.name for code in CODES.values() if code.retry is Retry.ONCE)
RETRIED = tuple(code.name for code in CODES.values() if code.retry is not Retry.NEVER)


def codes(errors: pa.ChunkedArray) -> pa.ChunkedArray:
    """The code that each error starts with; null for a result."""
    text = errors.cast(pa.string())  # a column without any error may have no type
    return pc.list_element(pc.split_pattern(text, ":", max_splits=1), 0)


def retried(errors: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whether each is an error that the next run tries again."""
    return _is_one_of(errors, RETRIED)


def tried_once(errors: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whether each is an error that the next run tries for the last time."""
    return _is_one_of(errors, ONCE)


def mark_second_failures(rows: pa.Table, error: str, tried: Collection[str]) -> pa.Table:
    """Rows with an error column of this name, in which an error stands where it is the second of its kind: the clip
    was `tried` before."""
    errors = rows.column(error)
    last = pc.and_(tried_once(errors), pc.is_in(rows.column("clip_id"), pa.array(sorted(tried), pa.string())))
    stands = pc.replace_substring(errors, ":", " again:", max_replacements=1)
    return rows.set_column(rows.schema.get_field_index(error), error, pc.if_else(last, stands, errors))


def _is_one_of(errors: pa.ChunkedArray, listed: Collection[str]) -> pa.ChunkedArray:
    return pc.fill_null(pc.is_in(codes(errors), pa.array(listed)), False)
