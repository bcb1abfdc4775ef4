"""A manifest's CSV or TSV as blocks of texts, read strictly: a row that cannot be one is said with its line.

Quotes within a quoted value are doubled. A quote that is never closed swallows rows: it shows at the end of the file,
at what follows the quote that closes it, in the number of values, or in a line of the value that is a row itself.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.inputs import extensions
from pipeline.inputs.manifests.columns import columns
from pipeline.inputs.manifests.json_blocks import FAULT, LINE, typed_array
from pipeline.inputs.manifests.text_blocks import collection_paused, text_blocks

ROWS, CHARACTERS = 50_000, 16 << 20  # of a block
LONGEST = 16 << 20  # characters of a value; a quote that is never closed is not followed any further

_LIST = pa.list_(pa.string())


def opened(
    fs: fsspec.AbstractFileSystem, path: str, delimiter: str
) -> tuple[pa.Schema, Callable[[], Iterator[pa.Table]]]:
    """The schema of a manifest, all of it text but `captions`, which are lists; and its blocks, read anew each time.

    Raises ValueError, naming the line.
    """
    with fs.open(path, "rb") as file:
        _, _, header = next(_Records(file, delimiter).rows(), (1, 1, []))
    names = [name.strip() or f"column {place}" for place, name in enumerate(header, 1)]
    roles = columns(names)
    fields = [pa.field(name, _LIST if name == roles.captions else pa.string()) for name in names]
    schema = pa.schema([*fields, (LINE, pa.int64()), (FAULT, pa.string())])

    def blocks() -> Iterator[pa.Table]:
        with fs.open(path, "rb") as file:
            yield from _blocks(_Records(file, delimiter), schema, roles.path)

    return schema, blocks


class _Records:
    """The rows of a file, but for blank ones."""

    def __init__(self, file: BinaryIO, delimiter: str) -> None:
        csv.field_size_limit(LONGEST)
        self.delimiter = delimiter
        self.characters = 0  # that were read so far
        self._texts = text_blocks(file)
        self._begin = 1  # the line in which the row begins that is read
        self._pieces: list[tuple[int, list[str]]] = []  # lines from there on, and what number the first has

    def _lines(self) -> Iterator[list[str]]:
        number = 1
        for text in self._texts:
            lines = list(io.StringIO(text, newline=""))
            self._pieces = [piece for piece in self._pieces if piece[0] + len(piece[1]) > self._begin]
            self._pieces.append((number, lines))
            self.characters += len(text)
            number += len(lines)
            yield lines

    def between(self, begin: int, end: int) -> list[str]:
        """Lines of the row that is read."""
        return [line for first, lines in self._pieces for line in lines[max(0, begin - first) : end + 1 - first]]

    def rows(self) -> Iterator[tuple[int, int, list[str]]]:
        """Each row with the lines in which it begins and ends."""
        reader = csv.reader(chain.from_iterable(self._lines()), delimiter=self.delimiter, strict=True)
        while True:
            try:
                row = next(reader, None)
            except csv.Error as error:
                lines = self.between(self._begin, reader.line_num)
                raise ValueError(_broken_quote(lines, self.delimiter, self._begin, str(error))) from None
            if row is None:
                return
            if row and (row[0] or any(value.strip() for value in row)):
                yield self._begin, reader.line_num, row
            self._begin = reader.line_num + 1


def _blocks(records: _Records, schema: pa.Schema, path: str | None) -> Iterator[pa.Table]:
    path_at = 0 if path is None else schema.names.index(path)
    rows = records.rows()
    next(rows, None)  # the header
    while True:
        with collection_paused():
            block = _block(records, rows, schema, path_at)
        if block is None:
            return
        yield block


def _block(
    records: _Records, numbered_rows: Iterator[tuple[int, int, list[str]]], schema: pa.Schema, path_at: int
) -> pa.Table | None:
    """The next rows; None where there are no more."""
    width, most = len(schema) - 2, records.characters + CHARACTERS
    lines, rows = list[int](), list[list[str]]()
    for line, end, row in numbered_rows:
        if len(row) != width:
            row = _fitted(row, width, line, records.between(line, end))
        if line < end:
            _check_swallowed(row, path_at, line, records.delimiter)
        lines.append(line)
        rows.append(row)
        if len(rows) >= ROWS or records.characters >= most:
            break
    return _table(rows, lines, schema) if rows else None


def _table(rows: list[list[str]], lines: list[int], schema: pa.Schema) -> pa.Table:
    columns = []
    faults: list[str | None] = [None] * len(rows)
    for field, values in zip(schema, zip(*rows, strict=True), strict=False):
        if field.type == _LIST:
            listed = [_captions(value, field.name, line) for value, line in zip(values, lines, strict=True)]
            columns.append(typed_array(field.name, listed, "list of text", lines, faults))
        else:
            texts = pa.array(values, pa.string())
            columns.append(pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts))
    return pa.table([*columns, pa.array(lines, pa.int64()), pa.array(faults, pa.string())], schema=schema)


def _captions(value: str, name: str, line: int) -> list[str] | None:
    """Captions from a JSON list of them, or the only one."""
    text = value.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return [text] if text else None
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError):
        listed = None
    if not isinstance(listed, list) or any(isinstance(one, dict | list) for one in listed):
        raise ValueError(
            f"line {line}: its `{name}` is no JSON list of texts: {text[:40]}. Write it as "
            '["one", "two"], quotes doubled within a quoted value; a single caption needs no brackets'
        )
    return [one if isinstance(one, str) else json.dumps(one) for one in listed if one is not None]


# --- rows that are none ----------------------------------------------------------------------------------------------


def _fitted(row: list[str], width: int, line: int, lines: Sequence[str]) -> list[str]:
    """A row without the empty values that spreadsheets append. Raises ValueError for another number of values."""
    if len(row) > width and not any(row[width:]):
        return row[:width]
    where = f"line {line}" if len(lines) == 1 else f"lines {line} to {line + len(lines) - 1}"
    long = " (it has a quoted value of several lines: is a quote missing?)" if len(lines) > 1 else ""
    raise ValueError(
        f"{where}: this row has {len(row)} values{long}, and the header has {width} names. Quote values that have the "
        f"separator in them{_backslashes(lines)}"
    )


def _check_swallowed(row: list[str], path_at: int, line: int, delimiter: str) -> None:
    """Raise ValueError where a line within a quoted value is a row by itself, with a video's path in its place."""
    for value in row:
        for inner in value.splitlines()[1:]:
            cells = inner.split(delimiter)
            if len(cells) >= len(row) and cells[path_at].strip().strip('"').lower().endswith(extensions.VIDEOS):
                raise ValueError(
                    f"line {line}: a quoted value that begins here has the line {inner[:60]!r}, which is a row by "
                    "itself: close the quote, or double it where it belongs to the text"
                )


def _broken_quote(lines: Sequence[str], delimiter: str, line: int, error: str) -> str:
    """What is wrong with the quotes of a row that begins in this line."""
    opens = line + _last_quote(lines, delimiter)
    last = line + len(lines) - 1
    hint = _backslashes(lines)
    if "expected after" in error:
        where = "" if last == opens else f", in line {last},"
        return (
            f"line {opens}: a quote opens a value here, and behind the one that closes it{where} the value goes on. "
            f"Double quotes within a quoted value{hint}"
        )
    if "field larger" in error:
        return (
            f"line {opens}: the value whose quote opens here has more than {LONGEST} characters. Close the quote{hint}"
        )
    return f"line {opens}: the quote that opens here is never closed{hint}"


def _backslashes(lines: Sequence[str]) -> str:
    if any('\\"' in line for line in lines):
        return "; a backslash before a quote, as Spark writes it, is no escape in CSV (write with escape='\"')"
    return ""


def _last_quote(lines: Sequence[str], delimiter: str) -> int:
    """In which of the lines of a row the last quoted value begins."""
    opened_in, quoted, fresh, previous = 0, False, True, ""
    for number, line in enumerate(lines):
        for character in line:
            if character == '"' and quoted:
                quoted = False
            elif character == '"' and fresh:
                quoted, opened_in = True, number
            elif character == '"' and not fresh and previous == '"':
                quoted = True  # a doubled quote: the value goes on
            fresh = character == delimiter and not quoted
            previous = character
    return opened_in
