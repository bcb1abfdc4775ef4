"""Files that were cut out of their videos already: `VIDEOID_000000.mp4` of the first span of a row, and so on.

Panda-70M's table has a row for each video, with lists of spans and captions. Whoever downloads it keeps whole videos,
or a file for each span, which is called by the video's id and the span's number, counted from 0, with any number of
zeros before it. Nothing in a name says from what it counts: files that may count from 1 are refused.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import fsspec

from pipeline.inputs import extensions

_NUMBERED = re.compile(r"(?P<video>.+)_(?P<number>[0-9]{1,9})", re.DOTALL)


class UnclearError(ValueError):
    """Files of which nobody can tell which span of which row they are, as a sentence without a full stop."""


@dataclass(frozen=True)
class RowSpan:
    """A span of a row: the id of the row's video, the place where the row begins in its manifest, and the number of the
    span in the row; None where the row has no list of spans."""

    video: str
    line: int
    number: int | None


def names(files: Sequence[str], spans: Sequence[RowSpan]) -> list[str | None]:
    """The name of the file that was cut out for each span, among the names of a folder's files or, where it is missing,
    as it would be called; None for a span of a whole video.

    Raises UnclearError, naming the files, where it is not clear which is which.
    """
    whole = _by_video(files)
    cuts = _cuts(files, {span.video for span in spans})
    lines: dict[str, int] = {}
    counts: dict[str, int] = {}
    for span in spans:
        if span.number is None or span.video not in cuts:
            continue
        if lines.setdefault(span.video, span.line) != span.line:
            raise UnclearError(
                f"{_first(cuts[span.video])} is a span that was cut out of {span.video}, and two rows have spans of "
                f"it, {lines[span.video]} and {span.line}; make one row of them, or list the files themselves"
            )
        counts[span.video] = max(counts.get(span.video, 0), span.number + 1)
    for video, count in counts.items():
        _check(video, cuts[video], count, whole)
    if counts and not any(0 in cuts[video] for video in counts):
        video = next(iter(counts))
        raise UnclearError(
            f"no file of a span ends in number 0: the lowest of {video} is {_first(cuts[video])}. Numbers count from 0 "
            "here; whether these count from 1 nobody can tell. Rename the files, or list them themselves"
        )
    return [
        _name(span.video, span.number, cuts[span.video]) if span.number is not None and span.video in counts else None
        for span in spans
    ]


def of_some(files: Sequence[str], videos: Sequence[str]) -> bool:
    """Whether a file was cut out of one of these videos, by its name."""
    return bool(_cuts(files, set(videos)))


def names_in(fs: fsspec.AbstractFileSystem, folder: str) -> list[str]:
    """The names of the videos in a folder; none where it is not there or may not be listed."""
    try:
        entries = fs.ls(folder, detail=False)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    names_there = [posixpath.basename(str(entry).rstrip("/")) for entry in entries]
    return [name for name in names_there if name.lower().endswith(extensions.VIDEOS)]


def _by_video(files: Sequence[str]) -> dict[str, str]:
    return {posixpath.splitext(name)[0]: name for name in files}


def _cuts(files: Sequence[str], videos: set[str]) -> dict[str, dict[int, list[str]]]:
    """The files that were cut out of each of these videos, by number. One that is itself called as one of these videos
    is that video."""
    cuts: dict[str, dict[int, list[str]]] = {}
    for name in sorted(files):
        stem = posixpath.splitext(name)[0]
        match = _NUMBERED.fullmatch(stem)
        if match is not None and match["video"] in videos and stem not in videos:
            cuts.setdefault(match["video"], {}).setdefault(int(match["number"]), []).append(name)
    return cuts


def _check(video: str, numbers: Mapping[int, Sequence[str]], count: int, whole: Mapping[str, str]) -> None:
    """Raise UnclearError unless a video's files are those of its `count` spans, and it is not there as a whole."""
    if video in whole:
        raise UnclearError(
            f"{whole[video]} and {_first(numbers)} are both there: whether the spans of {video} lie in the whole video "
            "or were cut out of it already is not clear. Take one or the other away"
        )
    twice = next((names_of_one for names_of_one in numbers.values() if len(names_of_one) > 1), None)
    if twice is not None:
        raise UnclearError(f"{twice[0]} and {twice[1]} are both the same span of {video}. Take one of them away")
    if max(numbers) >= count:
        raise UnclearError(
            f"{numbers[max(numbers)][0]} is there, and {video} has {count} spans, whose files are numbered from 0 to "
            f"{count - 1}. If they count from 1, or are of another version of the table, rename them, or list them "
            "themselves"
        )


def _first(numbers: Mapping[int, Sequence[str]]) -> str:
    return numbers[min(numbers)][0]


def _name(video: str, number: int, numbers: Mapping[int, Sequence[str]]) -> str:
    """The name of the file of a span; of a missing one, with the zeros and the end of the first one that is there."""
    if number in numbers:
        return numbers[number][0]
    stem, end = posixpath.splitext(_first(numbers))
    width = len(stem) - len(video) - 1
    return f"{video}_{number:0{width}d}{end}"
