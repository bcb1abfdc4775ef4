"""A manifest's JSON lines as typed blocks: whose values a table cannot hold is said with its line and column.

A column holds texts, whole numbers, numbers, truth values, or lists of one of them. Objects, and lists of lists or of
objects, pass through as their JSON text. NaN is no value.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.texts import text_flaw
from pipeline.inputs.manifests.columns import Columns, columns
from pipeline.inputs.manifests.text_blocks import collection_paused, text_blocks

LINE, FAULT = "\0line", "\0fault"  # no column of a manifest is called so
MOST = 1 << 53  # whole numbers up to here are exact as numbers

_LIST, _WHOLE, _FLOAT = "list of ", "whole number", "number"
_SCALARS = {str: "text", bool: "true or false", int: "whole number", float: "number", dict: "object"}
_TYPES = {
    "text": pa.string(),
    "true or false": pa.bool_(),
    "whole number": pa.int64(),
    "number": pa.float64(),
    "object": pa.string(),
    "list of nested values": pa.string(),
    "list of nothing": pa.list_(pa.string()),
    "list of text": pa.list_(pa.string()),
    "list of true or false": pa.list_(pa.bool_()),
    "list of whole number": pa.list_(pa.int64()),
    "list of number": pa.list_(pa.float64()),
}
_AS_JSON = ("object", "list of nested values")


# --- lines -----------------------------------------------------------------------------------------------------------


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises ValueError for a key that it has twice."""
    record = dict(pairs)
    if len(record) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"an object has {next(n for n in names if names.count(n) > 1)!r} twice")
    return record


_CONSTANTS = {"NaN": None, "Infinity": float("inf"), "-Infinity": float("-inf")}
_decode = json.JSONDecoder(object_pairs_hook=distinct, parse_constant=_CONSTANTS.__getitem__).raw_decode


def _rows(text: str, line: int) -> tuple[list[dict[str, Any]], list[int]]:
    """The objects of a text that begins in this line, and the line of each."""
    rows, lines = list[dict[str, Any]](), list[int]()
    for number, written in enumerate(text.split("\n"), line):
        stripped = written.strip(" \t\r")
        if not stripped:
            continue
        try:
            row, end = _decode(stripped)
        except RecursionError:
            raise ValueError(f"line {number}: its values lie too deep within each other") from None
        except ValueError as error:
            raise ValueError(f"line {number} is no JSON: {error}") from None
        if end != len(stripped):
            raise ValueError(f"line {number}: after its object there is {stripped[end : end + 40]!r}")
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is no object but {stripped[:40]!r}")
        rows.append(row)
        lines.append(number)
    return rows, lines


def blocks(file: BinaryIO, kinds: Kinds) -> Iterator[pa.Table]:
    """Blocks of rows with LINE and FAULT, each with the types of its own values. `kinds` learns those of the file.

    Raises ValueError, naming line and column.
    """
    line = 1
    for text in text_blocks(file):
        with collection_paused():
            rows, lines = _rows(text, line)
            block = block_of(rows, lines, kinds) if rows else None
            del rows
        line += text.count("\n")
        if block is not None:
            yield block


def block_of(rows: list[dict[str, Any]], lines: list[int], kinds: Kinds) -> pa.Table:
    """Objects as a block of rows. Raises ValueError, naming line and column."""
    names = list(dict.fromkeys(chain.from_iterable(rows)))
    faults: list[str | None] = [None] * len(rows)
    arrays: dict[str, pa.Array] = {}
    kinds.roles(names)
    for name in names:
        values = [row.get(name) for row in rows]
        kind = kinds.learn(name, values, lines)
        if kind is not None:
            written = name.encode("utf-8", "backslashreplace").decode()
            arrays[written] = typed_array(name, values, kind, lines, faults)
            if kinds.is_text(name):
                _note_flaws(name, values, arrays[written], lines, faults)
    return pa.table({**arrays, LINE: pa.array(lines, pa.int64()), FAULT: pa.array(faults, pa.string())})


def typed_array(name: str, values: list[Any], kind: str, lines: Sequence[int], faults: list[str | None]) -> pa.Array:
    """Values of one kind. A text that is none is replaced by its escapes, and its row has a fault."""
    if kind in _AS_JSON:
        values = [None if value is None else json.dumps(value) for value in values]
    try:
        return pa.array(values, _TYPES[kind])
    except UnicodeEncodeError:
        _note(name, values, lines, faults)
        return pa.array([_escaped(value) for value in values], _TYPES[kind])
    except (OverflowError, pa.ArrowInvalid):
        for value, line in zip(values, lines, strict=True):
            for number in value if isinstance(value, list) else [value]:
                _check_size(number, kind, name, line)
        raise


def _note_flaws(name: str, values: list[Any], array: pa.Array, lines: Sequence[int], faults: list[str | None]) -> None:
    """Note the rows whose text has a NUL."""
    texts = array.flatten() if pa.types.is_list(array.type) else array
    if pa.types.is_string(texts.type) and pc.any(pc.match_substring(texts, "\0")).as_py():
        _note(name, values, lines, faults)


def _note(name: str, values: list[Any], lines: Sequence[int], faults: list[str | None]) -> None:
    for place, value in enumerate(values):
        flaw = next(filter(None, map(text_flaw, _texts_of(value))), None)
        if flaw is not None and faults[place] is None:
            faults[place] = f"line {lines[place]} of the manifest: its `{_shown(name)}` is no text, {flaw}"


def _check_size(number: Any, kind: str, name: str, line: int) -> None:
    if not isinstance(number, int):
        return
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError(f"line {line}: its `{_shown(name)}` is {number}, more than 64 bits hold; write it as text")
    if kind.endswith(_FLOAT) and not kind.endswith(_WHOLE) and abs(number) > MOST:
        raise ValueError(
            f"line {line}: its `{_shown(name)}` is {number}, and in a column with fractions whole numbers are exact "
            f"up to {MOST} only; write it as text"
        )


def _texts_of(value: Any) -> list[str]:
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]


def _escaped(value: Any) -> Any:
    if isinstance(value, list):
        return [_escaped(text) for text in value]
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _shown(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


# --- kinds -----------------------------------------------------------------------------------------------------------


class Kinds:
    """What kind of values every column has, and in which line that showed first."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[str | None, int]] = {}
        self._columns: Columns | None = None

    def roles(self, names: Sequence[str]) -> None:
        """Columns that the file has as well; which of them are texts, whatever their values look like."""
        new = [name for name in names if name not in self._kinds]
        if new or self._columns is None:
            self._kinds.update(dict.fromkeys(new, (None, 0)))
            self._columns = columns([_shown(name) for name in self._kinds])

    def learn(self, name: str, values: list[Any], lines: Sequence[int]) -> str | None:
        """The kind of a block's values, None where there is none. The values of text columns become texts, in place.

        Raises ValueError where it does not go with what the column held so far.
        """
        assert self._columns is not None, "roles come first"
        several = _shown(name) in self._columns.lists
        if _shown(name) in self._columns.texts:
            _make_texts(name, values, lines, several)
        before, first = self._kinds[name]
        try:
            kind = _kind(values)
            if several and "text" in (before, kind) and "list" in f"{before} {kind}":
                self._kinds[name] = (f"{_LIST}text", first)  # `cast` makes lists of single texts
                return kind
            whole = _merged(before, kind)
        except _MixedError:
            raise ValueError(_conflict(name, values, lines, before, first)) from None
        if before is None and kind is not None:
            first = next(line for value, line in zip(values, lines, strict=True) if value is not None)
        self._kinds[name] = (whole, first)
        return kind

    def is_text(self, name: str) -> bool:
        return self._columns is not None and _shown(name) in self._columns.texts

    def schema(self) -> list[pa.Field]:
        """A field for every column; without a value it is of type null."""
        return [pa.field(_shown(n), pa.null() if k is None else _TYPES[k]) for n, (k, _) in self._kinds.items()]

    def cast(self, block: pa.Table, schema: pa.Schema) -> pa.Table:
        """A block in the types of the whole file."""
        columns = []
        for field in schema:
            if field.name not in block.column_names:
                columns.append(pa.nulls(block.num_rows, field.type))
                continue
            column = block.column(field.name)
            if pa.types.is_list(field.type) and pa.types.is_string(column.type):
                columns.append(_listed(column))
                continue
            try:
                columns.append(column.cast(field.type))
            except pa.ArrowInvalid:
                for value, line in zip(column.to_pylist(), block.column(LINE).to_pylist(), strict=True):
                    for number in value if isinstance(value, list) else [value]:
                        _check_size(number, "number", field.name, line)
                raise
        return pa.table(columns, schema=schema)


def _listed(texts: pa.ChunkedArray) -> pa.Array:
    """Texts as lists of one each."""
    texts = texts.combine_chunks()
    return pa.ListArray.from_arrays(pa.array(range(len(texts) + 1), pa.int32()), texts, mask=pc.is_null(texts))


class _MixedError(Exception):
    pass


def _kind(values: Iterable[Any]) -> str | None:
    """The kind of values of one kind; None where all are None. Raises _MixedError."""
    kinds = set(map(type, values)) - {type(None)}
    if not kinds:
        return None
    if kinds != {list}:
        return _scalar(kinds)
    elements = set(map(type, chain.from_iterable(value for value in values if value is not None))) - {type(None)}
    if elements & {dict, list}:
        return f"{_LIST}nested values"
    return f"{_LIST}{_scalar(elements) if elements else 'nothing'}"


def _scalar(types: set[type]) -> str:
    if types == {int, float}:
        return "number"
    if len(types) > 1 or list in types:
        raise _MixedError
    return _SCALARS[next(iter(types))]


def _merged(one: str | None, other: str | None) -> str | None:
    """The kind of what is of two kinds. Raises _MixedError."""
    if one is None or other is None or one == other:
        return one or other
    if one.startswith(_LIST) and other.startswith(_LIST):
        inner = {one.removeprefix(_LIST), other.removeprefix(_LIST)}
        if "nothing" in inner:
            return f"{_LIST}{next(iter(inner - {'nothing'}))}"
        return f"{_LIST}{_merged(*sorted(inner))}"
    if {one, other} == {"whole number", "number"}:
        return "number"
    raise _MixedError


def _conflict(name: str, values: list[Any], lines: Sequence[int], kind: str | None, first: int) -> str:
    """Which line has another kind than those before it."""
    for value, line in zip(values, lines, strict=True):
        try:
            own = _kind([value])
        except _MixedError:
            return f"line {line}: its `{_shown(name)}` is a list of several kinds of values; give them one"
        try:
            merged = _merged(kind, own)
        except _MixedError:
            return (
                f"line {line}: its `{_shown(name)}` is of the kind {own} ({json.dumps(value)[:40]}), but {kind} in "
                f"line {first}. Give a column values of one kind"
            )
        if kind is None and own is not None:
            first = line
        kind = merged
    raise AssertionError("values of several kinds were seen")


def _make_texts(name: str, values: list[Any], lines: Sequence[int], several: bool) -> None:
    """Put texts in the place of numbers and truth values, as JSON writes them; with `several` also in lists, and where
    there is one list, all are lists. Raises ValueError for objects, and for lists where there may be none."""
    kinds = set(map(type, values))
    if kinds <= {str, type(None)}:
        return
    listed = several and list in kinds
    for place, value in enumerate(values):
        if isinstance(value, dict) or (isinstance(value, list) and not several):
            what = "an object" if isinstance(value, dict) else "a list"
            raise ValueError(f"line {lines[place]}: its `{_shown(name)}` is {what}; it must be a text")
        if isinstance(value, list):
            if any(isinstance(one, dict | list) for one in value):
                raise ValueError(f"line {lines[place]}: its `{_shown(name)}` is a list of more than texts")
            values[place] = [_text(one) for one in value if one is not None]
        elif value is not None:
            values[place] = [_text(value)] if listed else _text(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
