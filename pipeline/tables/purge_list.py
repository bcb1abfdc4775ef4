"""Which clips were purged from a root: ``ROOT/purged.txt``, a digest of an id a line, so that the file names nobody."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from pipeline.storage import stores

FILE = "purged.txt"


def digest(clip_id: str) -> str:
    return hashlib.blake2b(clip_id.encode(), digest_size=16).hexdigest()


def digests(root: str) -> frozenset[str]:
    path = stores.join(root, FILE)
    return frozenset(stores.read_bytes(path).decode().split()) if stores.exists(path) else frozenset()


def remember(root: str, clip_ids: Iterable[str]) -> None:
    """Let no later index have these clips."""
    lines = sorted(digests(root) | {digest(i) for i in clip_ids})
    stores.write_bytes(stores.join(root, FILE), "".join(f"{line}\n" for line in lines).encode())
