"""The stages on a set of videos: `clips`, `queries` or `held_out`. Each computes what its table lacks and no more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import models, motion, tables
from pipeline.attribution import fingerprints
from pipeline.attribution.workers import AttributionWorker, FeatureWorker, featured
from pipeline.cluster import streaming
from pipeline.cluster.streaming import Stage
from pipeline.config import Run
from pipeline.config.faults import Faults
from pipeline.config.operations import Pool
from pipeline.errors import MissingTableError
from pipeline.inputs import changes, passed_columns
from pipeline.models.compiling import check_compiler
from pipeline.models.lora import adapters
from pipeline.motion.worker import MotionWorker
from pipeline.ranking import shortlist
from pipeline.ranking.rules import reading
from pipeline.stages import budget, video_sets
from pipeline.stages.progress import Counted, Progress, achieved, counted
from pipeline.statistics import rank_drift
from pipeline.storage import stores
from pipeline.tables import IdSet, Outcomes, Pending, Scan, scanning, schemas
from pipeline.tables.merging import merge


def check(run: Run, stage: str, names: tuple[str, ...] = ("queries", "clips"), *, with_features: bool = True) -> None:
    """Everything that can be known to be wrong before long work starts, features that are there among it if
    `with_features`. Raises UsageError."""
    faults = Faults()
    for name in names if stage == "index_clips" else ():
        if name == "queries" and run.queries.videos is None:
            continue  # they lie under the run's own root, which is there or will be
        videos, folder = video_sets.asked(run, name), stores.join(run.root, name)
        with faults.collected():
            listed = changes.check(videos)
            passed_columns.check(listed, tables.columns(folder), videos, folder)
            if name == "clips":
                passed = [field for field in listed if field.name not in schemas.VIDEOS.names]
                reading.check_columns(run, [pa.schema([*schemas.CLIPS, *passed])])
    with faults.collected():
        models.family(run.model)
    if run.model.compile:  # on a cluster this is the driver's node; an actor's own says the same, as its stage fails
        with faults.collected():
            check_compiler()
    if run.attribution.lora is not None:
        with faults.collected():
            adapters(run.model, run.attribution.lora)
    with faults.collected():
        motion.check_weights(run.motion)
    faults.check()
    for name in names:
        tables.check(stores.join(run.root, name), fingerprints.clips(run))
    for one, scope in scopes(run):
        key = "attribution" if one is run else "attribution.shortlist"
        fingerprints.check_geometry(one, key)
        fingerprints.check_times(one, key)
        for name in names:
            tables.check(stores.join(scope.motion, "motion", name), fingerprints.motion(one))
            tables.check(stores.join(scope.motion, "movement", name), fingerprints.movement(one))
            tables.check(stores.join(scope.motion, "pictures", name), fingerprints.pictures(one))
    if with_features:
        check_features(run, names)


def check_features(run: Run, names: tuple[str, ...]) -> None:
    """Raise FingerprintError where the features that are there are of other settings."""
    for one, _ in scopes(run):
        for name in names:
            if name != "held_out":
                tables.check(stores.join(one.root, "features", name), fingerprints.features(one.of(name)))


@dataclass(frozen=True)
class Scope:
    """Where an attribution finds what it does not make itself, and which clips it is for.

    `index` is the root of the clips, `motion` that of their motion; `words` go before the stages' titles.
    """

    index: str
    motion: str
    words: str = ""
    among: IdSet | None = None

    def has(self, rows: pa.Table) -> pa.Array:
        if self.among is None:
            return pa.repeat(pa.scalar(True), rows.num_rows)
        return pa.array(self.among.has(rows.column("clip_id")))


def scopes(run: Run) -> list[tuple[Run, Scope]]:
    """A run's attributions: with a shortlist the cheaper one first, in a root of its own."""
    cheaper, whole = shortlist.variant(run), (run, Scope(run.root, run.root))
    return [whole] if cheaper is None else [(cheaper, Scope(run.root, shortlist.motion_root(run), "cheaper ")), whole]


def estimate_motion(run: Run, name: str, scope: Scope | None = None) -> Counted:
    """Flow, masks and motion statistics of a set's clips."""
    scope = scope or Scope(run.root, run.root)
    folders = {table: stores.join(scope.motion, table, name) for table in ("pictures", "movement", "motion")}
    _prepare(run, folders)
    sample = _sample(run, name, scope)
    if sample is not None and scope.among is None:
        scope = replace(scope, among=IdSet.of([pa.array(sample, pa.string())]))
    pool = run.resources.estimate_motion
    worker = partial(MotionWorker, run, models.grid(run), pool.gpus)
    pending = tables.pending_rows(_segments(name, scope), [folders["motion"]])
    _stream(run, pool, worker, pending, folders, f"motion {name}", scope)
    return counted(Outcomes(folders["motion"]), f"{scope.words}motion/{name}")


def extract_features(run: Run, name: str, scope: Scope | None = None) -> Counted:
    """Projected gradients of a set's clips, from the motion table."""
    run, scope = run.of(name), scope or Scope(run.root, run.root)
    folder = stores.join(run.root, "features", name)
    folders = {"pictures": stores.join(scope.motion, "pictures", name), "features": folder}
    _prepare(run, folders)
    worker = partial(FeatureWorker, run, fingerprints.features(run))
    source = _moving(name, scope) if _sample(run, name, scope) is None else _segments(name, scope)
    pending = tables.pending_rows(source, [folder])
    _stream(run, run.resources.extract_features, worker, pending, folders, f"features {name}", scope)
    return counted(Outcomes(folder), f"{scope.words}features/{name}")


def attribute(run: Run, name: str, scope: Scope | None = None) -> tuple[Counted, Counted]:
    """Motion and features of a set in one pass over its videos; then whatever only one of the two tables lacks."""
    run, scope = run.of(name), scope or Scope(run.root, run.root)
    folders = {stage: stores.join(scope.motion, stage, name) for stage in ("pictures", "movement", "motion")}
    folders["features"] = stores.join(run.root, "features", name)
    _prepare(run, folders)
    sample = _sample(run, name, scope)
    needed = [folders["motion"], folders["features"]] if sample is None else [folders["features"]]
    pending = tables.pending_rows(_segments(name, scope), needed)
    grid = models.grid(run)
    pool = run.resources.extract_features
    if sample is not None and tables.parts(folders["motion"]):
        measured = Outcomes(folders["motion"]).ids.has(pa.array(sample, pa.string()))
        sample = [clip_id for clip_id, done in zip(sample, measured, strict=True) if not done]
    worker = partial(AttributionWorker, run, grid, fingerprints.features(run), sample)
    _stream(run, pool, worker, pending, folders, f"attribute {name}", scope)
    return estimate_motion(run, name, scope), extract_features(run, name, scope)


_FINGERPRINTS = {
    "pictures": fingerprints.pictures,
    "movement": fingerprints.movement,
    "motion": fingerprints.motion,
    "features": fingerprints.features,
}


def _prepare(run: Run, folders: Mapping[str, str]) -> None:
    """Merge small parts of tables that rows will be added to. Raises FingerprintError where what they have is of other
    settings: none of it is ever mixed with new rows."""
    for table, folder in folders.items():
        tables.check(folder, _FINGERPRINTS[table](run))
        merge(folder)


def _sample(run: Run, name: str, scope: Scope) -> list[str] | None:
    """The clips whose motion is measured, where it is not that of all: drawn by seed and id alone, so that most stay
    when clips are added."""
    if run.motion.of == "all" or name != "clips":
        return None
    if not tables.parts(stores.join(scope.index, name)):
        return []
    blocks = scanning.blocks(stores.join(scope.index, name), ["clip_id"])
    return rank_drift.drawn(run.seed, (i for rows in blocks for i in rows.column(0).to_pylist()), run.motion.sample)


def _segments(name: str, scope: Scope) -> Scan:
    """The clips of a set that could be indexed."""
    folder = stores.join(scope.index, name)
    if not tables.parts(folder):
        raise MissingTableError(f"root={scope.index!r} has no table {name}; run index_clips first, or curate.")
    return Scan(folder, lambda rows: pc.and_(pc.is_null(rows.column("error")), scope.has(rows)))


def _moving(name: str, scope: Scope) -> Scan:
    """The rows of a motion table that go on to features, without their masks, which workers look up."""
    folder = stores.join(scope.motion, "motion", name)
    if not tables.parts(folder):
        raise MissingTableError(
            f"root={scope.motion!r} has no table motion/{name}; run estimate_motion first, or curate."
        )
    return Scan(folder, lambda rows: pc.and_(_goes_on(rows), scope.has(rows)), without=FeatureWorker.LOOKED_UP)


def _goes_on(rows: pa.Table) -> pa.Array:
    return pa.array([featured(error) for error in rows.column("error").to_pylist()], pa.bool_())


def _stream(
    run: Run,
    pool: Pool,
    worker: Callable[[], streaming.Worker],
    pending: Pending,
    folders: dict[str, str],
    title: str,
    scope: Scope,
) -> None:
    count = pending.rows.num_rows
    if not count:
        return
    title = f"{scope.words}{title}"
    if "features" in folders:
        print(f"{title}: {_projection(run)}", flush=True)
    stage = Stage(
        title=title,
        root=scope.index,
        pool=pool,
        worker=worker,
        folders=folders,
        fingerprints={name: _FINGERPRINTS[name](run) for name in folders},
        metadata={"features": {"settings": [setting.record() for setting in run.attribution.settings]}},
    )
    checkpoint = budget.spending(run.budget).checkpoint(title, pool)
    figures = streaming.stream(stage, pending.rows, count, Progress(title), pending.last_tries, checkpoint)
    for folder in folders.values():
        tables.drop_superseded_errors(folder, pending.last_tries)
    achieved(title, figures)


def _projection(run: Run) -> str:
    """How gradients are projected, for the log."""
    a = run.attribution
    count = run.looks[0] * (1 + len(run.queries.twins))
    each = f"{count} gradients a setting, " if count > 1 else ""
    how = f"{a.hold} gradients held for each generation" if a.hold > 1 else "streamed"
    return f"{each}{a.projection.kind} projection to {a.projection.dim} numbers, {how}"
