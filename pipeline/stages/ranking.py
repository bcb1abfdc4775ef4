"""Influence of every clip on every query, how lawfully each moves, and what follows: tables influence/,
influence_by_setting/, neighbors/, lawfulness/, selection/."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.attribution import fingerprints
from pipeline.attribution.fingerprints import Fingerprint
from pipeline.config import Run
from pipeline.ranking import choosing, influence_table, lawfulness, partitions, placed, share
from pipeline.ranking.feature_table import under_mask
from pipeline.ranking.rules import reading, strata
from pipeline.ranking.rules.choice import Rules
from pipeline.ranking.selection import (
    NOT_ATTRIBUTED,
    Marks,
    Ranked,
    features_state,
    influence_tables,
    neighbors_table,
    rank,
    recorded,
    selection_tables,
    unranked,
)
from pipeline.stages import run_record
from pipeline.stages.progress import Progress
from pipeline.storage import lease, stores
from pipeline.storage.stores import join
from pipeline.tables import IdSet, scanning, schemas
from pipeline.tables.figures import DECISIONS
from pipeline.tables.merging import merge

log = logging.getLogger(__name__)


def rank_clips(run: Run) -> None:
    fingerprint = fingerprints.ranking(run)
    partitions.check(run)
    for name in ("decisions", "query_weights", "likes"):  # a part for every keystroke
        merge(join(run.root, name))
    if not run.ranking.roots:
        for name in ("clips", "queries"):
            tables.check(join(run.root, "features", name), fingerprints.features(run.of(name)))
    for folder in partitions.folders(run, "clips"):
        reading.check_columns(run, tables.columns(folder))
    ranked, state = _ranked(run), features_state(run)
    run_record.record(run)
    partitions.copy_queries(run)
    others, decided = unranked(run, ranked), Counter[str]()
    for sentence in gaps(run, ranked, others):
        log.warning("%s", sentence)
    marks = ranked.marks(run.ranking.vote_fraction, run.ranking.neighbors)
    unlawful = measure_lawfulness(run, fingerprint)
    rules = _rules(run, ranked, marks)
    schema = schemas.influence_schema(len(ranked.query_ids))
    selected = selection_tables(ranked, run.ranking, marks, others, unlawful, rules)
    _write_by_setting(run, ranked, fingerprint, state)  # before influence/, with which `recorded` compares it
    for name, columns, rows in (
        ("influence", schema, influence_tables(ranked)),
        ("neighbors", schemas.NEIGHBORS, [neighbors_table(ranked, run.ranking.neighbors, marks)]),
        ("selection", schemas.SELECTION, _counted(selected, decided)),
    ):
        folder = join(run.root, name)
        tables.replace_streamed(folder, columns, rows, fingerprint, query_ids=ranked.query_ids, features=state)
    if run.ranking.roots:
        print(f"roots: {len(run.ranking.roots)}, with {len(ranked.clip_ids)} clips that have features")
    split = " + ".join(f"{decided[d]} {d}" for d in DECISIONS)
    print(f"selection: {sum(decided[d] for d in DECISIONS)} clips = {split} ({others.num_rows} of them not ranked)")
    for sentence in _barred(decided, ranked, run):
        print(f"selection: {sentence}")
    for sentence in choosing.sentences(choosing.quality(run)):
        print(f"shortlist: {sentence}")
    counts = strata.strata(run)
    if counts:
        print(f"{'share of':<44} {'corpus':>9} {'by rank':>9} {'selected':>9}")
    for line in strata.lines(counts):
        print(line)


def _write_by_setting(run: Run, ranked: Ranked, fingerprint: Fingerprint, state: str) -> None:
    """Write influence_by_setting/, or remove that of another ranking where there is nothing to write."""
    folder, parts = join(run.root, influence_table.BY_SETTING), ranked.by_setting
    if parts is None:
        lease.check(run.root)
        stores.remove(folder)
        return
    schema = schemas.influence_schema(len(parts.columns))
    about = {"groups": ranked.groups, "settings": parts.settings}
    rows = influence_table.by_setting_tables(parts, ranked.clip_ids)
    tables.replace_streamed(folder, schema, rows, fingerprint, query_ids=ranked.query_ids, features=state, **about)


def _ranked(run: Run) -> Ranked:
    """Influence of every clip: read from influence/ where features, queries and whitening are still the same, so that
    another fraction or rule of the selection costs no ranking."""
    r = run.ranking
    if tables.metadata(join(run.root, "influence")).get("features") == features_state(run):
        ranked = recorded(run, r.mask, r.whiten)
        if ranked is not None:
            print("influence: as the last ranking left it; features and queries are the same")
            if ranked.by_setting is None and len(under_mask(run.clip_roots, "clips", r.mask).members) > 1:
                print(
                    "influence: an earlier version ranked, which did not keep each setting's part: intervals of ranks "
                    f"are over queries alone; delete {join(run.root, 'influence')} to rank anew"
                )
            return ranked
    report = Progress("rank_clips")
    return rank(run, r.mask, r.whiten, lambda done, total: report(done, total, {}))


def _rules(run: Run, ranked: Ranked, marks: Marks) -> Rules:
    if run.ranking.duplicates is None and not run.ranking.caps:
        return Rules()
    mean, votes = ranked.score("all", marks, run.ranking.spare)
    order = placed(mean, votes if run.ranking.by == "votes" else None, ranked.clip_ids)
    return reading.read(run, under_mask(run.clip_roots, "clips", run.ranking.mask), order)


def gaps(run: Run, ranked: Ranked, others: pa.Table) -> Iterator[str]:
    """What tables lack that a ranking reads, as when a damaged part of one was deleted and not computed anew."""
    lacking = pc.sum(pc.equal(others.column("error"), NOT_ATTRIBUTED)).as_py() or 0
    if lacking:
        yield (
            f"{lacking} clips have no row in features/ and are not ranked. Run extract_features or curate, which take "
            "up what is missing."
        )
    indexed = [folder for root in run.clip_roots if tables.parts(folder := join(root, "clips"))]
    ids = (rows.column("clip_id") for folder in indexed for rows in scanning.blocks(folder, ["clip_id"]))
    unlisted = int((~IdSet.of(ids).has(ranked.clip_ids)).sum())
    if unlisted:
        yield (
            f"{unlisted} clips have features and no row in clips/, so the shares of the corpus and rules "
            "leave them out. Run index_clips or curate."
        )
    yield from lawfulness.gaps(run)


def _barred(decided: Counter[str], ranked: Ranked, run: Run) -> Iterator[str]:
    """What rules bar of the clips, and whether that leaves too few."""
    barred = {rule: count for rule, count in sorted(decided.items()) if rule == "duplicate" or rule.startswith("cap ")}
    if barred:
        causes = " + ".join(f"{count} by {rule}" for rule, count in barred.items())
        yield f"barred are {causes}; the next best take their places"
    wished = share(run.ranking.fraction, ranked.population.count)
    if run.ranking.above is None and decided["selected"] < wished:
        yield (
            f"only {decided['selected']} of the {wished} clips that ranking.fraction={run.ranking.fraction:g} asks "
            "for; rules bar the others. Raise ranking.caps, or lower the fraction."
        )


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
    """The same tables; counts what is decided for all queries together, and by which rule, as they pass."""
    for table in blocks:
        of_all = table.filter(pc.equal(table.column("group"), "all"))
        for column in ("decision", "rule"):
            counts = of_all.column(column).value_counts()
            decided.update({row["values"]: row["counts"] for row in counts.to_pylist()})
        yield table
