"""Videos as rows of clips, and the body of the actors that make them. It stands alone: they start without torch."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import Data, Run
from pipeline.errors import ClipError
from pipeline.tables import in_parts, purge_list, scanning, schemas
from pipeline.video.decoder import Decoder
from pipeline.video.decoders import decoder_for
from pipeline.video.stretches import segments_of

Row = dict[str, Any]

log = logging.getLogger(__name__)

_OWN = ("relative", "size", "id")  # columns of a video that its clips do not have


def clip_id(video: Mapping[str, Any], start_frame: int) -> str:
    """The manifest's own id, with the start frame where a segment starts later; else a hash of relative path, size and
    start frame: neither the place of the data nor the number of segments changes it. A span is part of the hash, as two
    of them may share a start."""
    if video.get("id") is not None:
        return f"{video['id']}-{start_frame}" if start_frame else str(video["id"])
    name = "\0".join([str(video["relative"]), str(video["size"]), str(start_frame), *_span(video)])
    return hashlib.blake2b(name.encode(), digest_size=8).hexdigest()


def _span(video: Mapping[str, Any]) -> tuple[str, ...]:
    return (str(video["span"]),) if video.get("span") else ()


def caption_of(video: Mapping[str, Any], seed: int, clip_id: str) -> str:
    """The clip's caption: where its video has several, one of them that belongs to seed and clip."""
    captions = video.get("captions") or [video.get("caption") or ""]
    name = hashlib.blake2b(f"caption {seed} {clip_id}".encode(), digest_size=8).digest()
    return str(captions[int.from_bytes(name, "little") % len(captions)])


def index(video: Mapping[str, Any], data: Data, decoder: Decoder, seed: int = 0) -> list[dict[str, Any]]:
    """The rows of one row of `videos.videos`: its segments, or one row with an `error`. Columns: those of
    `schemas.CLIPS` and whatever else the manifest has, `group` among it."""
    return rows_of(
        video, seed, lambda: decoder.index(str(video["uri"]), data.frames, data.fps, data.stride, *_span(video))
    )


def rows_of(
    video: Mapping[str, Any], seed: int, segments_of_video: Callable[[], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """The rows of a video of which a function gives the segments, or raises ClipError."""
    others = {k: v for k, v in video.items() if k not in _OWN}

    def row(start_frame: int, fields: Mapping[str, Any], error: str | None) -> dict[str, Any]:
        name = clip_id(video, start_frame)
        return {**others, "clip_id": name, "caption": caption_of(video, seed, name), **fields, "error": error}

    try:
        if video.get("error"):
            raise ClipError.of_row(video["error"])
        segments = segments_of_video()
        for segment in segments:
            _log_note(video, segment)
        _check_starts([segment["start_frame"] for segment in segments])
    except ClipError as error:
        empty = {"start_frame": 0, "num_frames": 0, "fps": 0.0, "height": 0, "width": 0, "cuts": []}
        return [row(0, empty, str(error))]
    return [row(segment["start_frame"], segment, segment["error"]) for segment in segments]


def _log_note(video: Mapping[str, Any], row: dict[str, Any]) -> None:
    note = row.pop("note", None)
    if note is not None:
        log.warning("%s: %s.", video["uri"], note)


def _check_starts(starts: list[int]) -> None:
    """Raise ClipError where segments begin at one frame: their clips would be of one id."""
    twice = [start for start, count in Counter(starts).items() if count > 1]
    if twice:
        raise ClipError("decode", f"{starts.count(twice[0])} of its segments begin at frame {twice[0]}; report this")


class IndexWorker:
    """Videos -> rows of clips, without those that were purged. With `planned`, the names of the videos of which
    stretches are planned already, long videos give rows of stretches."""

    def __init__(self, run: Run, schema: pa.Schema, planned: Collection[str] | None = None) -> None:
        self.run, self.schema, self.decoder = run, schema, decoder_for(run)
        self.purged = purge_list.digests(run.root)
        self._length = run.data.stretch if planned is not None else None
        self._planned = frozenset(planned or ())

    def __call__(self, videos: pa.Table) -> Iterator[dict[str, pa.Table]]:
        planned_rows = list[Row]()
        row_lists = (self._rows(video, planned_rows) for video in videos.to_pylist())
        for group in in_parts(row_lists):
            yield self._clips_table(row for rows in group for row in rows)
        if planned_rows:
            yield {"stretches": pa.Table.from_pylist(planned_rows, schema=schemas.STRETCHES)}

    def _rows(self, video: Row, planned_rows: list[Row]) -> list[Row]:
        """The rows of a video; none of a long one, whose stretches are added to the planned rows."""
        name, length = film_name(video["uri"], video["version"]), self._length
        if name in self._planned:
            return []
        if length is None or video.get("span"):
            return index(video, self.run.data, self.decoder, self.run.seed)
        stretches, d = list[Row](), self.run.data

        def segments() -> list[Row]:
            outcome = self.decoder.index_or_plan(str(video["uri"]), d.frames, d.fps, d.stride, length)
            stretches.extend(outcome["stretches"])
            return outcome["segments"]

        rows = rows_of(video, self.run.seed, segments)
        if not stretches:
            return rows
        for number, row in enumerate(stretches):
            _log_note(video, row)
            film = {"uri": video["uri"], "version": video["version"], "number": number, "count": len(stretches)}
            planned_rows.append({"stretch": f"{name}-{number}", **film, **row})
        return []

    def refuse(self, videos: pa.Table, error: ClipError) -> dict[str, pa.Table]:
        failed = [{**video, "error": str(error)} for video in videos.to_pylist()]
        return self._clips_table(
            row for video in failed for row in index(video, self.run.data, self.decoder, self.run.seed)
        )

    def _clips_table(self, rows: Iterable[Row]) -> dict[str, pa.Table]:
        clips = [row for row in rows if purge_list.digest(row["clip_id"]) not in self.purged]
        return {"clips": pa.Table.from_pylist(clips, schema=self.schema)}


# --- long videos -----------------------------------------------------------------------------------------------------


def film_name(uri: str, version: str | None) -> str:
    """What the stretches of one version of a video are called by."""
    return hashlib.blake2b(f"{uri}\0{version}".encode(), digest_size=12).hexdigest()


class StretchWorker:
    """Stretches of long videos -> what was noted of their frames, or why that cannot be used."""

    def __init__(self, run: Run) -> None:
        self.decoder = decoder_for(run)

    def __call__(self, stretches: pa.Table) -> Iterator[dict[str, pa.Table]]:
        for group in in_parts(self._changes(row) for row in stretches.to_pylist()):
            yield {"changes": pa.Table.from_pylist(group, schema=schemas.CHANGES)}

    def _changes(self, row: Row) -> Row:
        try:
            return {**_identity(row), **self.decoder.stretch(row["uri"], row["start_frame"], row["num_frames"])}
        except ClipError as error:
            return {**_identity(row), "problem": str(error)}

    def refuse(self, stretches: pa.Table, error: ClipError) -> dict[str, pa.Table]:
        rows = [{**_identity(row), "problem": str(error)} for row in stretches.to_pylist()]
        return {"changes": pa.Table.from_pylist(rows, schema=schemas.CHANGES)}


def _identity(row: Row) -> Row:
    return {name: row[name] for name in ("stretch", "uri", "version", "number", "count")}


class JoinWorker(IndexWorker):
    """Long videos -> rows of clips, by what was noted of their stretches; a video of which a stretch cannot be used is
    decoded once more, from its start to its end."""

    def __init__(self, run: Run, schema: pa.Schema, changes: str) -> None:
        super().__init__(run, schema)
        self._changes = changes

    def _rows(self, video: Row, planned_rows: list[Row]) -> list[Row]:
        stretches = changes_of(self._changes, film_name(video["uri"], video["version"]))
        problems = [row["problem"] for row in stretches if row["problem"] is not None]
        if not stretches or len(stretches) < stretches[0]["count"]:
            problems.append("it is not in the table")
        if problems:
            log.info("%s: a stretch of it cannot be used (%s); it is indexed as a whole.", video["uri"], problems[0])
            return index(video, self.run.data, self.decoder, self.run.seed)
        d = self.run.data
        return rows_of(video, self.run.seed, lambda: segments_of(stretches, d.frames, d.fps, d.stride))


def changes_of(folder: str, name: str) -> list[Row]:
    """The rows of a table of changes that belong to a film, in order."""
    rows = dict[int, Row]()
    for block in scanning.blocks(folder, schemas.CHANGES.names):
        of_film = block.filter(pc.starts_with(block.column("stretch"), f"{name}-"))
        rows |= {row["number"]: row for row in of_film.to_pylist()}
    return [rows[number] for number in sorted(rows)]
