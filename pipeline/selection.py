"""From the features tables of a run to its ranking: influence, neighbours and a decision on every clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import schemas, stores, tables
from pipeline.config import ConfigError, Ranking, Run
from pipeline.ranking import influence, select, unit_settings

Array = npt.NDArray[np.float32]


def under_mask(table: pa.Table, settings: Sequence[Mapping[str, Any]], mask: str) -> tuple[list[str], Array]:
    """The clips that have features under a mask, and those features: ids [N], [N, settings under it * k].

    Each setting's part is normalised and divided by the root of their number. A still clip has none under "motion".
    """
    members = [i for i, setting in enumerate(settings) if setting["mask"] == mask]
    if not members:
        raise ConfigError(f"attribution.settings has no setting with mask: {mask}; add one and extract features again.")
    table = table.filter(table.column("error").is_null())
    norms = tables.matrix(table, "norm")[:, members]
    usable = (norms > 0).all(1)
    ids = table.column("clip_id").filter(pa.array(usable)).to_pylist()
    features = tables.matrix(table, "feature")
    dim = features.shape[1] // len(settings)
    kept = features.reshape(-1, len(settings), dim)[usable][:, members]
    return ids, unit_settings(kept.reshape(-1, len(members) * dim), len(members))


@dataclass(frozen=True)
class Ranked:
    """Influence [N, Q] of clips on queries, with their ids and the queries' groups."""

    clip_ids: list[str]
    query_ids: list[str]
    groups: list[str]
    influence: Array

    def of(self, group: str) -> Array:
        """The columns of one group's queries; "all" is every query."""
        kept = [i for i, g in enumerate(self.groups) if group in ("all", g)]
        return self.influence[:, kept]

    @property
    def all_groups(self) -> list[str]:
        return ["all", *sorted(set(self.groups) - {"all"})]


def rank(run: Run, mask: str, whiten: float | None) -> Ranked:
    """Influence of every clip with features under `mask` on every such query. Raises ConfigError where there are
    none."""
    ids, features = _features(run, "clips", mask)
    query_ids, queries = _features(run, "queries", mask)
    if not query_ids:
        raise ConfigError(
            f"queries: no query has a feature under mask {mask!r} (a query without motion has none); "
            "give queries that move, or lower motion.still."
        )
    if not ids:
        raise ConfigError(f"data.videos: no clip has a feature under mask {mask!r}, so there is nothing to rank.")
    table = tables.read(stores.join(run.root, "queries"), ["clip_id", "group"])
    named = dict(zip(*(table.column(c).to_pylist() for c in ("clip_id", "group")), strict=True)) if table else {}
    groups = [named.get(i) or "all" for i in query_ids]
    return Ranked(ids, query_ids, groups, influence(features, queries, whiten))


def _features(run: Run, name: str, mask: str) -> tuple[list[str], Array]:
    folder = stores.join(run.root, "features", name)
    table = tables.read(folder)
    if table is None:
        raise ConfigError(f"root={run.root!r} has no table features/{name}; run extract_features first, or curate.")
    return under_mask(table, tables.metadata(folder)["settings"], mask)


def influence_table(ranked: Ranked) -> pa.Table:
    columns = [pa.array(ranked.clip_ids, pa.string()), tables.vectors(ranked.influence)]
    return pa.table(columns, schema=schemas.influence_schema(len(ranked.query_ids)))


def neighbors_table(ranked: Ranked, count: int) -> pa.Table:
    """Each query's nearest and farthest clips: rank 0 is the most positive, or the most negative."""
    rows = []
    for q, query_id in enumerate(ranked.query_ids):
        column = ranked.influence[:, q]
        placed = np.lexsort((np.asarray(ranked.clip_ids), -column))
        for sign, ends in (("positive", placed[:count]), ("negative", placed[::-1][:count])):
            rows += [
                {
                    "query_id": query_id,
                    "clip_id": ranked.clip_ids[n],
                    "rank": place,
                    "influence": float(column[n]),
                    "sign": sign,
                }
                for place, n in enumerate(ends)
            ]
    return pa.Table.from_pylist(rows, schema=schemas.NEIGHBORS)


def selection_table(ranked: Ranked, config: Ranking, unranked: Mapping[str, str]) -> pa.Table:
    """A decision on every clip for every group of queries; `unranked` clips have no feature, for the reason given."""
    found = []
    for group in ranked.all_groups:
        table = select(
            ranked.of(group),
            ranked.clip_ids,
            config.by,
            config.fraction,
            config.harmful,
            config.vote_fraction,
            config.above,
            config.below,
        )
        found.append(_with_group(table, group))
        rows = [
            {
                "clip_id": i,
                "group": group,
                "votes": 0,
                "decision": "neutral",
                "weight": 0.0,
                "reason": f"not ranked: {why}",
            }
            for i, why in sorted(unranked.items())
        ]
        found.append(pa.Table.from_pylist(rows, schema=schemas.SELECTION))
    return pa.concat_tables(found)


def _with_group(table: pa.Table, group: str) -> pa.Table:
    table = table.append_column("group", pa.array([group] * table.num_rows, pa.string()))
    return table.select(schemas.SELECTION.names).cast(schemas.SELECTION)


def unranked(run: Run, ranked: Ranked) -> dict[str, str]:
    """Every clip of the run without a place in the ranking, and why."""
    why: dict[str, str] = {}
    for folder in ("clips", "motion/clips", "features/clips"):
        table = tables.read(stores.join(run.root, folder), ["clip_id", "error"])
        if table is not None:
            pairs = zip(table.column("clip_id").to_pylist(), table.column("error").to_pylist(), strict=True)
            why |= {i: e for i, e in pairs if e is not None or i not in why}
    placed = set(ranked.clip_ids)
    return {i: e or "it has no feature under the ranking's mask" for i, e in why.items() if i not in placed}
