"""Which columns of a CSV hold numbers or truth values: those of which every value is one, for CSV has no types."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.inputs.manifests.columns import Columns
from pipeline.inputs.manifests.json_blocks import FAULT, LINE

_MISSING = pa.array(["nan", "NaN", "NAN"])  # what numeric libraries write for no value; in a column of texts, a text
# Numbers have no leading zeros: 007 is a text. So are whole numbers that a number would round, and what is infinite.
_PATTERNS = {
    pa.bool_(): r"^(true|false|True|False|TRUE|FALSE)$",
    pa.int64(): r"^-?(0|[1-9][0-9]{0,17})$",
    pa.float64(): r"^-?((0|[1-9][0-9]{0,14})(\.[0-9]+)?|\.[0-9]+)([eE](-[0-9]{1,3}|\+?1?[0-9]{1,2}))?$",
}


class CellTypes:
    """The types that the values of a CSV's columns, seen block by block, all have; texts where they have none."""

    def __init__(self, schema: pa.Schema, columns: Columns) -> None:
        self._schema = schema
        texts = {*columns.texts, columns.size, LINE, FAULT}
        self._open = {name: list(_PATTERNS) for name in schema.names if name not in texts}
        self._seen = set[str]()  # columns that have a value

    def learn(self, block: pa.Table) -> None:
        for name, types in self._open.items():
            column = _without_missing(block.column(name)).drop_null()
            if len(column):
                self._seen.add(name)
            self._open[name] = _shared(column, types)

    def schema(self) -> pa.Schema:
        """A column of no values is of type null: what it has one day must not be of another type than now."""
        fields = []
        for field in self._schema:
            types = self._open.get(field.name, [])
            if field.name in self._open and field.name not in self._seen:
                types = [pa.null()]
            fields.append(pa.field(field.name, types[0]) if types else field)
        return pa.schema(fields)

    def cast(self, blocks: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Blocks with the types of `schema`."""
        schema = self.schema()
        for block in blocks:
            columns = []
            for field in schema:
                column = block.column(field.name)
                columns.append(column if column.type == field.type else as_type(column, field.type))
            yield pa.table(columns, schema=schema)


def cell_type(columns: Iterable[pa.ChunkedArray]) -> pa.DataType | None:
    """The type that all values of some columns of texts have; None where that is text, or there is no value."""
    types, has_texts = list(_PATTERNS), False
    for column in columns:
        texts = _without_missing(column).drop_null()
        has_texts = has_texts or len(texts) > 0
        types = _shared(texts, types)
    return types[0] if has_texts and types else None


def as_type(texts: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Texts, all of them of this type or missing, as its values."""
    if pa.types.is_null(kind):
        return pa.chunked_array([pa.nulls(len(texts))])
    return _without_missing(texts).cast(kind)


def as_type_where_possible(texts: pa.ChunkedArray, kinds: Iterable[pa.DataType]) -> list[Any]:
    """Values of the first of these types that each text is one of; the text where it is none."""
    values: list[Any] = []
    for text in _without_missing(texts).to_pylist():
        kind = next((kind for kind in kinds if text is not None and re.fullmatch(_PATTERNS[kind], text)), None)
        values.append(text if kind is None else pa.scalar(text).cast(kind).as_py())
    return values


def _shared(texts: pa.ChunkedArray, types: Iterable[pa.DataType]) -> list[pa.DataType]:
    """Those of some types that all of these texts have."""
    return [kind for kind in types if _matches(texts, _PATTERNS[kind])]


def _matches(texts: pa.ChunkedArray, pattern: str) -> bool:
    return not len(texts) or bool(pc.all(pc.match_substring_regex(texts, pattern)).as_py())


def _without_missing(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(pc.is_in(texts, _MISSING), pa.scalar(None, pa.string()), texts)
