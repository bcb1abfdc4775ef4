"""Where files lie: local paths and s3:// alike, read, written whole and listed.

Stores fail for a moment now and then. On s3:// every request is tried again a bounded number of times (`s3`);
what does not pass surfaces as an OSError whose text names the place and holds no secret.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import fsspec
import pyarrow.fs

from pipeline.errors import StoreError

_BROKEN = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)  # what a disk says that takes nothing more
SETTLING = 5.0  # seconds in which writers that came together have written
ABANDONED = 3600.0  # seconds without a write after which nobody writes to a half-written file any more
_HALF_WRITTEN = r"\..+\.[0-9a-f]{32}\.tmp"

S3 = ("s3://", "s3a://")


@contextmanager
def writable(what: str | None = None) -> Iterator[None]:
    """A disk that takes nothing more is told with its file, by default one without a name in TMPDIR."""
    try:
        yield
    except OSError as error:
        if error.errno not in _BROKEN:
            raise
        what = what or f"a temporary file in {tempfile.gettempdir()} (TMPDIR)"
        raise StoreError(f"{what}: it cannot be written ({error.strerror})") from error


def join(root: str, *names: str) -> str:
    return "/".join([root.rstrip("/"), *names])


def place(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem and bare path of a local path or URL."""
    if path.startswith(S3):
        from pipeline.storage import s3  # here for speed: s3fs and botocore take half a second that local runs need not

        return s3.S3(**s3.OPTIONS), str(s3.S3._strip_protocol(path))
    pair = fsspec.core.url_to_fs(path)
    return pair[0], pair[1]


def write_bytes(path: str, data: bytes) -> None:
    """Write a file that appears whole or not at all."""
    fs, bare = place(path)
    if "file" not in fs.protocol:
        fs.pipe_file(bare, data)  # an object store shows an object when it is complete
        return
    with writing(path) as file:
        file.write(data)


def create_bytes(path: str, data: bytes) -> bool:
    """Write a file that is not there yet; of several writers at once one gets True, and its bytes stay.

    A store that has no conditional writes gets the bytes of the last writer of a moment; whoever reads the file after
    this call reads the same.
    """
    fs, bare = place(path)
    if "file" in fs.protocol:
        return _create_local(bare, data)
    try:
        fs.pipe_file(bare, data, mode="create")
    except FileExistsError:
        return False
    except StoreError as error:
        if "NotImplemented" not in str(error):
            raise
        absent = not fs.exists(bare)
        if absent:
            fs.pipe_file(bare, data)
        _let_writers_finish()
        return bool(absent and fs.cat_file(bare) == data)
    return True


def _let_writers_finish() -> None:
    """Who finds a file waits as well: another that saw none may be about to replace it."""
    time.sleep(SETTLING)


def _create_local(bare: str, data: bytes) -> bool:
    part = os.path.join(os.path.dirname(bare), f".{os.path.basename(bare)}.{uuid.uuid4().hex}.tmp")
    with writing(part) as file:
        file.write(data)
    try:
        os.link(part, bare)  # unlike os.replace, it fails where the name is taken
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links: the name is taken first, then filled
        try:
            descriptor = os.open(bare, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        with writable(bare), open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    finally:
        os.unlink(part)
    return True


@contextmanager
def writing(path: str) -> Iterator[IO[bytes]]:
    """A file for what does not fit in memory: it appears whole when the block ends, and not at all where that raises or
    is killed; then whatever was there before stays."""
    fs, bare = place(path)
    if "file" not in fs.protocol:
        file = fs.open(bare, "wb", autocommit=False)  # a multipart upload, which shows nothing until it is committed
        try:
            yield file
            file.close()
        except BaseException:
            file.discard()
            file.closed = True  # else the garbage collector closes it, which would upload what is left in its buffer
            raise
        file.commit()
        return
    # Hidden, so that readers of the folder pass over what a killed writer left.
    part = os.path.join(os.path.dirname(bare), f".{os.path.basename(bare)}.{uuid.uuid4().hex}.tmp")
    with writable(bare):
        os.makedirs(os.path.dirname(bare) or ".", exist_ok=True)
        file = open(part, "wb")  # noqa: SIM115 (closed below)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            os.unlink(part)
            raise
        os.replace(part, bare)


def sweep(root: str) -> None:
    """Remove what killed writers left below a local folder, once it is so old that its writer must be gone. Object
    stores show no half-written objects; their unfinished uploads end by a lifecycle rule of the bucket."""
    fs, bare = place(root)
    if "file" not in fs.protocol:
        return
    for folder, _, names in os.walk(bare):
        for path in (os.path.join(folder, name) for name in names if re.fullmatch(_HALF_WRITTEN, name)):
            with contextlib.suppress(FileNotFoundError):  # its writer is alive after all, and has just finished
                if time.time() - os.stat(path).st_mtime > ABANDONED:
                    os.unlink(path)


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


def remove(folder: str) -> None:
    """Delete a folder with all below it, if there is one."""
    fs, bare = place(folder)
    fs.invalidate_cache()
    if "file" in fs.protocol:
        if fs.exists(bare):
            fs.rm(bare, recursive=True)
        return
    for path in fs.find(bare):  # not rm: it takes brackets and asterisks in a path for a pattern
        fs.rm_file(path)


def remove_file(path: str) -> None:
    """Delete a file, if there is one."""
    fs, bare = place(path)
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(bare)


def fetch_folder(folder: str, local: str) -> None:
    """Copy a folder with all below it, local or remote, to a local one."""
    fs, bare = place(folder)
    for path in fs.find(bare):  # not get: it takes brackets and asterisks in a path for a pattern
        copy = os.path.join(local, str(path).removeprefix(bare.rstrip("/") + "/"))
        os.makedirs(os.path.dirname(copy), exist_ok=True)
        fs.get_file(path, copy)


def arrow(path: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The place as Arrow's and Ray's functions take it, with the same retries, credentials and endpoint."""
    fs, bare = place(path)
    if "file" in fs.protocol:
        return pyarrow.fs.LocalFileSystem(), bare
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)), bare


def fetch(path: str, local: str) -> None:
    """Copy a remote file to a local path. One that is not there is asked for again: a listing may be ahead of it."""
    from pipeline.storage.s3 import DENIED_TRIES, wait  # here for speed, as in `place`

    fs, bare = place(path)
    for tries in range(1, DENIED_TRIES + 1):
        try:
            fs.get_file(bare, local)
            return
        except FileNotFoundError:
            if tries == DENIED_TRIES:
                raise
            time.sleep(wait(tries))
