"""Find the videos of data, queries and evaluation, and cut them into segments: tables clips/, queries/, held_out/."""

from __future__ import annotations

from jobs import command

if __name__ == "__main__":  # above the imports, which take seconds: --help and mistakes are answered at once
    command.main("jobs.index_clips:index_clips", __doc__, lists_videos=True, completes=True)

from pipeline.cluster import resources, streaming
from pipeline.config import Run
from pipeline.stages import attribution, indexing, pilots, run_record, video_sets
from pipeline.stages.curation import generate_queries


def index_clips(run: Run) -> None:
    attribution.check(run, "index_clips", video_sets.names(run))
    stages = ["index_clips", *(["evaluate"] if run.queries.prompts else [])]  # prompts become videos in its pool
    streaming.connect()
    run = pilots.with_pools(run, stages)
    run_record.record(run)
    resources.check(run, stages)
    generate_queries(run)
    for name in video_sets.names(run):
        if name != "queries" or run.queries.source != "sample":  # a sample is drawn by estimate_motion
            indexing.index(run, name)
