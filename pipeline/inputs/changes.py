"""The videos of a set against the table that has their clips, whatever their number: which are new, which clips go."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.errors import InputError
from pipeline.inputs import video_ids, videos
from pipeline.inputs.manifests import versioned
from pipeline.tables import retries
from pipeline.tables.ids import Flags, IdList, IdSet

BLOCK = 100_000  # videos in memory at a time


class Listing:
    """The videos of a folder, glob, shards or manifest, on the local disk, to be drawn in shuffled order; in memory are
    some 40 bytes a video. A manifest that tells versions (see `versioned`) is never in memory as a whole.

    Raises InputError, naming `key`.
    """

    def __init__(self, where: str, key: str, base: str | None) -> None:
        self.schema, blocks = _read(where, key, base)
        self._own = False  # whether videos have ids of their own
        versions, of_segments = IdList(), IdList()

        def named() -> Iterator[tuple[pa.Table, pa.ChunkedArray]]:
            for block in blocks:
                own = block.column("id")
                self._own = self._own or own.null_count < len(own)
                versions.add(_versions(block))
                of_segments.add(video_ids.videos_of(own.combine_chunks()))
                yield block, _names(block)

        self.videos = tables.shuffled(self.schema, named())
        self._check_names(where, key)
        self._check_segments(of_segments.to_set(), where, key)
        self._versions = versions.to_set()

    def _check_names(self, where: str, key: str) -> None:
        """Raise InputError where an id, or a file without one, is listed more than once."""
        if not self.videos.has_repeats:
            return
        repeated = set[str]()
        for rows in self.videos:
            names = _names(rows)
            repeated |= set(names.filter(pa.array(self.videos.is_repeated(names))).to_pylist())
        more = f" and {len(repeated) - 10} more" if len(repeated) > 10 else ""
        raise InputError(
            f"{key}={where!r}: in the manifest, {', '.join(sorted(repeated)[:10])}{more} is listed more than once. "
            "List every file once, or give its rows ids of their own in a column `id`; every id must be its own."
        )

    def _check_segments(self, of_segments: IdSet, where: str, key: str) -> None:
        """Raise InputError where a segment of one of these videos may be called as another video is."""
        if not len(of_segments):
            return
        shared = self.videos.names_among(of_segments)
        if not len(shared):
            return
        ids = set[str]()
        for rows in self.videos:
            for one in rows.column("id").drop_null().to_pylist():
                names = [one, video_ids.video_of(one) or one]
                if shared.has(pa.array(names, pa.string())).any():
                    ids.add(one)
        video_ids.check_segments(ids, where, key)

    def subtract(self, folder: str) -> set[str]:
        """Go on with the videos that have no rows of their present version in a table of clips. Rows of older versions,
        of videos that are not listed any more, and errors worth another try, are dropped from it, but for the errors of
        clips that are tried for the last time, which are returned."""
        done, last_tries = IdList(), set[str]()
        columns = ("uri", "clip_id") if self._own else ("uri",)

        def gives_way(rows: pa.Table) -> pa.Array:
            stands, last = self._stands(rows)
            finished = rows.filter(pa.array(stands))
            for column in columns:
                done.add(finished.column(column))
            last_tries.update(rows.column("clip_id").filter(pa.array(last)).to_pylist())
            return pa.array(~stands & ~last)

        tables.drop_where(folder, gives_way, ["clip_id", "uri", "version", "error"])
        self._versions = IdSet.of([])  # they have served, and are large
        self.videos.drop(done.to_set())
        return last_tries

    def _stands(self, rows: pa.Table) -> tuple[Flags, Flags]:
        """Of the clips whose video is listed in the same version: those whose row is no error worth another try, and
        those for which that is the last."""
        same = self._versions.has(_versions(rows))
        again, last = retries.retried(rows.column("error")), retries.tried_once(rows.column("error"))
        return same & ~again.to_numpy(), same & last.to_numpy()


def _names(videos: pa.Table) -> pa.ChunkedArray:
    """Each video's id of its own, else its address."""
    return pc.coalesce(videos.column("id"), videos.column("uri"))


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
    manifest = versioned.read(where, key, base)
    if manifest is not None:
        return manifest
    table = videos.videos(where, key, base)
    return table.schema, (table.slice(i, BLOCK) for i in range(0, table.num_rows, BLOCK))
