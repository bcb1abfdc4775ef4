"""Where videos are looked for, and the files there, each as a row."""

from __future__ import annotations

import dataclasses
import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any

import fsspec

from pipeline.inputs import refusals

AT_ONCE = 16  # requests at a time: on a store each file or member of a shard costs one
MISSING = "read: the manifest names this file, but it is not there"
SHOWN = 5  # names in a warning
_ETAG = re.compile(r"[0-9a-f]{32}(-[0-9]+)?")

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder, glob or file that videos are looked for in."""

    fs: fsspec.AbstractFileSystem
    named: str  # key and value, for messages
    base: str | None
    sidecars: tuple[str, ...]  # ends of the files with captions
    root: str  # what the videos' paths are relative to
    whole: bool  # whether it is a folder with all below it

    def uri(self, path: str) -> str:
        return path if "file" in self.fs.protocol else str(self.fs.unstrip_protocol(path))

    def listed_uri(self, path: str) -> str:
        """The uri that a row of a manifest has which lists the file: without `..` on a local disk."""
        return posixpath.normpath(path) if "file" in self.fs.protocol else self.uri(path)

    def below(self, path: str) -> str:
        return relative(path, self.root)

    def row(self, path: str, info: Mapping[str, Any]) -> Row:
        return of_file(self.fs, path, self.below(path), info, self.base)


def some(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are, for a message."""
    shown = ", ".join(names[:SHOWN]).encode("utf-8", "backslashreplace").decode()  # not every name is UTF-8
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


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


def is_etag(version: str | None) -> bool:
    """Whether a remote file's version says what its bytes are, as an etag of S3 does; a date, which a manifest may
    give, does not."""
    return version is not None and _ETAG.fullmatch(version) is not None


def _text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
