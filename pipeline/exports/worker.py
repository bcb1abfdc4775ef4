"""The body of the actors that cut clips out of their videos."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from pipeline import tables
from pipeline.config import Run
from pipeline.errors import ClipError
from pipeline.exports.formats import Format
from pipeline.exports.trainers import one_line
from pipeline.storage import stores
from pipeline.tables import schemas
from pipeline.video.cut_clips import encode_clip
from pipeline.video.decoders import Frames, Geometry, Row, decoded, decoders_for

IN_TARS = ("uri", "source", "start_frame", "num_frames", "fps", "weight", "rank", "influence")


@dataclass(frozen=True)
class Video:
    """The bytes of a clip's file, and whether they are its source's."""

    content: bytes
    copied: bool


class ExportWorker:
    """Rows of `clip_rows` -> files in `folder`, and rows of the table of the export.

    A clip's frames are those at the training geometry, as fine-tuning reads them. A clip that cannot be decoded is a
    row whose `problem` says why, and has no file.
    """

    def __init__(self, run: Run, layout: Format, folder: str) -> None:
        self.run, self.layout, self.folder = run, layout, folder
        self.decoder = decoders_for(run, run.resources.export.cpus)

    def __call__(self, clips: pa.Table) -> Iterator[dict[str, pa.Table]]:
        rows = clips.to_pylist()
        if self.layout.clips == "tars":
            yield {"exports": _table(self._shard(rows))}
            return
        for group in tables.in_parts(self._files(rows)):
            yield {"exports": _table(group)}

    def refuse(self, clips: pa.Table, error: ClipError) -> dict[str, pa.Table]:
        return {"exports": _table([_refused(row, error) for row in clips.to_pylist()])}

    def _videos(self, rows: list[Row]) -> Iterator[tuple[Row, Video | ClipError]]:
        d = self.run.data
        geometry = (d.frames, d.fps, d.height, d.width)
        copies = {row["clip_id"]: video for row in rows if (video := self._copy(row, geometry)) is not None}
        others = decoded(self.decoder, self.run, [row for row in rows if row["clip_id"] not in copies], geometry)
        for row in rows:
            if row["clip_id"] in copies:
                yield row, Video(copies.pop(row["clip_id"]), copied=True)
                continue
            _, frames = next(others)
            yield row, frames if isinstance(frames, ClipError) else Video(self._encoded(frames), copied=False)

    def _copy(self, row: Row, geometry: Geometry) -> bytes | None:
        """The bytes of the clip's source where they may be taken as they are."""
        if self.run.export.video == "encode" or row["start_frame"]:
            return None
        try:
            return self.decoder.clip_bytes(row["uri"], *geometry)
        except ClipError:
            return None  # decoding it says what is wrong with it

    def _encoded(self, frames: Frames) -> bytes:
        return encode_clip(frames, self.run.data.fps, self.run.export.crf)

    def _files(self, rows: list[Row]) -> Iterator[Row]:
        for row, video in self._videos(rows):
            if isinstance(video, ClipError):
                yield _refused(row, video)
                continue
            stem = row["file"].removesuffix(".mp4")
            if self.layout.captions:
                stores.write_bytes(stores.join(self.folder, f"{stem}.txt"), one_line(row["caption"]).encode())
            stores.write_bytes(stores.join(self.folder, row["file"]), video.content)
            yield _cut(row, row["file"], video)

    def _shard(self, rows: list[Row]) -> list[Row]:
        """One tar of all these clips; its name belongs to their ids, so that a batch worked twice is one file."""
        identity = json.dumps(sorted(row["clip_id"] for row in rows))
        name = f"clips-{hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()}.tar"
        shard, finished = io.BytesIO(), list[Row]()
        with tarfile.open(fileobj=shard, mode="w") as tar:
            for row, video in self._videos(rows):
                if isinstance(video, ClipError):
                    finished.append(_refused(row, video))
                    continue
                key = row["file"].rsplit("/", 1)[-1].removesuffix(".mp4")
                facts = {"clip_id": row["clip_id"], "caption": row["caption"], **{c: row[c] for c in IN_TARS}}
                _add(tar, f"{key}.mp4", video.content)
                _add(tar, f"{key}.txt", row["caption"].encode())
                _add(tar, f"{key}.json", json.dumps(facts, ensure_ascii=False).encode())
                finished.append(_cut(row, name, video))
        if any(row["problem"] is None for row in finished):
            stores.write_bytes(stores.join(self.folder, name), shard.getvalue())
        return finished


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # without a time or an owner: equal clips give equal bytes
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _cut(row: Row, file: str, video: Video) -> Row:
    identity = {"clip_id": row["clip_id"], "version": row["version"]}
    return {**identity, "file": file, "bytes": len(video.content), "copied": video.copied, "problem": None}


def _refused(row: Row, error: ClipError) -> Row:
    identity = {"clip_id": row["clip_id"], "version": row["version"]}
    return {**identity, "file": None, "bytes": None, "copied": None, "problem": str(error)}


def _table(rows: list[Row]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=schemas.EXPORTS)
