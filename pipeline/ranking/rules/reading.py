"""The rules of a run's selection, read from its tables."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.config import Run
from pipeline.errors import ConfigError
from pipeline.motion import signature
from pipeline.ranking import partitions, shortlist
from pipeline.ranking.feature_table import FeatureTable
from pipeline.ranking.rules.choice import Array, Cap, Pairs, Rows, Rules
from pipeline.ranking.rules.near_duplicates import Blocks, similar_pairs
from pipeline.storage.stores import join
from pipeline.tables import IdSet, scanning

log = logging.getLogger(__name__)

Similar = tuple[Rows, Rows, Array]  # pairs of rows and how alike they are


def check_columns(run: Run, schemas: Iterable[pa.Schema]) -> None:
    """Raise ConfigError for a cap on a column that clips do not have, or whose values are no plain ones."""
    kinds = {field.name: field.type for schema in schemas for field in schema}
    for column in run.ranking.caps:
        if column not in kinds:
            raise ConfigError(
                f"ranking.caps: clips of data.videos={run.data.videos!r} have no column {column!r}. They have "
                f"{', '.join(sorted(kinds))}. Name one of them, or leave this cap out."
            )
        if pa.types.is_nested(kinds[column]):
            raise ConfigError(
                f"ranking.caps: the column {column!r} holds {kinds[column]}, and a cap counts clips of one value. Name "
                "a column of texts or numbers."
            )


class Clips:
    """The rows of a ranking by clip_id."""

    def __init__(self, clip_ids: pa.LargeStringArray) -> None:
        self._ids = IdSet.of([clip_ids])
        self._rows = np.empty(len(clip_ids), np.int64)
        self._rows[self._ids.find(clip_ids)] = np.arange(len(clip_ids))

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, clip_ids: pa.ChunkedArray) -> Rows:
        """The row of each of these clips; -1 for those that are not ranked."""
        places = self._ids.find(clip_ids)
        return np.where(places >= 0, self._rows[places], -1)


def read(run: Run, features: FeatureTable, order: Rows) -> Rules:
    """What `ranking.duplicates` and `ranking.caps` ask of the clips that have features. `order` has their rows from
    best to worst."""
    if run.ranking.duplicates is None and not run.ranking.caps:
        return Rules()
    clips = Clips(features.clip_ids)
    return Rules(_pairs(run, features, clips, order), _caps(run, clips))


# --- caps -------------------------------------------------------------------------------------------------------------


def _caps(run: Run, clips: Clips) -> tuple[Cap, ...]:
    most = run.ranking.caps
    if not most:
        return ()
    codes = {column: np.full(len(clips), -1, np.int32) for column in most}
    numbers: dict[str, dict[str | None, int]] = {column: {} for column in most}
    for block in partitions.blocks(run, "clips", ["clip_id", *(column for column in most if column != "clip_id")]):
        rows = clips.rows(block.column("clip_id"))
        for column in most:
            texts = block.column(column).cast(pa.string()).combine_chunks()
            coded = texts.dictionary_encode(null_encoding="encode")
            known = numbers[column]
            number = np.array([known.setdefault(value, len(known)) for value in coded.dictionary.to_pylist()], np.int32)
            codes[column][rows[rows >= 0]] = number[coded.indices.to_numpy()][rows >= 0]
    return tuple(Cap(c, n, codes[c], pa.array(list(numbers[c]), pa.string())) for c, n in most.items())


# --- near-duplicates --------------------------------------------------------------------------------------------------


def _pairs(run: Run, features: FeatureTable, clips: Clips, order: Rows) -> Pairs | None:
    asked = run.ranking.duplicates
    if asked is None:
        return None
    by_feature = by_picture = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    if asked.feature is not None:
        by_feature = similar_pairs(feature_blocks(features), order, asked.feature)
    if asked.picture is not None:
        by_picture = similar_pairs(_pictures(run, clips), order, asked.picture)
    return joined(by_feature, by_picture, len(clips))


def feature_blocks(features: FeatureTable) -> Blocks:
    def blocks() -> Iterator[tuple[Rows, Array]]:
        return features.map_rows(lambda phi, rows: (np.arange(rows.start, rows.stop), phi))

    return blocks


def _pictures(run: Run, clips: Clips) -> Blocks:
    """The signatures of the clips that have one. A warning says how many have none."""

    def signatures() -> Iterator[tuple[Rows, list[bytes]]]:
        for block in _signatures(run):
            shown = block.filter(pc.is_valid(block.column("signature")))
            rows = clips.rows(shown.column("clip_id"))
            yield rows[rows >= 0], shown.column("signature").filter(pa.array(rows >= 0)).to_pylist()

    def blocks() -> Iterator[tuple[Rows, Array]]:
        return ((rows, signature.unit_rows(numbers)) for rows, numbers in signatures() if numbers)

    missing = np.ones(len(clips), bool)
    for rows, _ in signatures():
        missing[rows] = False
    if missing.any():
        log.warning(
            "ranking.duplicates: %d of %d ranked clips have no signature in pictures/, and are compared by their "
            "features alone. They are of one colour, or were computed before there were signatures; clips that are "
            "computed from now on get one.",
            int(missing.sum()),
            len(missing),
        )
    return blocks


def _signatures(run: Run) -> Iterator[pa.Table]:
    columns = ["clip_id", "signature"]
    if run.attribution.shortlist is None:
        yield from partitions.blocks(run, "pictures/clips", columns)
        return
    folder = join(shortlist.motion_root(run), "pictures", "clips")
    if tables.parts(folder):
        yield from scanning.blocks(folder, columns)


def joined(by_feature: Similar, by_picture: Similar, count: int) -> Pairs:
    """The pairs of `count` rows of both kinds, each once; of a pair that is both, the cosine of the features."""
    first, second = (np.concatenate([by_feature[n], by_picture[n]]) for n in (0, 1))
    similarity = np.concatenate([by_feature[2], by_picture[2]])
    pictures = np.arange(len(first)) >= len(by_feature[0])
    _, once = np.unique(first * count + second, return_index=True)
    return Pairs(first[once], second[once], similarity[once], pictures[once])
