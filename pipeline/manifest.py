"""What videos there are: a folder, a glob or a manifest, as one table."""

from __future__ import annotations

import io
import json
import logging
import os
import posixpath
from collections import Counter
from collections.abc import Mapping
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.config import ConfigError
from pipeline.schemas import CLIPS
from pipeline.stores import join, place

log = logging.getLogger(__name__)

EXTENSIONS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".gif", ".m4v")
MANIFESTS = (".jsonl", ".csv", ".parquet")
PATHS = ("file_name", "path", "video", "video_path", "url", "uri", "file")
CAPTIONS = ("caption", "text", "prompt", "cap")
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("uri", "relative", "version")]
    + [("size", pa.int64())]
    + [(name, pa.string()) for name in ("source", "caption", "id", "group", "error")]
)
_TEXTS = (*PATHS, *CAPTIONS, "source", "group", "id")
_MISSING = "read: the manifest names this file, but it is not there"

Row = dict[str, Any]


def videos(where: str, key: str = "data.videos") -> pa.Table:
    """The videos of a folder (all below it, or what its metadata.jsonl, .csv or .parquet lists), a glob, or a manifest.

    Columns: `uri`, `relative` (path below the data root), `version` (etag, or size and modification time), `size`,
    `source` and `group` (the manifest's, else the folder), `caption`, `id` (the manifest's or null), `error` (set for a
    file that the manifest lists and that is not there), then the manifest's other columns; one whose name a table of
    clips uses for something else (`fps`, `width`, ...) becomes `manifest_NAME`.

    Raises ConfigError, naming `key`.
    """
    fs, bare = _place(where, key)
    try:
        rows, others = _rows(fs, bare, where, key)
    except PermissionError as error:
        raise ConfigError(f"{key}={where!r}: it may not be read ({error}). Check its permissions.") from error
    if not any(row["caption"] for row in rows):
        log.warning("%s=%r: no video has a caption; empty captions are used.", key, where)
    schema = pa.schema([*SCHEMA, *others])
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema)


def _rows(fs: fsspec.AbstractFileSystem, bare: str, where: str, key: str) -> tuple[list[Row], list[pa.Field]]:
    if bare.endswith(MANIFESTS):
        return _manifest(fs, bare, where, key)
    if fs.exists(bare):
        listed = [] if fs.isfile(bare) else [join(bare, f"metadata{end}") for end in MANIFESTS]
        manifest = next((path for path in listed if fs.isfile(path)), None)
        return _manifest(fs, manifest, where, key) if manifest else (_found(fs, bare, where, key), [])
    if any(c in bare for c in "*?["):
        return _found(fs, bare, where, key), []
    raise ConfigError(
        f"{key}={where!r}: there is no such file or folder. Name a folder of videos, a glob, or a manifest "
        f"({', '.join(MANIFESTS)})."
    )


# --- folders and globs -----------------------------------------------------------------------------------------------


def _place(where: str, key: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        fs, bare = place(os.path.expanduser(where))
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{key}={where!r}: this kind of place cannot be read: {error}.") from error
    fs.invalidate_cache()
    return fs, bare.rstrip("/") or "/"


def _found(fs: fsspec.AbstractFileSystem, bare: str, where: str, key: str) -> list[Row]:
    """The videos of a folder or glob, or a single one, ordered by path, with the captions in the .txt beside them."""
    if fs.isfile(bare):
        root, entries = posixpath.dirname(bare), {bare: fs.info(bare)}
    elif fs.exists(bare):
        root, entries = bare, fs.find(bare, detail=True)
    else:
        fixed = bare[: min(bare.index(c) for c in "*?[" if c in bare)]
        root, entries = posixpath.dirname(fixed), fs.glob(bare, detail=True)
    kept = {path: info for path, info in sorted(entries.items()) if info["type"] == "file"}
    visible = {p: i for p, i in kept.items() if not any(part.startswith(".") for part in _relative(p, root).split("/"))}
    found = {p: i for p, i in visible.items() if p.lower().endswith(EXTENSIONS)}
    if not found:
        raise ConfigError(
            f"{key}={where!r}: there are no videos ({', '.join(e[1:] for e in EXTENSIONS)}) among the {len(visible)} "
            "files found there. Name the folder that holds them, or list them in a manifest."
        )
    captions = _sidecars(fs, list(found))
    rows = []
    for path, info in found.items():
        relative = _relative(path, root)
        folder = posixpath.dirname(relative) or "."
        own = {"source": folder, "group": folder, "caption": captions.get(path, "")}
        rows.append({**_file(fs, path, relative, info), **own})
    return rows


def _sidecars(fs: fsspec.AbstractFileSystem, paths: list[str]) -> dict[str, str]:
    """Captions by video: the text of NAME.txt beside it."""
    beside = {path: posixpath.splitext(path)[0] + ".txt" for path in paths}
    files = {str(path) for folder in sorted({posixpath.dirname(p) for p in paths}) for path in fs.ls(folder, False)}
    there = {path: text for path, text in beside.items() if text in files}
    texts = fs.cat(list(there.values())) if there else {}  # at once: a request each would take hours on a store
    return {path: texts[text].decode("utf-8", "replace").strip() for path, text in there.items()}


def _relative(path: str, root: str) -> str:
    prefix = root.rstrip("/") + "/"
    return path.removeprefix(prefix)


def _file(fs: fsspec.AbstractFileSystem, path: str, relative: str, info: Mapping[str, Any]) -> Row:
    local = "file" in fs.protocol
    etag = info.get("ETag") or info.get("etag")
    modified = os.stat(path).st_mtime_ns if local else info.get("LastModified") or info.get("mtime")
    version = str(etag).strip('"') if etag and not local else f"{info['size']}-{modified}"
    uri = path if local else fs.unstrip_protocol(path)
    return {"uri": uri, "relative": relative, "version": version, "size": int(info["size"]), "id": None, "error": None}


# --- manifests -------------------------------------------------------------------------------------------------------


def _manifest(fs: fsspec.AbstractFileSystem, bare: str, where: str, key: str) -> tuple[list[Row], list[pa.Field]]:
    """The rows of a manifest and the fields of its further columns."""
    table = _read(fs, bare, where, key)
    names = table.column_names
    path_column = next((name for name in PATHS if name in names), None)
    if path_column is None:
        raise ConfigError(
            f"{key}={where!r}: the manifest has no column with the videos' paths. It has {', '.join(names) or 'none'}; "
            f"call one of them {' | '.join(PATHS)}."
        )
    caption_column = next((name for name in CAPTIONS if name in names), None)
    if caption_column is None:
        raise ConfigError(
            f"{key}={where!r}: the manifest has no column with captions, which the model is conditioned on. It has "
            f"{', '.join(names)}; call one of them {' | '.join(CAPTIONS)}, or add an empty one."
        )
    ours = {path_column, caption_column, "source", "group", "id"}
    taken = {*SCHEMA.names, *CLIPS.names}
    renamed = {name: f"manifest_{name}" if name in taken else name for name in names if name not in ours}
    root = posixpath.dirname(bare)
    listed = table.to_pylist()
    if not listed:
        raise ConfigError(f"{key}={where!r}: the manifest has no rows. List at least one video.")
    infos = _infos(fs, root, [str(row[path_column] or "") for row in listed])
    rows = []
    for row, (file_fs, path, info) in zip(listed, infos, strict=True):
        below = _relative(path, root)
        relative = below if below != path else str(row[path_column])  # a path outside the root stays as it is written
        folder = posixpath.dirname(relative) or "."
        if info is None:
            uri = path if "file" in file_fs.protocol else file_fs.unstrip_protocol(path)
            file = {"uri": uri, "relative": relative, "version": "", "size": 0, "error": _MISSING}
        else:
            file = _file(file_fs, path, relative, info)
        own = {
            "source": _text(row.get("source")) or folder,
            "group": _text(row.get("group")) or folder,
            "caption": _text(row.get(caption_column)),
            "id": _text(row.get("id")) or None,
        }
        rows.append({**{renamed[name]: row[name] for name in renamed}, **file, **own})
    _check_ids(rows, where, key)
    return rows, [pa.field(new, _plain(table.schema.field(old).type)) for old, new in renamed.items()]


def _read(fs: fsspec.AbstractFileSystem, bare: str, where: str, key: str) -> pa.Table:
    if not fs.isfile(bare):
        raise ConfigError(f"{key}={where!r}: there is no such manifest. Check the path.")
    data = fs.cat_file(bare)
    try:
        if bare.endswith(".parquet"):
            return pq.read_table(io.BytesIO(data))
        if bare.endswith(".csv"):
            return pyarrow.csv.read_csv(
                io.BytesIO(data),
                parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
                # Else an id of "007" would become the number 7.
                convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(_TEXTS, pa.string())),
            )
        return _lines(data.decode())
    except (pa.ArrowException, OSError, ValueError) as error:
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


def _infos(
    fs: fsspec.AbstractFileSystem, root: str, paths: list[str]
) -> list[tuple[fsspec.AbstractFileSystem, str, Mapping[str, Any] | None]]:
    """Filesystem, bare path and info (None: not there) of every listed path. Paths are relative to the manifest's
    folder unless they are absolute or URLs. A folder is listed once, instead of a request for each file."""
    listings: dict[str, dict[str, Any]] = {}
    found = []
    for path in paths:
        if "://" in path:
            file_fs, bare = place(path)
        elif path.startswith("/") and "file" in fs.protocol:
            file_fs, bare = fs, posixpath.normpath(path)
        else:
            file_fs, bare = fs, posixpath.normpath(join(root, path)) if path else ""
        folder = posixpath.dirname(bare)
        if folder not in listings:
            try:
                entries = file_fs.ls(folder, detail=True) if bare else []
            except (FileNotFoundError, NotADirectoryError):
                entries = []
            listings[folder] = {str(e["name"]): e for e in entries if e["type"] == "file"}
        found.append((file_fs, bare, listings[folder].get(bare)))
    return found


def _plain(kind: pa.DataType) -> pa.DataType:
    """A type that every reader of Parquet knows."""
    if pa.types.is_dictionary(kind):
        return kind.value_type
    return pa.string() if pa.types.is_null(kind) else kind


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
