"""A set of videos as the configuration asks for it: its place, and how what stands there is to be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PICTURES = 16.0  # frames a second of a folder of pictures, where nobody says it


@dataclass(frozen=True)
class VideoSet:
    """`where` is the value of `key`, such as data.videos; `base`, `files` and `camera` are data.base, `files` of the
    set's own section, and data.camera; `fps` is the rate of folders of pictures that say none: data.fps;
    `empty_captions` is the share of videos that may have no caption: data.empty_captions. A trainer's
    configuration says further with which ends captions lie beside videos, and which columns of its manifests have which
    names here. Where it leads to a folder, that folder's own configurations are not read."""

    where: str
    key: str = "data.videos"
    base: str | None = None
    files: str | None = None
    camera: str | None = None
    fps: float = PICTURES
    empty_captions: float = 1.0
    sidecars: tuple[str, ...] = (".txt",)
    columns: Mapping[str, str] = field(default_factory=dict)
    configurations: tuple[str, ...] = ()  # that led here, the last one last

    @property
    def named(self) -> str:
        """Key and value, for messages."""
        return f"{self.key}={self.where!r}"

    @property
    def section(self) -> str:
        """The section of the configuration that the set stands in: data, queries or evaluate."""
        return self.key.split(".")[0]
