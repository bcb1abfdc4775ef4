"""Two text files, one with a caption a line and one with a video a line: finetrainers, FastVideo, CogVideoX."""

from __future__ import annotations

import posixpath
from collections.abc import Collection

import fsspec

from pipeline.errors import InputError
from pipeline.inputs.layouts.contents import Rows, read_text
from pipeline.storage.stores import join

CAPTIONS = ("prompts.txt", "prompt.txt", "captions.txt", "caption.txt")
VIDEOS = ("videos.txt", "video.txt")


def pair(names: Collection[str]) -> tuple[str, str] | None:
    """The names of the captions and of the videos among those of a folder's files; None where one is not there."""
    captions = next((name for name in CAPTIONS if name in names), None)
    videos = next((name for name in VIDEOS if name in names), None)
    return None if captions is None or videos is None else (captions, videos)


def read(fs: fsspec.AbstractFileSystem, folder: str, names: Collection[str]) -> Rows:
    """A row for each line. Raises InputError where a file is missing or has more lines than the other."""
    files = pair(names)
    if files is None:
        raise InputError(
            f"{folder}: beside its list of videos there is none of their captions, {' | '.join(CAPTIONS)}."
        )
    captions, videos = (join(folder, name) for name in files)
    texts, paths = (_lines(read_text(fs, path)) for path in (captions, videos))
    if len(texts) != len(paths):
        names = [posixpath.basename(path) for path in (captions, videos)]
        raise InputError(
            f"{posixpath.dirname(videos)}: {names[0]} has {len(texts)} lines, and {names[1]} has {len(paths)}. A line "
            "of one belongs to the same line of the other; correct them."
        )
    rows = [{"file_name": path, "caption": text} for path, text in zip(paths, texts, strict=True) if path]
    return Rows("finetrainers", videos, posixpath.dirname(videos), rows)


def _lines(text: str) -> list[str]:
    """Lines without blanks around them, and without empty ones at the end of the file."""
    return [line.strip() for line in text.rstrip().split("\n")]
