"""Ids of videos: every one is its own, and none has the form that a segment of another video has.

The first segment of the video `v` is the clip `v`, and one that begins at frame 9 is the clip `v-9`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import InputError

_FRAMES = 1 << 31  # start frames are below
_SEGMENT = re.compile(r"(.+)-([1-9][0-9]{0,9})", re.DOTALL)
_IN_ARROW = r"(?s)^(.+)-[1-9][0-9]{0,9}$"
_SHOWN = 10


def videos_of(ids: pa.Array) -> pa.Array:
    """The ids of the videos whose segments may be called like some of these."""
    some = ids.filter(pc.fill_null(pc.match_substring_regex(ids, _IN_ARROW), False))
    return pc.unique(pc.replace_substring_regex(some, _IN_ARROW, r"\1"))


def video_of(clip_id: str) -> str | None:
    """The id of the video that has a segment of this name; None for a name that no segment has."""
    match = _SEGMENT.fullmatch(clip_id)
    return match[1] if match and int(match[2]) < _FRAMES else None


def check_segments(ids: Iterable[str], where: str, key: str) -> None:
    """Raise InputError where an id may be that of another video's segment."""
    id_set = set(ids)
    pairs = sorted((str(video), one) for one in id_set for video in [video_of(one)] if video in id_set)
    if pairs:
        some = ", ".join(f"{video!r} and {one!r}" for video, one in pairs[:_SHOWN])
        more = f" and {len(pairs) - _SHOWN} more pairs" if len(pairs) > _SHOWN else ""
        video, one = pairs[0]
        raise InputError(
            f"{key}={where!r}: in the manifest, the ids {some}{more} cannot be together: the segment of {video!r} that "
            f"begins at frame {one.rpartition('-')[2]} would be called {one!r} too. Rename one of each pair."
        )


def check(videos: pa.Table, where: str, key: str) -> None:
    """Raise InputError, naming them, for ids or files that more than one row has, and ids that segments may have."""
    own = videos.column("id")
    ids = own.drop_null().to_pylist()
    names = videos.column("relative")
    if "span" in videos.column_names:
        names = pc.coalesce(pc.binary_join_element_wise(names, videos.column("span"), " "), names)
    files = names.filter(pc.is_null(own)).to_pylist()
    for listed, remedy in (
        (ids, "the id of more than one row: every id must be its own; correct them or leave the column out"),
        (files, "listed more than once: list every file once, or give its rows ids of their own in a column `id`"),
    ):
        twice = [name for name, count in Counter(listed).items() if count > 1]
        if twice:
            more = f" and {len(twice) - _SHOWN} more" if len(twice) > _SHOWN else ""
            raise InputError(f"{key}={where!r}: in the manifest, {', '.join(twice[:_SHOWN])}{more} is {remedy}.")
    check_segments(ids, where, key)
