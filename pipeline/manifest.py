"""What videos there are: a folder, a glob, shards or a manifest, as one table."""

from __future__ import annotations

import io
import json
import logging
import os
import posixpath
from collections import Counter
from functools import partial
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline import credentials, folders, refusals, shards
from pipeline.config import ConfigError
from pipeline.file_tree import MAGIC
from pipeline.folders import Row
from pipeline.located import located
from pipeline.schemas import CAPTIONS, CLIPS, caption_column, plain
from pipeline.stores import join, place

log = logging.getLogger(__name__)

MANIFESTS = (".jsonl", ".csv", ".parquet")
PATHS = ("file_name", "path", "video", "video_path", "url", "uri", "file")
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("uri", "relative", "version")]
    + [("size", pa.int64())]
    + [(name, pa.string()) for name in ("source", "caption", "id", "group", "error")]
)
TEXTS = (*PATHS, *CAPTIONS, "source", "group", "id")


def videos(where: str, key: str = "data.videos", base: str | None = None) -> pa.Table:
    """The videos of a folder (all below it, or what its metadata.jsonl, .csv or .parquet lists), a glob, or a manifest;
    tar and Parquet shards (see `pipeline.shards`) count as the videos in them.

    Columns: `uri`, `relative` (path below the data root), `version` (etag, or size and modification time), `size`,
    `source` and `group` (the manifest's, else the folder), `caption`, `id` (the manifest's or null), `error` (set for
    what is listed and may not or cannot be read), `captions` list<string> where any video has several, then the other
    columns of manifest or shards; one whose name a table of clips uses for something else (`fps`, `width`, ...) becomes
    `manifest_NAME`. What lies outside `base` (data.base), links followed, is a row with the error `refused: ...`.

    Raises ConfigError, naming `key`.
    """
    fs, bare = place_of(where, key)
    try:
        files, known = _listed(fs, bare, where, key, base)
    except PermissionError as error:
        raise ConfigError(f"{key}={where!r}: it may not be read ({error}). Check its permissions.") from error
    rows, others = _described(files, known, where, key)
    empty = sum(not row["caption"] for row in rows if row["error"] is None)
    if not any(row["caption"] for row in rows):
        log.warning("%s=%r: no video has a caption; empty captions are used.", key, where)
    elif empty:
        log.warning("%s=%r: without a caption: %d of %d videos. Theirs are empty.", key, where, empty, len(rows))
    schema = pa.schema([*SCHEMA, *others])
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema)


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


def _listed(fs: fsspec.AbstractFileSystem, bare: str, where: str, key: str, base: str | None) -> folders.Found:
    if fs.exists(bare):
        manifest = manifest_of(fs, bare)
        if manifest is not None:
            if manifest != bare:
                others = folders.metadata_below(fs, bare)
                folders.say_other_metadata(f"{key}={where!r}", posixpath.basename(manifest), others)
            return _manifest(fs, manifest, where, key, base)
        return folders.found(fs, bare, where, key, base, partial(_metadata, fs, where, key, base))
    if any(c in bare for c in MAGIC):
        return folders.found(fs, bare, where, key, base, partial(_metadata, fs, where, key, base))
    if bare.lower().endswith(MANIFESTS):
        raise ConfigError(f"{key}={where!r}: there is no such manifest. Check the path.")
    raise ConfigError(
        f"{key}={where!r}: there is no such file or folder. Name a folder of videos or shards, a glob, or a manifest "
        f"({', '.join(MANIFESTS)})."
    )


def manifest_of(fs: fsspec.AbstractFileSystem, bare: str) -> str | None:
    """The manifest that a place is, or that lies in it; None where it is a folder, a video or shards.

    A folder's metadata in capitals (METADATA.CSV), and that of the folders in it, is for `folders.found` to list.
    """
    paths = [bare] if fs.isfile(bare) else [join(bare, name) for name in folders.METADATA]
    manifest = next((path for path in paths if path.lower().endswith(MANIFESTS) and fs.isfile(path)), None)
    if manifest is None or (manifest.lower().endswith(".parquet") and shards.holds_videos(fs, manifest)):
        return None
    return manifest


# --- what is known of each video -------------------------------------------------------------------------------------


def _described(files: list[Row], known: pa.Table, where: str, key: str) -> tuple[list[Row], list[pa.Field]]:
    """Files with what a manifest or shards say of them, row by row, and the fields of the further columns."""
    known = _without_secrets(known, where, key)
    names = known.column_names
    caption = caption_column(names)
    ours = {caption, "captions", "source", "group", "id"}
    taken = {*SCHEMA.names, *CLIPS.names}
    renamed = {name: f"manifest_{name}" if name in taken else name for name in names if name not in ours}
    rows, several = [], False
    for file, row in zip(files, known.to_pylist(), strict=True):
        folder = file.pop("folder", posixpath.dirname(file["relative"])) or "."
        captions = _captions(row.get(caption), row.get("captions"))
        several = several or len(captions) > 1
        own = {
            "source": _text(row.get("source")) or folder,
            "group": _text(row.get("group")) or folder,
            "caption": captions[0] if captions else "",
            "captions": captions,
            "id": _text(row.get("id")) or None,
        }
        rows.append({**{renamed[name]: row[name] for name in renamed}, **file, **own})
    _check_ids(rows, where, key)
    fields = [pa.field(new, storable(known.schema.field(old).type)) for old, new in renamed.items()]
    fields = [field for field in fields if not pa.types.is_null(field.type)]  # they say nothing, not even their type
    return rows, [*([pa.field("captions", pa.list_(pa.string()))] if several else []), *fields]


def _without_secrets(known: pa.Table, where: str, key: str) -> pa.Table:
    """Presigned addresses and the like in columns that pass through would stay in the tables for good."""
    for index, field in enumerate(known.schema):
        if not (pa.types.is_string(field.type) or pa.types.is_large_string(field.type)):
            continue
        column = known.column(index).combine_chunks()
        suspect = pc.fill_null(pc.match_substring_regex(column, credentials.SUSPECT, ignore_case=True), False)
        values = column.filter(suspect).to_pylist()
        clean = [credentials.scrubbed(value) if credentials.held(value) else value for value in values]
        if values != clean:
            count = sum(old != new for old, new in zip(values, clean, strict=True))
            log.warning("%s=%r: %d values of `%s` hold credentials; they are masked.", key, where, count, field.name)
            known = known.set_column(index, field, pc.replace_with_mask(column, suspect, pa.array(clean, field.type)))
    return known


def _captions(own: Any, several: Any) -> list[str]:
    """A video's captions, each once: those of a column with one and those of a column with several."""
    listed = [*(own if isinstance(own, list) else [own]), *(several if isinstance(several, list) else [several])]
    return list(dict.fromkeys(text for text in map(_text, listed) if text))


def storable(kind: pa.DataType) -> pa.DataType:
    """A type that every reader of Parquet knows."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _check_ids(rows: list[Row], where: str, key: str) -> None:
    ids = [row["id"] for row in rows if row["id"] is not None]
    files = [row["relative"] for row in rows if row["id"] is None]
    for names, remedy in (
        (ids, "the id of more than one row: every id must be its own; correct them or leave the column out"),
        (files, "listed more than once: list every file once, or give its rows ids of their own in a column `id`"),
    ):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            more = f" and {len(twice) - 10} more" if len(twice) > 10 else ""
            raise ConfigError(f"{key}={where!r}: in the manifest, {', '.join(twice[:10])}{more} is {remedy}.")


# --- manifests -------------------------------------------------------------------------------------------------------


def _metadata(fs: fsspec.AbstractFileSystem, where: str, key: str, base: str | None, path: str) -> folders.Found | None:
    """What a metadata file in a folder lists; None where it has no column of paths, and so is about something else."""
    at = f"{where}: {path}"
    table = _read(fs, path, at, key)
    return _manifest(fs, path, at, key, base, table) if set(PATHS) & set(table.column_names) else None


def _manifest(
    fs: fsspec.AbstractFileSystem, bare: str, where: str, key: str, base: str | None, table: pa.Table | None = None
) -> folders.Found:
    table = _read(fs, bare, where, key) if table is None else table
    listed = path_column(table.column_names, where, key)
    if not table.num_rows:
        raise ConfigError(f"{key}={where!r}: the manifest has no rows. List at least one video.")
    paths = [_text(path) for path in table.column(listed).to_pylist()]
    try:
        return located(fs, posixpath.dirname(bare), paths, base), table.drop_columns([listed])
    except ImportError as error:
        raise ConfigError(f"{key}={where!r}: some of its videos lie where nothing here can read: {error}.") from error


def path_column(names: list[str], where: str, key: str) -> str:
    """The column of a manifest that holds the videos' paths. Raises ConfigError where it has none, or no captions."""
    found = next((name for name in PATHS if name in names), None)
    if found is None:
        raise ConfigError(
            f"{key}={where!r}: the manifest has no column with the videos' paths. It has {', '.join(names) or 'none'}; "
            f"call one of them {' | '.join(PATHS)}."
        )
    if not {*CAPTIONS, "captions"} & set(names):
        raise ConfigError(
            f"{key}={where!r}: the manifest has no column with captions, which the model is conditioned on. It has "
            f"{', '.join(names)}; call one of them {' | '.join(CAPTIONS)} (captions: lists), or add an empty one."
        )
    return found


def _read(fs: fsspec.AbstractFileSystem, bare: str, where: str, key: str) -> pa.Table:
    data = fs.cat_file(bare)
    try:
        if bare.lower().endswith(".parquet"):
            return plain(pq.ParquetFile(io.BytesIO(data)).read())
        if bare.lower().endswith(".csv"):
            return pyarrow.csv.read_csv(
                io.BytesIO(data),
                parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
                # Else an id of "007" would become the number 7.
                convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(TEXTS, pa.string())),
            )
        return _lines(data.decode())
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"{key}={where!r}: the manifest {posixpath.basename(bare)} cannot be read: {error}. Correct it, or write "
            "it anew as .jsonl with one object a line."
        ) from error


def _lines(text: str) -> pa.Table:
    """JSON lines as a table; a column's values that are neither of one plain type nor lists of it raise ValueError."""
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number} is no JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is no object but {line.strip()[:40]!r}")
            rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: [row.get(name) for row in rows] for name in names})
