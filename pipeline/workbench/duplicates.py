"""Groups of clips that are copies: of one video's bytes, or with features whose cosine is at least a threshold.

By bytes a store's etags are compared (equal MD5), and local files of one size: their two ends first, then all of those
whose ends are the same.
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pipeline import tables
from pipeline.inputs.folders.files import is_etag
from pipeline.inputs.shards import members as shard_members
from pipeline.ranking.rules.near_duplicates import similar_pairs
from pipeline.storage.stores import join
from pipeline.tables import schemas
from pipeline.workbench.index import NOT_RANKED, Floats, Index
from pipeline.workbench.scores import Features

BLOCK = 1 << 16  # clips whose features are in single precision at a time
LEAST = 0.9  # the threshold below which features are no evidence of a copy
GROUPS = 2_000  # groups that are shown

ENDS = 4096  # bytes at either end of a file that are read first
MOST_READ = 8 << 30  # bytes of files that are read to the end
_SIZE = re.compile(r"([0-9]+)-[0-9]+")  # of a local file's version, which is size and modification time

Rows = npt.NDArray[np.int64]
Group = dict[str, Any]


def groups(index: Index, features: Features, threshold: float) -> list[Group]:
    """Groups by feature, the closest first: {similarity, clips: [{clip_id, similarity, best}]}.

    The best is the one of the best rank for all motions, then of the largest picture, then the first id; a similarity
    is that with the best. Raises ValueError for a threshold below LEAST.
    """
    if not LEAST <= threshold <= 1:
        raise ValueError(f"threshold={threshold}: it must be at least {LEAST} and at most 1")
    a, b = _pairs(index, features, threshold)
    if not len(a):
        return []
    n = len(features.rows)
    _, labels = connected_components(coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(n, n)), directed=False)
    together = np.unique(np.concatenate([a, b]))
    members: dict[int, list[int]] = {}
    for row in together.tolist():
        members.setdefault(int(labels[row]), []).append(row)
    listed = [_group(index, features, rows) for rows in members.values()]
    return sorted(listed, key=lambda group: (-group["similarity"], group["clips"][0]["clip_id"]))[:GROUPS]


def _group(index: Index, features: Features, rows: list[int]) -> Group:
    def cosine(a: int, b: int) -> float:
        return float(features.rows[rows[a]].astype(np.float32) @ features.rows[rows[b]].astype(np.float32))

    return _ordered(index, features.places[rows].tolist(), cosine)


def _ordered(index: Index, places: Sequence[int], similarity: Callable[[int, int], float]) -> Group:
    """A group with its best clip first; `similarity` is told two of its places in `places`."""
    rank = index.standing("all").rank[list(places)].astype(np.int64)
    about = index.rows(places, ["clip_id", "height", "width"])
    area = [(row["height"] or 0) * (row["width"] or 0) for row in about]
    order = sorted(range(len(places)), key=lambda n: (rank[n] if rank[n] != NOT_RANKED else 1 << 40, -area[n], n))
    clips = [
        {
            "clip_id": about[n]["clip_id"],
            "similarity": round(min(1.0, similarity(n, order[0])), 5),
            "best": n == order[0],
        }
        for n in order
    ]
    return {"similarity": max(clip["similarity"] for clip in clips[1:]), "clips": clips}


# --- by bytes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Copies:
    """`groups` as those by feature, of similarity 1; `unread` counts the videos that could not be compared: in shards,
    in a store that tells no MD5, not to be read, or beyond MOST_READ bytes."""

    groups: list[Group]
    unread: int


def copies(index: Index) -> Copies:
    """Groups of clips that are the same frames of the same bytes, under several ids or addresses."""
    names = [
        name for name in ("uri", "version", "start_frame", "num_frames", "span") if name in index.clips.schema.names
    ]
    rows = index.clips.select(names).to_pydict()
    part_names = [name for name in names if name not in ("uri", "version")]
    parts = list(zip(*(rows[name] for name in part_names), strict=True))
    versions = dict(zip(rows["uri"], rows["version"], strict=True))
    contents, unread = _contents(versions)
    members: dict[tuple[Any, ...], list[int]] = {}
    for at, (uri, part) in enumerate(zip(rows["uri"], parts, strict=True)):
        members.setdefault((contents.get(uri, uri), *part), []).append(at)
    errors = index.clips.column("error").is_valid().to_numpy()
    usable = ([at for at in places if not errors[at]] for places in members.values())
    listed = [_ordered(index, places, lambda a, b: 1.0) for places in usable if len(places) > 1]
    return Copies(sorted(listed, key=lambda group: str(group["clips"][0]["clip_id"]))[:GROUPS], unread)


def _contents(versions: dict[str, str | None]) -> tuple[dict[str, str], int]:
    """A text for the bytes of each video that another one may share, and how many videos could not be compared."""
    contents, unread, by_size = dict[str, str](), 0, dict[int, list[str]]()
    for uri, version in versions.items():
        if shard_members.inside(uri) is not None:
            unread += 1
        elif "://" in uri:
            if is_etag(version):
                contents[uri] = f"etag {version}"
            else:
                unread += 1
        elif (size := _size(uri, version)) is None:
            unread += 1
        else:
            by_size.setdefault(size, []).append(uri)
    left = MOST_READ
    for size, same_size in by_size.items():
        ends = _shared(same_size, ENDS)
        unread += len(same_size) - len(ends) if len(same_size) > 1 else 0
        for same_ends in _together(ends):
            if size <= 2 * ENDS:  # which is all of them
                contents |= {uri: f"{size} {ends[uri]}" for uri in same_ends}
                continue
            if size * len(same_ends) > left:
                unread += len(same_ends)
                continue
            left -= size * len(same_ends)
            whole = _shared(same_ends, None)
            unread += len(same_ends) - len(whole)
            contents |= {uri: f"{size} {digest}" for uri, digest in whole.items()}
    return contents, unread


def _size(path: str, version: str | None) -> int | None:
    match = _SIZE.fullmatch(version or "")
    if match:
        return int(match[1])
    try:
        return os.path.getsize(path)
    except OSError:
        return None


def _shared(paths: Sequence[str], ends: int | None) -> dict[str, str]:
    """A digest of each file, of its ends or of all of it; none of one that cannot be read, or is one of its size."""
    if len(paths) < 2:
        return {}
    digests = {}
    for path in paths:
        try:
            digests[path] = _digest(path, ends)
        except OSError:
            continue
    return digests


def _digest(path: str, ends: int | None) -> str:
    if not os.path.isfile(path):
        raise OSError(f"{path} is no file")
    with open(path, "rb") as file:
        if ends is None:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        digest = hashlib.blake2b(file.read(ends), digest_size=16)
        file.seek(max(file.tell(), file.seek(0, os.SEEK_END) - ends))
        digest.update(file.read(ends))
        return digest.hexdigest()


def _together(digests: dict[str, str]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for path, digest in digests.items():
        groups.setdefault(digest, []).append(path)
    return [paths for paths in groups.values() if len(paths) > 1]


# --- by feature -------------------------------------------------------------------------------------------------------


def _pairs(index: Index, features: Features, threshold: float) -> tuple[Rows, Rows]:
    rows = features.rows

    def blocks() -> Iterator[tuple[Rows, Floats]]:
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK].astype(np.float32)
            yield np.arange(start, start + len(block)), block

    order = np.argsort(index.standing("all").rank[features.places], kind="stable")
    first, second, _ = similar_pairs(blocks, order, threshold)
    return first, second


def write(root: str, listed: list[Group], kind: str) -> str:
    """Write groups by `bytes` or by `feature` into duplicates/; the batch that they are."""
    batch = uuid.uuid4().hex
    rows = [
        {**clip, "batch": batch, "group": group["clips"][0]["clip_id"], "kind": kind}
        for group in listed
        for clip in group["clips"]
    ]
    tables.append(join(root, "duplicates"), pa.Table.from_pylist(rows, schema=schemas.DUPLICATES), {})
    return batch
