"""The stages on a set of videos: `clips`, `queries` or `held_out`. Each computes what its table lacks and no more."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from jobs import command
from jobs.command import Progress, counts
from pipeline import fingerprints, manifest, models, motion, passed, ray_data, schemas, stores, tables
from pipeline.config import ConfigError, Pool, Run
from pipeline.indexing import IndexWorker
from pipeline.workers import AttributionWorker, FeatureWorker, MotionWorker, featured

SETS = {"clips": "data.videos", "queries": "queries.videos", "held_out": "evaluate.videos"}
_LISTING = ("uri", "relative", "version", "size", "source", "caption", "id", "group", "error")


def where(run: Run, name: str) -> str | None:
    """The place of a set's videos. Queries made from prompts lie under the run's root."""
    if name == "queries" and run.queries.videos is None:
        return stores.join(run.root, "generated", "queries", "metadata.jsonl")
    return {"clips": run.data.videos, "queries": run.queries.videos, "held_out": run.evaluate.videos}[name]


def _listed(run: Run, name: str) -> pa.Table:
    ours = name == "queries" and run.queries.videos is None  # made from prompts: they lie under the run's own root
    return manifest.videos(str(where(run, name)), SETS[name], None if ours else run.data.base)


def check(run: Run, stage: str, names: tuple[str, ...] = ("queries", "clips")) -> None:
    """Everything that can be known to be wrong before long work starts. Raises ConfigError or FingerprintError."""
    for name in names if stage == "index_clips" else ():
        if name != "queries" or run.queries.videos is not None:
            listed, folder = _listed(run, name), stores.join(run.root, name)
            passed.check(listed.schema, tables.columns(folder), str(where(run, name)), SETS[name], folder)
    fingerprints.check_geometry(run)
    models.family(models.folder(run.model.id))
    motion.check_weights(run.motion)
    for name in names:
        tables.check(stores.join(run.root, name), fingerprints.clips(run))
        tables.check(stores.join(run.root, "motion", name), fingerprints.motion(run))
        if name != "held_out":
            tables.check(stores.join(run.root, "features", name), fingerprints.features(run))


def index(run: Run, name: str) -> pa.Table:
    """Find a set's videos and cut them into segments."""
    folder = stores.join(run.root, name)
    tables.merge(folder)
    listed = _listed(run, name)
    others = [f for f in listed.schema if f.name not in (*_LISTING, *schemas.CLIPS.names)]
    schema = pa.schema([*(schemas.QUERIES if name == "queries" else schemas.CLIPS), *others])
    told = [n for n in schema.names if n in ("source", "group")] + [f.name for f in others]
    _give_way_to_words(run, name, [listed], told)
    videos = _new_videos(listed, folder)
    figures = ray_data.stream(
        f"index {name}",
        run.root,
        [videos],
        videos.num_rows,
        run.resources.index_clips,
        IndexWorker,
        (run, schema),
        {"clips": folder},
        {"clips": fingerprints.clips(run)},
        Progress(f"index {name}"),
    )
    command.achieved(f"index {name}", figures)
    table = _finished(folder, name)
    _drop_orphans(run, name, table)
    return table


def _give_way_to_words(run: Run, name: str, listed: Iterable[pa.Table], names: list[str]) -> None:
    """Rows of clips of which the listing says something else now are dropped, to be made again. Where it is the
    caption, which features depend on, what was computed goes first: a job that is killed in between does it again."""
    folder = stores.join(run.root, name)
    there = {column for schema in tables.columns(folder) for column in schema.names}
    wanted = ["clip_id", "uri", "caption", *(n for n in ("captions", *names) if n in there)]
    held = tables.read(folder, list(dict.fromkeys(wanted))) if there else None
    if held is None:
        return
    recaptioned, reworded = passed.changed(listed, [held], [n for n in names if n != "captions"])
    for stage in ("features", "motion"):
        tables.drop(stores.join(run.root, stage, name), recaptioned)
    tables.drop(folder, reworded)


def _new_videos(listed: pa.Table, folder: str) -> pa.Table:
    """The videos without rows of their present version. Rows of older versions, of videos that are not listed any more,
    and errors worth another try, go."""
    known = tables.read(folder, ["clip_id", "uri", "version", "error"])
    if known is None:
        return listed
    versions = dict(zip(listed.column("uri").to_pylist(), listed.column("version").to_pylist(), strict=True))
    stale, done = [], set()
    for row in known.to_pylist():
        again = row["error"] is not None and row["error"].split(":")[0] in tables.RETRIED
        if again or versions.get(row["uri"]) != row["version"]:
            stale.append(row["clip_id"])
        else:
            done |= {row["uri"], row["clip_id"]}
    tables.drop(folder, stale)
    names = zip(listed.column("id").to_pylist(), listed.column("uri").to_pylist(), strict=True)
    return listed.filter(pa.array([(own or uri) not in done for own, uri in names], pa.bool_()))


def _drop_orphans(run: Run, name: str, clips: pa.Table) -> None:
    """What was computed for clips that the index no longer has, or has in another version, gives way."""
    now = {(row["clip_id"], row["version"]) for row in clips.select(["clip_id", "version"]).to_pylist()}
    for stage in ("features", "motion"):
        folder = stores.join(run.root, stage, name)
        held = tables.read(folder, ["clip_id", "version"])
        gone = [r["clip_id"] for r in held.to_pylist() if (r["clip_id"], r["version"]) not in now] if held else []
        tables.drop(folder, gone)


def estimate_motion(run: Run, name: str) -> pa.Table:
    """Flow, masks and motion statistics of a set's clips."""
    folder = stores.join(run.root, "motion", name)
    tables.merge(folder)
    pool = run.resources.estimate_motion
    _stream(
        run,
        pool,
        partial(MotionWorker, run, models.strides(models.folder(run.model.id)), pool.gpus),
        _outdated(_segments(run, name), folder),
        {"motion": folder},
        f"motion {name}",
    )
    return _finished(folder, f"motion/{name}")


def extract_features(run: Run, name: str) -> pa.Table:
    """Projected gradients of a set's clips, from the motion table."""
    folder = stores.join(run.root, "features", name)
    tables.merge(folder)
    rows = tables.read(stores.join(run.root, "motion", name))
    if rows is None:
        raise ConfigError(f"root={run.root!r} has no table motion/{name}; run estimate_motion first, or curate.")
    rows = rows.filter(pa.array([featured(e) for e in rows.column("error").to_pylist()], pa.bool_()))
    _stream(
        run,
        run.resources.extract_features,
        partial(FeatureWorker, run, fingerprints.features(run)),
        _outdated(rows, folder),
        {"features": folder},
        f"features {name}",
    )
    return _finished(folder, f"features/{name}")


def attribute(run: Run, name: str) -> tuple[pa.Table, pa.Table]:
    """Motion and features of a set in one pass over its videos; then whatever only one of the two tables lacks."""
    folders = {"motion": stores.join(run.root, "motion", name), "features": stores.join(run.root, "features", name)}
    for folder in folders.values():
        tables.merge(folder)
    lacking = _outdated(_outdated(_segments(run, name), folders["motion"]), folders["features"])
    strides = models.strides(models.folder(run.model.id))
    pool = run.resources.extract_features
    worker = partial(AttributionWorker, run, strides, fingerprints.features(run))
    _stream(run, pool, worker, lacking, folders, f"attribute {name}")
    return estimate_motion(run, name), extract_features(run, name)


def _segments(run: Run, name: str) -> pa.Table:
    """The clips of a set that could be indexed."""
    rows = tables.read(stores.join(run.root, name))
    if rows is None:
        raise ConfigError(f"root={run.root!r} has no table {name}; run index_clips first, or curate.")
    return rows.filter(pc.is_null(rows.column("error")))


def _outdated(rows: pa.Table, folder: str) -> pa.Table:
    """The rows that a table lacks. Rows that it has of them, of an older version or to be tried again, are dropped."""
    found = tables.pending(rows, folder)
    held = tables.read(folder, ["clip_id"])
    if held is not None and found.num_rows:
        tables.drop(folder, set(held.column("clip_id").to_pylist()) & set(found.column("clip_id").to_pylist()))
    return found


def _stream(
    run: Run,
    pool: Pool,
    worker: Callable[[], ray_data.Worker],
    rows: pa.Table,
    folders: dict[str, str],
    title: str,
) -> None:
    if not rows.num_rows:
        return
    if "features" in folders:
        print(f"{title}: {_projection(run)}", flush=True)
    prints = {"motion": fingerprints.motion, "features": fingerprints.features}
    held = {"features": {"settings": [s.model_dump() for s in run.attribution.settings]}}
    figures = ray_data.stream(
        title,
        run.root,
        [rows],
        rows.num_rows,
        pool,
        worker,
        (),
        folders,
        {n: prints[n](run) for n in folders},
        Progress(title),
        metadata=held,
    )
    command.achieved(title, figures)


def _projection(run: Run) -> str:
    """How gradients are projected, for the log."""
    a = run.attribution
    how = f"{a.hold} gradients held for each generation" if a.hold > 1 else "streamed"
    return f"{a.projection.kind} projection to {a.projection.dim} numbers, {how}"


def _finished(folder: str, title: str) -> pa.Table:
    table = tables.read(folder)
    if table is None:
        table = schemas.CLIPS.empty_table()
    counts(title, table)
    return table
