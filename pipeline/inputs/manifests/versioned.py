"""A manifest that tells every video's version: taken at its word, in bounded blocks, without a look at any file.

It has, beside the columns of every manifest, `version` (whatever changes when the video does: an etag, a date) and `id`
or `size` (bytes; the clips' ids are made of one of them). For ten million videos, and for buckets that may be read but
not listed. That a file is not there is found when it is read.
"""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Iterator

import fsspec
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import InputError, UsageError
from pipeline.inputs import descriptions, refusals, videos
from pipeline.inputs.folders.files import relative
from pipeline.inputs.locations import resolved, root_of
from pipeline.inputs.manifests import reader, span_columns
from pipeline.inputs.manifests.json_blocks import LINE
from pipeline.inputs.manifests.reader import ManifestFile
from pipeline.inputs.manifests.span_columns import SPAN
from pipeline.inputs.video_set import VideoSet

log = logging.getLogger(__name__)

_ENDS = "|".join(end[1:] for end in (*refusals.ARCHIVES, *refusals.PLAYLISTS))
# A path that needs no second look: no scheme, no part of a shard, no control characters, no empty or dotted folders.
_PLAIN = r"^/?([^/:#\\\x00-\x1f]+/)*[^/:#\\\x00-\x1f]+$"
_ODD = rf"(?i)(^|/)\.\.?(/|$)|\.({_ENDS})(\?|$)"


def read(asked: VideoSet) -> tuple[pa.Schema, Iterator[pa.Table]] | None:
    """The schema and blocks of `videos.videos`; None for anything but a manifest that tells versions."""
    fs, bare = videos.place_of(asked.where, asked.key)
    path = videos.manifest_of(fs, bare)
    if path is None:
        return None
    file = reader.read(fs, path, asked.where, asked.key)
    if file.columns.version is None:
        return None
    file.check_columns()
    root_fs, root = root_of(fs, posixpath.dirname(path), [], asked)
    rows = _Described(root_fs, root, file, asked)
    return rows.block(file.schema.empty_table()).schema, rows.blocks()


class _Described:
    """What a block of a manifest says, in the columns of `videos.videos`."""

    def __init__(self, fs: fsspec.AbstractFileSystem, root: str, file: ManifestFile, asked: VideoSet) -> None:
        self.fs, self.file, self.base = fs, file, asked.base
        self.where, self.key = asked.where, asked.key
        try:
            self.span_columns = span_columns.span_columns(next(file.blocks()), is_whole=False)
        except ValueError as error:
            raise InputError(f"{asked.named}: the manifest {posixpath.basename(asked.where)}: {error}.") from error
        self.local = "file" in fs.protocol
        self.root = posixpath.normpath(root) if self.local else root
        self.scheme = "" if self.local else fs.unstrip_protocol("")

    def blocks(self) -> Iterator[pa.Table]:
        captions = False
        for rows in self.file.blocks():
            table = self.block(rows)
            captions = captions or bool(pc.any(pc.not_equal(table.column("caption"), "")).as_py())
            yield table
        if not captions:
            log.warning("%s=%r: no video has a caption; empty captions are used.", self.key, self.where)

    def block(self, rows: pa.Table) -> pa.Table:
        named = self.file.columns
        try:
            uri, below, error = self._placed(descriptions.texts(rows.column(str(named.path))))
            version = descriptions.texts(rows.column(str(named.version)))
            files = pa.table(
                [uri, below, version, _sizes(rows, named.size), error], names=descriptions.FILES.names[:-1]
            )
            files = files.append_column("folder", pa.nulls(len(rows), pa.string()))
            files, rows = self._with_spans(files, rows)
            return descriptions.described(files, rows, named, self.where, self.key)
        except (ValueError, pa.ArrowException) as error:
            if isinstance(error, UsageError):
                raise
            raise InputError(f"{self.key}={self.where!r}: the manifest cannot be read: {error}.") from error

    def _with_spans(self, files: pa.Table, rows: pa.Table) -> tuple[pa.Table, pa.Table]:
        if self.span_columns is None:
            return files, rows
        spans, faults = span_columns.spans_of(rows, self.span_columns)
        lines = zip(faults, rows.column(LINE).to_pylist(), strict=True)
        sentences = [None if fault is None else f"refused: row or line {line}: {fault}" for fault, line in lines]
        error = pc.coalesce(files.column("error"), pa.array(sentences, pa.string()))
        return files.set_column(files.schema.get_field_index("error"), "error", error), rows.append_column(SPAN, spans)

    def _placed(self, paths: pa.Array) -> tuple[pa.Array, pa.Array, pa.Array]:
        """Uri, path below the root, and error of listed paths: at once for plain ones, the others one by one."""
        paths = pc.fill_null(paths, "")
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
            places = [self._one(path) for path in paths.filter(odd).to_pylist()]
            columns = [pa.array(column, pa.string()) for column in zip(*places, strict=True)]
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
        refused = refusals.of_place(uri, self.base)
        if not refused and refusals.of_missing(path) and not fs.exists(bare):
            refused = refusals.of_missing(path)
        return uri, below if below != bare else path, f"refused: {refused}" if refused else None


def _sizes(rows: pa.Table, name: str | None) -> pa.Array:
    """Sizes in bytes; 0 where there are none."""
    if name is None:
        return pa.array([0] * len(rows), pa.int64())
    column = rows.column(name).combine_chunks()
    if pa.types.is_string(column.type):
        column = pc.if_else(pc.equal(pc.utf8_trim_whitespace(column), ""), None, pc.utf8_trim_whitespace(column))
    try:
        return pc.fill_null(column.cast(pa.int64()), 0)
    except pa.ArrowInvalid:
        for value, line in zip(column.to_pylist(), rows.column(LINE).to_pylist(), strict=True):
            try:
                pa.array([value]).cast(pa.int64())
            except pa.ArrowInvalid:
                raise ValueError(f"row or line {line}: its `{name}` is {value!r}, no number of bytes") from None
        raise
