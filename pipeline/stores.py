"""Where files lie: local paths and s3:// alike, read, written whole and listed."""

from __future__ import annotations

import os
import uuid

import fsspec


def join(root: str, *names: str) -> str:
    return "/".join([root.rstrip("/"), *names])


def place(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem and bare path of a local path or URL."""
    found = fsspec.core.url_to_fs(path)
    return found[0], found[1]


def write_bytes(path: str, data: bytes) -> None:
    """Write a file that appears whole or not at all."""
    fs, bare = place(path)
    if "file" not in fs.protocol:
        fs.pipe_file(bare, data)  # an object store shows an object when it is complete
        return
    os.makedirs(os.path.dirname(bare) or ".", exist_ok=True)
    # Hidden, so that readers of the folder pass over what a killed writer left.
    part = os.path.join(os.path.dirname(bare), f".{os.path.basename(bare)}.{uuid.uuid4().hex}.tmp")
    with open(part, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, bare)


def read_bytes(path: str) -> bytes:
    fs, bare = place(path)
    return bytes(fs.cat_file(bare))


def exists(path: str) -> bool:
    fs, bare = place(path)
    return bool(fs.exists(bare))


def files(folder: str) -> list[str]:
    """What lies in a folder, as bare paths in a fixed order; none where there is no such folder yet."""
    fs, bare = place(folder)
    fs.invalidate_cache()
    try:
        return sorted(str(p) for p in fs.ls(bare, detail=False))  # not glob: a root may hold brackets or asterisks
    except FileNotFoundError:
        return []
