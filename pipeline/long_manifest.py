"""A manifest that tells every video's version: taken at its word, in bounded blocks, without a look at any file.

It has, beside the columns of every manifest, `version` (whatever changes when the video does: an etag, a date) and `id`
or `size` (bytes; the clips' ids are made of one of them). For ten million videos, and for buckets that may be read but
not listed. That a file is not there is found when it is read.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from pipeline import manifest, refusals
from pipeline.config import ConfigError
from pipeline.folders import relative
from pipeline.located import resolved
from pipeline.schemas import CLIPS, caption_column, plain

BLOCK = 100_000  # rows of Parquet
BYTES = 16 << 20  # of text
_TEXTS = (*manifest.TEXTS, "version")
_ENDS = "|".join(end[1:] for end in (*refusals.ARCHIVES, *refusals.PLAYLISTS))
# A path that needs no second look: no scheme, no part of a shard, no control characters, no empty or dotted folders.
_PLAIN = r"^/?([^/:#\x00-\x1f]+/)*[^/:#\x00-\x1f]+$"
_ODD = rf"(?i)(^|/)\.\.?(/|$)|\.({_ENDS})(\?|$)"


def read(where: str, key: str, base: str | None) -> tuple[pa.Schema, Iterator[pa.Table]] | None:
    """The schema and blocks of `manifest.videos`; None for anything but a manifest that tells versions."""
    fs, bare = manifest.place_of(where, key)
    path = manifest.manifest_of(fs, bare)
    if path is None:
        return None
    names = _names(fs, path, where, key)
    if "version" not in names or not {"id", "size"} & set(names) or "captions" in names:
        return None
    described = _Described(fs, posixpath.dirname(path), manifest.path_column(names, where, key), base)
    return described.schema(_blocks(fs, path, where, key)), described.blocks(_blocks(fs, path, where, key))


def _names(fs: fsspec.AbstractFileSystem, path: str, where: str, key: str) -> list[str]:
    for block in _blocks(fs, path, where, key):
        return list(block.schema.names)
    return []


def _blocks(fs: fsspec.AbstractFileSystem, path: str, where: str, key: str) -> Iterator[pa.Table]:
    try:
        with fs.open(path, "rb") as file:
            yield from (plain(pa.Table.from_batches([batch])) for batch in _batches(file, path))
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"{key}={where!r}: the manifest {posixpath.basename(path)} cannot be read: {error}. Correct it, or write "
            "it anew as Parquet."
        ) from error


def _batches(file: Any, path: str) -> Iterator[pa.RecordBatch]:
    if path.lower().endswith(".parquet"):
        yield from pq.ParquetFile(file).iter_batches(BLOCK)
    elif path.lower().endswith(".csv"):
        yield from pyarrow.csv.open_csv(
            file,
            read_options=pyarrow.csv.ReadOptions(block_size=BYTES),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(_TEXTS, pa.string())),
        )
    else:
        yield from pyarrow.json.open_json(file, read_options=pyarrow.json.ReadOptions(block_size=BYTES))


class _Described:
    """What a block of a manifest says, in the columns of `manifest.videos`."""

    def __init__(self, fs: fsspec.AbstractFileSystem, root: str, path: str, base: str | None) -> None:
        self.fs, self.root, self.path, self.base = fs, root, path, base
        self.local = "file" in fs.protocol
        self.scheme = "" if self.local else fs.unstrip_protocol("")

    def schema(self, blocks: Iterator[pa.Table]) -> pa.Schema:
        return self.block(next(blocks)).schema

    def blocks(self, blocks: Iterator[pa.Table]) -> Iterator[pa.Table]:
        for rows in blocks:
            yield self.block(rows)

    def block(self, rows: pa.Table) -> pa.Table:
        uri, below, error = self._placed(_trimmed(rows, self.path))
        folder = pc.replace_substring_regex(below, r"/?[^/]*$", "")
        folder = pc.if_else(pc.equal(folder, ""), ".", folder)
        caption = caption_column(rows.column_names)
        size = rows.column("size").cast(pa.int64()) if "size" in rows.column_names else pa.repeat(0, len(rows))
        found = {
            "uri": uri,
            "relative": below,
            "version": _trimmed(rows, "version"),
            "size": pc.fill_null(size, 0),
            "source": _filled(_trimmed(rows, "source"), folder),
            "caption": pc.fill_null(_trimmed(rows, caption), ""),
            "id": _filled(_trimmed(rows, "id"), pa.scalar(None, pa.string())),
            "group": _filled(_trimmed(rows, "group"), folder),
            "error": error,
        }
        taken = {*manifest.SCHEMA.names, *CLIPS.names}
        ours = {self.path, caption, "version", "size", "source", "group", "id"}
        others = {f"manifest_{n}" if n in taken else n: rows.column(n) for n in rows.column_names if n not in ours}
        table = pa.table({**found, **others})
        typed = [name for name, column in others.items() if not pa.types.is_null(column.type)]
        fields = [*manifest.SCHEMA, *(pa.field(name, manifest.storable(others[name].type)) for name in typed)]
        return table.select([field.name for field in fields]).cast(pa.schema(fields))

    def _placed(self, paths: pa.ChunkedArray) -> tuple[pa.Array, pa.Array, pa.Array]:
        """Uri, path below the root, and error of listed paths: at once for plain ones, the others one by one."""
        paths = pc.fill_null(paths, "").combine_chunks()
        own = pc.starts_with(paths, self.scheme) if self.scheme else pa.repeat(False, len(paths))
        rest = pc.if_else(own, pc.utf8_slice_codeunits(paths, len(self.scheme)), paths)
        clear = pc.and_not(pc.match_substring_regex(rest, _PLAIN), pc.match_substring_regex(rest, _ODD))
        absolute = pc.starts_with(rest, "/")
        clear = pc.and_(clear, pa.repeat(self.base is None, len(paths)))
        clear = pc.and_(clear, pc.invert(absolute) if not self.local else pa.repeat(True, len(paths)))
        whole = pc.or_(own, absolute)
        head = self.root.rstrip("/") + "/"
        uri = pc.if_else(whole, paths, pc.binary_join_element_wise(self.scheme + head, rest, ""))
        inside = pc.and_(whole, pc.starts_with(rest, head))
        below = pc.if_else(inside, pc.utf8_slice_codeunits(rest, len(head)), paths)
        error = pa.nulls(len(paths), pa.string())
        odd = pc.invert(clear)
        if pc.any(odd).as_py():
            found = [self._one(path) for path in paths.filter(odd).to_pylist()]
            columns = [pa.array(column, pa.string()) for column in zip(*found, strict=True)]
            uri, below, error = (
                pc.replace_with_mask(whole_column.cast(pa.string()), odd, column)
                for whole_column, column in zip((uri, below, error), columns, strict=True)
            )
        return uri, below, error

    def _one(self, path: str) -> tuple[str, str, str | None]:
        refused = refusals.of_text(path)
        if refused:
            return refusals.plain(path), refusals.plain(path), f"refused: {refused}"
        fs, bare = resolved(self.fs, self.root, path)
        uri = bare if "file" in fs.protocol else fs.unstrip_protocol(bare)
        below = relative(bare, self.root)
        refused = refusals.of_place(uri, self.base) or refusals.of_missing(path)
        return uri, below if below != bare else path, f"refused: {refused}" if refused else None


def _trimmed(rows: pa.Table, name: str | None) -> pa.ChunkedArray:
    """A column as text; nulls where there is no such column."""
    if name is None or name not in rows.column_names:
        return pa.chunked_array([pa.nulls(len(rows), pa.string())])
    return pc.utf8_trim_whitespace(rows.column(name).cast(pa.string()))


def _filled(texts: pa.ChunkedArray, others: Any) -> pa.ChunkedArray:
    return pc.if_else(pc.equal(pc.fill_null(texts, ""), ""), others, texts)
