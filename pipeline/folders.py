"""The videos of a folder or glob: files, and what lies inside the shards among them."""

from __future__ import annotations

import contextlib
import logging
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import fsspec
import pyarrow as pa

from pipeline import refusals, shards
from pipeline.config import ConfigError
from pipeline.video import EXTENSIONS

log = logging.getLogger(__name__)

AT_ONCE = 16  # requests at a time: on a store each member of a shard costs one

Row = dict[str, Any]
Found = tuple[list[Row], pa.Table]  # files, and what is known of each, row by row


def found(fs: fsspec.AbstractFileSystem, bare: str, where: str, key: str, base: str | None) -> Found:
    """The videos of a folder or glob, or a single one, ordered by path, with the captions in the .txt beside them."""
    root, entries = _entries(fs, bare)
    kept = {path: info for path, info in sorted(entries.items()) if is_file(info) or is_broken(info)}
    visible = {p: i for p, i in kept.items() if not any(part.startswith(".") for part in relative(p, root).split("/"))}
    files = {p: i for p, i in visible.items() if p.lower().endswith(EXTENSIONS)}
    packed = {p: i for p, i in visible.items() if p.lower().endswith(shards.EXTENSIONS)}
    captions = _sidecars(fs, list(files)) if files else {}
    rows = [of_file(fs, path, relative(path, root), info, base) for path, info in files.items()]
    words = pa.table({"caption": pa.array([captions.get(path, "") for path in files], pa.string())})
    tables = [words] if files else []
    for path, listed in _shards(fs, packed, root, where, key, base):
        if listed is None:
            log.warning("%s=%r: %s has no column with the bytes of videos; it is left out.", key, where, path)
        else:
            rows += listed[0]
            tables.append(listed[1])
    if not rows:
        raise ConfigError(
            f"{key}={where!r}: there are no videos ({', '.join(e[1:] for e in EXTENSIONS)}) and no shards of them "
            f"({', '.join(e[1:] for e in shards.EXTENSIONS)}) among the {len(visible)} files found there. Name the "
            "folder that holds them, or list them in a manifest."
        )
    with _one_type(where, key):
        return rows, pa.concat_tables(tables, promote_options="permissive")


def _shards(
    fs: fsspec.AbstractFileSystem, packed: Mapping[str, Any], root: str, where: str, key: str, base: str | None
) -> Iterator[tuple[str, Found | None]]:
    """What each shard holds; None for a Parquet file without videos."""
    lists = partial(_shard, fs, root=root, base=base)
    with _one_type(where, key), ThreadPoolExecutor(AT_ONCE) as threads:
        yield from zip(packed, threads.map(lists, packed.items()), strict=True)


@contextlib.contextmanager
def _one_type(where: str, key: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise ConfigError(
            f"{key}={where!r}: what its shards say of their videos is no table: {error}. Give every column one plain "
            "type in all of them, or leave it out."
        ) from error


def _entries(fs: fsspec.AbstractFileSystem, bare: str) -> tuple[str, dict[str, Any]]:
    """The folder that paths are relative to, and the files by path. `{000..012}` and `{a,b}` stand for several."""
    if fs.isfile(bare):
        return posixpath.dirname(bare), {bare: fs.info(bare)}
    if fs.exists(bare):
        return bare, fs.find(bare, detail=True)
    fixed = bare[: min(bare.index(c) for c in "*?[{" if c in bare)]
    entries: dict[str, Any] = {}
    for pattern in braced(bare):
        entries |= fs.glob(pattern, detail=True)
    return posixpath.dirname(fixed), entries


def braced(pattern: str) -> list[str]:
    """What a pattern with braces stands for, as WebDataset writes it: shard-{000..012}.tar, {a,b}.tar."""
    brace = re.search(r"\{([^{}]*)\}", pattern)
    if brace is None:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", brace[1])
    if numbers:
        first, last = numbers.groups()
        choices = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    else:
        choices = brace[1].split(",")
    return [one for c in choices for one in braced(pattern[: brace.start()] + c + pattern[brace.end() :])]


def _shard(
    fs: fsspec.AbstractFileSystem, entry: tuple[str, Mapping[str, Any]], root: str, base: str | None
) -> Found | None:
    path, info = entry
    file = of_file(fs, path, relative(path, root), info, base)
    if file["error"] is not None:
        return [file], pa.table({"caption": [""]})
    return shards.listed(fs, path, file)


def _sidecars(fs: fsspec.AbstractFileSystem, paths: list[str]) -> dict[str, str]:
    """Captions by video: the text of NAME.txt beside it."""
    beside = {path: posixpath.splitext(path)[0] + ".txt" for path in paths}
    entries = (entry for folder in sorted({posixpath.dirname(p) for p in paths}) for entry in fs.ls(folder, True))
    files = {str(entry["name"]) for entry in entries if is_file(entry)}
    there = {path: text for path, text in beside.items() if text in files}
    texts = fs.cat(list(there.values())) if there else {}  # at once: a request each would take hours on a store
    return {path: texts[text].decode("utf-8", "replace").strip() for path, text in there.items()}


def is_file(entry: Mapping[str, Any]) -> bool:
    """Whether a listing's entry is a file, or a link to one: in a cache of Hugging Face's hub all are links."""
    return entry["type"] == "file" or bool(entry.get("islink") and os.path.isfile(str(entry["name"])))


def is_broken(entry: Mapping[str, Any]) -> bool:
    """Whether a listing's entry is a link that leads to nothing, as when a disk is not mounted."""
    return bool(entry.get("islink")) and not os.path.exists(str(entry["name"]))


def relative(path: str, root: str) -> str:
    prefix = root.rstrip("/") + "/"
    return path.removeprefix(prefix)


def of_file(
    fs: fsspec.AbstractFileSystem, path: str, below: str, info: Mapping[str, Any] | None, base: str | None
) -> Row:
    """The row of one file that lies at `below` the data root; `info` None: it is not there."""
    local = "file" in fs.protocol
    uri = path if local else fs.unstrip_protocol(path)
    row = {"uri": uri, "relative": below, "version": "", "size": 0, "error": None}
    if not _text(path):
        shown = {name: str(row[name]).encode("utf-8", "backslashreplace").decode() for name in ("uri", "relative")}
        return {**row, **shown, "error": "refused: its name is no UTF-8 text; rename it"}
    refused = refusals.of_address(uri) or refusals.of_place(uri, base)
    if refused:
        return {**row, "error": f"refused: {refused}"}
    if info is None:
        missing = refusals.of_missing(below)
        return {**row, "error": f"refused: {missing}" if missing else MISSING}
    if is_broken(info):
        return {**row, "error": "read: it is a link to a file that is not there"}
    etag = info.get("ETag") or info.get("etag")
    modified = os.stat(path).st_mtime_ns if local else info.get("LastModified") or info.get("mtime")
    version = str(etag).strip('"') if etag and not local else f"{info['size']}-{modified}"
    return {**row, "version": version, "size": int(info["size"])}


def _text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


MISSING = "read: the manifest names this file, but it is not there"
