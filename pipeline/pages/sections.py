"""What the sections of the page say and show, from the numbers of a run: sentences, tables cut to size, a histogram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from pipeline.evaluation import comparison
from pipeline.pages import charts
from pipeline.tables import figures

SOURCES = 24  # listed; the rest are one row together
GROUPS = 16  # columns of the matrix


def headline(numbers: Mapping[str, Any], arm: str, groups: Mapping[str, str]) -> str:
    """The result in one sentence, as far as the run has come."""
    decisions, stages = numbers["decisions"], numbers["funnel"]["clips"]
    if not decisions:
        indexed = stages[0]["entered"] if stages else 0
        usable = stages[-1]["left"] if stages else 0
        return f"Of {indexed:,} clips, {usable:,} have come through so far; nothing is ranked yet."
    ranked = sum(decisions[d] for d in figures.DECISIONS)
    motions, listed = len(set(groups.values())), numbers["shortlist"]
    compared = f"{ranked:,} clips" if listed is None else f"{listed['clips']:,} clips, {ranked:,} of them in full,"
    return (
        f"Of {compared} compared with {len(groups):,} {'query' if len(groups) == 1 else 'queries'}"
        f"{f' of {motions} motions' if motions > 1 else ''}, {decisions['selected']:,} "
        f"{'is' if decisions['selected'] == 1 else 'are'} selected and "
        f"{decisions['harmful']:,} marked harmful.{_effect(numbers, arm)}"
    )


def _effect(numbers: Mapping[str, Any], arm: str) -> str:
    """What fine-tuning did to the held-out losses, masked and plain, with 95 % intervals, beside random; empty if
    unknown."""
    sentences = []
    for name in dict.fromkeys((arm, "random")):
        changes = [
            f"{change} on the {metric.partition('_')[0]} loss"
            for metric in comparison.LOSSES
            if (change := _change(numbers["evaluation"], metric, name)) is not None
        ]
        if changes:
            sentences.append(f"{' and '.join(changes)} after fine-tuning on {name}")
        elif name == arm:
            return ""
    return f" Held out, against the base model: {'; '.join(sentences)}." if sentences else ""


def _change(evaluation: Sequence[Mapping[str, Any]], metric: str, arm: str) -> str | None:
    """How a metric of an arm changed against the base, such as "-1.4 ± 0.6 %"; None where that is unknown."""
    records = [record for record in evaluation if record["metric"] == metric and record["arm"] == arm]
    if not records or any(records[0].get(key) is None for key in ("relative", "relative_low", "relative_high")):
        return None
    record = records[0]
    change = charts.minus(f"{100 * record['relative']:+.1f}")
    half = (record["relative_high"] - record["relative_low"]) / 2
    return f"{change} ± {100 * half:.1f} %"


def verdicts(overlap: Mapping[str, Any] | None) -> dict[str, str]:
    """One sentence on what each overlap means, judged against chance."""
    if overlap is None:
        return {}
    words = {
        "magnitude": "a filter that merely prefers more motion",
        "mask_overlap": "a filter that merely prefers motion in the same place",
        "colours": "a filter that merely prefers the queries' colours",
        "movement": "a filter that compares optical flow alone",
    }
    return {name: _verdict(overlap, name, what) for name, what in words.items() if name in overlap}


def looks(overlaps: Mapping[str, Mapping[str, Any]]) -> str:
    """A warning that names the groups whose ranking goes with the colours of what moves more than with how it moves;
    empty where there is none, or nothing is known."""
    astray = [name for name, overlap in overlaps.items() if _follows_looks(overlap)]
    if not astray:
        return ""
    named = "of all queries" if "all" in astray else f"of {', '.join(astray)}"
    return (
        f"Looks explain more of the ranking {named} than motion does: its rank correlation with the colours of what "
        "moves is above chance and higher than with the likeness of the movement. Try queries.looks, or queries of "
        "other colours."
    )


def _follows_looks(overlap: Mapping[str, Any]) -> bool:
    by_looks, by_motion = (overlap.get(name, {}).get("spearman") for name in ("colours", "movement"))
    if by_looks is None or by_motion is None:
        return False
    return bool(by_looks > max(by_motion, 2 / np.sqrt(max(overlap["ranked"] - 1, 1))))


def _verdict(overlap: Mapping[str, Any], name: str, what: str) -> str:
    share, chance, spread = overlap[name]["share"], overlap["chance"], overlap["chance_sd"]
    if share is None or spread is None:
        return f"There is nothing to compare with {what}."
    if share > chance + 2 * spread and share >= 0.5:
        return f"Most of the selection is what {what} would pick too: look closely before you trust it."
    if share > chance + 2 * spread:
        return f"More than chance, but most of the selection is not what {what} would pick."
    if share < chance - 2 * spread:
        return f"Less than chance: the selection avoids what {what} would pick."
    return f"About what chance gives: the selection is not {what}."


def histogram(selected: figures.Selected) -> Markup:
    """The mean influence over all queries, by decision, with both cuts."""
    group = selected.groups["all"]
    influence = group.influence.astype(np.float64)
    by = {"harmful": figures.HARMFUL, "neutral": figures.NEUTRAL, "selected": figures.SELECTED}
    values = {name: influence[group.decisions == place] for name, place in by.items()}
    cuts = []
    if len(values["selected"]):
        cuts.append(("selected", "selected from here", float(np.nanmin(values["selected"]))))
    if len(values["harmful"]):
        cuts.append(("harmful", "harmful up to here", float(np.nanmax(values["harmful"]))))
    return charts.histogram(values, cuts, "mean influence over all queries", "clips")


# --- tables ----------------------------------------------------------------------------------------------------------


def sources(selection: Mapping[str, Mapping[str, Mapping[str, int]]]) -> list[tuple[str, dict[str, int]]]:
    """Decisions by source for group "all": the largest sources, then the others as one row, so that nothing is lost."""
    rows = [(s, dict(counts)) for s, counts in selection.get("all", {}).items()]
    rest = rows[SOURCES:]
    if not rest:
        return rows
    together = {d: sum(c.get(d, 0) for _, c in rest) for d in figures.DECISIONS}
    return [*rows[:SOURCES], (f"{len(rest)} other sources", together)]


def matrix(selection: Mapping[str, Mapping[str, Mapping[str, int]]]) -> dict[str, Any]:
    """What share of each source's clips every group of queries selects; no groups where there is only one."""
    named = [g for g in selection if g != "all"]
    shown = named[:GROUPS] if len(named) > 1 else []
    rows = []
    for source in list(selection.get("all", {}))[:SOURCES]:
        counts = [selection[g].get(source, {}) for g in shown]
        rows.append((source, [c["selected"] / sum(c.values()) if c and sum(c.values()) else None for c in counts]))
    most = max((share for _, shares in rows for share in shares if share), default=1.0)
    return {"groups": shown, "rows": rows, "most": most, "left_out": len(named) - len(shown)}


def metrics(evaluation: Sequence[Mapping[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """The evaluation by metric, each with the reach of its axis, and whether a difference is clear and which way."""
    by_metric: dict[str, dict[str, Any]] = {}
    for record in evaluation:
        difference, low, high = (record[f"difference{end}"] for end in ("", "_low", "_high"))
        certain = bool(low is not None and high is not None and not low <= 0 <= high)
        css = "neutral"
        direction = comparison.direction(record["metric"])
        if certain and direction in (comparison.LOWER, comparison.HIGHER):
            css = "selected" if (difference < 0) == (direction == comparison.LOWER) else "harmful"
        entry = by_metric.setdefault(record["metric"], {"rows": [], "reach": 0.0})
        entry["rows"].append({**record, "certain": certain, "css": css})
        entry["reach"] = max([entry["reach"], *(abs(end) for end in (difference, low, high) if end is not None)])
    return list(by_metric.items())


def preference(records: Sequence[Mapping[str, Any]]) -> str:
    """What the preference of clips to their twins is, where records of it are among these; else empty."""
    return comparison.PREFERENCE if any(comparison.is_preference(record["metric"]) for record in records) else ""
