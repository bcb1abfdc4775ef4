"""What a comparison of arms says: tables, text, and the page ``ROOT/comparison/index.html`` with their videos side by
side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from pipeline import tables
from pipeline.config import Run
from pipeline.evaluation import comparison, contests
from pipeline.evaluation.contests import Key, Record
from pipeline.pages import sections
from pipeline.pages.gallery import Studio, VideoOf
from pipeline.pages.report import environment
from pipeline.ranking.lawfulness import UnlawfulCounts
from pipeline.storage import stores
from pipeline.storage.stores import join
from pipeline.tables import figures

CAPTIONS = 16  # captions and seeds that the page shows videos of
RULES = {"generated_video": contests.VIDEO_RULE, "held_out_loss": contests.LOSS_RULE}
TITLES = {"generated_video": "generated videos", "held_out_loss": "held-out clips"}


@dataclass(frozen=True)
class Compared:
    """The arms, with all that tells them apart; records are those of `contests`."""

    arms: tuple[str, ...]
    metrics: list[Record]
    verdicts: list[Record]
    tallies: list[Record]
    distances: Mapping[str, Mapping[Key, float]]  # of each arm's videos, from the queries
    videos: Mapping[tuple[str, str, int], str]  # arm, clip_id, seed -> uri
    lawfulness: Mapping[str, UnlawfulCounts] = field(default_factory=dict)  # of arms' clips, where it is known


# --- tables ----------------------------------------------------------------------------------------------------------


def write_tables(run: Run, compared: Compared) -> None:
    """comparison/metrics/, contests/ and verdicts/ as Parquet, and all but the single verdicts in comparison.json."""
    folder = join(run.root, "comparison")
    for name, rows, schema in (
        ("metrics", compared.metrics, contests.METRICS),
        ("contests", compared.tallies, contests.TALLIES),
        ("verdicts", compared.verdicts, contests.VERDICTS),
    ):
        tables.replace(join(folder, name), pa.Table.from_pylist(rows, schema=schema), {})
    record = {
        "root": run.root,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "arms": list(compared.arms),
        "group": run.finetune.group,
        "steps": run.finetune.steps,
        "seeds": list(run.evaluate.seeds),
        "rules": RULES,
        "metrics": compared.metrics,
        "contests": compared.tallies,
        "lawfulness": {arm: {**counts._asdict(), "share": counts.share} for arm, counts in compared.lawfulness.items()},
    }
    stores.write_bytes(join(folder, "comparison.json"), json.dumps(record, indent=1, allow_nan=False).encode())


def lawfulness_words(counts: UnlawfulCounts | None) -> str:
    """What is known of the lawfulness of an arm's clips, to follow their number; empty where nothing is."""
    if counts is None:
        return ""
    if counts.share is None:
        return "; the flow of none is known"
    unlawful = f"{counts.unlawful:,} of {counts.measured:,} whose flow is known ({counts.share:.0%})"
    return f"; {unlawful} have a flaw or break a law"


# --- text ------------------------------------------------------------------------------------------------------------


def text(compared: Compared) -> str:
    """The tables of the paper: metrics by arm, and win, tie and loss of each pair."""
    lines, metric = list[str](), ""
    for row in compared.metrics:
        if row["metric"] != metric:
            metric = row["metric"]
            lines += ["", f"{metric:<36}{'mean':>10} {'95 %':>21}   {'against base':>13} {'95 %':>18}   n"]
        lines.append(f"  {row['arm']:<34}{_number(row['mean']):>10} {_between(row):>21}   {_against(row)}   {row['n']}")
    preference = sections.preference(compared.metrics)
    lines += ["", preference] if preference else []
    for name in dict.fromkeys(row["judge"] for row in compared.tallies):
        rows = {f"{row['ours']} against {row['theirs']}": row for row in compared.tallies if row["judge"] == name}
        width = max(map(len, rows))
        head = f"  {'':<{width}} {'win':>7} {'tie':>7} {'loss':>7}   {'win, 95 %':>14}   n"
        lines += ["", f"{TITLES[name]}: {RULES[name]}", head]
        for named, row in rows.items():
            shares = " ".join(f"{row[key]:>7.1%}" for key in ("win", "tie", "loss"))
            between = "" if row["win_low"] is None else f"{row['win_low']:.0%} to {row['win_high']:.0%}"
            lines.append(f"  {named:<{width}} {shares}   {between:>14}   {row['pairs']}")
    return "\n".join(lines)


def _against(row: Record) -> str:
    """The change against base with its interval: of base's mean, or of a share in points."""
    of, unit = ("difference", " points") if comparison.is_preference(row["metric"]) else ("relative", "%")
    if row[f"{of}_low"] is None:
        return f"{'':>13} {'':>18}"
    change, low, high = (f"{100 * row[f'{of}{end}']:+.2f}" for end in ("", "_low", "_high"))
    between = f"{low} to {high}" if unit == " points" else f"{low}% to {high}%"
    return f"{change + unit:>13} {between:>18}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _between(row: Record) -> str:
    return "" if row["low"] is None else f"{row['low']:.5g} to {row['high']:.5g}"


# --- the page --------------------------------------------------------------------------------------------------------


def write(run: Run, compared: Compared, video_of: VideoOf) -> str:
    """Write the page; returns its place. `video_of` gives the frames of a video's uri, None where it has none."""
    shown = _shown(compared)
    studio = Studio(run, lambda row: None, {}, len(shown) * len(compared.arms))
    captions = figures.by_id(run.root, "queries", [clip for clip, _ in shown], ["clip_id", "caption", "group"])
    rows = []
    for clip_id, seed in shown:
        cells: dict[str, Any] = {}
        for arm in compared.arms:
            uri = compared.videos.get((arm, clip_id, seed))
            frames = video_of(uri) if uri is not None and run.report.pictures else None
            distance = compared.distances.get(arm, {}).get((clip_id, seed))
            picture = None if frames is None else studio.video(frames)
            link = _link(run.root, uri) if run.report.captions else None  # a video's name is its caption
            cells[arm] = {"picture": picture, "link": link, "distance": distance}
        best = min((c["distance"] for c in cells.values() if c["distance"] is not None), default=None)
        query = captions.get(clip_id, {"caption": None, "group": None})
        rows.append({**query, "clip_id": clip_id, "seed": seed, "cells": cells, "best": best})
    page = (
        environment()
        .get_template("comparison.html")
        .render(
            run=run,
            found=compared,
            rows=rows,
            rules=RULES,
            titles=TITLES,
            metrics=_by(compared.metrics, "metric"),
            contests=_by(compared.tallies, "judge"),
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            direction=comparison.direction,
            preference=sections.preference(compared.metrics),
        )
    )
    place = join(run.root, "comparison", "index.html")
    stores.write_bytes(place, page.encode())
    return place


def _shown(compared: Compared) -> list[Key]:
    """The captions and seeds whose videos are shown: evenly chosen among those that any arm has."""
    keys = sorted({(clip, seed) for _, clip, seed in compared.videos}, key=lambda k: (k[1], k[0]))
    return keys[:: max(1, -(-len(keys) // CAPTIONS))]


def _link(root: str, uri: str | None) -> str | None:
    """A video below the root, as the page links to it."""
    prefix = root.rstrip("/") + "/"
    return f"../{quote(uri.removeprefix(prefix))}" if uri is not None and uri.startswith(prefix) else None


def _by(rows: list[Record], key: str) -> dict[str, Any]:
    return {name: [row for row in rows if row[key] == name] for name in dict.fromkeys(row[key] for row in rows)}
