"""What a manifest or shard says of its videos: columns keep one type from run to run, and changes are noticed.

A video's version tells of its file alone. Whether its caption, group or another column is what its rows hold is seen by
comparing texts: `texts` of the listing's rows with `texts` of a table's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import InputError
from pipeline.inputs.video_set import VideoSet
from pipeline.tables.ids import TextSet
from pipeline.tables.schemas import MASK_BOX

_BETWEEN, _WITHIN, _NOTHING = "\x1e", "\x1f", "\x00"  # no caption has these


def check(listed: pa.Schema, schemas: Iterable[pa.Schema], asked: VideoSet, folder: str) -> None:
    """Raise InputError if a column that passes through is of another type than in a table's parts."""
    for schema in schemas:
        for field in schema:
            now = listed.field(field.name).type if field.name in listed.names else field.type
            if pa.types.is_null(field.type) or now == field.type:
                continue
            raise InputError(
                f"{asked.named}: its column {field.name!r} is of type {now}, but {folder} holds it as {field.type} "
                "from an earlier run. Write it as it was, give it another name, or take another root."
            )


def texts(rows: pa.Table, names: Sequence[str]) -> pa.ChunkedArray:
    """A text for each row that differs where its captions or any of these columns do; a column that is not there is
    null."""
    columns = [captions(rows), *(_text(_column(rows, name)) for name in names)]
    return pc.binary_join_element_wise(*columns, _BETWEEN)


def captions(rows: pa.Table) -> pa.ChunkedArray:
    """A text for each row that differs where its captions do: those of `captions`, or its only one."""
    own = pc.fill_null(_column(rows, "caption").cast(pa.string()), "")
    several = _column(rows, "captions")
    return own if pa.types.is_null(several.type) else pc.coalesce(pc.binary_join(several, _WITHIN), own)


def _column(rows: pa.Table, name: str) -> pa.ChunkedArray:
    return rows.column(name) if name in rows.column_names else pa.chunked_array([pa.nulls(rows.num_rows)])


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if not (pa.types.is_primitive(kind) or pa.types.is_string(kind) or pa.types.is_null(kind)):
        values = [None if v is None else json.dumps(v, default=str, sort_keys=True) for v in column.to_pylist()]
        column = pa.chunked_array([pa.array(values, pa.string())])
    return pc.fill_null(column.cast(pa.string()), _NOTHING)


def changed(
    listed: Iterable[pa.Table], before: Iterable[pa.Table], names: Sequence[str], of_features: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """The clips of listed videos whose captions, mask boxes or columns `of_features` are others now, and those of which
    any of these columns is (the former among them). `before` has clip_id, uri and the columns; 24 bytes a listed video
    are in memory."""
    uris, captioned, worded = TextSet(), TextSet(), TextSet()
    for rows in listed:
        uris.add(_video(rows))
        captioned.add(_captioned(rows, of_features))
        worded.add(_worded(rows, names))
    recaptioned, reworded = list[str](), list[str]()
    for rows in before:
        others = rows.filter(pa.array(~worded.has(_worded(rows, names))))
        others = others.filter(pa.array(uris.has(_video(others))))
        reworded += others.column("clip_id").to_pylist()
        stays = captioned.has(_captioned(others, of_features))
        recaptioned += others.column("clip_id").filter(pa.array(~stays)).to_pylist()
    return recaptioned, reworded


def _video(rows: pa.Table) -> pa.ChunkedArray:
    """Each row's video, or the span of it that the row is about."""
    uri = rows.column("uri")
    if "span" not in rows.column_names:
        return uri
    return pc.binary_join_element_wise(uri, pc.fill_null(rows.column("span").cast(pa.string()), ""), "\x1d")


def _captioned(rows: pa.Table, of_features: Sequence[str]) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(_video(rows), texts(rows, [MASK_BOX, *of_features]), _BETWEEN)


def _worded(rows: pa.Table, names: Sequence[str]) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(_video(rows), texts(rows, names), _BETWEEN)
