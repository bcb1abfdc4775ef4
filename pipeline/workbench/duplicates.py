"""Groups of clips that resemble one another: the cosine of their features is at least a threshold.

Up to EXACT clips every pair is compared. Of more, pairs that fall together in one of several random tables are
(random-hyperplane hashing, Charikar 2002): a pair of cosine 0.97 is missed with a chance below one in a hundred.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pipeline import tables
from pipeline.storage.stores import join
from pipeline.tables import schemas
from pipeline.workbench.index import NOT_RANKED, Floats, Index
from pipeline.workbench.scores import Features

EXACT = 20_000  # clips of which every pair is compared
BITS, TABLES, CROWD = 18, 24, 200  # of a random table; more clips in one place than CROWD are compared with the first
LEAST = 0.9  # the threshold below which features are no evidence of a copy
GROUPS = 2_000  # groups that are shown

Pairs = npt.NDArray[np.int64]


def groups(index: Index, features: Features, threshold: float) -> list[dict[str, Any]]:
    """Groups by feature, the closest first: {similarity, clips: [{clip_id, similarity, best}]}.

    The best is the one of the best rank for all motions, then of the largest picture, then the first id; a similarity
    is that with the best. Raises ValueError for a threshold below LEAST.
    """
    if not LEAST <= threshold <= 1:
        raise ValueError(f"threshold={threshold}: it must be at least {LEAST} and at most 1")
    pairs = list(_pairs(features.rows, threshold))
    if not pairs:
        return []
    a, b = np.concatenate(pairs).T
    n = len(features.rows)
    _, labels = connected_components(coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(n, n)), directed=False)
    together = np.unique(np.concatenate([a, b]))
    members: dict[int, list[int]] = {}
    for row in together.tolist():
        members.setdefault(int(labels[row]), []).append(row)
    listed = [_group(index, features, rows) for rows in members.values()]
    return sorted(listed, key=lambda group: (-group["similarity"], group["clips"][0]["clip_id"]))[:GROUPS]


def _group(index: Index, features: Features, rows: list[int]) -> dict[str, Any]:
    places = features.places[rows]
    rank = index.standing("all").rank[places].astype(np.int64)
    about = index.rows(places, ["clip_id", "height", "width"])
    area = [(row["height"] or 0) * (row["width"] or 0) for row in about]
    order = sorted(range(len(rows)), key=lambda n: (rank[n] if rank[n] != NOT_RANKED else 1 << 40, -area[n], n))
    best = features.rows[rows[order[0]]].astype(np.float32)
    cosine = [float(features.rows[rows[n]].astype(np.float32) @ best) for n in order]
    clips = [
        {"clip_id": about[n]["clip_id"], "similarity": round(min(1.0, c), 5), "best": place == 0}
        for place, (n, c) in enumerate(zip(order, cosine, strict=True))
    ]
    return {"similarity": max(clip["similarity"] for clip in clips[1:]), "clips": clips}


def _pairs(rows: npt.NDArray[np.float16], threshold: float) -> Iterator[Pairs]:
    if len(rows) <= EXACT:
        yield from _every_pair(rows, threshold)
        return
    rng = np.random.default_rng(0)
    for _ in range(TABLES):
        planes = rng.standard_normal((BITS, rows.shape[1])).astype(np.float32)
        keys = _hashed(rows, planes)
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.append(True, np.diff(keys[order]) != 0))
        for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(order)], strict=True):
            if stop - start > 1:
                yield from _within(rows, order[start:stop], threshold)


def _every_pair(rows: npt.NDArray[np.float16], threshold: float) -> Iterator[Pairs]:
    full = rows.astype(np.float32)
    for start in range(0, len(full), 1024):
        cosine = full[start : start + 1024] @ full[start:].T
        a, b = np.nonzero(cosine >= threshold)
        after = b > a
        yield np.stack([a[after] + start, b[after] + start], axis=1)


def _hashed(rows: npt.NDArray[np.float16], planes: Floats) -> npt.NDArray[np.int64]:
    weights = 1 << np.arange(BITS, dtype=np.int64)
    blocks = [
        ((rows[start : start + 65536].astype(np.float32) @ planes.T) > 0) @ weights
        for start in range(0, len(rows), 65536)
    ]
    return np.concatenate(blocks)


def _within(rows: npt.NDArray[np.float16], bucket: npt.NDArray[np.int64], threshold: float) -> Iterator[Pairs]:
    full = rows[bucket].astype(np.float32)
    first = full[: min(len(full), CROWD)]
    a, b = np.nonzero(first @ full.T >= threshold)
    after = b > a
    if after.any():
        yield np.stack([bucket[a[after]], bucket[b[after]]], axis=1)


def write(root: str, listed: list[dict[str, Any]]) -> str:
    """Write groups into duplicates/; the batch that they are."""
    batch = uuid.uuid4().hex
    rows = [
        {**clip, "batch": batch, "group": group["clips"][0]["clip_id"], "kind": "feature"}
        for group in listed
        for clip in group["clips"]
    ]
    tables.append(join(root, "duplicates"), pa.Table.from_pylist(rows, schema=schemas.DUPLICATES), {})
    return batch
