"""What the page says of clips: a line for each of a view's, and everything that the run knows of one."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline import tables
from pipeline.ranking import lawfulness
from pipeline.storage.stores import exists, join
from pipeline.tables import figures
from pipeline.workbench.index import DECISIONS, LAW_OR_FLAW, NOT_RANKED, Index
from pipeline.workbench.people import NOBODY, WORDS, People

SHOWN = ("clip_id", "file", "caption", "source", "error")
DETAILS = (*SHOWN, "start_frame", "num_frames", "fps", "height", "width", "motion_mean", "camera_share")


def cards(index: Index, people: People, places: Sequence[int], group: str) -> list[dict[str, Any]]:
    """A card for each clip: what it is, and where it stands for a group."""
    standing, codes = index.standing(group), people.codes(group)
    listed = []
    for at, row in zip(places, index.rows(places, SHOWN), strict=True):
        rank = int(standing.rank[at])
        if not index.run.report.captions:
            row["caption"] = None
        listed.append(
            {
                **row,
                "rank": None if rank == NOT_RANKED else rank,
                "percentile": _round(standing.percentile(rank), 2),
                "influence": _number(standing.influence[at]),
                "decision": DECISIONS[standing.decision[at]],
                "people": None if codes[at] == NOBODY else WORDS[codes[at]],
                **_moves(index, at),
            }
        )
    return listed


def _moves(index: Index, at: int) -> dict[str, Any]:
    """The quantile of a clip's lawfulness, and its flaw or the law that it breaks; None where they are not known."""
    lawful = index.lawfulness
    if lawful is None:
        return {"quantile": None, "violation": None}
    code, values = lawful.violation.codes[at], lawful.violation.values
    return {"quantile": _number(lawful.quantile[at]), "violation": values[code] if code >= 0 else None}


def clip(index: Index, people: People, clip_id: str, group: str) -> dict[str, Any] | None:
    """Everything about a clip; None where the run does not have it."""
    at = int(index.places([clip_id])[0])
    if at < 0:
        return None
    card = cards(index, people, [at], group)[0]
    row = index.rows([at], DETAILS)[0]
    numbers = {name: _number(row[name]) for name in ("fps", "motion_mean", "camera_share")}
    about = {name: row[name] for name in ("start_frame", "num_frames", "height", "width")}
    columns = {
        facet.name: facet.values[facet.codes[at]]
        for facet in index.facets
        if facet.name not in ("source", "error", "length", "camera share", LAW_OR_FLAW) and facet.codes[at] >= 0
    }
    words = people.history(clip_id)
    version = index.rows([at], ["version"])[0]["version"]
    return {
        **card,
        **about,
        **numbers,
        "lawfulness": _lawfulness(index, clip_id, row["error"]),
        "columns": columns,
        "motions": motions(index, people, at),
        "queries": _queries(index, at),
        "words": [_word(word, version) for word in words],
        "explained": _explained(index, clip_id),
    }


def _lawfulness(index: Index, clip_id: str, error: str | None) -> str:
    """What lawfulness/ says of a clip, or why it says nothing."""
    row = figures.by_id(index.run.root, "lawfulness", [clip_id]).get(clip_id)
    if row is None:
        return lawfulness.unknown(index.run, error)
    return lawfulness.sentence(row, index.run.ranking.unlawful)


def motions(index: Index, people: People, at: int) -> list[dict[str, Any]]:
    """Where a clip stands for every motion."""
    listed = []
    for name, standing in index.standings.items():
        rank, code = int(standing.rank[at]), people.codes(name)[at]
        listed.append(
            {
                "group": name,
                "rank": None if rank == NOT_RANKED else rank,
                "ranked": standing.ranked,
                "percentile": _round(standing.percentile(rank), 2),
                "influence": _number(standing.influence[at]),
                "decision": DECISIONS[standing.decision[at]],
                "people": None if code == NOBODY else WORDS[code],
            }
        )
    return listed


def _queries(index: Index, at: int) -> list[dict[str, Any]]:
    """The clip's influence on every query, the most taught first."""
    column = index.clip_column(at)
    if column is None:
        return []
    about = {query["clip_id"]: query for query in index.queries}
    order = np.argsort(-column, kind="stable").tolist()
    listed = []
    for n in order:
        query = about.get(index.query_ids[n], {"clip_id": index.query_ids[n], "group": None, "caption": None})
        caption = query["caption"] if index.run.report.captions else None
        listed.append(
            {"query_id": query["clip_id"], "group": query["group"], "caption": caption, "influence": _number(column[n])}
        )
    return listed


def _word(word: dict[str, Any], version: str | None) -> dict[str, Any]:
    return {
        **{name: word[name] for name in ("say", "by", "group", "note", "batch", "blind", "seen_rank")},
        "at": f"{word['at']:%Y-%m-%d %H:%M:%S} UTC",
        "outdated": word["version"] != version,
    }


def _explained(index: Index, clip_id: str) -> dict[str, Any] | None:
    """How much of the influence on the first query each latent frame carries, where jobs.explain has been run."""
    folder = join(index.run.root, "explain", clip_id, "shares")
    if "/" in clip_id or not tables.parts(folder):
        return None
    table = tables.read(folder)
    assert table is not None, "it has parts"
    rows = [row for row in table.to_pylist() if row["layer"] == "all"] or table.to_pylist()
    frames: dict[int, float] = {}
    for row in rows:
        frames[row["latent_frame"]] = frames.get(row["latent_frame"], 0.0) + abs(row["share"])
    total = sum(frames.values())
    if not total:
        return None
    shares = [round(frames[frame] / total, 4) for frame in sorted(frames)]
    return {"frames": shares, "page": exists(join(index.run.root, "explain", clip_id, "index.html"))}


def mask(index: Index, clip_id: str) -> dict[str, Any] | None:
    """A clip's motion mask: shape [latent frames, h, w] and its bytes as base64; None where it has none."""
    rows = figures.by_id(index.run.root, "motion/clips", [clip_id], ["clip_id", "mask", "mask_shape"])
    row = rows.get(clip_id)
    if row is None or row["mask"] is None:
        return None
    return {"shape": row["mask_shape"], "data": base64.b64encode(row["mask"]).decode()}


def queries(index: Index, people: People, by: str) -> list[dict[str, Any]]:
    """Every query that takes part in the ranking, with what people weigh it."""
    weights, own = people.query_weights(), people.own_weights(by)
    about = {query["clip_id"]: query for query in index.queries}
    listed = []
    for query_id in index.query_ids:
        query = about.get(query_id, {"group": None, "caption": None, "uri": None})
        listed.append(
            {
                "query_id": query_id,
                "group": query["group"] or "all",
                "caption": query["caption"] if index.run.report.captions else None,
                "weight": weights.get(query_id, 1.0),
                "own": own.get(query_id),
            }
        )
    return sorted(listed, key=lambda query: (query["group"], query["query_id"]))


def _number(value: Any) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), 4)


def _round(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
