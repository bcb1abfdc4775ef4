"""From video files to a curated, fine-tuned model: every stage, in order. Run again, it goes on where it stopped."""

from __future__ import annotations

import logging

from jobs import command, stages, two_stages
from jobs.evaluate import evaluate
from jobs.finetune import finetune, with_arm
from jobs.generate_queries import generate_queries
from jobs.index_clips import sets
from jobs.rank_clips import rank_clips
from jobs.report import report
from pipeline import tables
from pipeline.cluster import resources, streaming
from pipeline.config import Run
from pipeline.config.operations import SpentError
from pipeline.errors import ConfigError
from pipeline.operations import tracking
from pipeline.ranking.feature_table import under_mask
from pipeline.storage import stores
from pipeline.training import arms

log = logging.getLogger(__name__)

STAGES = ["index_clips", "estimate_motion", "extract_features", "finetune", "evaluate"]


def curate(run: Run) -> None:
    stages.check(run, "index_clips", sets(run))
    arms.check(run)
    tracking.check(run)
    command.record(run)
    streaming.connect()
    resources.check(run, STAGES)
    attribute_queries(run)
    index_data(run)
    try:
        _attribute_and_train(run)
    except SpentError:
        report(run)
        raise
    report(run)


def _attribute_and_train(run: Run) -> None:
    try:
        two_stages.clips(run)
    except SpentError:
        if two_stages.rankable(run):
            rank_clips(run)  # what is finished is a uniform sample; this takes no GPU
        raise
    rank_clips(run)
    for arm in dict.fromkeys([run.finetune.arm, *run.evaluate.arms]):
        finetune(with_arm(run, arm))
    evaluate(run)


def attribute_queries(run: Run) -> None:
    """Queries run first: where none of them can be used, the clips are not touched."""
    generate_queries(run)
    _readable("queries", run.queries.videos, stages.index(run, "queries"))
    two_stages.queries(run)
    for one, scope in stages.scopes(run):
        _usable(one, scope.motion)


def index_data(run: Run) -> None:
    _readable("data", run.data.videos, stages.index(run, "clips"))


def _readable(key: str, videos: str | None, found: stages.Counted) -> None:
    """Raise ConfigError where not one segment could be indexed."""
    if sum(found.errors.values()) == found.rows:
        why = ", ".join(f"{n} {code}" for code, n in found.errors.items())
        raise ConfigError(
            f"{key}.videos={videos!r}: none of its {found.rows} videos could be used ({why}); the rows of its table "
            "say why, one by one. Give videos that can be decoded and are long enough for data.frames at data.fps."
        )


def _usable(run: Run, root: str) -> None:
    """Queries that cannot be used, by their motion in `root`, are a warning; ConfigError where there is no other."""
    motion = tables.read(stores.join(root, "motion", "queries"))
    assert motion is not None, "attribute has just written it"
    featured = bool(tables.parts(stores.join(run.root, "features", "queries")))
    ids = under_mask(run.root, "queries", run.ranking.mask).clip_ids.to_pylist() if featured else []
    unused = sorted(set(motion.column("clip_id").to_pylist()) - set(ids))
    if not ids:
        why = ", ".join(f"{n} {code}" for code, n in tables.errors_by_code(motion).items()) or "no features"
        raise ConfigError(
            f"queries.videos={run.queries.videos!r}: none of the {motion.num_rows} queries has any motion or "
            f"could be used ({why}), so there is nothing to rank for. Give queries that move, or lower motion.still."
        )
    if unused:
        log.warning("%d of %d queries cannot be used: %s", len(unused), motion.num_rows, ", ".join(unused[:10]))


if __name__ == "__main__":
    command.main(curate, __doc__)
