"""What a folder of labelled clips says of each of them: its action, its person, its scene, and where it is marked."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.benchmarks.real.options import Real
from pipeline.errors import ConfigError, InputError
from pipeline.inputs.videos import place_of, videos
from pipeline.storage.stores import join

KEY = "data.videos"
SEQUENCES = "00sequences.txt"  # KTH's list of marked ranges
KTH = re.compile(r"(?P<person>person\d+)_(?P<action>[a-z]+)_(?P<scene>d\d)(?:_uncomp)?")
KTH_LINE = re.compile(r"^(person\d+_[a-z]+_d\d)\s+frames\s+(.*)$")
RANGE = re.compile(r"(\d+)\s*-\s*(\d+)")
# Blank et al. 2005; Gorelick et al. 2007. Lena runs, skips and walks twice: lena_walk1, lena_walk2.
WEIZMANN_PEOPLE = ("daria", "denis", "eli", "ido", "ira", "lena", "lyova", "moshe", "shahar")
WEIZMANN_ACTIONS = ("bend", "jack", "jump", "pjump", "run", "side", "skip", "walk", "wave1", "wave2")
WEIZMANN = re.compile(
    rf"(?P<person>{'|'.join(WEIZMANN_PEOPLE)})_(?P<action>{'|'.join(WEIZMANN_ACTIONS)})(?P<scene>\d?)"
)
ENOUGH = 0.5  # share of the videos that a layout must understand to be taken for theirs

Labels = Mapping[str, str]
Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Video:
    """A labelled video. `spans` are its marked ranges, first frame and the one after the last; none: all of it."""

    uri: str
    relative: str
    version: str
    action: str
    person: str
    scene: str
    caption: str
    captioned: bool  # whether somebody wrote the caption; otherwise it is made of the action
    spans: Spans = ()


@dataclass(frozen=True)
class Listing:
    """The labelled videos, how their labels were read, and the paths of those that have none."""

    videos: tuple[Video, ...]
    layout: str
    unlabelled: tuple[str, ...]


def listed(where: str, settings: Real, base: str | None = None) -> Listing:
    """The labelled videos of a folder, glob or manifest. Raises UsageError where nobody can tell the labels."""
    table = videos(where, KEY, base)
    rows = [row for row in table.to_pylist() if row["error"] is None]
    layout, read = _layout(rows, table.column_names, where, settings)
    spans = _marked(where) if layout == "kth" else {}
    labelled, unlabelled = [], []
    for row in rows:
        labels = read(row)
        if labels is None:
            unlabelled.append(str(row["relative"]))
            continue
        stem = _stem(row).removesuffix("_uncomp")
        caption = row["caption"] or f"a person {labels['action']}"
        labelled.append(
            Video(
                row["uri"],
                row["relative"],
                row["version"] or "",
                labels["action"],
                labels["person"],
                labels.get("scene", ""),
                caption,
                bool(row["caption"]),
                spans.get(stem, ()),
            )
        )
    return Listing(tuple(sorted(labelled, key=lambda video: video.relative)), layout, tuple(sorted(unlabelled)))


def _layout(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], where: str, settings: Real
) -> tuple[str, Callable[[Mapping[str, Any]], Labels | None]]:
    """The first layout that understands most of the videos, or the one that is asked for, and how it reads a row."""
    readers = _readers(columns, settings)
    names = list(readers) if settings.layout == "auto" else [settings.layout]
    for name in names:
        if name not in readers:
            raise ConfigError(_missing(name, columns, where, settings))
        understood = sum(readers[name](row) is not None for row in rows)
        if understood and understood >= ENOUGH * len(rows):
            return name, readers[name]
    example = rows[0]["relative"] if rows else "none"
    raise InputError(
        f"{KEY}={where!r}: of {len(rows)} videos hardly one says its action and its person (layout {settings.layout}; "
        f"the first video is {example}). Name folders ACTION/PERSON/VIDEO, or give a manifest with the columns "
        f"{settings.action!r} and {settings.person!r}, or set real.pattern to a regular expression with groups named "
        "action and person. KTH's and Weizmann's file names are known."
    )


def _missing(name: str, columns: Sequence[str], where: str, settings: Real) -> str:
    if name == "pattern":
        return "real.layout=pattern: there is no pattern. Set real.pattern to a regular expression for paths."
    return (
        f"real.layout=columns: {KEY}={where!r} has no columns {settings.action!r} and {settings.person!r}; it has "
        f"{', '.join(columns)}. Name them with real.action and real.person."
    )


def _readers(columns: Sequence[str], settings: Real) -> dict[str, Callable[[Mapping[str, Any]], Labels | None]]:
    readers: dict[str, Callable[[Mapping[str, Any]], Labels | None]] = {}
    if settings.pattern is not None:
        pattern = _compiled(settings.pattern)
        readers["pattern"] = lambda row: _matched(pattern.search(str(row["relative"])))
    if settings.action in columns and settings.person in columns:
        readers["columns"] = lambda row: _columns(row, settings)
    readers["kth"] = lambda row: _matched(KTH.fullmatch(_stem(row)))
    readers["weizmann"] = lambda row: _matched(WEIZMANN.fullmatch(_stem(row)))
    readers["folders"] = lambda row: _folders(str(row["relative"]), settings.folders)
    return readers


def _compiled(text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ConfigError(f"real.pattern={text!r}: this is no regular expression ({error}).") from error
    if not {"action", "person"} <= set(pattern.groupindex):
        raise ConfigError(
            f"real.pattern={text!r}: it needs groups named action and person, as in "
            r"(?P<person>\w+)_(?P<action>\w+)\.mp4."
        )
    return pattern


def _stem(row: Mapping[str, Any]) -> str:
    return posixpath.splitext(posixpath.basename(str(row["relative"])))[0]


def _matched(match: re.Match[str] | None) -> Labels | None:
    if match is None:
        return None
    labels = {name: text or "" for name, text in match.groupdict().items()}
    return labels if labels["action"] and labels["person"] else None


def _columns(row: Mapping[str, Any], settings: Real) -> Labels | None:
    action, person, scene = (row.get(name) for name in (settings.action, settings.person, settings.scene))
    if action in (None, "") or person in (None, ""):
        return None
    return {"action": str(action), "person": str(person), "scene": "" if scene is None else str(scene)}


def _folders(path: str, names: str) -> Labels | None:
    levels, above = names.split("/"), path.split("/")[:-1]
    if not {"action", "person"} <= set(levels):
        raise ConfigError(f"real.folders={names!r}: name action and person, as in action/person or person/action.")
    if len(above) < len(levels):
        return None
    return dict(zip(levels, above[-len(levels) :], strict=True))


def _marked(where: str) -> dict[str, Spans]:
    """The ranges that KTH's list marks in each video, if the list is there: by the video's name."""
    fs, bare = place_of(where, KEY)
    path = join(bare, SEQUENCES)
    return marked(fs.cat_file(path).decode("utf-8", "replace")) if fs.isfile(path) else {}


def marked(text: str) -> dict[str, Spans]:
    """KTH's list: ``person01_boxing_d1  frames  1-95, 96-185``, frames counted from 1, the last one included."""
    spans: dict[str, Spans] = {}
    for line in text.splitlines():
        match = KTH_LINE.match(line.strip())
        if match:
            pairs = [(int(first) - 1, int(last)) for first, last in RANGE.findall(match[2])]
            spans[match[1]] = tuple(pairs)
    return spans


def summary(listing: Listing) -> list[str]:
    """What was understood, as lines for a person."""
    actions, people, scenes = (
        Counter(getattr(video, name) for video in listing.videos if getattr(video, name))
        for name in ("action", "person", "scene")
    )
    written = sum(video.captioned for video in listing.videos)
    lines = [
        f"{len(listing.videos)} videos by layout {listing.layout}: {len(actions)} actions, {len(people)} persons, "
        f"{len(scenes)} scenes",
        f"{written} videos have captions; the caption of another is made of its action",
        "actions: " + ", ".join(f"{name} {count}" for name, count in sorted(actions.items())),
        "persons: " + ", ".join(f"{name} {count}" for name, count in sorted(people.items())),
    ]
    if listing.unlabelled:
        first = ", ".join(listing.unlabelled[:3])
        lines.append(f"{len(listing.unlabelled)} videos without action and person are left out: {first}")
    return lines
