"""From video files to a curated, fine-tuned model: every stage, in order. Run again, it goes on where it stopped."""

from __future__ import annotations

from jobs import command

if __name__ == "__main__":  # above the imports, which take seconds: --help and mistakes are answered at once
    command.main("jobs.curate:curate", __doc__, lists_videos=True, completes=True)

import shlex

from pipeline.cluster import resources, streaming
from pipeline.config import Run
from pipeline.errors import SpentError
from pipeline.operations import tracking
from pipeline.stages import attribution, curation, indexing, pilots, run_record, two_stages, video_sets
from pipeline.stages.evaluation import evaluate
from pipeline.stages.finetuning import finetune_arms
from pipeline.stages.ranking import rank_clips
from pipeline.stages.report import report
from pipeline.training import arms


def curate(run: Run) -> None:
    attribution.check(run, "index_clips", video_sets.names(run))
    arms.check(run)
    tracking.check(run)
    streaming.connect()
    run = pilots.with_pools(run, curation.STAGES)
    run_record.record(run)
    resources.check(run, curation.STAGES)
    curation.attribute_queries(run)
    if run.queries.source != "sample":  # those were drawn from the index
        curation.index_data(run)
    if run.evaluate.videos:
        indexing.index(run, "held_out")
        video_sets.check_disjoint(run)
    try:
        _attribute_and_train(run)
    except SpentError:
        report(run)
        raise
    report(run)
    pilots.compare(run)
    print(f"to decide on its clips: python -m jobs.workbench --set {shlex.quote(f'root={run.root}')}")


def _attribute_and_train(run: Run) -> None:
    try:
        two_stages.clips(run)
    except SpentError:
        if two_stages.rankable(run):
            rank_clips(run)  # what is finished is a uniform sample; this takes no GPU
        raise
    rank_clips(run)
    report(run)  # hours before the last arm is trained; the page is written anew at the end
    finetune_arms(run, [run.finetune.arm, *run.evaluate.arms])
    evaluate(run)
