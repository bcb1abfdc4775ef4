"""The dated results of a root, and what a night changed: ROOT/nights/YYYY-MM-DD/.

selection/       every clip's uri, version, mean influence, rank and decision of that night
evaluation/      losses of the base, the model in use and the night's candidate, clip by clip
decision.json    written once it is known which model is in use from now on
model/           the night's model, if it was promoted
drift/           features of a few clips under it
index.html, night.json    the page, and the numbers of it; night.json is written last: the night is done
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.errors import ConfigError, MissingTableError
from pipeline.operations.in_use import in_use
from pipeline.statistics import rank_drift
from pipeline.storage import stores
from pipeline.tables import scanning, schemas

RECORD, DECISION = "night.json", "decision.json"
Record = Mapping[str, Any]

SELECTION = schemas.NIGHT_SELECTION


def folder(root: str, night: str) -> str:
    return stores.join(root, "nights", night)


def begun(root: str) -> list[str]:
    """The dates that have a folder, finished or not, in order."""
    names = [path.rsplit("/", 1)[-1] for path in stores.files(stores.join(root, "nights"))]
    return [name for name in names if _is_date(name)]


def _is_date(name: str) -> bool:
    try:
        return datetime.date.fromisoformat(name).isoformat() == name
    except ValueError:
        return False


def finished(root: str) -> list[dict[str, Any]]:
    """The records of the nights that are done, in order."""
    records = [read(root, night, RECORD) for night in begun(root)]
    return [record for record in records if record is not None]


def read(root: str, night: str, name: str) -> dict[str, Any] | None:
    path = stores.join(folder(root, night), name)
    record: dict[str, Any] | None = json.loads(stores.read_bytes(path)) if stores.exists(path) else None
    return record


def write(root: str, night: str, name: str, record: Record) -> None:
    path = stores.join(folder(root, night), name)
    stores.write_bytes(path, json.dumps(record, indent=2, allow_nan=False).encode())


def check_date(night: str, today: datetime.date, history: Sequence[Record]) -> None:
    """Raise ConfigError for a night in the future, or one that lies before the last that is done."""
    if datetime.date.fromisoformat(night) > today + datetime.timedelta(days=1):
        raise ConfigError(f"nightly.date={night}: it lies in the future (today is {today} in UTC); leave it out.")
    if history and night < history[-1]["date"]:
        raise ConfigError(
            f"nightly.date={night}: the night of {history[-1]['date']} is done already, and nights are compared in "
            "order. Leave nightly.date out, or name a later one."
        )


def missed(night: str, history: Sequence[Record]) -> list[str]:
    """The dates between the last night that is done and this one; this one covers their videos."""
    if not history:
        return []
    first, last = (datetime.date.fromisoformat(d) for d in (history[-1]["date"], night))
    return [(first + datetime.timedelta(days=i)).isoformat() for i in range(1, (last - first).days)]


def retain(root: str, keep: int, pinned: str | None) -> list[str]:
    """Delete all but the last `keep` finished nights and what unfinished ones before them left; returns their dates.

    The nights whose model is in use, or named by attribution.weights (`pinned`), stay.
    """
    done = [record["date"] for record in finished(root)]
    if not done:
        return []
    spared = {*done[-keep:], in_use(root).night}
    gone = [
        night
        for night in begun(root)
        if night < done[-1] and night not in spared and not (pinned or "").rstrip("/").endswith(f"nights/{night}/model")
    ]
    for night in gone:
        path = stores.join(folder(root, night), RECORD)
        fs, bare = stores.place(path)
        if stores.exists(path):
            fs.rm_file(bare)  # first, so that a folder deleted in part is not taken for a night
        stores.remove(folder(root, night))
    return gone


def headline(record: Record) -> str:
    """The night in a few sentences."""
    videos, chosen = record["videos"], record["selection"]
    moved = "" if chosen["added"] is None else f", {chosen['added']} of them new in the selection"
    return (
        f"{record['date']}: {videos['new']} new, {videos['changed']} changed and {videos['vanished']} vanished videos; "
        f"{chosen['selected']} of {record['ranked']} ranked clips are selected{moved}. The night's model is "
        f"{'promoted' if record['promoted'] else 'not promoted'}: {record['reason']}"
    )


# --- what changed ----------------------------------------------------------------------------------------------------


def selection_of(root: str, group: str) -> pa.Table:
    """Every clip's place in the selection for a group, with the video it is of, by clip_id."""
    folder = stores.join(root, "selection")
    clips = tables.read(stores.join(root, "clips"), ["clip_id", "uri", "version"])
    if clips is None or not tables.parts(folder):
        raise MissingTableError(f"root={root!r}: it has no selection/ or no clips/; run the night from its beginning.")
    columns = ["clip_id", "group", "mean_influence", "rank", "decision"]
    blocks = (rows.filter(pc.equal(rows.column("group"), group)) for rows in scanning.blocks(folder, columns))
    table = pa.concat_tables(blocks)
    at = pc.index_in(table.column("clip_id"), clips.column("clip_id").combine_chunks())
    for name in ("uri", "version"):
        table = table.append_column(name, clips.column(name).take(at))
    table = table.append_column("by", pa.repeat(pa.scalar("ranking"), table.num_rows))
    return table.select(SELECTION.names).cast(SELECTION).sort_by("clip_id")


def with_people(selection: pa.Table, chosen: pa.Array, verdicts: pa.Table) -> pa.Table:
    """A night's selection after people's word: `chosen` are the clips of the arm `curated`, `verdicts` as
    `decisions.verdicts` has them. A clip that people neither keep nor stop, and that is chosen no more, is neutral."""
    at = pc.index_in(selection.column("clip_id"), verdicts.column("clip_id").combine_chunks())
    verdict, by = (verdicts.column(name).take(at) for name in ("verdict", "by"))
    stopped = pc.case_when(
        pc.make_struct(
            pc.fill_null(pc.equal(verdict, "drop"), False), pc.fill_null(pc.equal(verdict, "disputed"), False)
        ),
        "dropped",
        "disputed",
    )
    machine = selection.column("decision")
    rest = pc.coalesce(stopped, pc.if_else(pc.equal(machine, "selected"), "neutral", machine))
    decision = pc.if_else(pc.is_in(selection.column("clip_id"), chosen), "selected", rest)
    for name, column in (("decision", decision), ("by", pc.coalesce(by, "ranking"))):
        selection = selection.set_column(selection.column_names.index(name), name, column)
    return selection.cast(SELECTION)


def arrivals(before: pa.Table | None, now: pa.Table) -> dict[str, int]:
    """How many videos are new, changed (of another version) and vanished since the last night's selection."""
    videos = _videos(now)
    if before is None:
        return {"all": videos.num_rows, "new": videos.num_rows, "changed": 0, "vanished": 0}
    old = _videos(before)
    at = pc.index_in(videos.column("uri"), old.column("uri").combine_chunks())
    shared = int(pc.sum(pc.is_valid(at)).as_py() or 0)
    same = pc.equal(videos.column("version_min"), old.column("version_min").take(at))
    return {
        "all": videos.num_rows,
        "new": videos.num_rows - shared,
        "changed": shared - int(pc.sum(same).as_py() or 0),
        "vanished": old.num_rows - shared,
    }


def _videos(selection: pa.Table) -> pa.Table:
    rows = selection.filter(pc.is_valid(selection.column("uri")))
    return rows.group_by("uri").aggregate([("version", "min")])


def changes(before: pa.Table | None, now: pa.Table) -> dict[str, Any]:
    """What became of the selection: how many are selected, how many of them are new in it, how many left it; and how
    far the influence of the clips ranked on both nights has moved."""
    chosen = _selected(now)
    if before is None:
        return {"selected": len(chosen), "added": None, "removed": None, "influence": None}
    old = _selected(before)
    stayed = int(pc.sum(pc.is_in(chosen, old)).as_py() or 0)
    at = pc.index_in(now.column("clip_id"), before.column("clip_id").combine_chunks())
    both = pa.table({"now": now.column("mean_influence"), "before": before.column("mean_influence").take(at)})
    both = both.filter(pc.and_(pc.is_valid(both.column("now")), pc.is_valid(both.column("before"))))
    scores = [both.column(name).to_numpy().astype(np.float64) for name in ("before", "now")]
    moved = rank_drift.compare(*scores).record()
    return {"selected": len(chosen), "added": len(chosen) - stayed, "removed": len(old) - stayed, "influence": moved}


def _selected(table: pa.Table) -> pa.Array:
    return table.filter(pc.equal(table.column("decision"), "selected")).column("clip_id").combine_chunks()
