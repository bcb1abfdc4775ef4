"""The folder that an export writes: claimed before the first file, whole with the last one, never another's.

`unfinished.json` is its first file and `export.json` its last one. A folder with the former is one that the same
command continues; a folder with the latter is whole; a folder with neither must be empty.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, Literal

from pipeline.errors import InputError
from pipeline.storage import stores

UNFINISHED, WHOLE = "unfinished.json", "export.json"
State = Literal["new", "continued", "whole"]


def state(folder: str, digest: str) -> State:
    """How a folder stands for the export of this digest. Raises InputError where it holds anything else."""
    for name, answer in ((WHOLE, "whole"), (UNFINISHED, "continued")):
        record = _record(stores.join(folder, name))
        if record is None:
            continue
        if record.get("digest") == digest:
            return "whole" if answer == "whole" else "continued"
        raise InputError(
            f"export: {folder} holds an export of other clips, or in another layout (format "
            f"{record.get('format')}, arm {record.get('arm')}, {record.get('clips')} clips). It is left as it is: "
            "delete it, or give this one another export.name or export.to."
        )
    if stores.files(folder):
        raise InputError(
            f"export: {folder} is not empty, and no export made what lies in it. It is left as it is: name an empty "
            "folder, or one that is not there yet, in export.to."
        )
    return "new"


def _record(path: str) -> dict[str, Any] | None:
    if not stores.exists(path):
        return None
    try:
        record = json.loads(stores.read_bytes(path))
    except ValueError as error:
        raise InputError(f"export: {path} is no file of an export ({error}). Its folder is left as it is.") from error
    if not isinstance(record, dict):
        raise InputError(f"export: {path} is no file of an export. Its folder is left as it is.")
    return record


def claim(folder: str, record: Mapping[str, Any]) -> None:
    """Say that an export is being written here, and not whole any more if it was. `record` has its `digest`."""
    stores.write_bytes(stores.join(folder, UNFINISHED), _text(record))
    stores.remove_file(stores.join(folder, WHOLE))


def complete(folder: str, texts: Mapping[str, str | bytes], record: Mapping[str, Any]) -> None:
    """Write the files beside the clips, then say that the export is whole."""
    for name, text in sorted(texts.items()):
        stores.write_bytes(stores.join(folder, name), text.encode() if isinstance(text, str) else text)
    stores.write_bytes(stores.join(folder, WHOLE), _text(record))
    stores.remove_file(stores.join(folder, UNFINISHED))


def listing(folder: str) -> set[str]:
    """The paths of all files in the folder, relative to it."""
    fs, bare = stores.place(folder)
    fs.invalidate_cache()
    prefix = bare.rstrip("/") + "/"
    return {str(path).removeprefix(prefix) for path in fs.find(bare)}


def remove_strays(folder: str, expected: Collection[str]) -> None:
    """Delete the shards that an attempt wrote which was killed before its rows: later shards hold its clips."""
    for name in sorted(listing(folder) - set(expected)):
        if name.startswith("clips-") and name.endswith(".tar") and "/" not in name:
            stores.remove_file(stores.join(folder, name))


def _text(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
