"""Influence of every clip on every query, and what follows from it: tables influence/, neighbors/, selection/."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.attribution import fingerprints
from pipeline.config import Run
from pipeline.ranking import choosing
from pipeline.ranking.selection import influence_tables, neighbors_table, rank, selection_tables, unranked
from pipeline.stages import run_record
from pipeline.stages.progress import Progress
from pipeline.storage.stores import join
from pipeline.tables import schemas


def rank_clips(run: Run) -> None:
    fingerprint = fingerprints.ranking(run)
    for name in ("clips", "queries"):
        tables.check(join(run.root, "features", name), fingerprints.features(run.of(name)))
    report = Progress("rank_clips")
    ranked = rank(run, run.ranking.mask, run.ranking.whiten, lambda done, total: report(done, total, {}))
    run_record.record(run)
    others, decided = unranked(run, ranked), Counter[str]()
    marks = ranked.marks(run.ranking.vote_fraction, run.ranking.neighbors)
    schema = schemas.influence_schema(len(ranked.query_ids))
    for name, columns, rows in (
        ("influence", schema, influence_tables(ranked)),
        ("neighbors", schemas.NEIGHBORS, [neighbors_table(ranked, run.ranking.neighbors, marks)]),
        ("selection", schemas.SELECTION, _counted(selection_tables(ranked, run.ranking, marks, others), decided)),
    ):
        folder = join(run.root, name)
        tables.replace_streamed(folder, columns, rows, fingerprint, query_ids=ranked.query_ids)
    split = " + ".join(f"{decided[d]} {d}" for d in ("selected", "neutral", "harmful"))
    print(f"selection: {decided.total()} clips = {split} ({others.num_rows} of them not ranked)")
    for sentence in choosing.sentences(choosing.quality(run)):
        print(f"shortlist: {sentence}")


def _counted(blocks: Iterable[pa.Table], decided: Counter[str]) -> Iterator[pa.Table]:
    """The same tables; counts what is decided for all queries together as they pass."""
    for table in blocks:
        counts = table.filter(pc.equal(table.column("group"), "all")).column("decision").value_counts()
        decided.update({row["values"]: row["counts"] for row in counts.to_pylist()})
        yield table
