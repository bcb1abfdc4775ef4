"""Features as a recipe asks for them: one attribution of everything, or with `attribution.shortlist` a cheaper one of
everything first, and the full one of the queries and of the clips that it chooses."""

from __future__ import annotations

from dataclasses import replace

from pipeline import tables
from pipeline.config import Run
from pipeline.ranking import choosing, shortlist
from pipeline.stages import attribution
from pipeline.stages.progress import Progress
from pipeline.storage import stores
from pipeline.tables import IdSet


def queries(run: Run) -> None:
    """Motion and features of the queries, for each attribution."""
    for one, scope in attribution.scopes(run):
        attribution.attribute(one, "queries", scope)


def clips(run: Run) -> None:
    """Motion and features of the clips. A shortlist is chosen anew each time: clips that came since the last may belong
    to it; those that had the full setting keep its features."""
    *cheaper, (full, scope) = attribution.scopes(run)
    for one, first in cheaper:
        attribution.attribute(one, "clips", first)
        scope = replace(scope, among=choose(run))
    attribution.attribute(full, "clips", scope)


def choose(run: Run) -> IdSet:
    report = Progress("choose shortlist")
    choosing.choose(run, lambda done, total: report(done, total, {}))
    ids = shortlist.chosen(run)
    print(f"shortlist: {len(ids):,} clips for the full setting")
    return ids


def rankable(run: Run) -> bool:
    """Whether there are features to rank: a budget may end before the first clip of a shortlist has any."""
    needed = [stores.join(run.root, "features", "clips")]
    if run.attribution.shortlist is not None:
        needed.append(stores.join(shortlist.home(run.root), "chosen"))
    return all(tables.parts(folder) for folder in needed)
