"""What a layout is read as."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import fsspec

from pipeline.config.texts import decode_text
from pipeline.errors import InputError

LARGEST = 256 << 20  # bytes of a text file that is in memory as a whole
SIDECARS = (".txt",)


@dataclass(frozen=True)
class Rows:
    """Rows as a manifest has them, with paths relative to `root`. `path` is the file or folder that says so."""

    layout: str
    path: str
    root: str
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Place:
    """A folder, manifest or shards that a configuration names. A caption of a video in the folder is a file with one of
    these ends beside it, or `caption` where that is given. `columns`: names of a manifest's columns by what they are
    called here. `files`: the folder of a manifest's relative paths."""

    where: str
    sidecars: tuple[str, ...] = SIDECARS
    caption: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    files: str | None = None


@dataclass(frozen=True)
class Places:
    """Other places, all of which are read. `path` is the configuration that names them."""

    layout: str
    path: str
    places: Sequence[Place]


def read_text(fs: fsspec.AbstractFileSystem, path: str) -> str:
    """The text of a file. Raises InputError."""
    with fs.open(path, "rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise InputError(f"{path}: it has more than {LARGEST} bytes, all of which would be in memory.")
    try:
        return decode_text(data)
    except ValueError as error:
        raise InputError(f"{path}: it is no text: {error}.") from error
