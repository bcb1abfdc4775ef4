"""Projected gradients of every clip and query, from their motion tables: features/clips/, features/queries/.

With `attribution.shortlist` the cheaper variant's of all of them first, in ROOT/shortlist/, and then the full setting's
motion and features of the clips that it chooses.
"""

from __future__ import annotations

from jobs import command

if __name__ == "__main__":  # above the imports, which take seconds: --help and mistakes are answered at once
    command.main("jobs.extract_features:extract_features", __doc__, completes=True)

from dataclasses import replace

from pipeline.cluster import resources, streaming
from pipeline.config import Run
from pipeline.stages import attribution, pilots, run_record, two_stages


def extract_features(run: Run) -> None:
    attribution.check(run, "extract_features")
    streaming.connect()
    run = pilots.with_pools(run, ["extract_features"])
    run_record.record(run)
    resources.check(run, ["extract_features"])
    *cheaper, (full, whole) = attribution.scopes(run)
    for one, scope in (*cheaper, (full, whole)):
        attribution.extract_features(one, "queries", scope)
    for one, scope in cheaper:
        attribution.extract_features(one, "clips", scope)
    if cheaper:
        attribution.attribute(full, "clips", replace(whole, among=two_stages.choose(run)))
    else:
        attribution.extract_features(full, "clips")
    pilots.compare(run)
