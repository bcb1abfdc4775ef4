"""Projected gradients of every clip and query, from their motion tables: features/clips/, features/queries/."""

from __future__ import annotations

from jobs import command, stages
from pipeline import ray_data, ray_resources
from pipeline.config import Run


def extract_features(run: Run) -> None:
    stages.check(run, "extract_features")
    command.record(run)
    ray_data.connect()
    ray_resources.check(run, ["extract_features"])
    for name in ("queries", "clips"):
        stages.extract_features(run, name)


if __name__ == "__main__":
    command.main(extract_features, __doc__)
