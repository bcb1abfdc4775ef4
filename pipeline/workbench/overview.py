"""The first screen: the verdict, what to be wary of, what people have done, and the commands that go on."""

from __future__ import annotations

import datetime
import json
import shlex
from collections import Counter
from typing import Any

import pyarrow.compute as pc

from pipeline.config.caveats import caveats
from pipeline.exports.formats import FORMATS
from pipeline.storage import stores
from pipeline.workbench.index import NOT_RANKED, Index, count, facet
from pipeline.workbench.people import WORDS, People

FEW_QUERIES = 5  # below which a motion's mean says little
Alarm = dict[str, Any]  # text, and where to look: a view's `where` and sort, or a screen


def overview(index: Index, people: People, size: int, by: str, since: str | None) -> dict[str, Any]:
    summary = _summary(index.run.root)
    return {
        "root": index.run.root,
        "model": index.run.model.id,
        "clips": len(index),
        "headline": summary.get("headline"),
        "written": summary.get("written"),
        "ranking": index.written or None,
        "losses": losses(summary),
        "alarms": alarms(index, people, summary),
        "people": _people(people),
        "size": size,
        "since": _since(people, by, since),
        "read_only": people.read_only,
        "commands": commands(index),
    }


def _summary(root: str) -> dict[str, Any]:
    path = stores.join(root, "summary.json")
    if not stores.exists(path):
        return {}
    summary: dict[str, Any] = json.loads(stores.read_bytes(path))
    return summary


def losses(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """How each arm changed the masked and the plain held-out loss against the base, with 95 % intervals."""
    listed = []
    for record in summary.get("evaluation", []):
        if record["metric"] in ("masked_loss", "plain_loss") and record.get("relative") is not None:
            names = ("metric", "arm", "relative", "relative_low", "relative_high", "pairs")
            listed.append({name: record.get(name) for name in names})
    return listed


def alarms(index: Index, people: People, summary: dict[str, Any]) -> list[Alarm]:
    """What should make a curator look twice, each with the clips that it means where there are some."""
    run, listed = index.run, list[Alarm]()

    def alarm(text: str, **where: Any) -> None:
        listed.append({"text": text, **where})

    for problem in [*index.problems, *people.problems]:
        alarm(problem, kind="damage")
    if not index.standings:
        alarm("Nothing is ranked yet. Clips can be seen and decided on; `python -m jobs.rank_clips` comes next.")
    if summary.get("looks"):
        alarm(summary["looks"], kind="looks", screen="queries")
    fast = {group: overlap for group, overlap in summary.get("overlap", {}).items() if _merely_fast(overlap)}
    if fast:
        names = ", ".join(list(fast)[:4])
        share = max(overlap["magnitude"]["share"] for overlap in fast.values())
        alarm(
            f"Of {names}, up to {share:.0%} of the selection is what the fastest clips alone would give, more than "
            "twice chance.",
            view={"sort": "motion_mean", "group": next(iter(fast))},
        )
    queries = Counter(query["group"] or "all" for query in index.queries if query.get("error") is None)
    few = {group: n for group, n in sorted(queries.items()) if n < FEW_QUERIES}
    if few:
        listed_few = ", ".join(f"{group} ({n})" for group, n in list(few.items())[:6])
        alarm(f"Fewer than {FEW_QUERIES} queries: {listed_few}. One odd query moves such a motion.", screen="queries")
    for sentence in summary.get("caveats") or caveats(run):
        alarm(sentence, kind="caveat")
    empty = int(pc.sum(pc.equal(pc.fill_null(index.clips.column("caption"), ""), "")).as_py() or 0)
    if empty:
        alarm(f"{empty:,} of {len(index):,} clips have no caption: they train with an empty one.", view={"text": ""})
    _harmful_sources(index, alarm)
    disputed = int((people.codes("all") == WORDS.index("disputed")).sum())
    if disputed:
        alarm(
            f"{disputed:,} clips are disputed: two people differ, and they are in no export until one clears.",
            view={"where": {"people": ["disputed"]}},
        )
    errors = int(pc.sum(pc.is_valid(index.clips.column("error"))).as_py() or 0)
    if errors:
        values = facet(index.facets, "error")
        where = {"error": list(values.values)} if values is not None else {}
        alarm(f"{errors:,} clips have an error: no motion, or no video.", view={"where": where})
    return listed


def _merely_fast(overlap: dict[str, Any]) -> bool:
    share, chance, spread = overlap["magnitude"]["share"], overlap["chance"], overlap["chance_sd"]
    return None not in (share, chance, spread) and share > 2 * chance and share > chance + 2 * spread


def _harmful_sources(index: Index, alarm: Any) -> None:
    sources, standing = facet(index.facets, "source"), index.standing("all")
    if sources is None:
        return
    ranked = count(sources.codes, len(sources.values), standing.rank != NOT_RANKED)
    harmful = count(sources.codes, len(sources.values), standing.decision == 2)
    bad = [
        source
        for source, n, of in zip(sources.values, harmful.tolist(), ranked.tolist(), strict=True)
        if of >= FEW_QUERIES and n > 0.5 * of
    ]
    if bad:
        alarm(f"Most clips of {', '.join(bad)} are harmful.", view={"where": {"source": bad, "decision": ["harmful"]}})


def _people(people: People) -> dict[str, Any]:
    codes = people.codes("all")
    counts = count(codes, len(WORDS)).tolist()
    words = people.decisions.rows.group_by("by").aggregate([("batch", "count_distinct"), ("clip_id", "count_distinct")])
    return {
        "words": dict(zip(WORDS, counts, strict=True)),
        "persons": [
            {"by": row["by"], "batches": row["batch_count_distinct"], "clips": row["clip_id_count_distinct"]}
            for row in words.sort_by("by").to_pylist()
        ],
        "likes": people.likes.rows.num_rows,
        "weights": {query: weight for query, weight in people.query_weights().items() if weight != 1},
    }


def _since(people: People, by: str, since: str | None) -> dict[str, Any] | None:
    """What others have said since a moment."""
    if not since:
        return None
    try:
        moment = datetime.datetime.fromisoformat(since)
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None
    rows = people.decisions.rows
    later = rows.filter(pc.and_(pc.greater(rows.column("at"), moment), pc.not_equal(rows.column("by"), by)))
    return {
        "words": later.num_rows,
        "people": sorted(pc.unique(later.column("by")).to_pylist()),
        "clips": pc.unique(later.column("clip_id")).to_pylist()[:500],
    }


# --- hand over --------------------------------------------------------------------------------------------------------


def commands(index: Index) -> list[dict[str, str]]:
    """The command lines that carry people's word on: each with what it does."""
    root = shlex.quote(index.run.root)
    config = f"--config {shlex.quote(stores.join(index.run.root, 'config.yaml'))}"
    if "://" in index.run.root:
        config = "--config config.yaml"  # a copy of the run's own: configurations are read from local files
    job = "python -m jobs."
    lines = [
        (
            "Fine-tune on what people curated, and hold it against the machine's selection",
            f"{job}compare {config} --set root={root} 'evaluate.arms=[base,random,selected,curated]'".replace(
                "'evaluate.arms", "--set 'evaluate.arms"
            ),
        ),
        ("Fine-tune on what people curated", f"{job}finetune {config} --set root={root} --set finetune.arm=curated"),
        ("Let each night follow people", f"{job}nightly {config} --set root={root} --set finetune.arm=curated"),
        ("Rank anew, for example after new queries", f"{job}rank_clips {config} --set root={root}"),
    ]
    exports = [
        (
            f"Export for {layout.trainer}",
            f"{job}export {config} --set root={root} --set export.arm=curated --set export.format={name}",
        )
        for name, layout in FORMATS.items()
    ]
    return [{"what": what, "line": line} for what, line in [*lines, *exports]]
