"""Optical flow, motion masks and statistics of every clip and query: tables motion/clips/, motion/queries/.

With `attribution.shortlist` every clip's at the cheaper variant's geometry; extract_features estimates that of the
clips that it chooses at the full one.
"""

from __future__ import annotations

from jobs import command

if __name__ == "__main__":  # above the imports, which take seconds: --help and mistakes are answered at once
    command.main("jobs.estimate_motion:estimate_motion", __doc__, completes=True)

from pipeline.cluster import resources, streaming
from pipeline.config import Run
from pipeline.stages import attribution, pilots, run_record, video_sets
from pipeline.stages.curation import sample_queries


def estimate_motion(run: Run) -> None:
    attribution.check(run, "estimate_motion", video_sets.names(run))
    streaming.connect()
    run = pilots.with_pools(run, ["estimate_motion"])
    run_record.record(run)
    resources.check(run, ["estimate_motion"])
    if run.queries.source == "sample":
        sample_queries(run)
    *cheaper, (full, whole) = attribution.scopes(run)
    for one, scope in cheaper:
        for name in ("queries", "clips"):
            attribution.estimate_motion(one, name, scope)
    for name in video_sets.names(run):
        if not cheaper or name != "clips":
            attribution.estimate_motion(full, name, whole)
