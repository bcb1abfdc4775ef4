"""Held-out losses of a night's models: the base, the model in use and the candidate, on clips that the selection never
saw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.attribution import fingerprints
from pipeline.config import Run
from pipeline.errors import InputError
from pipeline.evaluation.comparison import LOSSES
from pipeline.evaluation.held_out import Trained, held_out_tasks
from pipeline.inputs import spans
from pipeline.operations import nights
from pipeline.operations.in_use import BASE, InUse
from pipeline.operations.nights import Record
from pipeline.stages import attribution, video_sets
from pipeline.stages.evaluation import measure
from pipeline.storage import stores

CANDIDATE, IN_USE = "candidate", "in_use"


def check_disjoint(run: Run) -> None:
    """Raise InputError where a held-out video is among the data or the queries: by its place, or its etag. Where both
    have spans of one file, these must not overlap."""
    videos = _videos(run, "held_out")
    for name in ("clips", "queries"):
        table = _videos(run, name)
        if videos is None or table is None:
            continue
        shared = videos.filter(pc.is_in(videos.column("uri"), table.column("uri").combine_chunks()))
        shared = shared.filter(pa.array(_overlapping(shared, table), pa.bool_()))
        remote = videos.filter(pc.match_substring(videos.column("uri"), "://"))
        remote = remote.filter(pc.invert(pc.is_in(remote.column("uri"), table.column("uri").combine_chunks())))
        same = remote.filter(pc.is_in(remote.column("version"), table.column("version").combine_chunks()))
        uris = sorted({*shared.column("uri").to_pylist(), *same.column("uri").to_pylist()})
        if uris:
            raise InputError(
                f"evaluate.videos={run.evaluate.videos!r}: {len(uris)} of its videos are in {video_sets.SETS[name]} "
                f"as well, such as {uris[0]}. Clips that took part in the selection cannot judge it; leave them out."
            )


def _videos(run: Run, name: str) -> pa.Table | None:
    """The uri, version and span of each clip of a set, in all roots that it lies in; None where it was not indexed."""
    roots = run.clip_roots if name == "clips" else (run.root,)
    listed = [rows for root in roots if (rows := _listed(stores.join(root, name))) is not None]
    return pa.concat_tables(listed) if listed else None


def _listed(folder: str) -> pa.Table | None:
    has_spans = any("span" in schema.names for schema in tables.columns(folder))
    table = tables.read(folder, ["uri", "version", *(["span"] if has_spans else [])])
    if table is None or has_spans:
        return table
    return table.append_column("span", pa.nulls(table.num_rows, pa.string()))


def _overlapping(rows: pa.Table, others: pa.Table) -> list[bool]:
    """Of rows whose files others have too, whether a span of the others' may share a frame with theirs."""
    same_uri = others.filter(pc.is_in(others.column("uri"), rows.column("uri").combine_chunks()))
    listed: dict[str, set[str | None]] = {}
    for row in same_uri.select(["uri", "span"]).to_pylist():
        listed.setdefault(row["uri"], set()).add(row["span"])
    pairs = rows.select(["uri", "span"]).to_pylist()
    return [any(spans.overlap(row["span"], span) for span in listed[row["uri"]]) for row in pairs]


def losses(
    run: Run, night: str, history: Sequence[Record], now: InUse, new: Trained
) -> dict[str, dict[str, dict[str, float]]]:
    """Held-out losses of the base, the model in use and the candidate: model -> metric -> clip_id -> loss.

    What an earlier night measured of the same training is taken over.
    """
    folder = stores.join(nights.folder(run.root, night), "evaluation")
    trainings = [Trained(BASE, BASE, "")]
    trainings += [] if now.night is None else [Trained(IN_USE, now.version, now.folder)]
    trainings += [] if new.version == now.version else [new._replace(arm=CANDIDATE)]
    attribution.estimate_motion(run, "held_out")
    moving = tables.read(stores.join(run.root, "motion", "held_out"))
    rows = [row for row in (moving.to_pylist() if moving else []) if row["error"] is None]
    fingerprint = fingerprints.evaluation(run)
    tables.check(folder, fingerprint)
    if history and not tables.parts(folder):
        last = stores.join(nights.folder(run.root, history[-1]["date"]), "evaluation")
        if tables.metadata(last).get("fingerprint") == fingerprint:
            tables.append(folder, _taken_over(tables.read(last), trainings), fingerprint)
    measure(run, held_out_tasks(trainings, rows), folder)
    table = tables.read(folder)
    measured = [] if table is None else table.to_pylist()
    return by_clip(measured, [training.arm for training in trainings], {row["clip_id"] for row in rows})


def by_clip(
    rows: Iterable[Mapping[str, Any]], arms: Sequence[str], clip_ids: Set[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """Rows of evaluation/ as arm -> loss -> clip_id -> value, over all timesteps: bands of them have no part in a
    decision."""
    values: dict[str, dict[str, dict[str, float]]] = {arm: {loss: {} for loss in LOSSES} for arm in arms}
    for row in rows:
        if row["clip_id"] in clip_ids and row["arm"] in values and row["metric"] in LOSSES:
            values[row["arm"]][row["metric"]][row["clip_id"]] = row["value"]
    return values


def _taken_over(table: pa.Table, trainings: Sequence[Trained]) -> pa.Table:
    """Rows of an earlier night, under the names that their trainings have tonight."""
    parts = []
    for model in trainings:
        rows = table.filter(pc.equal(table.column("version"), model.version))
        arm = pa.array([model.arm] * rows.num_rows, pa.string())
        parts.append(rows.set_column(rows.schema.get_field_index("arm"), "arm", arm))
    return pa.concat_tables(parts)
