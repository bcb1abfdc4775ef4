"""What videos there are: a folder, a glob, shards or a manifest, as one table."""

from __future__ import annotations

import dataclasses
import logging
import os
import posixpath
from collections.abc import Iterator
from functools import partial
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import credentials
from pipeline.errors import ConfigError, InputError
from pipeline.inputs import folders, refusals, video_ids
from pipeline.inputs.file_tree import MAGIC
from pipeline.inputs.folders import Row
from pipeline.inputs.locations import located, root_of
from pipeline.inputs.manifests import reader, span_columns
from pipeline.inputs.manifests.columns import LISTED_PATHS, Columns, columns
from pipeline.inputs.manifests.json_blocks import FAULT, LINE
from pipeline.inputs.manifests.span_columns import SPAN
from pipeline.inputs.shards import members
from pipeline.inputs.video_set import VideoSet
from pipeline.storage.stores import join, place
from pipeline.tables.schemas import VIDEOS

log = logging.getLogger(__name__)

MANIFESTS = reader.ENDS
# What is known of each file before anything is said of it; `folder` null: that of `relative`.
FILES = pa.schema(
    [*(VIDEOS.field(n) for n in ("uri", "relative", "version", "size", "error")), ("folder", pa.string())]
)
_CAPTIONS = pa.list_(pa.string())
_MARKS = r"<__dj__\w+>|<\|__dj__\w+\|>"


def videos(
    where: str,
    key: str = "data.videos",
    base: str | None = None,
    files: str | None = None,
    camera: str | None = None,
) -> pa.Table:
    """The videos of a folder (all below it, or what its metadata lists), a glob, or a manifest; tar and Parquet shards
    (see `pipeline.inputs.shards.members`) count as the videos in them.

    `files` is the folder that a manifest's relative paths begin in, where it is not the manifest's own; `camera` names
    one of a robot's cameras.

    Columns: `uri`, `relative` (path below the data root), `version` (etag, or size and modification time), `size`,
    `source` and `group` (the manifest's, else the folder; the group of the data root itself is `all`), `caption`, `id`
    (the manifest's or null), `error` (set for what is listed and may not or cannot be read), `captions` list<string>
    where videos may have several, then the other columns of manifest or shards; one whose name the tables use for
    something else (`fps`, `mask`, ...) becomes `manifest_NAME`. Where rows are about stretches of their videos, `span`
    has the text of each (see `pipeline.inputs.spans`; null: the whole video). What lies outside `base` (data.base),
    links followed, is a row with the error `refused: ...`.

    Raises UsageError, naming `key`: ConfigError for a place that is not there, InputError for what is wrong in it.
    """
    fs, bare = place_of(where, key)
    try:
        rows, listing = _listed(fs, bare, VideoSet(where, key, base, files, camera))
    except PermissionError as error:
        raise InputError(f"{key}={where!r}: it may not be read ({error}). Check its permissions.") from error
    try:
        named = columns([name for name in listing.column_names if name != SPAN], with_paths=False)
        table = described(files_table(rows), listing, named, where, key)
    except (ValueError, pa.ArrowException) as error:
        raise InputError(f"{key}={where!r}: what it says of its videos cannot be used: {error}.") from error
    empty = pc.equal(table.column("caption"), "")
    if pc.all(empty).as_py():
        log.warning("%s=%r: no video has a caption; empty captions are used.", key, where)
    elif pc.any(empty.filter(pc.is_null(table.column("error")))).as_py():
        count = pc.sum(empty.filter(pc.is_null(table.column("error")))).as_py()
        log.warning("%s=%r: without a caption: %d of %d videos. Theirs are empty.", key, where, count, len(table))
    video_ids.check(table, where, key)
    return table


def place_of(where: str, key: str) -> tuple[fsspec.AbstractFileSystem, str]:
    refused = refusals.of_address(where)
    if refused:
        raise ConfigError(f"{key}={refusals.plain(where)!r}: this kind of place cannot be read: {refused}.")
    try:
        fs, bare = place(os.path.expanduser(where))
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{key}={where!r}: this kind of place cannot be read: {error}.") from error
    fs.invalidate_cache()
    return fs, bare.rstrip("/") or "/"


def _listed(fs: fsspec.AbstractFileSystem, bare: str, asked: VideoSet) -> folders.Found:
    if fs.exists(bare):
        manifest = manifest_of(fs, bare)
        if manifest is not None:
            if manifest != bare:
                others = folders.metadata_below(fs, bare)
                folders.say_other_metadata(asked.named, posixpath.basename(manifest), others)
            return _manifest(fs, manifest, asked)
        return folders.found(fs, bare, asked.where, asked.key, asked.base, partial(_metadata, fs, asked))
    if any(c in bare for c in MAGIC):
        return folders.found(fs, bare, asked.where, asked.key, asked.base, partial(_metadata, fs, asked))
    if bare.lower().endswith(MANIFESTS):
        raise ConfigError(f"{asked.named}: there is no such manifest. Check the path.")
    raise ConfigError(
        f"{asked.named}: there is no such file or folder. Name a folder of videos or shards, a glob, or a manifest "
        f"({', '.join(MANIFESTS)})."
    )


def manifest_of(fs: fsspec.AbstractFileSystem, bare: str) -> str | None:
    """The manifest that a place is, or that lies in it; None where it is a folder, a video or shards.

    A folder's metadata in capitals (METADATA.CSV), and that of the folders in it, is for `folders.found` to list.
    """
    paths = [bare] if fs.isfile(bare) else [join(bare, name) for name in folders.METADATA]
    manifest = next((path for path in paths if path.lower().endswith(MANIFESTS) and fs.isfile(path)), None)
    if manifest is None or (manifest.lower().endswith(".parquet") and members.holds_videos(fs, manifest)):
        return None
    return manifest


# --- manifests -------------------------------------------------------------------------------------------------------


def _manifest(
    fs: fsspec.AbstractFileSystem, bare: str, asked: VideoSet, file: reader.ManifestFile | None = None
) -> folders.Found:
    """The files that a manifest lists, and what it says of each: its columns but for the paths."""
    file = file or reader.read(fs, bare, asked.where, asked.key)
    file.check_columns()
    table = _without_marks(file.table(), file.columns)
    try:
        columns_of_spans = span_columns.span_columns(table)
        table = span_columns.one_a_row(table, columns_of_spans)
        spans, span_faults = span_columns.spans_of(table, columns_of_spans)
        paths = [path or "" for path in paths_of(table, file.columns).to_pylist()]
    except (ValueError, pa.ArrowException) as error:
        raise InputError(f"{asked.named}: the manifest {posixpath.basename(bare)}: {error}.") from error
    if columns_of_spans is not None:
        log.warning("%s: rows are stretches of their videos, by %s.", asked.named, columns_of_spans.shown())
    try:
        root_fs, root = root_of(fs, posixpath.dirname(bare), paths, asked)
        files = located(root_fs, root, paths, asked.base)
    except ImportError as error:
        raise InputError(f"{asked.named}: some of its videos lie where nothing here can read: {error}.") from error
    faults, places = table.column(FAULT).to_pylist(), table.column(LINE).to_pylist()
    place_word = {".parquet": "row", ".json": "entry"}.get(posixpath.splitext(bare.lower())[1], "line")
    for row, fault, span_fault, number in zip(files, faults, span_faults, places, strict=True):
        row["error"] = row["error"] if fault is None else f"refused: {fault}"
        row["origin"] = f"{place_word} {number}"
        if row["error"] is None and span_fault is not None:
            row["error"] = f"refused: {place_word} {number}: {span_fault}"
    table = _with_plain_names(table.drop_columns([str(file.columns.path), LINE, FAULT]), file.columns)
    return files, table if columns_of_spans is None else table.append_column(SPAN, spans)


def _without_marks(table: pa.Table, named: Columns) -> pa.Table:
    """Rows without the marks that data-juicer puts around captions: `<__dj__video>` and `<|__dj__eoc|>`."""
    if str(named.path).strip().casefold() not in LISTED_PATHS or named.caption is None:
        return table
    column = table.column(named.caption)
    if not pa.types.is_string(column.type):
        return table
    plain = pc.utf8_trim_whitespace(pc.replace_substring_regex(column, _MARKS, ""))
    return table.set_column(table.column_names.index(named.caption), named.caption, plain)


def paths_of(table: pa.Table, named: Columns) -> pa.Array:
    """The paths of a manifest's rows. Raises ValueError for a list of other than one."""
    column = table.column(str(named.path)).combine_chunks()
    if not _is_list(column.type):
        return texts(pa.chunked_array([column]))
    paths = []
    for row, value in enumerate(column.to_pylist(), 1):
        if value is not None and len(value) != 1:
            raise ValueError(f"row {row}: its `{named.path}` lists {len(value)} videos; a row is about one")
        paths.append(None if value is None else str(value[0]).strip())
    return pa.array(paths, pa.string())


def _with_plain_names(table: pa.Table, named: Columns) -> pa.Table:
    """A manifest's table in which captions, ids, sources and groups have the names of `videos`, so that those of
    several manifests go together. The other columns are renamed with those of shards, in `video_columns`."""
    new = {name: called for name, called in named.others.items() if not name.strip()}  # called by its place in the file
    for name in ("source", "group", "id", "caption", "captions"):
        written = getattr(named, name)
        if written is not None:
            new[written] = name
    if named.caption is not None and named.captions is None and _is_list(table.schema.field(named.caption).type):
        new[named.caption] = "captions"
    return table.rename_columns([new.get(name, name) for name in table.column_names])


# --- what is said of each video --------------------------------------------------------------------------------------


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
    if named.captions is None and not any(_is_list(kind) for kind in kinds):
        return None
    caption_sets: list[dict[str, None]] = [{} for _ in range(listing.num_rows)]  # as sets in order
    for name, kind in zip(filter(None, (named.caption, named.captions)), kinds, strict=True):
        values = listing.column(name).to_pylist() if _is_list(kind) else texts(listing.column(name)).to_pylist()
        for own, value in zip(caption_sets, values, strict=True):
            listed = value if isinstance(value, list) else [value]
            own.update((str(text).strip(), None) for text in listed if text is not None and str(text).strip())
    return [list(own) for own in caption_sets]


def _is_list(kind: pa.DataType) -> bool:
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
        clean = [credentials.scrubbed(value) if credentials.held(value) else value for value in values]
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
    elif _is_list(kind):
        yield from _leaves(array.flatten())
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        yield array


def _suspect(texts: pa.Array) -> bool:
    return bool(pc.any(pc.match_substring_regex(texts, credentials.SUSPECT, ignore_case=True)).as_py())


def _scrubbed(value: Any) -> Any:
    if isinstance(value, str):
        return credentials.scrubbed(value) if credentials.held(value) else value
    if isinstance(value, dict):
        return {name: _scrubbed(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_scrubbed(inner) for inner in value)
    return value


def storable(kind: pa.DataType) -> pa.DataType:
    """A type that every reader of Parquet knows."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _metadata(fs: fsspec.AbstractFileSystem, asked: VideoSet, path: str) -> folders.Found | None:
    """What a metadata file in a folder lists; None where it has no column of paths, and so is about something else."""
    of_file = dataclasses.replace(asked, where=f"{asked.where}: {path}", files=None)
    file = reader.read(fs, path, of_file.where, asked.key, typed=False)
    return None if file.columns.path is None else _manifest(fs, path, of_file, file)
