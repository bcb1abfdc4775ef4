"""What people asked for in the workbench: videos of their prompts, gradients of the queries that they made and of the
clips that they like, and the ranking by them. Of a run (`root`) that is there; no `--config` is needed."""

from __future__ import annotations

from jobs import command

if __name__ == "__main__":  # above the imports, which take seconds: --help and mistakes are answered at once
    command.main("jobs.attribute_requests:attribute_requests", __doc__, of_run=True)

from functools import partial

import numpy as np
import pyarrow as pa

from pipeline import tables
from pipeline.attribution import fingerprints
from pipeline.cluster import resources, streaming
from pipeline.cluster.streaming import Stage
from pipeline.config import Run
from pipeline.evaluation import generation
from pipeline.evaluation.generation import GenerationWorker
from pipeline.ranking import shortlist
from pipeline.ranking.feature_table import under_mask
from pipeline.ranking.influence_table import influence_columns
from pipeline.ranking.selection import Ranked, influence_tables
from pipeline.stages import attribution, curation, indexing
from pipeline.stages.progress import Counted, Progress, achieved
from pipeline.stages.ranking import rank_clips
from pipeline.storage import stores
from pipeline.storage.stores import join
from pipeline.tables import Outcomes, schemas
from pipeline.tables.merging import merge
from pipeline.tables.registry import LIKED
from pipeline.workbench import made_queries, requests


def attribute_requests(run: Run) -> None:
    """Do everything that is asked for and rank anew. Each step does what is missing, so that a job that was killed goes
    on. Raises SpentError where the budget ends."""
    merge(join(run.root, "likes"))
    left = requests.pending(run.root)
    if not left and is_ranked(run):
        print("nothing is asked for that is not there")
        return
    print(f"asked for: {requests.cost(run.root, left)}")
    streaming.connect()
    stages = ["index_clips", "extract_features", *(["evaluate"] if left.prompts else [])]
    resources.check(run, stages)
    generate_prompts(run)
    queries = tables.read(join(run.root, "queries"))
    run = requests.with_all_queries(run, [] if queries is None else queries.drop_columns(["cuts"]).to_pylist())
    if left.queries:
        attribution.check(run, "index_clips", ("queries",))
        curation.attribute_queries(run)
    attribute_likes(run)
    rank_likes(run)  # first: the workbench says that there is a new ranking as soon as selection/ is another
    rank_clips(run)


def is_ranked(run: Run) -> bool:
    """Whether the ranking counts every made query, and influence_liked/ every liked clip, that has a feature: a job may
    have been killed before it ranked."""
    made = {record["id"] for record in made_queries.records(run.root) if record["group"] not in run.queries.unwanted}
    queries, liked = _usable(run, "queries") & made, _usable(run, LIKED)
    return queries <= _columns(run, "influence") and liked <= _columns(run, "influence_liked")


def _usable(run: Run, name: str) -> set[str]:
    if not tables.parts(join(run.root, "features", name)):
        return set()
    return set(under_mask(run.root, name, run.ranking.mask).clip_ids.to_pylist())


def _columns(run: Run, name: str) -> set[str]:
    return set(tables.metadata(join(run.root, name)).get("query_ids", []))


def generate_prompts(run: Run) -> None:
    """The videos of prompts that have none, by the base model, beside their records."""
    waiting = made_queries.prompted(run.root)
    if not waiting:
        return
    rows = pa.Table.from_pylist(waiting, schema=generation.SCHEMA)
    folder = join(run.root, made_queries.FOLDER)
    stage = Stage("generate queries", run.root, run.resources.evaluate, partial(GenerationWorker, run, folder))
    figures = streaming.stream(stage, [rows], rows.num_rows, Progress(stage.title))
    achieved(stage.title, figures)


def attribute_likes(run: Run) -> Counted | None:
    """The gradients of liked clips as queries: liked/, motion/liked/, features/liked/. Of clips that nobody likes any
    more, what was computed goes."""
    folder, rows = join(run.root, LIKED), requests.liked_rows(run.root)
    if rows is None and not tables.parts(folder):
        return None
    empty = schemas.QUERIES.empty_table()
    tables.replace(folder, empty if rows is None else rows, fingerprints.clips(run))
    indexing.drop_orphans(run, LIKED, Outcomes(folder))
    full, scope = attribution.scopes(run)[-1]
    counted, _ = attribution.attribute(full, LIKED, scope)
    return counted


def rank_likes(run: Run) -> None:
    """Influence of every clip on each liked clip, as if that were a query: influence_liked/."""
    folder = join(run.root, "influence_liked")
    if not _usable(run, LIKED):
        stores.remove(folder)
        return
    clips, liked = (under_mask(run.root, name, run.ranking.mask) for name in ("clips", LIKED))
    rows = liked.rows()
    ids = sorted(rows)
    population = shortlist.population(run, clips.clip_ids)
    report = Progress("rank likes")
    columns = influence_columns(
        clips,
        np.stack([rows[clip_id] for clip_id in ids]),
        run.ranking.whiten,
        lambda done, total: report(done, total, {}),
        None if population is None else population.weights,
    )
    ranked = Ranked(clips.clip_ids, ids, [LIKED] * len(ids), columns, population)
    schema = schemas.influence_schema(len(ids))
    tables.replace_streamed(folder, schema, influence_tables(ranked), fingerprints.ranking(run), query_ids=ids)
