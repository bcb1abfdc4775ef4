"""Weights that lie elsewhere, on this machine's disk: fetched once by whoever comes first, whole or not at all.

The processes of a machine agree through a lock on its disk. A copy is known by the address, the sizes and the etags of
its files, so changed weights are another copy; it gets its name when it is complete, so a killed download leaves only
``NAME.partial``, which the next one goes on from.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import fsspec
from filelock import FileLock, Timeout
from fsspec.callbacks import Callback

from pipeline.storage import stores

log = logging.getLogger(__name__)

FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")  # of a model; no pickles
TELL = 10.0  # seconds between two lines on a download or a wait


def folder() -> Path:
    """Where copies are kept: below XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "motion-curation"


@contextmanager
def locked(name: str, what: str) -> Iterator[None]:
    """One process of this machine at a time; the others wait and say for what. The lock of a killed process is free."""
    folder().mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder() / f"{hashlib.blake2b(name.encode(), digest_size=16).hexdigest()}.lock")
    while True:
        try:
            lock.acquire(timeout=TELL)
            break
        except Timeout:
            log.warning("waiting for another process of this machine that fetches %s", what)
    try:
        yield
    finally:
        lock.release()


@cache  # for a process, weights do not change while it runs
def local(url: str) -> Path:
    """The local copy of a file, or of a model's folder, at s3://. Raises OSError."""
    fs, bare = stores.place(url)
    files = _listed(fs, bare)
    name = hashlib.blake2b(json.dumps([url, files], sort_keys=True).encode(), digest_size=16).hexdigest()
    copy = folder() / name
    if not _whole(copy, files):
        with locked(name, url):
            if not _whole(copy, files):
                _fetch(fs, bare, files, copy, url)
    return copy / bare.rsplit("/", 1)[-1] if list(files) == [""] else copy


def _listed(fs: fsspec.AbstractFileSystem, bare: str) -> dict[str, list[Any]]:
    """Size and etag of the files by their path below `bare`; "" is that of a file itself."""
    fs.invalidate_cache()
    if Path(bare).suffix in (".safetensors", ".pth"):
        return {"": _known(fs.info(bare))}
    infos = {str(p).removeprefix(bare.rstrip("/") + "/"): info for p, info in fs.find(bare, detail=True).items()}
    files = {p: _known(i) for p, i in sorted(infos.items()) if any(Path(p).match(pattern) for pattern in FILES)}
    if not files:
        raise FileNotFoundError(f"there is nothing of a model ({', '.join(FILES)}) below it")
    return files


def _known(info: Mapping[str, Any]) -> list[Any]:
    return [int(info["size"]), str(info.get("ETag") or info.get("etag") or "").strip('"')]


def _below(copy: Path, bare: str, path: str) -> Path:
    return copy / (path or bare.rsplit("/", 1)[-1])


def _whole(copy: Path, files: Mapping[str, list[Any]]) -> bool:
    if not copy.is_dir():
        return False
    sizes = sorted(path.stat().st_size for path in copy.rglob("*") if path.is_file())
    return sizes == sorted(size for size, _ in files.values())


def _fetch(fs: fsspec.AbstractFileSystem, bare: str, files: Mapping[str, list[Any]], copy: Path, url: str) -> None:
    partial = copy.with_name(f"{copy.name}.partial")
    if copy.exists():  # somebody took a file of it away
        shutil.rmtree(partial, ignore_errors=True)
        copy.rename(partial)
    partial.mkdir(exist_ok=True)
    total = sum(size for size, _ in files.values())
    missing = {p: s for p, (s, _) in files.items() if not _is(_below(partial, bare, p), s)}
    free = shutil.disk_usage(partial).free
    if sum(missing.values()) > free:
        raise OSError(
            f"fetching {url} takes {sum(missing.values()) / 1e9:.1f} GB below {folder()}, and {free / 1e9:.1f} GB are "
            "free there; make room, or point XDG_CACHE_HOME at a larger disk"
        )
    progress = _Progress(url, total, total - sum(missing.values()))
    for path, size in missing.items():
        target = _below(partial, bare, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(f".{target.name}.fetching")
        fs.get_file(f"{bare.rstrip('/')}/{path}" if path else bare, str(fresh), callback=progress)
        if not _is(fresh, size):
            raise OSError(f"{url}: {path} has {fresh.stat().st_size} bytes here and {size} there; run it again")
        fresh.replace(target)
    for stray in partial.rglob(".*.fetching"):
        stray.unlink()
    if _listed(fs, bare) != files:
        shutil.rmtree(partial)
        raise OSError(f"{url} changed while it was fetched; run it again")
    partial.replace(copy)


def _is(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


class _Progress(Callback):  # type: ignore[misc]
    """A line every TELL seconds: how much is here, and the time left."""

    def __init__(self, url: str, total: int, done: int) -> None:
        super().__init__()
        self.url, self.total, self.done, self.first = url, total, done, done
        self.start = self.last = time.monotonic()

    def relative_update(self, inc: int = 1) -> None:
        self.done += inc
        now = time.monotonic()
        if now - self.last >= TELL and self.done > self.first:
            self.last = now
            seconds = (now - self.start) / (self.done - self.first) * (self.total - self.done)
            done, total = self.done / 1e9, self.total / 1e9
            log.warning("fetching %s: %.1f of %.1f GB, %d s left", self.url, done, total, seconds)
