"""Held-out losses of a night's models: the base, the model in use and the candidate, on clips that the selection never
saw."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.attribution import fingerprints
from pipeline.config import Run
from pipeline.evaluation.comparison import LOSSES
from pipeline.evaluation.held_out import Trained, held_out_tasks
from pipeline.operations import nights
from pipeline.operations.in_use import BASE, InUse
from pipeline.operations.nights import Record
from pipeline.stages import attribution
from pipeline.stages.evaluation import measure
from pipeline.storage import stores

CANDIDATE, IN_USE = "candidate", "in_use"


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
    decision, and neither have losses that are not finite."""
    values: dict[str, dict[str, dict[str, float]]] = {arm: {loss: {} for loss in LOSSES} for arm in arms}
    for row in rows:
        value = row["value"]
        counts = value is not None and math.isfinite(value)
        if counts and row["clip_id"] in clip_ids and row["arm"] in values and row["metric"] in LOSSES:
            values[row["arm"]][row["metric"]][row["clip_id"]] = value
    return values


def _taken_over(table: pa.Table, trainings: Sequence[Trained]) -> pa.Table:
    """Rows of an earlier night, under the names that their trainings have tonight."""
    parts = []
    for model in trainings:
        rows = table.filter(pc.equal(table.column("version"), model.version))
        arm = pa.array([model.arm] * rows.num_rows, pa.string())
        parts.append(rows.set_column(rows.schema.get_field_index("arm"), "arm", arm))
    return pa.concat_tables(parts)
