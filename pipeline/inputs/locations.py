"""Where the videos that a manifest lists lie, and what their stores say of them."""

from __future__ import annotations

import logging
import os
import posixpath
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fsspec

from pipeline.config import credentials
from pipeline.errors import ConfigError
from pipeline.inputs import extensions, refusals
from pipeline.inputs.folders.files import AT_ONCE, Row, is_file, of_file, relative
from pipeline.inputs.manifests import cut_files
from pipeline.inputs.shards import image_folders
from pipeline.inputs.video_set import VideoSet
from pipeline.storage.stores import join, place

log = logging.getLogger(__name__)

FOLDERS = ("video", "videos")  # beside a manifest whose paths do not name them, as OpenVid-1M's and FastVideo's
ENDS = (".mp4", ".mkv", ".webm")  # of videos that are listed by their ids
SOME = 5  # paths that are looked for before the others


def located(
    fs: fsspec.AbstractFileSystem, root: str, paths: list[str], base: str | None, rates: Sequence[float]
) -> list[Row]:
    """The row of every listed path. Paths are relative to the manifest's folder unless they are absolute or URLs. A
    folder is listed once, instead of a request for each file, unless it may not be listed. A path may lead to a folder
    of pictures, which are shown at the row's rate."""
    listings: dict[str, Mapping[str, Any] | None] = {}
    files: list[Row] = []
    unlisted: list[tuple[int, fsspec.AbstractFileSystem, str]] = []
    for path, rate in zip(paths, rates, strict=True):
        refused = refusals.of_text(path)
        if refused:
            files.append(_refused(path, refused))
            continue
        file_fs, bare = resolved(fs, root, path)
        below = relative(bare, root)
        below = below if below != bare else path  # a path outside the root stays as it is written
        info = None
        if not refusals.of_place(bare if "file" in file_fs.protocol else file_fs.unstrip_protocol(bare), base):
            folder = file_fs.unstrip_protocol(posixpath.dirname(bare))
            if folder not in listings:
                listings[folder] = _files_in(file_fs, posixpath.dirname(bare)) if bare else {}
            listing = listings[folder]
            if listing is not None and bare not in listing and not bare.lower().endswith(extensions.VIDEOS):
                end = _end(bare, listing)
                bare, below = bare + end, below + end
            info = listing.get(bare) if listing is not None else None
            if info is None and listing is not None and bare and _is_folder(file_fs, bare):
                entries = file_fs.ls(bare, detail=True)
                files.append(image_folders.row_of(file_fs, bare.rstrip("/"), below.rstrip("/"), entries, rate, base))
                continue
            if listing is None:
                unlisted.append((len(files), file_fs, bare))
        files.append(of_file(file_fs, bare, below, info, base))
    if unlisted:
        log.warning("%d listed files lie where nothing may be listed; they are asked for one by one.", len(unlisted))
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for (at, file_fs, bare), info in zip(unlisted, threads.map(_asked, unlisted), strict=True):
            if info is not None:
                files[at] = of_file(file_fs, bare, files[at]["relative"], info, base)
            else:
                files[at]["error"] = "read: it is not there, or may not be read"
    return files


def _is_folder(fs: fsspec.AbstractFileSystem, path: str) -> bool:
    """Whether a path without the end of a video leads to a folder."""
    return not path.lower().endswith(extensions.VIDEOS) and bool(fs.isdir(path))


def _end(bare: str, listing: Mapping[str, Any]) -> str:
    """The end of the video of this name without an end; nothing where there is none, or more than one."""
    ends = [end for end in extensions.VIDEOS if bare + end in listing]
    return ends[0] if len(ends) == 1 else ""


def root_of(
    fs: fsspec.AbstractFileSystem, folder: str, paths: list[str], asked: VideoSet, cut: bool = False
) -> tuple[fsspec.AbstractFileSystem, str]:
    """The folder that a manifest's relative paths begin in: `files` of the configuration, else that of the manifest,
    or the folder `video` or `videos` in it, or one or two levels above, where only there the first of them are. With
    `cut`, paths are ids of videos, and files that were cut out of these count where the first videos are nowhere.
    Raises ConfigError."""
    if asked.files is not None:
        key = f"{asked.section}.files"
        files_fs, root = place(os.path.expanduser(asked.files))
        if "file" in files_fs.protocol and not files_fs.isdir(root):
            raise ConfigError(f"{key}={asked.files!r}: there is no such folder. Check the path.")
        return files_fs, root.rstrip("/") or "/"
    some = [path for path in paths[:SOME] if path and not path.startswith("/") and "://" not in path]
    above = posixpath.dirname(folder)
    starts = (folder, above, posixpath.dirname(above)) if some else ()
    roots = [root for start in starts for root in (start, *(join(start, name) for name in FOLDERS))]
    for root in roots:
        if any(_is_there(fs, join(root, path + end)) for path in some for end in ("", *ENDS)):
            return fs, root
    for root in roots if cut else ():
        if cut_files.of_some(cut_files.names_in(fs, root), paths):
            return fs, root
    return fs, folder


def _is_there(fs: fsspec.AbstractFileSystem, path: str) -> bool:
    try:
        return bool(fs.exists(path))
    except (PermissionError, ValueError):
        return False


def _refused(path: str, why: str) -> Row:
    uri = refusals.plain(path)
    row = {"uri": uri, "relative": credentials.scrubbed(path), "version": "", "size": 0, "error": f"refused: {why}"}
    return {**row, "folder": posixpath.dirname(uri)}


def resolved(fs: fsspec.AbstractFileSystem, root: str, path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem and bare path of a listed one."""
    if "://" in path:
        path_fs, bare = place(path)
        return path_fs, posixpath.normpath(bare) if "file" in path_fs.protocol else bare
    if path.startswith("/") and "file" in fs.protocol:
        return fs, posixpath.normpath(path)
    return fs, posixpath.normpath(join(root, path)) if path else ""


def _files_in(fs: fsspec.AbstractFileSystem, folder: str) -> dict[str, Mapping[str, Any]] | None:
    """The files of a folder by path; None where it may not be listed, which a bucket can be without being closed."""
    try:
        return {str(entry["name"]): entry for entry in fs.ls(folder, detail=True) if is_file(entry)}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except PermissionError:
        return None


def _asked(file: tuple[int, fsspec.AbstractFileSystem, str]) -> Mapping[str, Any] | None:
    """What a store says of one file; a bucket that may not be listed does not tell a missing one from a closed one."""
    try:
        info: Mapping[str, Any] = file[1].info(file[2])
    except (FileNotFoundError, PermissionError):
        return None
    return info
