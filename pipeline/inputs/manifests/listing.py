"""The files that a manifest lists, with what it says of each."""

from __future__ import annotations

import logging
import math
import posixpath
from dataclasses import replace
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import InputError
from pipeline.inputs.descriptions import is_list, texts
from pipeline.inputs.locations import located, root_of
from pipeline.inputs.manifests import cut_files, reader, span_columns
from pipeline.inputs.manifests.columns import LISTED_PATHS, VIDEO_IDS, Columns
from pipeline.inputs.manifests.json_blocks import FAULT, LINE
from pipeline.inputs.manifests.span_columns import NUMBER, SPAN
from pipeline.inputs.video_set import VideoSet

log = logging.getLogger(__name__)

_MARKS = r"<__dj__\w+>|<\|__dj__\w+\|>"

Row = dict[str, Any]


def listed(
    fs: fsspec.AbstractFileSystem, bare: str, asked: VideoSet, file: reader.ManifestFile | None = None
) -> tuple[list[Row], pa.Table]:
    """The files that a manifest lists, and what it says of each: its columns but for the paths."""
    file = file or reader.read(fs, bare, asked.where, asked.key)
    file = file.renamed(asked.columns) if asked.columns else file
    file.check_columns()
    table = _without_marks(file.table(), file.columns)
    try:
        columns_of_spans = span_columns.span_columns(table)
        table = span_columns.one_a_row(table, columns_of_spans)
        spans, span_faults = span_columns.spans_of(table, columns_of_spans)
        file = _with_local_paths(table, file)
        paths = [path or "" for path in paths_of(table, file.columns).to_pylist()]
    except (ValueError, pa.ArrowException) as error:
        raise InputError(f"{asked.named}: the manifest {posixpath.basename(bare)}: {error}.") from error
    numbered = NUMBER in table.column_names and str(file.columns.path).strip().casefold() in VIDEO_IDS
    try:
        root_fs, root = root_of(fs, posixpath.dirname(bare), paths, asked, numbered)
        cuts = _cut_files(root_fs, root, paths, table) if numbered else [None] * len(paths)
        paths = [cut or path for path, cut in zip(paths, cuts, strict=True)]
        files = located(root_fs, root, paths, asked.base, _rates(table, asked.fps))
    except ImportError as error:
        raise InputError(f"{asked.named}: some of its videos lie where nothing here can read: {error}.") from error
    except cut_files.UnclearError as error:
        raise InputError(f"{asked.named}: the manifest {posixpath.basename(bare)}: {error}.") from error
    count = sum(cut is not None for cut in cuts)
    if count:
        log.warning("%s: spans that are files already, VIDEO_NUMBER, from 0: %d of %d.", asked.named, count, len(cuts))
        spans = pc.if_else(pa.array([cut is None for cut in cuts]), spans, pa.scalar(None, pa.string()))
        span_faults = [fault if cut is None else None for fault, cut in zip(span_faults, cuts, strict=True)]
    if columns_of_spans is not None and count < len(cuts):
        log.warning("%s: rows are stretches of their videos, by %s.", asked.named, columns_of_spans.shown())
    faults, places = table.column(FAULT).to_pylist(), table.column(LINE).to_pylist()
    for row, fault, span_fault, number in zip(files, faults, span_faults, places, strict=True):
        row["error"] = row["error"] if fault is None else f"refused: {fault}"
        row["origin"] = f"{file.entries} {number}"
        if row["error"] is None and span_fault is not None:
            row["error"] = f"refused: {file.entries} {number}: {span_fault}"
    own = [str(file.columns.path), LINE, FAULT, *([NUMBER] if NUMBER in table.column_names else [])]
    table = _with_plain_names(table.drop_columns(own), file.columns)
    return files, table if columns_of_spans is None else table.append_column(SPAN, spans)


def _cut_files(fs: fsspec.AbstractFileSystem, root: str, videos: list[str], table: pa.Table) -> list[str | None]:
    """The name of the file that is a row's span already; None for a row of a whole video. Raises UnclearError."""
    lines, numbers = table.column(LINE).to_pylist(), table.column(NUMBER).to_pylist()
    rows = [cut_files.RowSpan(*row) for row in zip(videos, lines, numbers, strict=True)]
    return cut_files.names(cut_files.names_in(fs, root), rows)


def _rates(table: pa.Table, fps: float) -> list[float]:
    """The rate at which each row's pictures would be shown: its own, if the manifest has a column `fps`."""
    name = next((name for name in table.column_names if name.strip().casefold() == "fps"), None)
    if name is None:
        return [fps] * table.num_rows
    rates = []
    for value in table.column(name).to_pylist():
        try:
            rate = float(value)  # of a CSV in a folder it is a text
        except (TypeError, ValueError):
            rate = math.nan
        rates.append(rate if 0 < rate < math.inf else fps)
    return rates


def _with_local_paths(table: pa.Table, file: reader.ManifestFile) -> reader.ManifestFile:
    """The manifest, read by its videos' ids where its paths are addresses of a web site that the videos are from."""
    ids = next((name for name in table.column_names if name.strip().casefold() in VIDEO_IDS), None)
    paths = paths_of(table, file.columns)
    if ids is None or ids == file.columns.path or not len(paths):
        return file
    if not pc.all(pc.fill_null(pc.match_substring_regex(paths, r"^https?://"), False)).as_py():
        return file
    others = {name: new for name, new in file.columns.others.items() if name != ids}
    others[str(file.columns.path)] = str(file.columns.path)
    return replace(file, columns=replace(file.columns, path=ids, others=others))


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
    if not is_list(column.type):
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
    if named.caption is not None and named.captions is None and is_list(table.schema.field(named.caption).type):
        new[named.caption] = "captions"
    return table.rename_columns([new.get(name, name) for name in table.column_names])
