"""Does attribution pick the right clips? Held against what fine-tuning on them really does, with every control.

``python -m jobs.benchmarks.quality [--worlds] [--quick] [--folder runs/quality]``. What is in the folder is not
computed again, so that a killed run goes on. Tables as Parquet, plots as PNG in FOLDER/report, one JSON line last.
`--worlds` is a small study in several worlds, with intervals over them; it has no plots.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from jobs.benchmarks import ceilings
from jobs.benchmarks.quality import report, studies, worlds
from jobs.benchmarks.quality.laws import LAWS
from jobs.benchmarks.quality.problem import World
from jobs.benchmarks.quality.retraining import Recipe
from jobs.benchmarks.quality.studies import Plan
from pipeline.stages.progress import duration

LONG = Plan(
    World(1200, 10, 50),
    Recipe(),
    subsets=100,
    halves=50,
    seeds=3,
    targets=("bounce", "explode", "free_fall", "roll", "spin"),
    laws=LAWS,
    exact=40,
)
QUICK = Plan(
    World(200, 5, 5),
    Recipe(steps=40, noises=3),
    subsets=16,
    halves=0,
    seeds=2,
    targets=("explode", "free_fall"),
    arms=("random", "motive", "motive_whitened", "best", "oracle"),
    draws=1,
    others=False,
    places=((501.0, 0), (751.0, 0)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few clips, subsets, targets and seeds: some minutes")
    parser.add_argument("--worlds", action="store_true", help="other corpora, another base, a shifted world")
    parser.add_argument("--folder", default="runs/quality", help="where everything is kept")
    arguments = parser.parse_args()
    machine = ceilings.machine()
    ceilings.print_machine(machine)
    start = time.monotonic()
    if arguments.worlds:
        results = worlds.run(worlds.QUICK if arguments.quick else worlds.LONG, arguments.folder)
    else:
        results = run(QUICK if arguments.quick else LONG, arguments.folder)
    seconds = time.monotonic() - start
    print(f"{duration(seconds)} in this call; tables in {arguments.folder}/report")
    ceilings.print_json(
        {
            "benchmark": "quality, worlds" if arguments.worlds else "quality",
            "machine": machine,
            "seconds": seconds,
            **results,
        }
    )


def run(plan: Plan, folder: str) -> dict[str, Any]:
    """Every study, printed as it ends. Returns their tables."""
    study = studies.Studies(plan, folder)
    results: dict[str, Any] = {}
    for name, call in study.all.items():
        results[name] = call()
        if not results[name]:
            continue
        report.write(f"{folder}/report/{name}.parquet", results[name])
        report.show(name, results[name])
    report.draw(results, f"{folder}/report")
    return results


if __name__ == "__main__":
    main()
