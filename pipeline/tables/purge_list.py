"""What was purged from a root: ``ROOT/purged.txt``, a digest a line, so that the file names nobody.

A line is the digest of a clip's id; or of a video's address and version, once no clip of it is left: it is not fetched
again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from pipeline.errors import UsageError
from pipeline.storage import stores

FILE = "purged.txt"
_DIGEST = re.compile("[0-9a-f]{32}")


def digest(name: str) -> str:
    return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()


def digests(root: str) -> frozenset[str]:
    """Those of the clips and videos that were purged from a root. Raises UsageError for a damaged file: clips that
    somebody wanted gone must not come back unnoticed."""
    path = stores.join(root, FILE)
    if not stores.exists(path):
        return frozenset()
    lines = stores.read_bytes(path).decode(errors="replace").split()
    if odd := [line for line in lines if not _DIGEST.fullmatch(line)]:
        raise UsageError(
            f"{path}: this file is damaged ({len(odd)} of its {len(lines)} lines are no digest of a clip's id, such as "
            f"{odd[0][:40]!r}), so it is not known which clips were purged. Put it back from a copy; or delete it and "
            "purge the same clips again."
        )
    return frozenset(lines)


def remember(root: str, names: Iterable[str]) -> None:
    """Let no later index have these clips, or videos."""
    lines = sorted(digests(root) | {digest(name) for name in names})
    stores.write_bytes(stores.join(root, FILE), "".join(f"{line}\n" for line in lines).encode())
