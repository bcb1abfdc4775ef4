"""From the videos of a set to the rows of its clips.

Long videos are indexed in stretches that several actors share: planned while the others are indexed, decoded, and
joined. What is planned and what was noted of each stretch are tables, so that a job that was stopped inside a video
goes on there. Their rows go once the video has its clips, or is not listed any more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import tables
from pipeline.attribution import fingerprints
from pipeline.cluster import streaming
from pipeline.cluster.streaming import Stage
from pipeline.config import Run
from pipeline.inputs import changes, passed_columns
from pipeline.inputs.changes import Listing
from pipeline.ranking import shortlist
from pipeline.stages import run_record, video_sets
from pipeline.stages.progress import Counted, FilmProgress, Progress, achieved, counted
from pipeline.storage import stores
from pipeline.tables import Outcomes, purge_list, scanning, schemas
from pipeline.tables.ids import IdList
from pipeline.tables.merging import merge
from pipeline.video.indexing import IndexWorker, JoinWorker, StretchWorker, film_name

_LISTING = ("uri", "relative", "version", "size", "source", "caption", "id", "group", "error")
AT_ONCE = 32  # videos whose stretches are in the tables together: they are read whole for each of them


def index(run: Run, name: str) -> Counted:
    """Find a set's videos and cut them into segments. Raises UsageError where it is not known which were purged."""
    folder = stores.join(run.root, name)
    purged = purge_list.digests(run.root)
    merge(folder)
    listed = Listing(video_sets.asked(run, name))
    run_record.note_listing(name, listed.digest)
    print(f"{name}: {listed.captions.sentence()}")
    own = schemas.QUERIES if name == "queries" else schemas.CLIPS
    others = [f for f in listed.schema if f.name not in (*_LISTING, *own.names)]
    schema = pa.schema([*own, *others])
    columns = [n for n in schema.names if n in ("source", "group", schemas.MASK_BOX)]
    columns += [f.name for f in others if f.name not in columns]
    _give_way_to_words(run, name, listed, columns)
    last_tries = listed.subtract(folder)
    if purged:
        listed.leave_out(lambda version: purge_list.digest(version) in purged)
    stage = Stage(
        title=f"index {name}",
        root=run.root,
        pool=run.resources.index_clips,
        worker=partial(IndexWorker, run, schema, _planned(run, name)),
        folders={"clips": folder, "stretches": _plan_folder(run, name)},
        fingerprints={"clips": fingerprints.clips(run), "stretches": {}},
    )
    figures = streaming.stream(stage, listed.videos, listed.videos.num_rows, Progress(stage.title), last_tries)
    achieved(stage.title, figures)
    _index_long(run, name, listed.videos, schema, last_tries)
    tables.drop_superseded_errors(folder, last_tries)
    if purged:
        purge_list.remember(run.root, _without_rows(listed.videos, folder))
    outcomes = Outcomes(folder)
    drop_orphans(run, name, outcomes)
    return counted(outcomes, name)


def _without_rows(videos: Iterable[pa.Table], folder: str) -> Iterator[str]:
    """Address and version of the videos that have no clip in a table."""
    indexed, columns = IdList(), {column for schema in tables.columns(folder) for column in schema.names}
    for rows in scanning.blocks(folder, [name for name in ("uri", "version", "span") if name in columns]):
        indexed.add(changes.versions(rows))
    present = indexed.to_set()
    for rows in videos:
        names = changes.versions(rows)
        yield from names.filter(pa.array(~present.has(names))).to_pylist()


def _give_way_to_words(run: Run, name: str, listed: Listing, names: list[str]) -> None:
    """Rows of clips of which the listing says something else now are dropped, to be made again. Where it is the
    caption, the group in its place or the mask's box, which features depend on, what was computed goes first: a job
    that is killed in between does it again."""
    folder = stores.join(run.root, name)
    columns = {column for schema in tables.columns(folder) for column in schema.names}
    if not columns:
        return
    selection = ["clip_id", "uri", "caption", *(n for n in ("captions", schemas.MASK_BOX, *names) if n in columns)]
    blocks = scanning.blocks(folder, list(dict.fromkeys(selection)))
    of_features = ["group"] if name == "queries" and run.attribution.captions == "group" else []
    others = [n for n in names if n != "captions"]
    recaptioned, reworded = passed_columns.changed(listed.videos, blocks, others, of_features)
    for root, stage in computed(run):
        tables.drop(stores.join(root, stage, name), recaptioned)
    tables.drop(folder, reworded)


def drop_orphans(run: Run, name: str, clips: Outcomes) -> None:
    """What was computed for clips that the index no longer has, or has in another version, gives way."""
    for root, stage in computed(run):
        folder = stores.join(root, stage, name)
        tables.drop_where(folder, lambda rows: pa.array(~clips.has_version(rows)), ["clip_id", "version"])


def computed(run: Run) -> list[tuple[str, str]]:
    """Root and name of all that is computed for clips, the last first; also of a shortlist that is no longer asked
    for."""
    return [
        (root, stage)
        for root in (run.root, shortlist.home(run.root))
        for stage in ("features", "motion", "movement", "pictures")
    ]


# --- long videos -----------------------------------------------------------------------------------------------------


def _plan_folder(run: Run, name: str) -> str:
    return stores.join(run.root, "stretches", name)


def _changes_folder(run: Run, name: str) -> str:
    return stores.join(run.root, "changes", name)


def _planned(run: Run, name: str) -> frozenset[str]:
    """The names of the videos of a set of which stretches are planned."""
    plan = tables.read(_plan_folder(run, name), ["uri", "version"])
    return frozenset() if plan is None else frozenset(_film_names(plan))


def _film_names(rows: pa.Table) -> list[str]:
    uris, versions = rows.column("uri").to_pylist(), rows.column("version").to_pylist()
    return [film_name(uri, version) for uri, version in zip(uris, versions, strict=True)]


def _index_long(
    run: Run, name: str, videos: Iterable[pa.Table], schema: pa.Schema, last_tries: Collection[str]
) -> None:
    """Index those of a set's pending videos of which stretches are planned."""
    names = _planned(run, name)
    if not names:
        _drop_but(run, name, set())
        return
    films = [rows.filter(pa.array([film in names for film in _film_names(rows)], pa.bool_())) for rows in videos]
    long = pa.concat_tables(films) if films else pa.table({"uri": pa.array([], pa.string()), "version": []})
    _drop_but(run, name, set(_film_names(long)))
    for start in range(0, long.num_rows, AT_ONCE):
        group = long.slice(start, AT_ONCE)
        _decode(run, name, set(_film_names(group)))
        _join(run, name, group, schema, last_tries)
        _drop_but(run, name, set(_film_names(long.slice(start + AT_ONCE))))


def _decode(run: Run, name: str, films: set[str]) -> None:
    """Decode what has not been decoded of these videos' stretches."""
    plan = tables.read(_plan_folder(run, name))
    assert plan is not None
    plan = plan.filter(pa.array([film in films for film in _film_names(plan)], pa.bool_()))
    folder = _changes_folder(run, name)
    merge(folder)
    changes = tables.read(folder, ["stretch"])
    done = pa.array([], pa.string()) if changes is None else changes.column("stretch")
    is_done = pc.is_in(plan.column("stretch"), value_set=pa.array(done.to_pylist(), pa.string()))
    pending = plan.filter(pc.invert(is_done)).sort_by([("uri", "ascending"), ("number", "ascending")])
    pending = pending.append_column("id", pending.column("stretch"))  # by which the journal of the stage knows a row
    stage = Stage(
        title=f"index stretches of {name}",
        root=run.root,
        pool=run.resources.index_clips.model_copy(update={"batch": 1}),
        worker=partial(StretchWorker, run),
        folders={"changes": folder},
        fingerprints={"changes": {}},
    )
    seconds = pc.sum(plan.column("seconds")).as_py() or 0.0
    left = pc.sum(pending.column("seconds")).as_py() or 0.0
    if pending.num_rows:
        print(
            f"{stage.title}: {len(films)} long videos, {seconds / 60:.0f} min of film in {plan.num_rows} stretches; "
            f"{plan.num_rows - pending.num_rows} of them are there already"
        )
    progress = FilmProgress(stage.title, seconds, left)
    achieved(stage.title, streaming.stream(stage, [pending], pending.num_rows, progress))


def _join(run: Run, name: str, videos: pa.Table, schema: pa.Schema, last_tries: Collection[str]) -> None:
    """Make the clips of videos of which every stretch has been decoded."""
    folder = stores.join(run.root, name)
    stage = Stage(
        title=f"join stretches of {name}",
        root=run.root,
        pool=run.resources.index_clips,
        worker=partial(JoinWorker, run, schema, _changes_folder(run, name)),
        folders={"clips": folder},
        fingerprints={"clips": fingerprints.clips(run)},
    )
    achieved(stage.title, streaming.stream(stage, [videos], videos.num_rows, Progress(stage.title), last_tries))


def _drop_but(run: Run, name: str, films: set[str]) -> None:
    """Drop what is planned and noted of other videos than these."""

    def others(rows: pa.Table) -> pa.Array:
        return pa.array([film not in films for film in _film_names(rows)], pa.bool_())

    # What was noted goes first: a plan without it is decoded again, and nothing would drop what no plan names.
    for folder in (_changes_folder(run, name), _plan_folder(run, name)):
        tables.drop_where(folder, others, ["uri", "version"])
