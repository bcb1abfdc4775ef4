"""Which clips the page shows, and their pictures: queries with their nearest and farthest clips, generated videos."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import config, tables
from pipeline.evaluation import comparison
from pipeline.pages.pictures import Mask, Picture, picture
from pipeline.storage import stores
from pipeline.tables import figures, scanning

Row = Mapping[str, Any]
FramesOf = Callable[[dict[str, Any]], npt.NDArray[np.uint8] | None]
VideoOf = Callable[[str], npt.NDArray[np.uint8] | None]
Key = tuple[str, str]  # "clips" or "queries", and the id

DASH = "\N{EN DASH}"
QUERIES = 12  # shown with pictures
EACH = 5  # nearest and farthest clips of a query
BYTES = 6_400_000  # all pictures together, before base64 adds a third
LARGEST = 90_000  # one picture
CLIP, QUERY, FILM, VIDEO = (128, 128), (256, 256), (96, 64), (192, 192)  # boxes, CSS pixels
COLUMNS = ["clip_id", "uri", "source", "caption", "fps", "num_frames", "start_frame", "height", "width", "error"]


@dataclass(frozen=True)
class Neighbor:
    """A clip beside a query: its place among the ranked clips by its influence on this query, from 1; the decision on
    it for the query's group, and for which group that is."""

    clip: Row
    influence: float
    place: int
    decision: str | None
    group: str
    picture: Picture | None


def file_name(clip: Row) -> str:
    """The name of a video's file. Presigned addresses carry a signature, which no page should repeat."""
    uri = str(clip.get("uri") or DASH)
    return (uri.split("?")[0] if "://" in uri else uri).rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Card:
    """A query with its pictures: the looping one, a film strip, and its nearest and farthest clips."""

    query: Row
    picture: Picture | None
    film: Picture | None
    positive: tuple[Neighbor, ...]
    negative: tuple[Neighbor, ...]


@dataclass(frozen=True)
class Plan:
    """What will be shown: chosen queries, the others, and each query's neighbors (sign -> rows in order of rank)."""

    shown: list[Row]
    others: list[Row]
    neighbors: dict[str, dict[str, list[Row]]]
    clips: dict[str, dict[str, Any]]

    def keys(self) -> frozenset[Key]:
        return frozenset({("queries", q["clip_id"]) for q in self.shown} | {("clips", i) for i in self.clips})


def plan(root: str, captions: bool = True) -> Plan:
    queries = tables.read(stores.join(root, "queries"))
    rows: list[Row] = [] if queries is None else queries.drop_columns(["cuts"]).to_pylist()
    rows = rows if captions else [_unnamed(row) for row in rows]
    shown = choose([q for q in rows if q["error"] is None])
    chosen = {q["clip_id"] for q in shown}
    nearest = _neighbors(root)
    ids = {n["clip_id"] for q in chosen for side in nearest.get(q, {}).values() for n in side[:EACH]}
    others = sorted((q for q in rows if q["clip_id"] not in chosen), key=_by_group)
    return Plan(shown, others, nearest, clip_rows(root, ids, captions))


def clip_rows(root: str, ids: Iterable[str], captions: bool) -> dict[str, dict[str, Any]]:
    """The rows of clips/ with these ids."""
    clips = figures.by_id(root, "clips", ids)
    return clips if captions else {clip_id: _unnamed(row) for clip_id, row in clips.items()}


def _unnamed(row: Row) -> dict[str, Any]:
    return {**row, "caption": None}


def _by_group(query: Row) -> tuple[str, str]:
    return query["group"] or "", query["clip_id"]


def choose(queries: Sequence[Row], most: int = QUERIES) -> list[Row]:
    """Up to `most` queries, one of every group first, then a second of every group, and so on."""
    turns: dict[str, int] = {}
    order = []
    for query in sorted(queries, key=_by_group):
        turn = turns.get(query["group"], 0)
        turns[query["group"]] = turn + 1
        order.append((turn, *_by_group(query), query))
    return sorted((o[3] for o in sorted(order, key=lambda o: o[:3])[:most]), key=_by_group)


def _neighbors(root: str) -> dict[str, dict[str, list[Row]]]:
    table = tables.read(stores.join(root, "neighbors"))
    neighbors: dict[str, dict[str, list[Row]]] = {}
    if table is not None:
        table = table.filter(pc.less(table.column("rank"), EACH)).sort_by("rank")
        for row in table.to_pylist():
            neighbors.setdefault(row["query_id"], {}).setdefault(row["sign"], []).append(row)
    return neighbors


class Studio:
    """Takes the pictures of one page, each clip once, all of them within the page's budget of bytes; none at all
    without `frames_of`. `missing` counts those that could not be taken."""

    def __init__(self, run: config.Run, frames_of: FramesOf | None, masks: Mapping[Key, Mask], pictures: int) -> None:
        self._run, self._frames_of, self._masks = run, frames_of, masks
        self.missing = 0
        self._limit = min(LARGEST, BYTES // max(1, pictures))
        self._by_clip: dict[str, Picture | None] = {}
        self.pictures, self.captions = run.report.pictures and frames_of is not None, run.report.captions
        self.films = False  # whether one of the pictures is a film, for which a page needs a script

    def clip(self, row: Row) -> Picture | None:
        """The picture of a clip; None where it cannot be decoded, or where the page has no pictures."""
        clip_id = row["clip_id"]
        if not self.pictures:
            return None
        if clip_id not in self._by_clip:
            frames = self._frames(row)
            self._by_clip[clip_id] = None if frames is None else self._picture(("clips", clip_id), frames, CLIP)
        return self._by_clip[clip_id]

    def query(self, row: Row) -> tuple[Picture | None, Picture | None]:
        """The picture of a query, and its film strip; None where it cannot be decoded."""
        key = ("queries", row["clip_id"])
        frames = self._frames(row) if self.pictures else None
        if frames is None:
            return None, None
        return self._picture(key, frames, QUERY), self._strip(key, frames)

    def _frames(self, row: Row) -> npt.NDArray[np.uint8] | None:
        assert self._frames_of is not None, "without it there are no pictures"
        frames = self._frames_of(dict(row))
        self.missing += frames is None
        return frames

    def _picture(self, key: Key, frames: npt.NDArray[np.uint8], box: tuple[int, int]) -> Picture:
        seconds = len(frames) / self._run.geometry[1]
        shown = picture(frames, box, self._limit, seconds, self._masks.get(key), film=True)
        self.films = self.films or shown.film is not None
        return shown

    def _strip(self, key: Key, frames: npt.NDArray[np.uint8]) -> Picture:
        return picture(frames, FILM, self._limit, len(frames) / self._run.geometry[1], self._masks.get(key), 8)

    def video(self, frames: npt.NDArray[np.uint8] | None) -> Picture | None:
        self.missing += frames is None
        return None if frames is None else picture(frames, VIDEO, self._limit, len(frames) / self._run.data.fps)


def cards(plan: Plan, studio: Studio, decisions: Mapping[tuple[str, str], str], ranked: int) -> list[Card]:
    """The shown queries' cards; `decisions` maps (group, clip_id) to the decision, and so many clips are `ranked`."""

    def side(query: Row, sign: str) -> tuple[Neighbor, ...]:
        rows = plan.neighbors.get(query["clip_id"], {}).get(sign, [])[:EACH]
        return tuple(neighbor(query, row) for row in rows)

    def neighbor(query: Row, row: Row) -> Neighbor:
        clip_id, own = row["clip_id"], query["group"] or "all"
        clip = plan.clips.get(clip_id)
        decision, group = decision_of(decisions, own, clip_id)
        thumbnail = None if clip is None else studio.clip(clip)
        shown = clip or {"clip_id": clip_id, "source": None, "caption": None}
        place = row["rank"] + 1 if row["sign"] == "positive" else ranked - row["rank"]
        return Neighbor(shown, row["influence"], place, decision, group, thumbnail)

    return [
        Card(
            query,
            *studio.query(query),
            side(query, "positive"),
            side(query, "negative"),
        )
        for query in plan.shown
    ]


def decision_of(decisions: Mapping[tuple[str, str], str], group: str, clip_id: str) -> tuple[str | None, str]:
    """The decision on a clip for a group, or else for all queries, and for which of the two it is."""
    group = group if (group, clip_id) in decisions else "all"
    return decisions.get((group, clip_id)), group


def decisions(root: str, ids: frozenset[str]) -> dict[tuple[str, str], str]:
    """(group, clip_id) -> decision, for these clips."""
    folder, clip_ids = stores.join(root, "selection"), pa.array(sorted(ids), pa.string())
    if not tables.parts(folder):
        return {}
    blocks = scanning.blocks(folder, ["group", "clip_id", "decision"])
    rows = [r for block in blocks for r in block.filter(pc.is_in(block.column("clip_id"), clip_ids)).to_pylist()]
    return {(r["group"], r["clip_id"]): r["decision"] for r in rows}


@dataclass(frozen=True)
class Generated:
    """One caption's videos, by arm; None where an arm has none, or where it cannot be decoded."""

    clip_id: str
    caption: str | None
    pictures: dict[str, Picture | None]


def generated(
    shown: Sequence[tuple[str, Mapping[str, str]]], names: Sequence[str], root: str, studio: Studio, video_of: VideoOf
) -> list[Generated]:
    clip_ids = [clip_id for clip_id, _ in shown]
    captions: dict[str, dict[str, Any]] = {}
    for name in ("clips", "queries") if studio.captions else ():
        captions |= figures.by_id(root, name, clip_ids, ["clip_id", "caption"])

    def one(uri: str | None) -> Picture | None:
        return None if uri is None or not studio.pictures else studio.video(video_of(uri))

    return [
        Generated(clip_id, captions.get(clip_id, {}).get("caption"), {a: one(uris.get(a)) for a in names})
        for clip_id, uris in shown
    ]


def count(plan: Plan, evaluation: Any) -> int:
    """How many pictures a page will hold, counted before any is taken."""
    neighbors = sum(len(s[:EACH]) for q in plan.shown for s in plan.neighbors.get(q["clip_id"], {}).values())
    videos = 0 if evaluation is None else sum(len(uris) for _, uris in comparison.videos(evaluation)[1])
    return 2 * len(plan.shown) + neighbors + videos
