"""One night: index what is new, rank everything, fine-tune, and use the new model if held-out clips say it is better.

The date is the key of a night: run twice, it changes nothing; killed, the same command continues. A night that was
missed is covered by the next.
"""

from __future__ import annotations

from jobs import command

if __name__ == "__main__":  # above the imports, which take seconds: --help and mistakes are answered at once
    command.main("jobs.nightly:nightly", __doc__, lists_videos=True)

import datetime
import time
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import models, tables
from pipeline.attribution import fingerprints
from pipeline.cluster import resources, streaming
from pipeline.config import Run
from pipeline.errors import ConfigError
from pipeline.models.promoted import promoted
from pipeline.operations import in_use, nights, promotion, reattribution, webhook
from pipeline.operations.in_use import BASE, InUse
from pipeline.operations.nights import DECISION, RECORD, Record
from pipeline.pages import night as night_page
from pipeline.ranking import decisions, shortlist
from pipeline.stages import attribution, held_out, indexing, pilots, run_record, two_stages, video_sets
from pipeline.stages.curation import STAGES, attribute_queries, index_data
from pipeline.stages.evaluation import trained
from pipeline.stages.finetuning import finetune
from pipeline.stages.ranking import rank_clips
from pipeline.stages.report import report
from pipeline.statistics import rank_drift
from pipeline.storage import lease, stores
from pipeline.tables import IdSet
from pipeline.training import arms


def nightly(run: Run) -> None:
    today = datetime.datetime.now(datetime.UTC).date()
    night = (run.nightly.date or today).isoformat()
    history = nights.finished(run.root)
    done = next((record for record in history if record["date"] == night), None)
    if done is not None:
        print(f"the night of {night} is done already: {done['headline']}")
        return
    nights.check_date(night, today, history)
    stale = check(run, history)
    streaming.connect()
    run = pilots.with_pools(run, STAGES)
    run_record.record(run)
    resources.check(run, STAGES)
    if stale:
        lease.check(run.root)
        reattribution.remove(run, stale)
        attribution.check_features(run, video_sets.names(run))
    for earlier in nights.begun(run.root):  # killed after its decision: it only has to be written down
        if earlier < night and (not history or earlier > history[-1]["date"]) and _decided(run, earlier):
            finish(run, earlier, history)
            history = nights.finished(run.root)
    if not _decided(run, night):
        decide(run, night, history)
    finish(run, night, history)


def _decided(run: Run, night: str) -> bool:
    return nights.read(run.root, night, DECISION) is not None


def check(run: Run, history: Sequence[Record]) -> list[str]:
    """Everything that can be known to be wrong before long work starts; the parts of features that are to give way.
    Raises UsageError."""
    if run.evaluate.videos is None:
        raise ConfigError(
            "evaluate.videos is null: a night holds its model against the one in use on videos that took no part in "
            "the selection. Name a folder or manifest of videos that are neither in data.videos nor in queries.videos."
        )
    if run.finetune.arm == BASE:
        raise ConfigError("finetune.arm='base' trains nothing, so there is nothing to promote; name another arm.")
    arms.check(run, [run.finetune.arm])
    in_use.check_base(run.root, models.weights_hash(run.model))
    stale = stale_features(run, history)
    attribution.check(run, "index_clips", video_sets.names(run), with_features=not stale)
    return stale


def stale_features(run: Run, history: Sequence[Record]) -> list[str]:
    """The parts of features of other weights, which are to give way; tells the price. Raises ConfigError where that was
    not asked for."""
    stale = reattribution.stale_parts(run)
    if not stale:
        return []
    sentence = reattribution.sentence(reattribution.price(sum(stale.values()), _measured(history)))
    if not run.nightly.reattribute:
        raise ConfigError(
            f"attribution.weights={run.attribution.weights!r}: the features of this root were taken with others. "
            f"{sentence} If that is what you want, set nightly.reattribute=true; else set attribution.weights back."
        )
    print(f"{sentence} They give way now, because nightly.reattribute is set.", flush=True)
    return list(stale)


def _measured(history: Sequence[Record]) -> list[dict[str, Any]]:
    return [record[key] for record in history for key in ("attributed", "drift_features") if record.get(key)]


# --- until the decision ----------------------------------------------------------------------------------------------


def decide(run: Run, night: str, history: Sequence[Record]) -> None:
    """All stages, and what follows for the model in use: decision.json, after the copy of a model that is promoted."""
    indexing.index(run, "held_out")
    attribute_queries(run)
    if run.queries.source != "sample":  # those were drawn from the index
        index_data(run)
    video_sets.check_disjoint(run)
    before, start = _features(run, "clips"), time.monotonic()
    two_stages.clips(run)
    attributed = {"clips": max(0, _features(run, "clips") - before), "seconds": time.monotonic() - start}
    rank_clips(run)
    finetune(run)
    now, new = in_use.in_use(run.root), trained(run, run.finetune.arm)
    losses = held_out.losses(run, night, history, now, new)
    against = BASE if now.night is None or now.purged else held_out.IN_USE
    rule = run.nightly.promote
    if new.version == now.version:
        verdict = promotion.Verdict(False, "it is the model in use: the same clips and settings.", 0, *[None] * 4)
    else:
        new_losses, old_losses = losses[held_out.CANDIDATE], losses[against]
        verdict = promotion.judge(new_losses[rule.metric], old_losses[rule.metric], rule)
        verdict = promotion.spare_the_rest(verdict, new_losses["plain_loss"], old_losses["plain_loss"], rule)
    if verdict.better:
        base = models.weights_hash(run.model)
        in_use.keep(run.root, night, new.weights, new.version, base)
    decision = {
        "promoted": verdict.better,
        "reason": verdict.reason + _purged(now, verdict.better),
        "metric": rule.metric,
        "against": against,
        "arm": run.finetune.arm,
        "candidate": new.version,
        "before": now.night,
        "pairs": verdict.pairs,
        "improvement": verdict.improvement,
        "bound": verdict.bound,
        "plain_change": verdict.plain_change,
        "losses": {name: {m: _mean(values) for m, values in by.items()} for name, by in losses.items()},
        "attributed": attributed,
    }
    nights.write(run.root, night, DECISION, decision)


def _features(run: Run, *names: str) -> int:
    """How many features these sets have, by the cheaper variant and in full."""
    return sum(_rows(stores.join(one.root, "features", name)) for one, _ in attribution.scopes(run) for name in names)


def _rows(folder: str) -> int:
    table = tables.read(folder, ["clip_id"])
    return 0 if table is None else len(table)


def _purged(now: InUse, better: bool) -> str:
    if not now.purged:
        return ""
    rest = "it gives way" if better else "it stays for want of a better one, and has to be replaced"
    return f" The one in use was trained on {now.purged} clips purged since, so the base was the measure; {rest}."


def _mean(losses: dict[str, float]) -> float | None:
    return sum(losses.values()) / len(losses) if losses else None


# --- after it --------------------------------------------------------------------------------------------------------


def finish(run: Run, night: str, history: Sequence[Record]) -> None:
    """Carry a decision out and write the night down: the pointer, the selection, drift, the page, the record."""
    decision = nights.read(run.root, night, DECISION)
    assert decision is not None
    if decision["promoted"]:
        in_use.put(run.root, night, decision["candidate"])
    now = in_use.in_use(run.root)
    here = nights.folder(run.root, night)
    selection = nights.selection_of(run.root, run.finetune.group)
    if run.finetune.arm == "curated":
        chosen = arms.training_set(run)
        assert chosen is not None, "it is not the base"
        verdicts = decisions.run_verdicts(run.root, run.finetune.group)
        selection = nights.with_people(selection, chosen.column("clip_id").combine_chunks(), verdicts)
    tables.replace(stores.join(here, "selection"), selection, fingerprints.features(run))
    last = stores.join(nights.folder(run.root, history[-1]["date"]), "selection") if history else None
    before = None if last is None else tables.read(last)
    record: dict[str, Any] = {
        "date": night,
        "written": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "missed": nights.missed(night, history),
        "videos": nights.arrivals(before, selection),
        "clips": selection.num_rows,
        "ranked": len(selection) - selection.column("rank").null_count,
        "selection": nights.changes(before, selection),
        **{key: value for key, value in decision.items() if key != "attributed"},
        "attributed": decision["attributed"],
        "in_use": now.night,
        **measure_drift(run, now, selection),
    }
    record["price"] = reattribution.price(_features(run, *reattribution.SETS), _measured([*history, record]))
    record["headline"] = nights.headline(record)
    night_page.write(run, [*history, record])
    report(run)
    nights.write(run.root, night, RECORD, record)
    for gone in nights.retain(run.root, run.nightly.keep, run.attribution.weights):
        print(f"the night of {gone} is deleted: nightly.keep={run.nightly.keep}")
    print(f"{record['headline']}\npage: {stores.join(here, 'index.html')}")
    webhook.post(run, "nightly", "finished", night=night, headline=record["headline"])


def measure_drift(run: Run, now: InUse, selection: pa.Table) -> dict[str, Any]:
    """Features of a few clips and the queries with the model in use, kept in its folder, and how rankings agree."""
    nothing = {"drift": None, "drift_features": None}
    pinned = fingerprints.features(run)[reattribution.FIELD]
    if now.night is None or not run.nightly.drift_clips or promoted(now.folder)["weights"] == pinned:
        return nothing
    ranked = selection.filter(pc.is_valid(selection.column("rank"))).column("clip_id")
    if run.attribution.shortlist is not None:
        ranked = ranked.filter(pc.is_in(ranked, shortlist.audited(run)))
    ids = rank_drift.drawn(run.seed, ranked.to_pylist(), run.nightly.drift_clips)
    other = reattribution.with_weights(run, now.folder, stores.join(nights.folder(run.root, now.night), "drift"))
    start, before, after = time.monotonic(), 0, 0
    for name in reattribution.SETS:
        among = IdSet.of([pa.array(ids, pa.string())]) if name == "clips" else None
        is_measured = name == "queries" or run.motion.of == "all"  # else rows of its index go to features
        scope = attribution.Scope(run.root, run.root if is_measured else other.root, among=among)
        before += _rows(stores.join(other.root, "features", name))
        after += attribution.extract_features(other, name, scope).rows
    drift_features = {"clips": max(0, after - before), "seconds": time.monotonic() - start}
    return {"drift": reattribution.measure(run, other, ids).record(), "drift_features": drift_features}
