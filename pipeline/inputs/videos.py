"""What videos there are: a folder, a glob, shards or a manifest, as one table."""

from __future__ import annotations

import json
import logging
import os
import posixpath
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ConfigError, InputError
from pipeline.inputs import refusals, video_ids
from pipeline.inputs.descriptions import described, files_table
from pipeline.inputs.folders import folder_listing
from pipeline.inputs.folders.file_tree import MAGIC
from pipeline.inputs.folders.files import relative
from pipeline.inputs.folders.folder_listing import Listing
from pipeline.inputs.layouts import recognition
from pipeline.inputs.layouts.contents import Place, Places, Rows
from pipeline.inputs.manifests import listing, reader
from pipeline.inputs.manifests.columns import columns
from pipeline.inputs.manifests.span_columns import SPAN
from pipeline.inputs.shards import lance_tables, members
from pipeline.inputs.video_columns import Part, joined, of_table
from pipeline.inputs.video_set import PICTURES, VideoSet
from pipeline.storage.stores import join, place

log = logging.getLogger(__name__)

MANIFESTS = reader.ENDS


def videos(
    where: str,
    key: str = "data.videos",
    base: str | None = None,
    files: str | None = None,
    camera: str | None = None,
    fps: float = PICTURES,
) -> pa.Table:
    """The videos of a folder (all below it, or what its metadata lists), a glob, or a manifest; tar and Parquet shards
    (see `pipeline.inputs.shards.members`) count as the videos in them.

    `files` is the folder that a manifest's relative paths begin in, where it is not the manifest's own; `camera` names
    one of a robot's cameras; `fps` is the rate of folders of pictures that say none.

    Columns: `uri`, `relative` (path below the data root), `version` (etag, or size and modification time), `size`,
    `source` and `group` (the manifest's, else the folder; the group of the data root itself is `all`), `caption`, `id`
    (the manifest's or null), `error` (set for what is listed and may not or cannot be read), `captions` list<string>
    where videos may have several, then the other columns of manifest or shards; one whose name the tables use for
    something else (`fps`, `mask`, ...) becomes `manifest_NAME`. Where rows are about stretches of their videos, `span`
    has the text of each (see `pipeline.inputs.spans`; null: the whole video). What lies outside `base` (data.base),
    links followed, is a row with the error `refused: ...`.

    Raises UsageError, naming `key`: ConfigError for a place that is not there, InputError for what is wrong in it.
    """
    return of_set(VideoSet(where, key, base, files, camera, fps))


def of_set(asked: VideoSet) -> pa.Table:
    """The same of a set of videos."""
    where, key = asked.where, asked.key
    fs, bare = place_of(where, key)
    try:
        rows, said = _listed(fs, bare, asked)
    except PermissionError as error:
        raise InputError(f"{key}={where!r}: it may not be read ({error}). Check its permissions.") from error
    try:
        named = columns([name for name in said.column_names if name != SPAN], with_paths=False)
        table = described(files_table(rows), said, named, where, key)
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


def _listed(fs: fsspec.AbstractFileSystem, bare: str, asked: VideoSet) -> Listing:
    if fs.exists(bare):
        layout = recognition.recognise(fs, bare, asked)
        if layout is not None:
            log.warning("%s: it is read as %s, by %s.", asked.named, layout.layout, layout.path)
        if isinstance(layout, Rows):
            return _rows(fs, layout, asked)
        if isinstance(layout, Places):
            return _places(fs, layout, asked)
        lance = lance_tables.datasets(fs, bare, recognition.names_in(fs, bare)) if fs.isdir(bare) else []
        if lance:
            roots = [posixpath.basename(path) if path == bare else relative(path, bare) for path in lance]
            parts = [lance_tables.listed(fs, *one, asked.base) for one in zip(lance, roots, strict=True)]
            return joined(parts)
        manifest = manifest_of(fs, bare)
        if manifest is not None:
            if manifest != bare:
                others = folder_listing.metadata_below(fs, bare)
                folder_listing.say_other_metadata(asked.named, posixpath.basename(manifest), others)
            return listing.listed(fs, manifest, asked)
        return folder_listing.listed_below(fs, bare, asked, partial(_metadata, fs, asked))
    if any(c in bare for c in MAGIC):
        return folder_listing.listed_below(fs, bare, asked, partial(_metadata, fs, asked))
    if bare.lower().endswith(MANIFESTS):
        raise ConfigError(f"{asked.named}: there is no such manifest. Check the path.")
    raise ConfigError(
        f"{asked.named}: there is no such file or folder. Name a folder of videos or shards, a glob, or a manifest "
        f"({', '.join(MANIFESTS)})."
    )


def manifest_of(fs: fsspec.AbstractFileSystem, bare: str) -> str | None:
    """The manifest that a place is, or that lies in it; None where it is a folder, a video or shards.

    A folder's metadata in capitals (METADATA.CSV), and that of the folders in it, is for `folders` to list.
    """
    if fs.isfile(bare):
        manifest = bare if bare.lower().endswith(MANIFESTS) else None
    else:
        there = recognition.names_in(fs, bare)
        paths = [join(bare, name) for name in recognition.METADATA if name in there]
        manifest = next((path for path in paths if fs.isfile(path)), None)
    if manifest is None or (manifest.lower().endswith(".parquet") and members.holds_videos(fs, manifest)):
        return None
    return manifest


def _rows(fs: fsspec.AbstractFileSystem, layout: Rows, asked: VideoSet) -> Listing:
    """The videos that the rows of a layout name."""
    rows = _without_repeats(layout, asked)
    file = reader.of_rows(rows, asked.where, asked.key)
    return listing.listed(fs, join(layout.root, posixpath.basename(layout.path)), asked, file)


def _without_repeats(layout: Rows, asked: VideoSet) -> list[Mapping[str, Any]]:
    """Rows, each once: trainers take a row that stands several times for one of more weight."""
    rows = list({json.dumps(row, sort_keys=True, default=str): row for row in layout.rows}.values())
    if len(rows) < len(layout.rows):
        count = len(layout.rows) - len(rows)
        log.warning("%s: rows that are repeated, as by weight: %d. Each counts once.", asked.named, count)
    return rows


def _places(fs: fsspec.AbstractFileSystem, layout: Places, asked: VideoSet) -> Listing:
    """The videos of all places that a configuration names. Their paths are relative to the folder that all of them lie
    in, so that moving that folder changes no id."""
    parts, roots = [], []
    folder = asked.files or fs.unstrip_protocol(posixpath.dirname(layout.path))
    for one in layout.places:
        try:
            root, part = _place(one, folder, fs, replace(asked, configurations=(*asked.configurations, layout.path)))
        except ConfigError as error:
            raise InputError(f"{asked.named}: {layout.path} names a place that cannot be read: {error}") from error
        parts.append(part)
        roots.append(root)
    kinds = {posixpath.isabs(root) for root in roots}  # those of a bucket begin with its name
    common = posixpath.commonpath(roots) if len(kinds) == 1 else ""
    for root, part in zip(roots, parts, strict=True):
        prefix = "" if root == common else relative(root, common)
        for row in part.rows:
            if "://" not in row["relative"]:
                row["relative"] = posixpath.normpath(posixpath.join(prefix, row["relative"]))
    return joined(parts)


def _place(one: Place, folder: str, fs: fsspec.AbstractFileSystem, asked: VideoSet) -> tuple[str, Part]:
    """The folder that a place's paths are relative to, and its videos."""
    where, files = (None if path is None else _absolute(path, folder, fs) for path in (one.where, one.files))
    sub = replace(asked, where=str(where), files=files, sidecars=one.sidecars, columns=one.columns)
    sub_fs, bare = place_of(sub.where, asked.key)
    rows, table = _listed(sub_fs, bare, sub)
    if one.caption is not None:
        others = [name for name in table.column_names if name not in ("caption", "captions")]
        table = table.select(others).append_column("caption", pa.array([one.caption] * len(rows), pa.string()))
    return bare if sub_fs.isdir(bare) else posixpath.dirname(bare), of_table(rows, table)


def _absolute(where: str, folder: str, fs: fsspec.AbstractFileSystem) -> str:
    """A place that a configuration names; relative ones begin in its own folder."""
    if "://" in where or where.startswith(("/", "~")):
        return where
    path = join(folder, where)
    return posixpath.normpath(path.removeprefix("file://")) if "file" in fs.protocol else path


def _metadata(fs: fsspec.AbstractFileSystem, asked: VideoSet, path: str) -> Listing | None:
    """What a metadata file in a folder lists; None where it has no column of paths, and so is about something else."""
    of_file = replace(asked, where=f"{asked.where}: {path}", files=None)
    file = reader.read(fs, path, of_file.where, asked.key, typed=False)
    return None if file.columns.path is None else listing.listed(fs, path, of_file, file)
