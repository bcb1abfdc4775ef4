"""Controls: what else, with no video model, would have selected the same clips: motion magnitude, and mask overlap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import stores, tables
from pipeline.summary import groups, of_group

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.uint8]  # [latent frames, h, w]


def masks(root: str, kind: str, batch: int = 64) -> Iterator[tuple[str, Mask]]:
    """The masks of a motion table, a few at a time: those of a large run do not fit into memory together."""
    fs, _ = stores.place(root)
    for path in tables.parts(stores.join(root, "motion", kind)):
        with fs.open(path, "rb") as file:
            for rows in pq.ParquetFile(file).iter_batches(batch, columns=["clip_id", "mask", "mask_shape", "error"]):
                for row in rows.to_pylist():
                    if row["error"] is None and row["mask"]:
                        yield row["clip_id"], np.frombuffer(row["mask"], np.uint8).reshape(row["mask_shape"])


def _unit(mask: Mask) -> Floats:
    flat = mask.astype(np.float64).ravel()
    unit: Floats = flat / max(float(np.linalg.norm(flat)), 1e-12)
    return unit


def mask_overlaps(
    root: str, query_groups: Mapping[str, str], keep: frozenset[tuple[str, str]]
) -> tuple[dict[str, dict[str, float]], dict[tuple[str, str], Mask]]:
    """How much each clip's mask looks like the queries' masks, with no model at all; and the masks to `keep`.

    The overlap is the mean over a group's queries of the cosine of the two masks, for every group and for "all"; only
    masks of one shape are compared. Returns group -> clip_id -> overlap, and ("clips" or "queries", id) -> mask.
    """
    kept: dict[tuple[str, str], Mask] = {}
    sums: dict[tuple[str, tuple[int, ...]], Floats] = {}
    counts: Counter[tuple[str, tuple[int, ...]]] = Counter()
    for query_id, mask in masks(root, "queries"):
        if ("queries", query_id) in keep:
            kept["queries", query_id] = mask
        for group in {"all", query_groups.get(query_id, "all")}:
            key = (group, mask.shape)
            sums[key] = sums.get(key, np.zeros(mask.size)) + _unit(mask)
            counts[key] += 1
    found: dict[str, dict[str, float]] = {}
    for clip_id, mask in masks(root, "clips"):
        if ("clips", clip_id) in keep:
            kept["clips", clip_id] = mask
        unit = _unit(mask)
        for (group, shape), total in sums.items():
            if shape == mask.shape:
                found.setdefault(group, {})[clip_id] = float(unit @ total) / counts[group, shape]
    return found, kept


def spearman(a: Floats, b: Floats) -> float | None:
    """Rank correlation with ties averaged; None where it is not defined."""
    finite = np.isfinite(a) & np.isfinite(b)
    a, b = _ranks(a[finite]), _ranks(b[finite])
    if len(a) < 3 or a.std() == 0 or b.std() == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: Floats) -> Floats:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Floats = (ends - (counts - 1) / 2)[place]
    return ranks


def compare(influence: Floats, other: Floats, chosen: npt.NDArray[np.bool_]) -> dict[str, float | None]:
    """What share of the chosen clips the top of `other`, of the same size, would have chosen too; NaN is never chosen.

    Rows are ordered by id, so ties are broken the same way every time.
    """
    size = int(chosen.sum())
    finite = np.isfinite(other)
    top = np.argsort(-np.where(finite, other, -np.inf), kind="stable")[:size]
    share = float(chosen[top][finite[top]].sum()) / size if size and finite.any() else None
    return {"share": share, "spearman": spearman(influence, other)}


def overlaps(table: pa.Table, mask_overlap: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """For every group: how the selection agrees with motion magnitude alone and with mask overlap alone."""
    found = {}
    for group in groups(table):
        rows = of_group(table, group).sort_by("clip_id")
        chosen = pc.equal(rows.column("decision"), "selected").to_numpy().astype(bool)
        influence = rows.column("mean_influence").to_numpy().astype(np.float64)
        magnitude = rows.column("motion_mean").to_numpy().astype(np.float64)
        overlap = mask_overlap.get(group, {})
        alike = np.array([overlap.get(i, np.nan) for i in rows.column("clip_id").to_pylist()], np.float64)
        found[group] = {
            "selected": int(chosen.sum()),
            "ranked": len(chosen),
            "chance": float(chosen.mean()) if len(chosen) else None,
            "chance_sd": _chance_sd(len(chosen), int(chosen.sum())),
            "magnitude": compare(influence, magnitude, chosen),
            "mask_overlap": compare(influence, alike, chosen),
        }
    return found


def _chance_sd(ranked: int, size: int) -> float | None:
    """Standard deviation of the share that two random sets of `size` of `ranked` clips have in common."""
    if ranked < 2 or not size:
        return None
    return float(np.sqrt((1 - size / ranked) ** 2 / (ranked - 1)))
