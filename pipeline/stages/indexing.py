"""From the videos of a set to the rows of its clips."""

from __future__ import annotations

from functools import partial

import pyarrow as pa

from pipeline import tables
from pipeline.attribution import fingerprints
from pipeline.cluster import streaming
from pipeline.cluster.streaming import Stage
from pipeline.config import Run
from pipeline.inputs import passed_columns
from pipeline.inputs.changes import Listing
from pipeline.ranking import shortlist
from pipeline.stages import video_sets
from pipeline.stages.progress import Counted, Progress, achieved, counted
from pipeline.storage import stores
from pipeline.tables import Outcomes, scanning, schemas
from pipeline.tables.merging import merge
from pipeline.video.indexing import IndexWorker

_LISTING = ("uri", "relative", "version", "size", "source", "caption", "id", "group", "error")


def index(run: Run, name: str) -> Counted:
    """Find a set's videos and cut them into segments."""
    folder = stores.join(run.root, name)
    merge(folder)
    listed = Listing(video_sets.asked(run, name))
    print(f"{name}: {listed.captions.sentence()}")
    own = schemas.QUERIES if name == "queries" else schemas.CLIPS
    others = [f for f in listed.schema if f.name not in (*_LISTING, *own.names)]
    schema = pa.schema([*own, *others])
    columns = [n for n in schema.names if n in ("source", "group", schemas.MASK_BOX)]
    columns += [f.name for f in others if f.name not in columns]
    _give_way_to_words(run, name, listed, columns)
    last_tries = listed.subtract(folder)
    stage = Stage(
        title=f"index {name}",
        root=run.root,
        pool=run.resources.index_clips,
        worker=partial(IndexWorker, run, schema),
        folders={"clips": folder},
        fingerprints={"clips": fingerprints.clips(run)},
    )
    figures = streaming.stream(stage, listed.videos, listed.videos.num_rows, Progress(stage.title), last_tries)
    achieved(stage.title, figures)
    tables.drop_superseded_errors(folder, last_tries)
    outcomes = Outcomes(folder)
    drop_orphans(run, name, outcomes)
    return counted(outcomes, name)


def _give_way_to_words(run: Run, name: str, listed: Listing, names: list[str]) -> None:
    """Rows of clips of which the listing says something else now are dropped, to be made again. Where it is the
    caption or the mask's box, which features depend on, what was computed goes first: a job that is killed in between
    does it again."""
    folder = stores.join(run.root, name)
    columns = {column for schema in tables.columns(folder) for column in schema.names}
    if not columns:
        return
    selection = ["clip_id", "uri", "caption", *(n for n in ("captions", schemas.MASK_BOX, *names) if n in columns)]
    blocks = scanning.blocks(folder, list(dict.fromkeys(selection)))
    recaptioned, reworded = passed_columns.changed(listed.videos, blocks, [n for n in names if n != "captions"])
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
