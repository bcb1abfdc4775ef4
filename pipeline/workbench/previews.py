"""Films of clips: H.264, 256 pixels wide, every frame of the segment at its rate. Nothing raw is ever served.

Made when somebody looks, by the decoder's child, and kept in a local folder of bounded size; or written ahead into
packs under ``ROOT/previews/packs``, where the table previews/ says which bytes are whose.
"""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.config import Run
from pipeline.errors import ClipError, StoreError, code_of
from pipeline.storage import stores
from pipeline.storage.parallel import in_order
from pipeline.storage.stores import join
from pipeline.tables import schemas
from pipeline.video.cut_clips import encode_clip
from pipeline.video.decoder import Decoder
from pipeline.video.decoders import decoder_for

log = logging.getLogger(__name__)

WIDTH, CRF, PRESET = 256, 28, "veryfast"
PACK_CLIPS, PACK_BYTES = 500, 32 << 20
AGAIN = 30.0  # seconds after which a video that could not be fetched is tried again

Row = Mapping[str, Any]


def size(height: int, width: int) -> tuple[int, int]:
    """Height and width of a film, even, of a picture of this size: no wider than WIDTH, and never enlarged."""
    wide = max(2, min(WIDTH, width) // 2 * 2)
    return max(2, round(wide * height / max(1, width) / 2) * 2), wide


def make(decoder: Decoder, row: Row) -> bytes:
    """The film of a row of clips/ or queries/. Raises ClipError where its video cannot be decoded."""
    high, wide = size(row["height"], row["width"])
    frames = decoder.frames(row["uri"], row["start_frame"], row["num_frames"], row["fps"], high, wide)
    return encode_clip(frames, row["fps"], CRF, PRESET)


class Previews:
    """Films by what they are of: "clips" or "queries", and an id. Threads share it.

    `folder` is a private local folder for what is made. Films that nobody has looked at for longest go, so that it
    holds at most `most` bytes.
    """

    def __init__(self, run: Run, folder: str, most: float, decoders: int) -> None:
        self._run, self._folder, self._most = run, folder, most
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self._free: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
        self._decoders = [decoder_for(run) for _ in range(decoders)]
        for decoder in self._decoders:
            self._free.put(decoder)
        self._lock = threading.Lock()
        self._bytes = sum(entry.stat().st_size for entry in os.scandir(folder))
        self._failed: dict[str, tuple[float, ClipError]] = {}
        self._making: dict[str, threading.Lock] = {}
        self._packed = packed_rows(run.root)

    def film(self, kind: str, row: Row) -> bytes:
        """A film's bytes. Raises ClipError where there is none, and says why."""
        if row["error"] is not None and code_of(row["error"]) not in ("no_motion", "not_finite"):
            raise ClipError.of_row(row["error"])
        name = hashlib.blake2b(f"{kind} {row['clip_id']} {row['version']}".encode(), digest_size=16).hexdigest()
        data = self._cached(name) or self._from_pack(row)
        if data is not None:
            return data
        with self._lock:
            at, error = self._failed.get(name, (0.0, None))
            if error is not None and (error.code != "read" or time.monotonic() - at < AGAIN):
                raise error
            own = self._making.setdefault(name, threading.Lock())
        try:
            with own:  # several who look at one clip wait for one film
                data = self._cached(name)
                if data is None:
                    data = self._made(name, row)
        finally:
            with self._lock:
                self._making.pop(name, None)
        return data

    def _made(self, name: str, row: Row) -> bytes:
        try:
            with self.decoder() as decoder:
                data = make(decoder, row)
        except ClipError as error:
            with self._lock:
                self._failed[name] = time.monotonic(), error
            raise
        self._keep(name, data)
        return data

    @contextmanager
    def decoder(self) -> Iterator[Decoder]:
        """One of the decoders, for as long as the body runs."""
        decoder = self._free.get()
        try:
            yield decoder
        finally:
            self._free.put(decoder)

    def refresh(self) -> None:
        """Read anew which films were written ahead."""
        self._packed = packed_rows(self._run.root)

    def close(self) -> None:
        for decoder in self._decoders:
            decoder.close()

    # --- the folder ---

    def _cached(self, name: str) -> bytes | None:
        path = os.path.join(self._folder, name)
        try:
            with open(path, "rb") as file:
                data = file.read()
            os.utime(path)
        except FileNotFoundError:
            return None
        return data

    def _keep(self, name: str, data: bytes) -> None:
        """Keep a film, and let go of those that nobody has looked at for longest."""
        try:
            stores.write_bytes(os.path.join(self._folder, name), data)
        except StoreError as error:  # a full disk: films are made again, which is slower
            log.warning("films are not kept: %s", error)
            return
        with self._lock:
            self._bytes += len(data)
            if self._bytes <= self._most:
                return
            entries = sorted(os.scandir(self._folder), key=lambda entry: entry.stat().st_mtime)
            self._bytes = sum(entry.stat().st_size for entry in entries)
            for entry in entries:
                if self._bytes <= 0.8 * self._most or entry.name == name:
                    break
                self._bytes -= entry.stat().st_size
                os.unlink(entry.path)

    # --- packs ---

    def _from_pack(self, row: Row) -> bytes | None:
        place = self._packed.get((row["clip_id"], row["version"]))
        if place is None:
            return None
        pack, offset, count = place
        fs, bare = stores.place(join(self._run.root, "previews", "packs", pack))
        try:
            data = bytes(fs.cat_file(bare, offset, offset + count))
        except FileNotFoundError:  # a purge took the pack: the film is made again
            return None
        return data if len(data) == count else None


def packed_rows(root: str) -> dict[tuple[str, str], tuple[str, int, int]]:
    """(clip_id, version) -> pack, offset, bytes of every film that was written ahead."""
    table = tables.read(join(root, "previews"))
    if table is None:
        return {}
    rows = table.select(["clip_id", "version", "pack", "offset", "bytes"]).to_pylist()
    return {(row["clip_id"], row["version"]): (row["pack"], row["offset"], row["bytes"]) for row in rows}


def write_ahead(run: Run, rows: Sequence[Row], decoders: int, report: Callable[[int, int], None]) -> int:
    """Write the films of these rows into packs, but for those that have one; how many cannot be decoded.

    A pack is written before its rows: after a kill, a pack without rows is left, and its films are made once more.
    """
    existing = packed_rows(run.root)
    pending = [row for row in rows if (row["clip_id"], row["version"]) not in existing]
    free: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
    made = [decoder_for(run) for _ in range(decoders)]
    for decoder in made:
        free.put(decoder)

    def one(row: Row) -> bytes | ClipError:
        decoder = free.get()
        try:
            return make(decoder, row)
        except ClipError as error:
            return error
        finally:
            free.put(decoder)

    failed, pack = 0, list[tuple[Row, bytes]]()
    try:
        films = in_order(one, pending)
        for done, (row, film) in enumerate(zip(pending, films, strict=True)):
            report(done, len(pending))
            if isinstance(film, ClipError):
                failed += 1
                continue
            pack.append((row, film))
            if len(pack) >= PACK_CLIPS or sum(len(data) for _, data in pack) >= PACK_BYTES:
                _write_pack(run.root, pack)
                pack = []
        if pack:
            _write_pack(run.root, pack)
    finally:
        for decoder in made:
            decoder.close()
    return failed


def _write_pack(root: str, pack: Sequence[tuple[Row, bytes]]) -> None:
    name, offset, rows = f"{uuid.uuid4().hex}.pack", 0, []
    for row, film in pack:
        about = {"clip_id": row["clip_id"], "version": row["version"], "pack": name, "offset": offset}
        rows.append({**about, "bytes": len(film), "frames": row["num_frames"], "fps": row["fps"]})
        offset += len(film)
    stores.write_bytes(join(root, "previews", "packs", name), b"".join(film for _, film in pack))
    tables.append(join(root, "previews"), pa.Table.from_pylist(rows, schema=schemas.PREVIEWS), {})


def best_first(clips: pa.Table, order: Sequence[int], most: int) -> list[dict[str, Any]]:
    """The rows of clips that can be shown, in an order, at most so many."""
    rows = clips.take(pa.array(order, pa.int64()))
    listed: list[dict[str, Any]] = rows.filter(pc.is_null(rows.column("error"))).slice(0, most).to_pylist()
    return listed
