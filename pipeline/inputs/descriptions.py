"""What is said of each video, in the columns of `videos.videos`: texts, captions, spans, and nothing that is secret."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import credentials
from pipeline.inputs.manifests.columns import Columns
from pipeline.inputs.manifests.json_blocks import FAULT
from pipeline.inputs.manifests.span_columns import SPAN
from pipeline.tables.schemas import VIDEOS

log = logging.getLogger(__name__)

# What is known of each file before anything is said of it; `folder` null: that of `relative`.
FILES = pa.schema(
    [*(VIDEOS.field(n) for n in ("uri", "relative", "version", "size", "error")), ("folder", pa.string())]
)
_CAPTIONS = pa.list_(pa.string())

Row = dict[str, Any]


def files_table(files: list[Row]) -> pa.Table:
    return pa.Table.from_pylist([{name: row.get(name) for name in FILES.names} for row in files], FILES)


def described(files: pa.Table, known: pa.Table, named: Columns, where: str, key: str) -> pa.Table:
    """The columns of `videos`, for files (of the schema FILES) and what a manifest or shards say of each."""
    known = _without_secrets(known, named, where, key)
    count = known.num_rows

    def text(name: str | None) -> pa.Array:
        try:
            return pa.nulls(count, pa.string()) if name is None else texts(known.column(name))
        except (ValueError, pa.ArrowException) as error:
            raise ValueError(f"its column `{name}` must hold texts: {error}") from error

    folder = pc.coalesce(files.column("folder"), pc.replace_substring_regex(files.column("relative"), r"/?[^/]*$", ""))
    source, group = (_or(text(name), folder) for name in (named.source, named.group))
    own = _captions(known, named)
    caption = (
        text(named.caption)
        if own is None
        else pa.array([several[0] if several else "" for several in own], pa.string())
    )
    rows = {
        **{name: files.column(name) for name in ("uri", "relative", "version", "size")},
        "source": _or(source, pa.scalar(".")),
        "caption": pc.fill_null(caption, ""),
        "id": _or(text(named.id), pa.scalar(None, pa.string())),
        "group": pc.if_else(pc.is_in(group, pa.array(["", "."])), "all", group),
        "error": files.column("error"),
        **({} if own is None else {"captions": pa.array(own, _CAPTIONS)}),
    }
    rows["error"] = _faults(rows, known)
    fields = [*VIDEOS, *([] if own is None else [pa.field("captions", _CAPTIONS)])]
    if SPAN in known.column_names:
        rows["span"] = known.column(SPAN)
        fields.append(pa.field("span", pa.string()))
    for name, new in named.others.items():
        kind = storable(known.schema.field(name).type)
        if not pa.types.is_null(kind):  # it says nothing, not even its type
            rows[new] = known.column(name)
            fields.append(pa.field(new, kind))
    return pa.table({field.name: rows[field.name] for field in fields}).cast(pa.schema(fields))


def texts(column: pa.ChunkedArray) -> pa.Array:
    """A column as texts, without blanks around them; what has another type as it is written. Raises ValueError for
    lists and the like, and for bytes that are no text."""
    column = column.combine_chunks()
    kind = storable(column.type)
    if pa.types.is_nested(kind):
        raise ValueError(f"values of the type {kind} are no texts")
    if pa.types.is_null(kind) or pa.types.is_string(kind):
        strings = column.cast(pa.string())
    elif pa.types.is_integer(kind) or pa.types.is_boolean(kind) or _is_text(kind):
        strings = column.cast(kind).cast(pa.string())
    else:  # dates, and numbers as Python writes them: 1.0, and not 1
        values = (None if value is None or value != value else str(value) for value in column.to_pylist())
        strings = pa.array(list(values), pa.string())
    return pc.utf8_trim_whitespace(strings)


def _is_text(kind: pa.DataType) -> bool:
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    return bool(binary or pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_string(kind))


def _or(strings: pa.Array, others: Any) -> Any:
    """Texts, and others where they are null or empty."""
    return pc.if_else(pc.equal(pc.fill_null(strings, ""), ""), others, strings)


def _captions(listing: pa.Table, named: Columns) -> list[list[str]] | None:
    """Every video's captions, each once: those of a column with one and those of a column with several. None where the
    columns are such that no video has several."""
    kinds = [listing.schema.field(name).type for name in (named.caption, named.captions) if name is not None]
    if named.captions is None and not any(is_list(kind) for kind in kinds):
        return None
    caption_sets: list[dict[str, None]] = [{} for _ in range(listing.num_rows)]  # as sets in order
    for name, kind in zip(filter(None, (named.caption, named.captions)), kinds, strict=True):
        values = listing.column(name).to_pylist() if is_list(kind) else texts(listing.column(name)).to_pylist()
        for own, value in zip(caption_sets, values, strict=True):
            listed = value if isinstance(value, list) else [value]
            own.update((str(text).strip(), None) for text in listed if text is not None and str(text).strip())
    return [list(own) for own in caption_sets]


def is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _faults(rows: dict[str, Any], listing: pa.Table) -> pa.Array:
    """The errors of videos, among them those of texts that no tokenizer takes."""
    error = rows["error"]
    if FAULT in listing.column_names:
        faults = listing.column(FAULT)
        error = pc.coalesce(pc.binary_join_element_wise("refused: ", faults, ""), error)
    for name in ("relative", "source", "caption", "captions", "id", "group"):
        if name not in rows:
            continue
        column = rows[name] if name != "captions" else pc.binary_join(rows[name], " ")
        broken = pc.fill_null(pc.match_substring(column, "\0"), False)
        error = pc.if_else(pc.and_(pc.is_null(error), broken), f"refused: its {name} has a NUL character", error)
    return error


def _without_secrets(rows: pa.Table, named: Columns, where: str, key: str) -> pa.Table:
    """Presigned addresses and the like in columns that pass through would stay in the tables for good. Paths that have
    them are refused, each in its row."""
    for index, field in enumerate(rows.schema):
        if field.name in (named.path, FAULT):
            continue
        if pa.types.is_nested(field.type):
            rows = _without_nested_secrets(rows, index, where, key)
            continue
        if not (pa.types.is_string(field.type) or pa.types.is_large_string(field.type)):
            continue
        column = rows.column(index).combine_chunks()
        suspect = pc.fill_null(pc.match_substring_regex(column, credentials.SUSPECT, ignore_case=True), False)
        values = column.filter(suspect).to_pylist()
        clean = [credentials.scrubbed(value) if credentials.kind_of(value) else value for value in values]
        if values != clean:
            count = sum(old != new for old, new in zip(values, clean, strict=True))
            log.warning("%s=%r: %d values of `%s` hold credentials; they are masked.", key, where, count, field.name)
            rows = rows.set_column(index, field, pc.replace_with_mask(column, suspect, pa.array(clean, field.type)))
    return rows


def _without_nested_secrets(rows: pa.Table, index: int, where: str, key: str) -> pa.Table:
    """The same for texts within lists and structs."""
    column, field = rows.column(index), rows.schema.field(index)
    if not any(_suspect(leaf) for chunk in column.chunks for leaf in _leaves(chunk)):
        return rows
    values = column.to_pylist()
    clean = [_scrubbed(value) for value in values]
    count = sum(old != new for old, new in zip(values, clean, strict=True))
    if not count:
        return rows
    log.warning("%s=%r: %d values of `%s` hold credentials; they are masked.", key, where, count, field.name)
    return rows.set_column(index, field, pa.chunked_array([pa.array(clean, field.type)]))


def _leaves(array: pa.Array) -> Iterator[pa.Array]:
    """The texts that an array has at any depth."""
    kind = array.type
    if pa.types.is_map(kind):
        yield from _leaves(array.keys)
        yield from _leaves(array.items)
    elif pa.types.is_struct(kind):
        for inner in array.flatten():
            yield from _leaves(inner)
    elif is_list(kind):
        yield from _leaves(array.flatten())
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        yield array


def _suspect(texts: pa.Array) -> bool:
    return bool(pc.any(pc.match_substring_regex(texts, credentials.SUSPECT, ignore_case=True)).as_py())


def _scrubbed(value: Any) -> Any:
    if isinstance(value, str):
        return credentials.scrubbed(value) if credentials.kind_of(value) else value
    if isinstance(value, dict):
        return {name: _scrubbed(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_scrubbed(inner) for inner in value)
    return value


def storable(kind: pa.DataType) -> pa.DataType:
    """A type that every reader of Parquet knows."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind
