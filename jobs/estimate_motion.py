"""Optical flow, motion masks and statistics of every clip and query: tables motion/clips/, motion/queries/."""

from __future__ import annotations

from jobs import command, stages
from jobs.index_clips import sets
from pipeline import ray_data, ray_resources
from pipeline.config import Run


def estimate_motion(run: Run) -> None:
    stages.check(run, "estimate_motion", sets(run))
    command.record(run)
    ray_data.connect()
    ray_resources.check(run, ["estimate_motion"])
    for name in sets(run):
        stages.estimate_motion(run, name)


if __name__ == "__main__":
    command.main(estimate_motion, __doc__)
