"""What tables lack of another table's clips, whatever their number, in the order in which it is worked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline import tables
from pipeline.scanning import Held, Keys, Rows
from pipeline.shuffling import Pairs, Shuffled, keys


def lacking(rows: Rows, folders: Sequence[str]) -> Shuffled:
    """The rows that every one of the tables lacks: they have no row of the clip, one of another version, or one whose
    error may be tried again; such a row is dropped."""
    held = [Held(folder) for folder in folders]
    stale = [list[Pairs]() for _ in folders]
    found = Shuffled(rows.schema)
    for block in rows:
        pairs = keys(block.column("clip_id"))
        lacks = [table.lacks(pairs, block.column("version")) for table in held]
        wanted = np.logical_and.reduce([new for new, _ in lacks])
        for gone, (_, gives_way) in zip(stale, lacks, strict=True):
            gone.append(pairs[gives_way & wanted])
        found.put(block.filter(pa.array(wanted)), pairs[wanted])
    for folder, blocks in zip(folders, stale, strict=True):
        _drop(folder, Keys.of(blocks))
    return found


def _drop(folder: str, clips: Keys) -> None:
    if len(clips):
        tables.drop_where(folder, lambda rows: pa.array(clips.has(keys(rows.column("clip_id")))), ["clip_id"])
