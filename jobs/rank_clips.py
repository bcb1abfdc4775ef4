"""Influence of every clip on every query, and what follows from it: tables influence/, neighbors/, selection/."""

from __future__ import annotations

from collections import Counter

import pyarrow.compute as pc

from jobs import command
from pipeline import fingerprints, stores, tables
from pipeline.config import Run
from pipeline.selection import influence_table, neighbors_table, rank, selection_table, unranked


def rank_clips(run: Run) -> None:
    fingerprint = {**fingerprints.features(run), "ranking": run.ranking.model_dump()}
    for name in ("clips", "queries"):
        tables.check(stores.join(run.root, "features", name), fingerprints.features(run))
    ranked = rank(run, run.ranking.mask, run.ranking.whiten)
    command.record(run)
    others = unranked(run, ranked)
    found = {
        "influence": influence_table(ranked),
        "neighbors": neighbors_table(ranked, run.ranking.neighbors),
        "selection": selection_table(ranked, run.ranking, others),
    }
    for name, table in found.items():
        tables.replace(stores.join(run.root, name), table, fingerprint, query_ids=ranked.query_ids)
    total = found["selection"].filter(pc.equal(found["selection"].column("group"), "all"))
    decided = Counter(total.column("decision").to_pylist())
    split = " + ".join(f"{decided[d]} {d}" for d in ("selected", "neutral", "harmful"))
    print(f"selection: {total.num_rows} clips = {split} ({len(others)} of them not ranked)")


if __name__ == "__main__":
    command.main(rank_clips, __doc__)
