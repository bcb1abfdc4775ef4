"""A set of videos as the configuration asks for it: its place, and how what stands there is to be read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VideoSet:
    """`where` is the value of `key`, such as data.videos; the other fields are data.base, data.camera and `files` of
    the set's own section."""

    where: str
    key: str = "data.videos"
    base: str | None = None
    files: str | None = None
    camera: str | None = None

    @property
    def named(self) -> str:
        """Key and value, for messages."""
        return f"{self.key}={self.where!r}"

    @property
    def section(self) -> str:
        """The section of the configuration that the set stands in: data, queries or evaluate."""
        return self.key.split(".")[0]
