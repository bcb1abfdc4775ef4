"""Which clips an export hands on, under which names, and what is known of each."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.config import TIMED, Run
from pipeline.errors import ConfigError, UsageError
from pipeline.exports import weights
from pipeline.exports.formats import Format
from pipeline.storage import stores
from pipeline.training import arms

FROM_CLIPS = ("clip_id", "uri", "version", "source", "start_frame", "num_frames", "fps", "caption", "weight")
_LICENCE = re.compile("licen[cs]e", re.IGNORECASE)
_STEM = re.compile(r"[A-Za-z0-9_-]{1,80}")


def clip_rows(run: Run, layout: Format) -> pa.Table:
    """The clips of `export.arm` and `export.group`, by clip_id.

    Columns: FROM_CLIPS, the manifest's columns of a licence, `rank` and `influence` (null where the group's selection
    does not have them), `file` (its path in the export), `dataset` and `repeats`. Raises UsageError where the arm has
    no clips or the run lacks what its rule needs.
    """
    if run.export.arm in TIMED:
        raise ConfigError(
            f"export.arm={run.export.arm!r} trains each clip at times of its own, and no trainer's list of clips can "
            f"say so. Take export.arm={TIMED[run.export.arm]}, which has the clips that it picks."
        )
    finetune = run.finetune.model_copy(update={"arm": run.export.arm, "group": run.export.group})
    try:
        rows = arms.training_set(run.model_copy(update={"finetune": finetune}))
    except UsageError as error:  # it knows the arm by the keys of fine-tuning
        raise UsageError(str(error).replace("finetune.", "export.")) from error
    if rows is None:
        raise ConfigError(
            "export.arm='base' trains on no clips, so there are none to hand on. Take another arm; for the videos that "
            "the base generated, take an evaluation suite's format, such as export.format=videophy2."
        )
    licences = [name for name in rows.column_names if _LICENCE.search(name)]
    rows = rows.select([*FROM_CLIPS, *licences])
    rows = rows.set_column(rows.column_names.index("caption"), "caption", pc.fill_null(rows.column("caption"), ""))
    return _placed(_ranked(run, rows), run, layout)


def _ranked(run: Run, rows: pa.Table) -> pa.Table:
    """The rows with `rank` and `influence` of the group's selection."""
    selection = tables.read(stores.join(run.root, "selection"), ["clip_id", "group", "rank", "mean_influence"])
    if selection is None:
        columns = {"rank": pa.nulls(rows.num_rows, pa.int64()), "influence": pa.nulls(rows.num_rows, pa.float32())}
    else:
        selection = selection.filter(pc.equal(selection.column("group"), run.export.group))
        places = pc.index_in(rows.column("clip_id"), selection.column("clip_id").combine_chunks())
        ranked = selection.take(places.combine_chunks())
        columns = {"rank": ranked.column("rank"), "influence": ranked.column("mean_influence")}
    for name, column in columns.items():
        rows = rows.append_column(name, column)
    return rows


def _placed(rows: pa.Table, run: Run, layout: Format) -> pa.Table:
    """The rows with `file`, `dataset` and `repeats`, as the trainer can have the weights."""
    shares = rows.column("weight").to_numpy().astype(np.float64)
    one = np.zeros(len(shares), np.int64)
    if layout.weighting == "data sets":
        places = weights.bins(shares, run.export.datasets)
        counts = one + 1 if layout.probability else weights.repeats(shares, places)[places]
    elif layout.weighting == "rows":
        places, values = one, np.unique(shares, return_inverse=True)[1].reshape(-1).astype(np.int64)
        counts = weights.repeats(shares, values)[values]
    else:
        places, counts = one, one + 1
    several = bool(places.any()) and layout.folder_a_dataset
    stems = file_stems(rows.column("clip_id").to_pylist())
    folders = [f"{layout.folder}-{place}" if several else layout.folder for place in places.tolist()]
    files = [f"{folder}/{stem}.mp4" for folder, stem in zip(folders, stems, strict=True)]
    columns = {"file": pa.array(files, pa.string()), "dataset": pa.array(places), "repeats": pa.array(counts)}
    for name, column in columns.items():
        rows = rows.append_column(name, column)
    return rows


def file_stems(clip_ids: Sequence[str]) -> list[str]:
    """The name of each clip's file, without its end: the id itself, or where it holds what names should not, or differs
    from another one by capitals alone, a part of it and a hash. A dot ends a key of WebDataset, so it is none of them.
    """
    counts = Counter(clip_id.casefold() for clip_id in clip_ids)
    return [_stem(clip_id, counts[clip_id.casefold()] == 1) for clip_id in clip_ids]


def _stem(clip_id: str, is_unique: bool) -> str:
    if is_unique and _STEM.fullmatch(clip_id):
        return clip_id
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", clip_id)[:60].strip("_")
    name = hashlib.blake2b(clip_id.encode(), digest_size=6).hexdigest()
    return f"{plain}-{name}" if plain else name


def digest(run: Run, layout: Format, rows: pa.Table) -> str:
    """A hash of all that an export's files depend on: its clips with their texts and places, and how they are cut."""
    d, e = run.data, run.export
    settings = [layout.name, e.path, e.model, e.crf, d.frames, d.fps, d.height, d.width, rows.column_names]
    if e.video != "encode":
        settings.append(e.video)
    if d.scaler != "pillow":
        settings.append(f"data.scaler={d.scaler}")
    return rows_digest(settings, rows)


def rows_digest(settings: Sequence[Any], rows: pa.Table) -> str:
    """A hash of settings and of rows in their order."""
    hashed = hashlib.blake2b(json.dumps(settings).encode(), digest_size=8)
    for batch in rows.to_batches(10_000):
        for row in batch.to_pylist():
            hashed.update(json.dumps(row, sort_keys=True, default=str).encode())
    return hashed.hexdigest()


def draws(rows: Iterable[dict[str, Any]], layout: Format) -> list[float]:
    """How often a trainer draws each clip, in one unit for all, as the export tells it."""
    listed = list(rows)
    if not layout.probability:
        return [float(row["repeats"]) for row in listed]
    sums: dict[int, float] = {}
    counts: dict[int, int] = {}
    for row in listed:
        sums[row["dataset"]] = sums.get(row["dataset"], 0.0) + row["weight"]
        counts[row["dataset"]] = counts.get(row["dataset"], 0) + 1
    return [sums[row["dataset"]] / counts[row["dataset"]] for row in listed]
