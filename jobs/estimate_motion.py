"""Optical flow, motion masks and statistics of every clip and query: tables motion/clips/, motion/queries/.

With `attribution.shortlist` every clip's at the cheaper variant's geometry; extract_features estimates that of the
clips that it chooses at the full one.
"""

from __future__ import annotations

from jobs import command, stages
from jobs.index_clips import sets
from pipeline.cluster import resources, streaming
from pipeline.config import Run


def estimate_motion(run: Run) -> None:
    stages.check(run, "estimate_motion", sets(run))
    command.record(run)
    streaming.connect()
    resources.check(run, ["estimate_motion"])
    *cheaper, (full, whole) = stages.scopes(run)
    for one, scope in cheaper:
        for name in ("queries", "clips"):
            stages.estimate_motion(one, name, scope)
    for name in sets(run):
        if not cheaper or name != "clips":
            stages.estimate_motion(full, name, whole)


if __name__ == "__main__":
    command.main(estimate_motion, __doc__)
