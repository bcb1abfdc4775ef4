"""How much clips' motion masks look like the queries', with no model at all: a control for the mask's position."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.storage import stores
from pipeline.tables.part_files import opened

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]  # [latent frames, h, w]
Shape = tuple[int, ...]
Key = tuple[str, str]  # "clips" or "queries", and the id

BATCH = 64  # masks in memory at a time: those of a large run do not fit together


@dataclass(frozen=True)
class Alike:
    """For each group of queries the overlap of every clip [N], in the order of `clip_ids`; NaN where no query's mask is
    of the clip's shape."""

    clip_ids: pa.StringArray
    groups: dict[str, Array]


def mask_overlaps(
    root: str,
    query_groups: Mapping[str, str],
    keep: frozenset[Key] = frozenset(),
    clip_roots: Sequence[str] | None = None,
) -> tuple[Alike, dict[Key, Mask]]:
    """The overlap of the clips of a root's motion/ with every group of queries and with "all", and the masks to `keep`.

    It is the mean over the group's queries of the cosine of the two masks; only masks of one shape are compared.
    `clip_roots` are the roots of the clips where they lie in others than the queries.
    """
    kept_masks: dict[Key, Mask] = {}
    sums: dict[Shape, dict[str, Array]] = defaultdict(dict)
    counts: dict[tuple[str, Shape], int] = defaultdict(int)
    for ids, masks in _masks(root, "queries"):
        kept_masks |= _masks_of("queries", ids, masks, keep)
        for query_id, mask in zip(ids.to_pylist(), masks, strict=True):
            for group in {"all", query_groups.get(query_id, "all")}:
                sums[mask.shape][group] = sums[mask.shape].get(group, 0) + _unit(mask[None])[0]
                counts[group, mask.shape] += 1
    names = sorted({group for group, _ in counts})
    means = {
        shape: (list(of), np.stack([total / np.float32(counts[group, shape]) for group, total in of.items()], 1))
        for shape, of in sums.items()
    }
    blocks, overlaps = list[pa.Array](), {name: list[Array]() for name in names}
    of_clips = (_masks(one, "clips") for one in clip_roots or (root,))
    for ids, masks in itertools.chain.from_iterable(of_clips):
        kept_masks |= _masks_of("clips", ids, masks, keep)
        blocks.append(ids)
        for name, values in zip(names, _overlaps(masks, names, means).T, strict=True):
            overlaps[name].append(values)
    listed = pa.chunked_array(blocks, pa.string()).combine_chunks()
    return Alike(
        listed, {name: np.concatenate(arrays or [np.empty(0, np.float32)]) for name, arrays in overlaps.items()}
    ), kept_masks


def _overlaps(masks: list[Mask], names: list[str], means: Mapping[Shape, tuple[list[str], Array]]) -> Array:
    """[masks, groups]"""
    values = np.full((len(masks), len(names)), np.nan, np.float32)
    by_shape: dict[Shape, list[int]] = defaultdict(list)
    for n, mask in enumerate(masks):
        by_shape[mask.shape].append(n)
    for shape in by_shape.keys() & means.keys():
        groups, mean = means[shape]
        rows = np.array(by_shape[shape])
        columns = np.array([names.index(g) for g in groups])
        values[np.ix_(rows, columns)] = _unit(np.stack([masks[n] for n in by_shape[shape]])) @ mean
    return values


def _unit(masks: npt.NDArray[np.uint8]) -> Array:
    """[n, ...] -> rows of length one: [n, numbers]"""
    flat = masks.reshape(len(masks), -1).astype(np.float32)
    unit: Array = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), np.float32(1e-12))
    return unit


def _masks_of(kind: str, ids: pa.Array, masks: list[Mask], keep: frozenset[Key]) -> dict[Key, Mask]:
    return {(kind, i): m for i, m in zip(ids.to_pylist(), masks, strict=True) if (kind, i) in keep}


def _masks(root: str, kind: str) -> Iterator[tuple[pa.StringArray, list[Mask]]]:
    """The ids and masks of a motion table, a few at a time."""
    fs, _ = stores.place(root)
    for path in tables.parts(stores.join(root, "motion", kind)):
        with opened(path, fs) as file:
            for batch in file.iter_batches(BATCH, columns=["clip_id", "mask", "mask_shape", "error"]):
                rows = batch.filter(pc.and_(batch.column("error").is_null(), batch.column("mask").is_valid()))
                shapes = rows.column("mask_shape").to_pylist()
                values = (np.frombuffer(mask.as_buffer(), np.uint8) for mask in rows.column("mask"))
                yield rows.column("clip_id"), [v.reshape(s) for v, s in zip(values, shapes, strict=True)]
