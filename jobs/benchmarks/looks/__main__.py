"""Does a ranking follow motion, or looks? On corpora of synthetic worlds, where the two are independent.

Every rule is one that the product can be asked for, or was tried for it; controls need no model, or one that has learnt
nothing. A share is of a query's nearest five clips, a lift that share over its chance. Means are over corpora, with
Student's 95 % interval: first those of the training world under the demo's model, then those of other bases and of the
shifted world. Gradients lie in the folder that `--folder` names, and are not taken again. The last line is JSON.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from jobs.benchmarks.ceilings import machine, print_json, print_machine, print_table
from jobs.benchmarks.looks import both_sides, changes, gradients, lift, rules, unlearning
from jobs.benchmarks.looks.gradients import Cell, Corpus
from jobs.benchmarks.looks.rules import Scores
from pipeline.statistics.intervals import student

SEEDS = (200, 210, 220)  # none that a rule was chosen with
WHOLE = (SEEDS, 200, 5)  # clips of a corpus, queries of a motion
SMALL = (SEEDS[:2], 40, 1)
SHOWN = (*(f"{name}_lift" for name in lift.LIFTS), "looks_lift", "first_ten", "group_auc", "real_over_cartoon")

FORMS = {  # of a ranking: by each query, by a motion's queries together, and those less all other queries
    "each query": None,
    "a motion's queries together": 0.0,
    "a motion's queries less the others (ranking.spare: 1)": 1.0,
}

Figures = dict[str, dict[str, list[float]]]  # rule -> yardstick -> a value a corpus


def cells(seeds: Sequence[int], clips: int, queries: int) -> dict[str, list[Cell]]:
    """Those whose means are taken together, by what they are."""
    first = seeds[0]
    return {
        "the training world, the demo's model": [Cell(seed, clips, queries) for seed in seeds],
        "other bases and the shifted world": [
            Cell(first, clips, queries, base="slide"),
            Cell(first + 30, clips, queries, shifted=True),
            Cell(first + 40, clips, queries, shifted=True, base="slide"),
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default="runs/looks", help="where gradients are kept")
    parser.add_argument("--quick", action="store_true", help="small corpora")
    options = parser.parse_args()
    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    hardware, start, results = machine(), time.monotonic(), dict[str, dict[str, Figures]]()
    print_machine(hardware)
    for title, of_title in cells(*(SMALL if options.quick else WHOLE)).items():
        of_forms = results.setdefault(title, {form: {} for form in FORMS})
        for cell in of_title:
            corpus = gradients.corpus(cell, folder)
            for name, scores in scored(corpus, cell, folder):
                for form, spare in FORMS.items():
                    ranked = scores if spare is None else lift.together(scores, corpus, spare)
                    for key, value in lift.yardsticks(ranked, corpus).items():
                        of_forms[form].setdefault(name, {}).setdefault(key, []).append(value)
            print(f"corpus {cell.name}: {len(corpus.clips)} moving clips, {len(corpus.queries)} queries", flush=True)
        header = ["rule", *(key.replace("_", " ") for key in SHOWN)]
        for form, figures in of_forms.items():
            print(f"\n{title}; {form}:")
            print_table(header, [[name, *(_cell(of[key]) for key in SHOWN)] for name, of in figures.items()])
    seconds = round(time.monotonic() - start, 1)
    print_json({"benchmark": "looks", "machine": hardware, "seconds": seconds, "figures": results})


def scored(corpus: Corpus, cell: Cell, folder: Path) -> Iterator[tuple[str, Scores]]:
    """Every rule and control by name: [clips, queries]."""
    changed = changes.changes(corpus, cell, folder)
    yield from rules.rules(corpus)
    yield from rules.changed(corpus, changed)
    yield from rules.on_both_sides(corpus, changed, both_sides.both_sides(corpus, cell, folder))
    yield from rules.forward_only(unlearning.differences(corpus, cell, folder))
    yield from rules.controls(corpus, changed)
    yield rules.untrained(gradients.untrained(corpus, cell, folder))


def _cell(values: Sequence[float]) -> str:
    interval = student(values)
    return f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


if __name__ == "__main__":
    main()
