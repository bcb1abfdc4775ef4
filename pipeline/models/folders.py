"""Where a model's files are, what its configuration files say, and a hash of what changes a feature."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from pipeline.errors import ConfigError
from pipeline.storage import downloads, stores

UNSETTLED = 2_000_000_000  # nanoseconds: a file changed since may change again without a new time
HASHED = (".json", ".safetensors", ".model", ".txt", ".jinja")


def folder(id: str) -> Path:
    """The local folder of a diffusers pipeline: `id` itself, or a copy of what lies at s3:// or on the hub, fetched
    once a machine. Raises ConfigError."""
    path = _stored(id) if id.startswith(stores.S3) else Path(id)
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise ConfigError(f"model.id={id!r}: the folder has no model_index.json, so it is no diffusers pipeline.")
        return path
    if path.is_absolute() or id.count("/") != 1 or id.startswith("."):
        raise ConfigError(
            f"model.id={id!r}: this is neither a folder nor a hub id of the form owner/name, nor at s3://. Give "
            "the folder of a diffusers pipeline (it holds model_index.json)."
        )
    try:
        return _snapshot(id)
    except (HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, OSError) as error:
        raise ConfigError(
            f"model.id={id!r}: there is no such folder, and the hub could not be asked for it "
            f"({type(error).__name__}). Give a local folder, or run where the hub can be reached."
        ) from error


def _stored(id: str) -> Path:
    try:
        return downloads.local(id)
    except OSError as error:
        raise ConfigError(
            f"model.id={id!r}: no model can be fetched from there ({error}). Give the folder of a diffusers pipeline "
            "(it holds model_index.json), which this job may list and read."
        ) from error


@cache  # for a process, a model does not change while it runs
def _snapshot(id: str) -> Path:
    with downloads.locked(id, id):
        return Path(snapshot_download(id, allow_patterns=list(downloads.FILES)))


def read_config(file: Path) -> dict[str, Any]:
    """A JSON file of a pipeline's folder; empty where it is missing. Raises ConfigError for one that is no JSON."""
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{file}: this is no JSON file that can be read ({error}); model.id names its folder."
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: this holds no JSON object, so model.id names no complete diffusers pipeline.")
    return content


def hash_parts(path: Path, parts: Sequence[str]) -> str:
    """A hash of the weights and configuration files of a pipeline's parts: folders, or files such as
    model_index.json."""
    files = [(part, file) for part in parts for file in _files(path / part)]
    stamps = []
    for part, file in files:
        status = file.stat()
        stamps.append((part, str(file), status.st_size, status.st_mtime_ns))
    recent = any(time.time_ns() - changed < UNSETTLED for *_, changed in stamps)
    return _hash.__wrapped__(tuple(stamps)) if recent else _hash(tuple(stamps))


def _files(part: Path) -> list[Path]:
    if part.is_file():
        return [part]
    return [file for file in sorted(part.glob("*")) if file.suffix in HASHED]


@cache  # hundreds of gigabytes in some families; a file of another size or time is read again
def _hash(stamps: tuple[tuple[str, str, int, int], ...]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part, name, _, _ in stamps:
        file = Path(name)
        digest.update(f"{part}/{file.name}".encode())
        with file.open("rb") as data:
            while block := data.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()
