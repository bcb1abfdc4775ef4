"""The stages on a set of videos: `clips`, `queries` or `held_out`. Each computes what its table lacks and no more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from jobs import command
from jobs.budget import Capped
from jobs.command import Progress, counts
from pipeline import models, motion, tables
from pipeline.attribution import fingerprints
from pipeline.attribution.workers import AttributionWorker, FeatureWorker, featured
from pipeline.cluster import streaming
from pipeline.config import Run
from pipeline.config.operations import Pool
from pipeline.errors import ConfigError
from pipeline.inputs import changes, passed_columns
from pipeline.inputs.changes import Listing
from pipeline.motion.worker import MotionWorker
from pipeline.ranking import shortlist
from pipeline.storage import stores
from pipeline.tables import scanning, schemas
from pipeline.tables.merging import merge
from pipeline.tables.pending import lacking, settle
from pipeline.tables.scanning import Held, Keys, Rows
from pipeline.tables.shuffling import Shuffled, keys
from pipeline.video.indexing import IndexWorker

SETS = {"clips": "data.videos", "queries": "queries.videos", "held_out": "evaluate.videos"}
_LISTING = ("uri", "relative", "version", "size", "source", "caption", "id", "group", "error")


def where(run: Run, name: str) -> str | None:
    """The place of a set's videos. Queries made from prompts lie under the run's root."""
    if name == "queries" and run.queries.videos is None:
        return stores.join(run.root, "generated", "queries", "metadata.jsonl")
    return {"clips": run.data.videos, "queries": run.queries.videos, "held_out": run.evaluate.videos}[name]


def _listed(run: Run, name: str) -> tuple[str, str, str | None]:
    """Where a set's videos are, the key that says so, and the folder they must lie in."""
    ours = name == "queries" and run.queries.videos is None  # made from prompts: they lie under the run's own root
    return str(where(run, name)), SETS[name], None if ours else run.data.base


def check(run: Run, stage: str, names: tuple[str, ...] = ("queries", "clips")) -> None:
    """Everything that can be known to be wrong before long work starts. Raises ConfigError or FingerprintError."""
    for name in names if stage == "index_clips" else ():
        if name != "queries" or run.queries.videos is not None:
            place, folder = _listed(run, name), stores.join(run.root, name)
            passed_columns.check(changes.check(*place), tables.columns(folder), *place[:2], folder)
    models.family(models.folder(run.model.id))
    motion.check_weights(run.motion)
    for name in names:
        tables.check(stores.join(run.root, name), fingerprints.clips(run))
    for one, scope in scopes(run):
        fingerprints.check_geometry(one, "attribution" if one is run else "attribution.shortlist")
        for name in names:
            tables.check(stores.join(scope.motion, "motion", name), fingerprints.motion(one))
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
    among: Keys | None = None

    def has(self, rows: pa.Table) -> pa.Array:
        if self.among is None:
            return pa.repeat(pa.scalar(True), rows.num_rows)
        return pa.array(self.among.has(keys(rows.column("clip_id"))))


def scopes(run: Run) -> list[tuple[Run, Scope]]:
    """A run's attributions: with a shortlist the cheaper one first, in a root of its own."""
    cheaper, whole = shortlist.variant(run), (run, Scope(run.root, run.root))
    return [whole] if cheaper is None else [(cheaper, Scope(run.root, shortlist.motion_root(run), "cheaper ")), whole]


@dataclass(frozen=True)
class Counted:
    """How many rows a table has, and how many of them failed, by code."""

    rows: int
    errors: dict[str, int]


def index(run: Run, name: str) -> Counted:
    """Find a set's videos and cut them into segments."""
    folder = stores.join(run.root, name)
    merge(folder)
    listed = Listing(*_listed(run, name))
    others = [f for f in listed.schema if f.name not in (*_LISTING, *schemas.CLIPS.names)]
    schema = pa.schema([*(schemas.QUERIES if name == "queries" else schemas.CLIPS), *others])
    told = [n for n in schema.names if n in ("source", "group")] + [f.name for f in others]
    _give_way_to_words(run, name, listed, told)
    tried = listed.subtract(folder)
    figures = streaming.stream(
        f"index {name}",
        run.root,
        listed.videos,
        listed.videos.num_rows,
        run.resources.index_clips,
        IndexWorker,
        (run, schema),
        {"clips": folder},
        {"clips": fingerprints.clips(run)},
        Progress(f"index {name}"),
        tried=tried,
    )
    command.achieved(f"index {name}", figures)
    settle(folder, tried)
    held = Held(folder)
    _drop_orphans(run, name, held)
    return _counted(held, name)


def _give_way_to_words(run: Run, name: str, listed: Listing, names: list[str]) -> None:
    """Rows of clips of which the listing says something else now are dropped, to be made again. Where it is the
    caption, which features depend on, what was computed goes first: a job that is killed in between does it again."""
    folder = stores.join(run.root, name)
    there = {column for schema in tables.columns(folder) for column in schema.names}
    if not there:
        return
    wanted = ["clip_id", "uri", "caption", *(n for n in ("captions", *names) if n in there)]
    held = scanning.blocks(folder, list(dict.fromkeys(wanted)))
    recaptioned, reworded = passed_columns.changed(listed.videos, held, [n for n in names if n != "captions"])
    for root, stage in _computed(run):
        tables.drop(stores.join(root, stage, name), recaptioned)
    tables.drop(folder, reworded)


def _drop_orphans(run: Run, name: str, clips: Held) -> None:
    """What was computed for clips that the index no longer has, or has in another version, gives way."""
    for root, stage in _computed(run):
        folder = stores.join(root, stage, name)
        tables.drop_where(folder, lambda rows: pa.array(~clips.knows(rows)), ["clip_id", "version"])


def _computed(run: Run) -> list[tuple[str, str]]:
    """Root and name of all that is computed for clips, the last first; also of a shortlist that is no longer asked
    for."""
    return [(root, stage) for root in (run.root, shortlist.home(run.root)) for stage in ("features", "motion")]


def estimate_motion(run: Run, name: str, scope: Scope | None = None) -> Counted:
    """Flow, masks and motion statistics of a set's clips."""
    scope = scope or Scope(run.root, run.root)
    folder = stores.join(scope.motion, "motion", name)
    merge(folder)
    pool = run.resources.estimate_motion
    worker = partial(MotionWorker, run, models.strides(models.folder(run.model.id)), pool.gpus)
    rows = lacking(_segments(name, scope), [folder])
    _stream(run, pool, worker, rows, {"motion": folder}, f"motion {name}", scope)
    return _counted(Held(folder), f"{scope.words}motion/{name}")


def extract_features(run: Run, name: str, scope: Scope | None = None) -> Counted:
    """Projected gradients of a set's clips, from the motion table."""
    run, scope = run.of(name), scope or Scope(run.root, run.root)
    folder = stores.join(run.root, "features", name)
    merge(folder)
    worker = partial(FeatureWorker, run, fingerprints.features(run))
    rows = lacking(_moving(name, scope), [folder])
    _stream(run, run.resources.extract_features, worker, rows, {"features": folder}, f"features {name}", scope)
    return _counted(Held(folder), f"{scope.words}features/{name}")


def attribute(run: Run, name: str, scope: Scope | None = None) -> tuple[Counted, Counted]:
    """Motion and features of a set in one pass over its videos; then whatever only one of the two tables lacks."""
    run, scope = run.of(name), scope or Scope(run.root, run.root)
    folders = {"motion": stores.join(scope.motion, "motion", name), "features": stores.join(run.root, "features", name)}
    for folder in folders.values():
        merge(folder)
    rows = lacking(_segments(name, scope), list(folders.values()))
    strides = models.strides(models.folder(run.model.id))
    pool = run.resources.extract_features
    worker = partial(AttributionWorker, run, strides, fingerprints.features(run))
    _stream(run, pool, worker, rows, folders, f"attribute {name}", scope)
    return estimate_motion(run, name, scope), extract_features(run, name, scope)


def _segments(name: str, scope: Scope) -> Rows:
    """The clips of a set that could be indexed."""
    folder = stores.join(scope.index, name)
    if not tables.parts(folder):
        raise ConfigError(f"root={scope.index!r} has no table {name}; run index_clips first, or curate.")
    return Rows(folder, lambda rows: pc.and_(pc.is_null(rows.column("error")), scope.has(rows)))


def _moving(name: str, scope: Scope) -> Rows:
    """The rows of a motion table that go on to features, without their masks, which workers look up."""
    folder = stores.join(scope.motion, "motion", name)
    if not tables.parts(folder):
        raise ConfigError(f"root={scope.motion!r} has no table motion/{name}; run estimate_motion first, or curate.")
    return Rows(folder, lambda rows: pc.and_(_goes_on(rows), scope.has(rows)), without=FeatureWorker.LOOKED_UP)


def _goes_on(rows: pa.Table) -> pa.Array:
    return pa.array([featured(error) for error in rows.column("error").to_pylist()], pa.bool_())


def _stream(
    run: Run,
    pool: Pool,
    worker: Callable[[], streaming.Worker],
    lacked: tuple[Shuffled, set[str]],
    folders: dict[str, str],
    title: str,
    scope: Scope,
) -> None:
    rows, tried = lacked
    if not rows.num_rows:
        return
    title = f"{scope.words}{title}"
    if "features" in folders:
        print(f"{title}: {_projection(run)}", flush=True)
    prints = {"motion": fingerprints.motion, "features": fingerprints.features}
    held = {"features": {"settings": [s.record() for s in run.attribution.settings]}}
    figures = streaming.stream(
        title,
        scope.index,
        rows,
        rows.num_rows,
        pool,
        worker,
        (),
        folders,
        {n: prints[n](run) for n in folders},
        Capped(Progress(title), title, run.budget, pool),
        metadata=held,
        tried=tried,
    )
    for folder in folders.values():
        settle(folder, tried)
    command.achieved(title, figures)


def _projection(run: Run) -> str:
    """How gradients are projected, for the log."""
    a = run.attribution
    how = f"{a.hold} gradients held for each generation" if a.hold > 1 else "streamed"
    return f"{a.projection.kind} projection to {a.projection.dim} numbers, {how}"


def _counted(held: Held, title: str) -> Counted:
    counts(title, len(held), held.errors)
    return Counted(len(held), held.errors)
