"""The videos of a set against the table that has their clips, whatever their number: which are new, which clips go."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.errors import InputError
from pipeline.inputs import video_ids, videos
from pipeline.inputs.folders import folder_listing
from pipeline.inputs.manifests import versioned
from pipeline.inputs.shards import members
from pipeline.inputs.video_set import VideoSet
from pipeline.tables import retries
from pipeline.tables.ids import Flags, IdList, IdSet
from pipeline.tables.schemas import CAPTIONS

BLOCK = 100_000  # videos in memory at a time


class Listing:
    """The videos of a folder, glob, shards or manifest, on the local disk, to be drawn in shuffled order; in memory are
    some 40 bytes a video. A manifest that tells versions (see `versioned`) is never in memory as a whole.

    Raises InputError, naming `key`.
    """

    def __init__(self, asked: VideoSet) -> None:
        self.schema, blocks = blocks_of(asked)
        self._own = False  # whether videos have ids of their own
        self.captions = CaptionShare()
        of_versions, of_segments, ids_of_spans = IdList(), IdList(), IdList()
        digest = ListingDigest(self.schema)

        def named() -> Iterator[tuple[pa.Table, pa.ChunkedArray]]:
            for block in blocks:
                own = block.column("id")
                self._own = self._own or own.null_count < len(own)
                self.captions.add(block)
                digest.add(block)
                of_versions.add(versions(block, own))
                of_segments.add(video_ids.videos_of(own.combine_chunks()))
                if "span" in self.schema.names:
                    ids_of_spans.add(own.drop_null())
                yield block, _names(block)

        self.videos = tables.shuffled(self.schema, named())
        self.digest = digest.text()  # as `digest_of` gives it
        self.captions.check(asked)
        self._check_names(asked)
        self._check_ids_of_spans(ids_of_spans.to_set(), asked)
        self._check_segments(of_segments.to_set(), asked)
        self._versions = of_versions.to_set()

    def _check_names(self, asked: VideoSet) -> None:
        """Raise InputError where an id, or a file without one, is listed more than once."""
        if not self.videos.has_repeats:
            return
        repeated = set[str]()
        for rows in self.videos:
            names = _names(rows)
            repeated |= set(names.filter(pa.array(self.videos.is_repeated(names))).to_pylist())
        more = f" and {len(repeated) - 10} more" if len(repeated) > 10 else ""
        raise InputError(
            f"{asked.named}: in the manifest, {', '.join(sorted(repeated)[:10])}{more} is listed more than once. "
            "List every file once, or give its rows ids of their own in a column `id`; every id must be its own."
        )

    def _check_ids_of_spans(self, ids: IdSet, asked: VideoSet) -> None:
        """Raise InputError where several rows with spans have one id."""
        repeated = (ids.digests[1:] == ids.digests[:-1]).all(axis=1)
        if not repeated.any():
            return
        twice = ids.subset(np.append(repeated, False))
        names = set[str]()
        for rows in self.videos:
            own = rows.column("id").drop_null()
            names |= set(own.filter(pa.array(twice.has(own))).to_pylist())
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        raise InputError(
            f"{asked.named}: in the manifest, {', '.join(sorted(names)[:10])}{more} is the id of more than one row. "
            "Every span of a video needs an id of its own; correct them, or leave the column `id` out."
        )

    def _check_segments(self, of_segments: IdSet, asked: VideoSet) -> None:
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
        video_ids.check_segments(ids, asked.where, asked.key)

    def subtract(self, folder: str) -> set[str]:
        """Go on with the videos that have no rows of their present version in a table of clips. Rows of older versions,
        of videos that are not listed any more or have another id, and errors worth another try, are dropped from it,
        but for the errors of clips that are tried for the last time, which are returned."""
        done, last_tries = IdList(), set[str]()

        def gives_way(rows: pa.Table) -> pa.Array:
            stands, last = self._stands(rows)
            finished = rows.filter(pa.array(stands))
            done.add(_addresses(finished))
            if self._own:
                done.add(finished.column("clip_id"))
            last_tries.update(rows.column("clip_id").filter(pa.array(last)).to_pylist())
            return pa.array(~stands & ~last)

        tables.drop_where(folder, gives_way, ["clip_id", "start_frame", "uri", "version", "error", "span"])
        self._versions = IdSet.of([])  # they have served, and are large
        self.videos.drop(done.to_set())
        return last_tries

    def leave_out(self, is_gone: Callable[[str], bool]) -> None:
        """Go on without the videos of which this is true of their address and version, as `versions` gives them."""
        names = IdList()
        for rows in self.videos:
            names.add(_names(rows).filter(pa.array(map(is_gone, versions(rows).to_pylist()), pa.bool_())))
        self.videos.drop(names.to_set())

    def _stands(self, rows: pa.Table) -> tuple[Flags, Flags]:
        """Of the clips whose video is listed in the same version and under the same id: those whose row is no error
        worth another try, and those for which that is the last. An id that is not listed any more stays where the
        video has none now."""
        same = self._versions.has(versions(rows))
        if self._own:
            same |= self._versions.has(versions(rows, _ids(rows)))
        again, last = retries.retried(rows.column("error")), retries.tried_once(rows.column("error"))
        return same & ~again.to_numpy(), same & last.to_numpy()


def _names(videos: pa.Table) -> pa.ChunkedArray:
    """What tells each video from the others: the address of one with a span, else its own id, else its address. (The
    first clip of a span is not called as its row is.)"""
    own = pc.coalesce(videos.column("id"), videos.column("uri"))
    if "span" not in videos.column_names:
        return own
    return pc.if_else(pc.is_valid(videos.column("span")), _addresses(videos), own)


def _addresses(rows: pa.Table) -> pa.ChunkedArray:
    """Each video's address, with the span that a row of it is about."""
    uri = rows.column("uri")
    if "span" not in rows.column_names:
        return uri
    span = rows.column("span").cast(pa.string())
    return pc.coalesce(pc.binary_join_element_wise(uri, span, " "), uri)


def versions(rows: pa.Table, ids: pa.ChunkedArray | None = None) -> pa.ChunkedArray:
    """Of rows of videos or clips each video's address and version, with its own id where it has one, as one text."""
    whole = pc.binary_join_element_wise(_addresses(rows), pc.fill_null(rows.column("version"), ""), "\0")
    return whole if ids is None else pc.coalesce(pc.binary_join_element_wise(whole, ids, "\0"), whole)


def _ids(clips: pa.Table) -> pa.ChunkedArray:
    """The id of each clip's video, if it has one of its own: see `video_ids`."""
    names, later = clips.column("clip_id"), pc.greater(pc.fill_null(clips.column("start_frame"), 0), 0)
    return pc.if_else(later, pc.replace_substring_regex(names, "-[0-9]+$", ""), names)


class CaptionShare:
    """How many of the videos that can be used have no caption."""

    def __init__(self) -> None:
        self.empty, self.videos = 0, 0

    def add(self, rows: pa.Table) -> None:
        captions = rows.column("caption").filter(pc.is_null(rows.column("error")))
        self.videos += len(captions)
        self.empty += pc.sum(pc.equal(captions, "")).as_py() or 0

    def sentence(self) -> str:
        share = self.empty / self.videos if self.videos else 0.0
        return f"without a caption: {self.empty} of {self.videos} videos ({share:.1%})"

    def check(self, asked: VideoSet) -> None:
        """Raise InputError where their share is above what the set allows."""
        if self.empty <= asked.empty_captions * self.videos:
            return
        raise InputError(
            f"{asked.named}: {self.sentence()}, more than data.empty_captions={asked.empty_captions:g} allows. "
            f"Looked for were {looked_for(asked.where)}. Correct the names, or set data.empty_captions=1 if these "
            "videos have no captions: empty ones are used then."
        )


class ListingDigest:
    """A hash of all that a listing says of its videos, in its order: two listings that say the same have the same."""

    def __init__(self, schema: pa.Schema) -> None:
        self._hash = hashlib.blake2b(repr([(field.name, str(field.type)) for field in schema]).encode(), digest_size=16)

    def add(self, rows: pa.Table) -> None:
        texts = pa.table([_as_texts(column) for column in rows.columns], names=rows.column_names)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, texts.schema) as stream:
            stream.write_table(texts.combine_chunks())
        self._hash.update(sink.getvalue())

    def text(self) -> str:
        return self._hash.hexdigest()


def _as_texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts without nulls, whose bytes in memory are the same wherever the values are."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return pc.fill_null(column.cast(pa.string()), "\0")
    return pa.chunked_array([pa.array([json.dumps(value, default=repr) for value in column.to_pylist()], pa.string())])


def digest_of(asked: VideoSet) -> str:
    """The digest of a set's listing as it is now. Raises InputError, ConfigError."""
    schema, blocks = blocks_of(asked)
    digest = ListingDigest(schema)
    for block in blocks:
        digest.add(block)
    return digest.text()


def looked_for(where: str) -> str:
    """Where captions are looked for at a place, in words."""
    columns = f"a column {' | '.join(CAPTIONS)} | captions"
    end = posixpath.splitext(where.lower())[1]
    if end in videos.MANIFESTS:
        return columns
    if end in members.EXTENSIONS:
        return f"{', '.join(members.CAPTION_MEMBERS)} beside each video in its shard, and {columns}"
    return f"NAME.txt beside each video, {', '.join(folder_listing.METADATA)} with {columns}"


def check(asked: VideoSet) -> pa.Schema:
    """Read a listing to its end, for its columns and captions. Raises InputError."""
    schema, blocks = blocks_of(asked)
    captions = CaptionShare()
    for block in blocks:
        captions.add(block)
    captions.check(asked)
    return schema


def blocks_of(asked: VideoSet) -> tuple[pa.Schema, Iterator[pa.Table]]:
    """The columns and the videos of a set, BLOCK at a time. Of a manifest that tells versions no more is in memory.
    Raises InputError."""
    manifest = versioned.read(asked)
    if manifest is not None:
        return manifest
    table = videos.of_set(asked)
    return table.schema, (table.slice(i, BLOCK) for i in range(0, table.num_rows, BLOCK))
