"""Videos as rows of clips, and the body of the actors that make them. It stands alone: they start without torch."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from pipeline.config import Data, Run
from pipeline.errors import ClipError
from pipeline.tables import in_parts, purge_list
from pipeline.video.decoder import Decoder

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
    others = {k: v for k, v in video.items() if k not in _OWN}

    def row(start_frame: int, fields: Mapping[str, Any], error: str | None) -> dict[str, Any]:
        name = clip_id(video, start_frame)
        return {**others, "clip_id": name, "caption": caption_of(video, seed, name), **fields, "error": error}

    try:
        if video.get("error"):
            code, _, sentence = str(video["error"]).partition(": ")
            raise ClipError(code, sentence)
        segments = decoder.index(str(video["uri"]), data.frames, data.fps, data.stride, *_span(video))
        for segment in segments:
            note = segment.pop("note", None)
            if note is not None:
                log.warning("%s: %s.", video["uri"], note)
        _check_starts([segment["start_frame"] for segment in segments])
    except ClipError as error:
        empty = {"start_frame": 0, "num_frames": 0, "fps": 0.0, "height": 0, "width": 0, "cuts": []}
        return [row(0, empty, str(error))]
    return [row(segment["start_frame"], segment, segment["error"]) for segment in segments]


def _check_starts(starts: list[int]) -> None:
    """Raise ClipError where segments begin at one frame: their clips would be of one id."""
    twice = [start for start, count in Counter(starts).items() if count > 1]
    if twice:
        raise ClipError("decode", f"{starts.count(twice[0])} of its segments begin at frame {twice[0]}; report this")


class IndexWorker:
    """Videos -> rows of clips, without those that were purged."""

    def __init__(self, run: Run, schema: pa.Schema) -> None:
        self.run, self.schema, self.decoder = run, schema, Decoder(run.data.decode_timeout)
        self.purged = purge_list.digests(run.root)

    def __call__(self, videos: pa.Table) -> Iterator[dict[str, pa.Table]]:
        row_lists = (index(video, self.run.data, self.decoder, self.run.seed) for video in videos.to_pylist())
        for group in in_parts(row_lists):
            yield self._kept(row for rows in group for row in rows)

    def refuse(self, videos: pa.Table, error: ClipError) -> dict[str, pa.Table]:
        failed = [{**video, "error": str(error)} for video in videos.to_pylist()]
        return self._kept(row for video in failed for row in index(video, self.run.data, self.decoder, self.run.seed))

    def _kept(self, rows: Iterable[dict[str, Any]]) -> dict[str, pa.Table]:
        clips = [row for row in rows if purge_list.digest(row["clip_id"]) not in self.purged]
        return {"clips": pa.Table.from_pylist(clips, schema=self.schema)}
