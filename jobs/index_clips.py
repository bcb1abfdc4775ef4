"""Find the videos of data, queries and evaluation, and cut them into segments: tables clips/, queries/, held_out/."""

from __future__ import annotations

from jobs import command, stages
from jobs.generate_queries import generate_queries
from pipeline.cluster import resources, streaming
from pipeline.config import Run


def sets(run: Run) -> tuple[str, ...]:
    return ("queries", "clips", *(("held_out",) if run.evaluate.videos else ()))


def index_clips(run: Run) -> None:
    stages.check(run, "index_clips", sets(run))
    command.record(run)
    streaming.connect()
    # Prompts become videos in the pool of evaluation.
    resources.check(run, ["index_clips", *(["evaluate"] if run.queries.prompts else [])])
    generate_queries(run)
    for name in sets(run):
        stages.index(run, name)


if __name__ == "__main__":
    command.main(index_clips, __doc__)
