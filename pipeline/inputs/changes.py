"""The videos of a set against the table that has their clips, whatever their number: which are new, which clips go."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.errors import InputError
from pipeline.inputs import video_ids, videos
from pipeline.inputs.manifests import versioned
from pipeline.tables import retries
from pipeline.tables.scanning import Flags, Gathered, Keys
from pipeline.tables.shuffling import Pairs, Shuffled, keys

BLOCK = 100_000  # videos in memory at a time


class Listing:
    """The videos of a folder, glob, shards or manifest, on the local disk, to be drawn in shuffled order; in memory are
    some 40 bytes a video. A manifest that tells versions (see `versioned`) is never in memory as a whole.

    Raises InputError, naming `key`.
    """

    def __init__(self, where: str, key: str, base: str | None) -> None:
        self.schema, blocks = _read(where, key, base)
        self.videos = Shuffled(self.schema)
        self._own = False  # whether videos have ids of their own
        versions, of_segments = Gathered(), Gathered()
        for block in blocks:
            own = block.column("id")
            self._own = self._own or own.null_count < len(own)
            self.videos.put(block, keys(pc.coalesce(own, block.column("uri"))))
            versions.put(keys(_versions(block)))
            of_segments.put(keys(video_ids.videos_of(own.combine_chunks())))
        self._check_names(where, key)
        self._check_segments(of_segments.keys(), where, key)
        self._versions = versions.keys()

    def _check_names(self, where: str, key: str) -> None:
        """Raise InputError where an id, or a file without one, is listed more than once."""
        twice = self.videos.twice()
        if not len(twice):
            return
        names = set[str]()
        for rows in self.videos:
            column = pc.coalesce(rows.column("id"), rows.column("uri"))
            names |= set(column.filter(pa.array(np.isin(keys(column)[:, 0], twice))).to_pylist())
        some = ", ".join(sorted(names)[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
        raise InputError(
            f"{key}={where!r}: in the manifest, {some} is listed more than once. List every file once, or give its "
            "rows ids of their own in a column `id`; every id must be its own."
        )

    def _check_segments(self, of_segments: Keys, where: str, key: str) -> None:
        """Raise InputError where a segment of a video, of these keys, may be called as another video is."""
        if not len(of_segments):
            return
        there = Gathered()

        def note(pairs: Pairs) -> Flags:
            there.put(pairs[of_segments.has(pairs)])
            return np.ones(len(pairs), bool)

        self.videos.keep(note)  # reads no more than the keys
        known = there.keys()
        if not len(known):
            return
        ids = set[str]()
        for rows in self.videos:
            for one in rows.column("id").drop_null().to_pylist():
                names = [one, video_ids.video_of(one) or one]
                if known.has(keys(pa.array(names, pa.string()))).any():
                    ids.add(one)
        video_ids.check_segments(ids, where, key)

    def subtract(self, folder: str) -> set[str]:
        """Go on with the videos that have no rows of their present version in a table of clips. Rows of older versions,
        of videos that are not listed any more, and errors worth another try, are dropped from it, but for the errors of
        clips that are tried for the last time, which are returned."""
        done, tried = Gathered(), set[str]()
        names = ("uri", "clip_id") if self._own else ("uri",)

        def stale(rows: pa.Table) -> pa.Array:
            stands, last = self._stands(rows)
            kept = rows.filter(pa.array(stands))
            for name in names:
                done.put(keys(kept.column(name)))
            tried.update(rows.column("clip_id").filter(pa.array(last)).to_pylist())
            return pa.array(~stands & ~last)

        tables.drop_where(folder, stale, ["clip_id", "uri", "version", "error"])
        self._versions = Keys.of([])  # they have served, and are large
        known = done.keys()
        self.videos.keep(lambda pairs: ~known.has(pairs))
        return tried

    def _stands(self, rows: pa.Table) -> tuple[Flags, Flags]:
        """Of the clips whose video is listed in the same version: those whose row is no error worth another try, and
        those for which that is the last."""
        same = self._versions.has(keys(_versions(rows)))
        again, last = (told(rows.column("error")).to_numpy() for told in (retries.retried, retries.tried_once))
        return same & ~again, same & last


def _versions(rows: pa.Table) -> pa.ChunkedArray:
    """Each video's address and version as one text."""
    return pc.binary_join_element_wise(rows.column("uri"), pc.fill_null(rows.column("version"), ""), "\0")


def check(where: str, key: str, base: str | None) -> pa.Schema:
    """Read a listing to its end, for its columns. Raises InputError."""
    schema, blocks = _read(where, key, base)
    for _ in blocks:
        pass
    return schema


def _read(where: str, key: str, base: str | None) -> tuple[pa.Schema, Iterator[pa.Table]]:
    found = versioned.read(where, key, base)
    if found is not None:
        return found
    table = videos.videos(where, key, base)
    return table.schema, (table.slice(i, BLOCK) for i in range(0, table.num_rows, BLOCK))
