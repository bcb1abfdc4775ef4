"""Influence of every clip on every query, how lawfully each moves, and what follows: tables influence/, neighbors/,
lawfulness/, selection/."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.attribution import fingerprints
from pipeline.attribution.fingerprints import Fingerprint
from pipeline.config import Run
from pipeline.ranking import choosing, lawfulness, partitions
from pipeline.ranking.selection import influence_tables, neighbors_table, rank, selection_tables, unranked
from pipeline.stages import run_record
from pipeline.stages.progress import Progress
from pipeline.storage.stores import join
from pipeline.tables import schemas
from pipeline.tables.merging import merge


def rank_clips(run: Run) -> None:
    fingerprint = fingerprints.ranking(run)
    partitions.check(run)
    for name in ("decisions", "query_weights", "likes"):  # a part for every keystroke
        merge(join(run.root, name))
    if not run.ranking.roots:
        for name in ("clips", "queries"):
            tables.check(join(run.root, "features", name), fingerprints.features(run.of(name)))
    report = Progress("rank_clips")
    ranked = rank(run, run.ranking.mask, run.ranking.whiten, lambda done, total: report(done, total, {}))
    run_record.record(run)
    partitions.copy_queries(run)
    others, decided = unranked(run, ranked), Counter[str]()
    marks = ranked.marks(run.ranking.vote_fraction, run.ranking.neighbors)
    unlawful = measure_lawfulness(run, fingerprint)
    schema = schemas.influence_schema(len(ranked.query_ids))
    selected = selection_tables(ranked, run.ranking, marks, others, unlawful)
    for name, columns, rows in (
        ("influence", schema, influence_tables(ranked)),
        ("neighbors", schemas.NEIGHBORS, [neighbors_table(ranked, run.ranking.neighbors, marks)]),
        ("selection", schemas.SELECTION, _counted(selected, decided)),
    ):
        folder = join(run.root, name)
        tables.replace_streamed(folder, columns, rows, fingerprint, query_ids=ranked.query_ids)
    if run.ranking.roots:
        print(f"roots: {len(run.ranking.roots)}, with {len(ranked.clip_ids)} clips that have features")
    split = " + ".join(f"{decided[d]} {d}" for d in ("selected", "neutral", "harmful"))
    print(f"selection: {decided.total()} clips = {split} ({others.num_rows} of them not ranked)")
    for sentence in choosing.sentences(choosing.quality(run)):
        print(f"shortlist: {sentence}")


def measure_lawfulness(run: Run, fingerprint: Fingerprint) -> pa.Table:
    """Write lawfulness/, and return which clips have a flaw or move unlike the real ones of their motion, and why:
    columns clip_id and reason, the least lawful first."""
    spoiled, counts = [schemas.LAWFULNESS.empty_table()], Counter[str]()

    def noted() -> Iterator[pa.Table]:
        for rows in lawfulness.lawfulness(run):
            counts.update(rows.column("named_by").to_pylist())
            spoiled.append(lawfulness.unlawful(rows, run.ranking.unlawful))
            yield rows

    tables.replace_streamed(join(run.root, "lawfulness"), schemas.LAWFULNESS, noted(), fingerprint)
    rows, named = pa.concat_tables(spoiled), counts.total() - counts[lawfulness.FLOW]
    with_flaws = len(rows) - rows.column("flaw").null_count
    if counts.total():
        print(f"lawfulness: {with_flaws} of {counts.total()} clips stand still, repeat frames or jump as no query does")
    if not named:
        print("lawfulness: no clip is known to show a motion of the queries, so none can be held against them")
    else:
        print(f"lawfulness: {len(rows) - with_flaws} of {named} clips whose motion is named move unlike its queries")
    return lawfulness.reasons(rows)


def _counted(blocks: Iterable[pa.Table], decided: Counter[str]) -> Iterator[pa.Table]:
    """The same tables; counts what is decided for all queries together as they pass."""
    for table in blocks:
        counts = table.filter(pc.equal(table.column("group"), "all")).column("decision").value_counts()
        decided.update({row["values"]: row["counts"] for row in counts.to_pylist()})
        yield table
