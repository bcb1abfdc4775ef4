"""The files below a place, each with a stamp that is another one once the file has changed. No file is read."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterator

from pipeline.storage.stores import place


def stamps(path: str) -> dict[str, str] | None:
    """The files below a folder, by their path relative to it; of a file its own stamp, under the empty path.

    On a local disk a stamp is of size and times (modification and change, which nobody can set back), and links are
    followed. On a store it is the etag with the size. What is not there, or may not be read, has a word for a stamp.
    None where a store gives its objects no etag.
    """
    fs, bare = place(path)
    fs.invalidate_cache()
    if "file" in fs.protocol:
        return dict(_local(bare))
    if not fs.exists(bare):
        return {"": "not there"}
    entries = {bare: fs.info(bare)} if fs.isfile(bare) else fs.find(bare, detail=True)
    names = {name: posixpath.relpath(name, bare) if name != bare else "" for name in entries}
    etags = {names[name]: info.get("ETag") or info.get("etag") for name, info in entries.items()}
    if not all(etags.values()):
        return None
    return {names[name]: f"{etags[names[name]]} {info['size']}" for name, info in entries.items()}


def _local(path: str) -> Iterator[tuple[str, str]]:
    todo, visited = [("", path)], set[tuple[int, int]]()
    while todo:
        name, path = todo.pop()
        try:
            status = os.stat(path)
            if not stat.S_ISDIR(status.st_mode):
                yield name, f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
                continue
            if (status.st_dev, status.st_ino) in visited:  # links in a circle
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(path) as entries:
                below = sorted(entries, key=lambda entry: entry.name)  # of two links to a folder always the same counts
            todo += [(posixpath.join(name, entry.name), entry.path) for entry in below]
        except FileNotFoundError:
            yield name, "not there"
        except PermissionError:
            yield name, "closed"
