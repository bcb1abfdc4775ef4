"""Clips by the likeness of their embeddings to the queries': a control for what another model sees in whole videos."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import Run
from pipeline.errors import InputError, NothingUsableError
from pipeline.inputs import embeddings

log = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]


def places(run: Run) -> tuple[str, str]:
    """Where the embeddings of clips and of queries are. Raises ConfigError."""
    clips = embeddings.located("data.embeddings", run.data.embeddings, run.data.videos)
    return clips, embeddings.located("queries.embeddings", run.queries.embeddings, run.queries.videos)


def similarities(run: Run, clips: pa.Table, queries: pa.Table) -> tuple[pa.Array, Array]:
    """The ids of the clips that have an embedding, and the mean cosine of each with the queries [n].

    Raises ConfigError, InputError, and NothingUsableError where no query or no clip has an embedding.
    """
    of_clips, of_queries = places(run)
    names = embeddings.video_ids(clips).combine_chunks().dictionary_encode()
    cosines = _cosines(of_clips, names.dictionary, _mean(of_queries, queries), of_queries)
    score = cosines[names.indices.to_numpy()]
    known = np.isfinite(score)
    if not known.any():
        raise NothingUsableError(_nothing(of_clips, "clips", names.dictionary))
    if not known.all():
        log.warning("%s: %d of %d clips have no embedding, and come last", of_clips, int((~known).sum()), len(known))
    return clips.column("clip_id").combine_chunks().filter(pa.array(known)), score[known]


def _mean(place: str, queries: pa.Table) -> Array:
    """The mean of the queries' unit embeddings [d]: a product with it is the mean cosine."""
    names = embeddings.video_ids(queries).unique()
    rows = [rows for _, rows in _of(place, names)]
    count = sum(map(len, rows))
    if not count:
        raise NothingUsableError(_nothing(place, "queries", names))
    if count < len(names):
        log.warning("%s: %d of %d queries have no embedding: left out", place, len(names) - count, len(names))
    mean: Array = np.concatenate(rows).mean(0)
    return mean


def _cosines(place: str, names: pa.Array, mean: Array, of_queries: str) -> Array:
    """The mean cosine of each of these videos [n]; NaN where a video has no embedding."""
    cosines = np.full(len(names), np.nan, np.float32)
    for ids, rows in _of(place, names):
        if rows.shape[1] != len(mean):
            raise InputError(
                f"the embeddings of {place} have {rows.shape[1]} numbers, and those of {of_queries} {len(mean)}: they "
                "are of two models. Give embeddings of one model for both."
            )
        cosines[pc.index_in(ids, names).to_numpy()] = rows @ mean
    return cosines


def _of(place: str, names: pa.Array) -> Iterator[tuple[pa.Array, Array]]:
    """The blocks of a place's embeddings without those that none of these videos has."""
    for ids, rows in embeddings.blocks(place):
        known = pc.is_in(ids, names)
        if pc.any(known).as_py():
            yield ids.filter(known), rows[known.to_numpy(zero_copy_only=False)]


def _nothing(place: str, what: str, names: pa.Array) -> str:
    first = names[0].as_py() if len(names) else "none"
    return (
        f"{place}: it has the embedding of none of the {len(names)} videos of the {what}, the first of which is called "
        f"{first!r}. Its column {embeddings.ID} has to be the name of a video's file without its ending."
    )
