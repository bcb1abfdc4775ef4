"""Which columns of a manifest say where in its video a row begins and ends, and what they say.

A row may also have many spans, as Panda-70M's have: it becomes a row for each, and so do its lists of captions and
scores. A column that looks like a part of a span and is not understood is an error: passed on in silence, every row
would be the whole video.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.inputs import spans
from pipeline.inputs.spans import SpanError

SPAN = "\0span"  # the column of a listing with the text of each row's span; no column of a manifest is called so
NUMBER = "\0number"  # the column with the number, from 0, of a row's span among the many that its row had
MOST = 100_000  # spans of one row

# Columns with a start, and those with an end or a length beside it; a frame's unit is `f`, a thousandth of a second's
# `ms`. The first of these pairs that a manifest has counts.
_ENDS = (
    ("start_frame", "num_frames", "f+"),
    ("start_frame", "end_frame", "f-"),
    ("frame_start", "frame_end", "f-"),
    ("start", "end", "s-"),
    ("start_time", "end_time", "s-"),
    ("span_start", "span_end", "s-"),
    ("clip_start", "clip_end", "s-"),
    ("from_timestamp", "to_timestamp", "s-"),
    ("start_timestamp", "end_timestamp", "s-"),
    ("timestamp_start", "timestamp_end", "s-"),
    ("start_seconds", "end_seconds", "s-"),
    ("start_second", "end_second", "s-"),
    ("start_sec", "end_sec", "s-"),
    ("start_s", "end_s", "s-"),
    ("begin", "end", "s-"),
    ("begin_time", "end_time", "s-"),
    ("t_start", "t_end", "s-"),
    ("start_ms", "end_ms", "ms-"),
    ("start", "duration", "s+"),
    ("start_time", "duration", "s+"),
)
_PAIRS = ("duration_span", "timestamp", "timestamps", "time_span", "clip_span", "spans")  # [start, end], or many
_OWN = "span"  # a text as `spans` writes it
_CORE = frozenset(
    ("start", "end", "begin", "stop", "span", "spans", "timestamp", "timestamps", "timecode", "timecodes")
)
_UNITS = frozenset(
    ("time", "times", "sec", "secs", "second", "seconds", "s", "ms", "msec", "us", "frame", "frames", "number")
)
_FILLING = _UNITS | frozenset(
    ("clip", "video", "scene", "shot", "segment", "idx", "index", "pts", "ts", "t", "tc", "from", "to", "in", "out")
)
_DATE = re.compile(r"\d{4}-\d{2}(-\d{2})?([T ]|$)|\d{4}/\d{2}/\d{2}|[A-Z][a-z]{2},? ")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@dataclass(frozen=True)
class SpanColumns:
    """Names of a manifest's columns: either `start` and perhaps `end`, or `pair`, or `own`."""

    start: str | None = None
    end: str | None = None
    unit: str = "s-"
    fps: str | None = None  # of `num_frames`, where they are counted at another rate than the file's
    pair: str | None = None
    own: str | None = None

    def shown(self) -> str:
        names = [name for name in (self.start, self.end, self.fps, self.pair, self.own) if name is not None]
        return ", ".join(f"`{name}`" for name in names)


def span_columns(table: pa.Table, is_whole: bool = True) -> SpanColumns | None:
    """The columns of a manifest's rows that hold spans; None where it has none. In a manifest that is there as a whole,
    columns without a value count as absent. Raises ValueError for one that looks like a span and is not understood."""
    written = {
        _plain(field.name): field.name
        for field in table.schema
        if not pa.types.is_null(field.type) and not (is_whole and table.column(field.name).null_count == table.num_rows)
    }
    pairs = [name for name in _PAIRS if name in written and not _is_date(table.column(written[name]))]
    columns, used = None, set[str]()
    for start, end, unit in _ENDS:
        if start in written and end in written:
            fps = written.get("fps") if end == "num_frames" else None
            columns = columns or SpanColumns(written[start], written[end], unit, fps)
            used |= {start, end}
    if columns is None and pairs:
        columns = SpanColumns(pair=written[pairs[0]])
    if columns is None and _OWN in written:
        columns = SpanColumns(own=written[_OWN])
    used |= {*pairs, _OWN}
    _check_others(table, {plain: name for plain, name in written.items() if plain not in used})
    return columns


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "_", _CAMEL.sub("_", name.strip())).strip("_").casefold()


def _check_others(table: pa.Table, written: Mapping[str, str]) -> None:
    """Raise ValueError for a column that looks like the start or the end of a span."""
    for plain, name in written.items():
        words = {re.sub(r"\d+$", "", word) or "number" for word in plain.split("_")}
        if not words & _CORE or not words <= _CORE | _FILLING or _is_date(table.column(name)):
            continue
        pairs = ", ".join(f"{start} and {end}" for start, end, _ in _ENDS[:6])
        raise ValueError(
            f"its column `{name}` looks like a part of a span, and there is no other column that completes it. Spans "
            f"are read from {pairs}, ..., or {', '.join(_PAIRS[:3])} ([start, end]). Rename the columns, or take "
            f"`{name}` away, or call it something else if it is none (about_{plain})"
        )


def _is_date(column: pa.ChunkedArray) -> bool:
    """Whether a column holds dates: when a video was made, or fetched."""
    if pa.types.is_temporal(column.type) and not pa.types.is_duration(column.type):
        return True
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        least = pc.min(column).as_py()
        return least is not None and least > 1e8  # seconds since 1970
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return False
    values = column.drop_null().slice(0, 1000).to_pylist()
    return bool(values) and all(_DATE.match(value.strip()) for value in values)


# --- several spans a row ---------------------------------------------------------------------------------------------


def one_a_row(table: pa.Table, columns: SpanColumns | None) -> pa.Table:
    """The rows with one span each: a row of many becomes as many rows, and each of its lists of that length is
    distributed among them. Where any row has a list of spans, the column NUMBER is added.

    Raises ValueError for a list of captions of another length."""
    if columns is None or columns.pair is None:
        return table
    values = [_listed(value) for value in table.column(columns.pair).to_pylist()]
    if not any(_is_many(value) for value in values):
        return table
    counts = [len(value) if _is_many(value) else 1 for value in values]
    if max(counts) > MOST:
        raise ValueError(f"a row has {max(counts)} spans in `{columns.pair}`; a row may have {MOST}")
    places = [place for place, count in enumerate(counts) for _ in range(count)]
    rows = table.take(pa.array(places, pa.int64()))
    arrays = {}
    for name in table.column_names:
        distributed = _distributed(name, table.column(name), values, counts)
        arrays[name] = rows.column(name) if distributed is None else distributed
    numbers: list[int | None] = []
    for value, count in zip(values, counts, strict=True):
        numbers += list(range(count)) if _is_many(value) else [None]
    return pa.table({**arrays, NUMBER: pa.array(numbers, pa.int64())})


def _distributed(name: str, column: pa.ChunkedArray, values: Sequence[Any], counts: Sequence[int]) -> pa.Array | None:
    """A column of lists with one element for each span; None for a column of other values."""
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_string(kind)):
        return None
    own = [_listed(value) for value in column.to_pylist()]
    many = [value for value, spans_of_row in zip(own, values, strict=True) if _is_many(spans_of_row)]
    if not any(isinstance(value, list) for value in many):
        return None
    elements: list[Any] = []
    for value, spans_of_row, count in zip(own, values, counts, strict=True):
        if _is_many(spans_of_row) and isinstance(value, list):
            if len(value) != count:
                raise ValueError(f"a row has {count} spans, and {len(value)} values in `{name}`; give it as many")
            elements += value
        else:
            elements += [value] * count
    nested = any(isinstance(element, list | dict) for element in elements)
    mixed = len({type(element) for element in elements if element is not None}) > 1
    return pa.array([json.dumps(element) for element in elements] if nested or mixed else elements)


def _is_many(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, list | tuple) for one in value)


def _listed(value: Any) -> Any:
    """A list from its text, as JSON or as Python writes it; any other value as it is."""
    if not isinstance(value, str) or not value.strip().startswith(("[", "(")):
        return list(value) if isinstance(value, tuple) else value
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        try:
            parsed = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return value
    return list(parsed) if isinstance(parsed, list | tuple) else value


# --- the span of each row --------------------------------------------------------------------------------------------


def spans_of(table: pa.Table, columns: SpanColumns | None) -> tuple[pa.Array, list[str | None]]:
    """The text of every row's span (null: the whole video), and a sentence for each row whose span no video has."""
    if columns is None:
        return pa.nulls(table.num_rows, pa.string()), [None] * table.num_rows
    names = [name for name in (columns.start, columns.end, columns.fps, columns.pair, columns.own) if name is not None]
    texts: list[str | None] = []
    faults: list[str | None] = []
    for row in table.select(names).to_pylist():
        try:
            span = _span(row, columns)
            texts.append(None if span is None else str(span))
            faults.append(None)
        except SpanError as error:
            texts.append(None)
            faults.append(str(error))
    return pa.array(texts, pa.string()), faults


def _span(row: Mapping[str, Any], columns: SpanColumns) -> spans.Span | None:
    if columns.own is not None:
        text = row[columns.own]
        return spans.parse(str(text).strip()) if text is not None and str(text).strip() else None
    if columns.pair is not None:
        return _of_pair(_listed(row[columns.pair]), columns.pair)
    start, end = spans.seconds(row[str(columns.start)]), spans.seconds(row[str(columns.end)])
    if start is None and end is None:
        return None
    if columns.unit == "f+":
        rate = None if columns.fps is None else spans.seconds(row[columns.fps])
        if end is not None and rate is not None:
            if rate <= 0:
                raise SpanError(f"its `{columns.fps}` is {rate:g}")
            return spans.between(start or 0.0, "f", end / rate, "s", is_length=True)
    unit = columns.unit[:1] if columns.unit[0] == "f" else "s"
    if columns.unit.startswith("ms"):
        start, end = (None if number is None else number / 1000 for number in (start, end))
    return spans.between(start or 0.0, unit, end, unit, is_length=columns.unit.endswith("+"))


def _of_pair(value: Any, name: str) -> spans.Span | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list | tuple):
        value = value[0]
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise SpanError(f"its `{name}` is {str(value)[:40]!r}; it must have a start and an end")
    start, end = (spans.seconds(one) for one in value)
    return spans.between(start or 0.0, "s", end, "s")
