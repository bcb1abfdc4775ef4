"""What tables lack of another table's clips, whatever their number, in the order in which it is worked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.tables.retries import tried_once
from pipeline.tables.scanning import Gathered, Held, Keys, Rows
from pipeline.tables.shuffling import Shuffled, keys


def lacking(rows: Rows, folders: Sequence[str]) -> tuple[Shuffled, set[str]]:
    """The rows that every one of the tables lacks: they have no row of the clip, one of another version, or one whose
    error may be tried again. Such a row is dropped, but where this is the clip's last try: those clips are the second
    part of the answer, and their rows stay until `settle`, so that no kill forgets them."""
    held = [Held(folder) for folder in folders]
    stale = [Gathered() for _ in folders]
    found, tried = Shuffled(rows.schema), set[str]()
    for block in rows:
        pairs = keys(block.column("clip_id"))
        lacks = [table.lacks(pairs, block.column("version")) for table in held]
        wanted = np.logical_and.reduce([new for new, _, _ in lacks])
        for gone, (_, gives_way, last) in zip(stale, lacks, strict=True):
            gone.put(pairs[gives_way & wanted])
            tried.update(block.column("clip_id").filter(pa.array(last & wanted)).to_pylist())
        found.put(block.filter(pa.array(wanted)), pairs[wanted])
    for folder, gone in zip(folders, stale, strict=True):
        _drop(folder, gone.keys())
    return found, tried


def settle(folder: str, tried: set[str]) -> None:
    """Drop the errors that the last tries, each of which has a row by now, were for."""
    if tried:
        ids = pa.array(sorted(tried), pa.string())
        tables.drop_where(
            folder,
            lambda rows: pc.and_(pc.is_in(rows.column("clip_id"), ids), tried_once(rows.column("error"))),
            ["clip_id", "error"],
        )


def _drop(folder: str, clips: Keys) -> None:
    if len(clips):
        tables.drop_where(folder, lambda rows: pa.array(clips.has(keys(rows.column("clip_id")))), ["clip_id"])
