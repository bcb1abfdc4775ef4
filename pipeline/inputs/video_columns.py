"""What shards and metadata files say of their videos, as one table with one type a column.

Nobody declares the columns of thousands of shards. The kind of a column is that of most of its values; a video whose
value is of another kind becomes a row with an error that names the value, so that one bad member stops nothing.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.credentials import scrubbed
from pipeline.config.texts import decode_text, text_flaw
from pipeline.inputs.manifests.json_blocks import MOST
from pipeline.inputs.manifests.numbers import as_type, as_type_where_possible, cell_type
from pipeline.tables.schemas import CAPTIONS, MASK_BOX, caption_column

TEXT, NUMBERS, LISTS, OBJECTS, HUGE = "text", "numbers", "lists", "objects", "integers of more than 64 bits"
TRUTHS = "true or false"
TEXTS = (*CAPTIONS, "id", "source", "group", MASK_BOX)  # text, whatever a file has there

Row = dict[str, Any]
Column: TypeAlias = "pa.ChunkedArray | list[Any]"  # a list where values are of several kinds


@dataclasses.dataclass
class Part:
    """The rows of videos and, row by row, the columns with what is said of them. A row's `origin` is where that stands,
    if not at the row's own `relative`; it is removed when parts are joined."""

    rows: list[Row]
    columns: Mapping[str, Column]
    unmatched: Sequence[str] = ()  # captions and columns of no video, by where they stand
    untyped: frozenset[str] = frozenset()  # columns of texts that may be numbers: CSV has no types


def chosen(part: Part, rows: list[int]) -> Part:
    """A part with some of its rows alone."""
    columns: dict[str, Column] = {}
    for name, column in part.columns.items():
        columns[name] = (
            [column[at] for at in rows] if isinstance(column, list) else column.take(pa.array(rows, pa.int64()))
        )
    return dataclasses.replace(part, rows=[part.rows[at] for at in rows], columns=columns)


def of_table(rows: list[Row], table: pa.Table) -> Part:
    """A part from a table. Raises ValueError where two columns have one name."""
    counts = Counter(map(plain_name, table.column_names))
    twice = [name for name in table.column_names if counts[plain_name(name)] > 1]
    if len(set(twice)) > 1:
        raise ValueError(f"its columns {', '.join(map(repr, twice))} differ in nothing but case; rename them")
    if twice:
        raise ValueError(f"it has {twice[0]!r} as the name of more than one column")
    columns = {
        name: _decoded(rows, name, column) for name, column in zip(table.column_names, table.columns, strict=True)
    }
    caption = caption_column(columns)
    if caption is None:
        return Part(rows, columns)
    several = str(kind_of_type(columns[caption].type)).startswith(LISTS)
    name = "captions" if several else "caption"
    if name != caption:
        columns = {name if old == caption else old: column for old, column in columns.items() if old != name}
    return Part(rows, columns)


def _decoded(rows: list[Row], name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of text that is UTF-8. A text that is none, or that has NULs where a caption stands, is an error."""
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    is_bytes = pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)
    if not is_text and not (is_bytes and name in TEXTS):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            raise ValueError(f"its column {name!r} is damaged ({error})") from error
        return column
    raw = column.cast(pa.large_binary())
    try:
        fine = column.cast(pa.large_string())
        fine.validate(full=True)
        if not pc.any(pc.match_substring(raw, b"\0")).as_py():
            return column if is_text else fine
    except pa.ArrowInvalid:
        pass  # the texts one by one say which and why
    texts: list[str | None] = []
    for row, value in zip(rows, raw.to_pylist(), strict=True):
        try:
            texts.append(None if value is None else decode_text(value))
        except ValueError as error:
            texts.append(None)
            row["error"] = row["error"] or f"decode: {row['relative']}: its `{name}`: {error}"
    return pa.chunked_array([pa.array(texts, pa.string())])


def joined(parts: Sequence[Part]) -> tuple[list[Row], pa.Table]:
    """All rows, and all columns with one type each; rows whose values are of another kind have an error."""
    parts = _with_one_spelling(parts)
    names = list(dict.fromkeys(name for part in parts for name in part.columns))
    columns = {name: _joined(name, _with_types(name, parts)) for name in names}
    rows = [row for part in parts for row in part.rows]
    for row in rows:
        row.pop("origin", None)
    if not columns:
        columns = {"caption": pa.chunked_array([pa.nulls(len(rows), pa.string())])}
    return rows, pa.table(columns)


def plain_name(name: str) -> str:
    """What columns of one meaning share, whatever the case of their names and the blanks around them."""
    return name.strip().casefold()


def spellings() -> dict[str, str]:
    """How columns are written, by plain name: those of texts as their name is; to be filled with the first of each."""
    return {name: name for name in (*TEXTS, "captions")}


def _with_one_spelling(parts: Sequence[Part]) -> list[Part]:
    """Parts in which a column has one name: `Fps` in one shard and `fps` in another are the same."""
    written = spellings()
    renamed = []
    for part in parts:
        new = {name: written.setdefault(plain_name(name), name) for name in part.columns}
        columns = {new[name]: column for name, column in part.columns.items()}
        untyped = frozenset(new[name] for name in part.untyped)
        renamed.append(dataclasses.replace(part, columns=columns, untyped=untyped))
    return renamed


def _with_types(name: str, parts: Sequence[Part]) -> Sequence[Part]:
    """Parts in which the cells of CSV have types: those that all of them have, or else that of the other parts' values
    where a cell has it. They are texts, as typed, where the column is one of texts."""
    untyped = [part for part in parts if name in part.untyped]
    if not untyped or name in TEXTS or name == "captions":
        return parts
    others = _target(name, [part for part in parts if name not in part.untyped])
    kind = cell_type([part.columns[name] for part in untyped])
    typed: dict[int, Column] = {}  # by the identity of parts
    if kind is not None and others in (None, kind_of_type(kind)):
        typed = {id(part): as_type(part.columns[name], kind) for part in untyped}
    elif others in (NUMBERS, TRUTHS):
        kinds = [pa.bool_()] if others == TRUTHS else [pa.int64(), pa.float64()]
        typed = {id(part): as_type_where_possible(part.columns[name], kinds) for part in untyped}
    replaced = [
        dataclasses.replace(part, columns={**part.columns, name: typed[id(part)]}) if id(part) in typed else part
        for part in parts
    ]
    return parts if _target(name, replaced) == TEXT else replaced


def _joined(name: str, parts: Sequence[Part]) -> pa.ChunkedArray:
    target = _target(name, parts)
    pieces: list[Column] = []
    for part in parts:
        column = part.columns.get(name)
        if column is None:
            pieces.append(pa.chunked_array([pa.nulls(len(part.rows))]))
        elif isinstance(column, pa.ChunkedArray) and kind_of_type(column.type) in (target, None):
            pieces.append(column)
        else:
            pieces.append(_checked(name, part.rows, column, target))
    arrays = [piece for piece in pieces if not isinstance(piece, list)]
    types = {array.type for array in arrays if not pa.types.is_null(array.type)}
    if len(arrays) == len(pieces) and len(types) <= 1:
        one_type = next(iter(types), pa.null())
        return pa.chunked_array([chunk for array in arrays for chunk in array.cast(one_type).chunks], one_type)
    rows = [row for part in parts for row in part.rows]
    values = [value for piece in pieces for value in (piece if isinstance(piece, list) else piece.to_pylist())]
    return _array(name, rows, values, target)


def _target(name: str, parts: Sequence[Part]) -> str | None:
    """The kind of most values of a column; of two equally frequent, that which comes first. None: all are null."""
    if name in TEXTS:
        return TEXT
    if name == "captions":
        return f"{LISTS} of {TEXT}"
    counts: Counter[str] = Counter()
    for part in parts:
        column = part.columns.get(name)
        if isinstance(column, pa.ChunkedArray):
            kind = kind_of_type(column.type)
            if kind is not None:
                counts[kind] += len(column) - column.null_count
        elif column is not None:
            counts.update(kind for kind in map(kind_of, column) if kind is not None)
    counts = +counts
    for kind in [kind for kind in counts if kind.endswith(LISTS)]:  # an empty list is one of any kind
        if any(other != kind and other.startswith(kind) for other in counts):
            del counts[kind]
    if len(counts) > 1:
        counts.pop(HUGE, None)
    return counts.most_common(1)[0][0] if counts else None


def _checked(name: str, rows: list[Row], column: Column, target: str | None) -> list[Any]:
    """The values of one kind; null where a value is of another, whose row has an error now."""
    values = column if isinstance(column, list) else column.to_pylist()
    own = None if isinstance(column, list) else kind_of_type(column.type)
    checked: list[Any] = []
    for row, entry in zip(rows, values, strict=True):
        value = _as_text(name, entry) if name in TEXTS else entry
        if name == "captions":
            several = entry if isinstance(entry, list) else [entry]
            texts = [_as_text(name, one) for one in several]
            value = None if entry is None else [text for text in texts if text is not None]
        if isinstance(value, float) and math.isnan(value):
            value = None  # as pandas writes what is missing
        kind = own if own is not None and value is entry else kind_of(value)
        fits = kind is None or kind == target or (kind.endswith(LISTS) and str(target).startswith(kind))
        if value is None or (fits and target != HUGE):
            checked.append(value)
            continue
        checked.append(None)
        _blame(row, name, entry, kind_of(entry) or str(kind), target)
    return checked


def _blame(row: Row, name: str, value: Any, kind: str, target: str | None) -> None:
    shown = scrubbed(str(value)).encode("utf-8", "backslashreplace").decode()
    where = row.get("origin") or row["relative"]
    others = f"where the other videos have {target}"
    if target == HUGE:
        others = "which no column can hold"
    elif name in TEXTS or name == "captions":
        others = f"where {target} must stand"
    sentence = f"{where} has {kind} for `{name}` ({shown[:40]}), {others}; correct it or leave it out"
    row["error"] = row["error"] or f"decode: {sentence}"


def _array(name: str, rows: list[Row], values: list[Any], target: str | None) -> pa.ChunkedArray:
    """Checked values of one kind as an array: integers, unsigned ones where they need it, floats where any is."""
    if target in (None, HUGE):
        return pa.chunked_array([pa.nulls(len(values))])
    if target == NUMBERS:
        if any(isinstance(value, float) for value in values):
            for at, value in enumerate(values):
                if isinstance(value, int) and abs(value) > MOST:
                    values[at] = None
                    _blame(rows[at], name, value, f"a whole number above {MOST}", "fractions, which would round it")
            return pa.chunked_array([pa.array([None if v is None else float(v) for v in values], pa.float64())])
        negative = any(value is not None and value < 0 for value in values)
        for at, value in enumerate(values):
            if negative and value is not None and value >= 1 << 63:
                values[at] = None
                _blame(rows[at], name, value, "an integer of 64 bits without sign", "integers below zero")
        large = any(value is not None and value >= 1 << 63 for value in values)
        return pa.chunked_array([pa.array(values, pa.uint64() if large else pa.int64())])
    if target == TEXT:
        return pa.chunked_array([pa.array(values, pa.string())])
    if str(target).endswith(LISTS):  # empty ones, and Arrow's list of nulls does not survive a cast
        return pa.chunked_array([pa.array(values, _lists_of_text(str(target)))])
    try:
        return pa.chunked_array([pa.array(values)])
    except (pa.ArrowInvalid, OverflowError):  # lists with integers that only floats can stand beside
        return pa.chunked_array([pa.array([_floats(value) for value in values])])


def _lists_of_text(kind: str) -> pa.DataType:
    of_text = pa.string()
    for _ in range(kind.count(LISTS)):
        of_text = pa.list_(of_text)
    return of_text


def _floats(value: Any) -> Any:
    if isinstance(value, list):
        return [_floats(one) for one in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _as_text(name: str, value: Any) -> Any:
    """A number or date as text, as where an id is written as one; lists and objects stay, which no text stands for."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    is_caption = name in (*CAPTIONS, "captions")
    if isinstance(value, list | dict) or (isinstance(value, bool) and is_caption):
        return value
    return str(value)


# --- kinds -----------------------------------------------------------------------------------------------------------


def kind_of(value: Any) -> str | None:
    """The kind of a value of JSON, in words; None for null and NaN, which fit everywhere."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return TRUTHS
    if isinstance(value, int):
        return NUMBERS if -(1 << 63) <= value < 1 << 64 else HUGE
    if isinstance(value, float):
        return NUMBERS
    if isinstance(value, list):
        kinds = _kinds(value)
        return f"{LISTS} of {max(kinds, key=len)}" if kinds else LISTS  # of [[], [1]] the kind is that of [1]
    if isinstance(value, dict):
        return OBJECTS
    return TEXT if isinstance(value, str) else type(value).__name__


def _kinds(values: list[Any]) -> set[str]:
    """The kinds of a list's elements. NaN is a number here: in a list it stands for nothing that is missing."""
    kinds = {NUMBERS if isinstance(value, float) else kind_of(value) for value in values}
    return {kind for kind in kinds if kind is not None}


def kind_of_type(kind: pa.DataType) -> str | None:
    """The kind of the values of an Arrow type; types without a counterpart in JSON are kinds of their own."""
    if pa.types.is_dictionary(kind):
        return kind_of_type(kind.value_type)
    if pa.types.is_null(kind):
        return None
    if pa.types.is_boolean(kind):
        return TRUTHS
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return NUMBERS
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return TEXT
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        within = kind_of_type(kind.value_type)
        return LISTS if within is None else f"{LISTS} of {within}"
    return str(kind)


def plain_value(value: Any) -> Any:
    """A value of JSON as a column can have it: an object, or a list of several kinds, as its text.

    Objects of many shards have no schema in common. Raises ValueError for text that no table takes.
    """
    if isinstance(value, dict) or (isinstance(value, list) and not _uniform(value)):
        return json.dumps(value)
    check_text(value)
    return value


def _uniform(values: list[Any]) -> bool:
    """Whether the elements of a list are of one kind, through all its levels, and that kind is no object."""
    lists = [value for value in values if isinstance(value, list)]
    if lists and len(lists) < sum(value is not None for value in values):
        return False
    if not all(_uniform(value) for value in lists):
        return False
    kinds = _kinds(values)
    kinds = {kind for kind in kinds if not any(other != kind and other.startswith(kind) for other in kinds)}
    huge = any(kind.endswith(HUGE) for kind in kinds)
    return len(kinds) <= 1 and not huge and not any(isinstance(value, dict) for value in values)


def check_text(value: Any) -> None:
    """Raise ValueError for text, also in lists, that no table takes."""
    flaw = text_flaw(value) if isinstance(value, str) else None
    if flaw:
        raise ValueError(flaw)
    if isinstance(value, list):
        for one in value:
            check_text(one)


def column_of(values: list[Any]) -> Column:
    """Values of JSON as an array where they are of one kind, which takes little memory; else as they are."""
    kinds = {kind for kind in map(kind_of, values) if kind is not None}
    try:
        typed = len(kinds) == 1 and not any(kind.endswith((LISTS, OBJECTS)) for kind in kinds)
        if typed and not any(isinstance(value, float) and math.isnan(value) for value in values):
            return pa.chunked_array([pa.array(values)])
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        pass
    return values
