"""Does a ranking follow motion, or looks? On corpora of the synthetic world, where the two are independent.

Every rule is one that the product can be asked for; controls need no model, or one that has learnt nothing. A share is
of a query's nearest five clips, a lift that share over its chance. Means are over corpora, with Student's 95 %
interval. Gradients lie in the folder that `--folder` names, and are not taken again. The last line is JSON.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from jobs.benchmarks.ceilings import machine, print_json, print_machine, print_table
from jobs.benchmarks.looks import gradients, lift, rules, unlearning
from pipeline.statistics.intervals import student

SEEDS = (200, 210, 220)  # none that a rule was chosen with
WHOLE = (SEEDS, 200, 5)  # clips of a corpus, queries of a motion
SMALL = (SEEDS[:2], 40, 1)

Figures = dict[str, dict[str, list[float]]]  # rule -> yardstick -> a value a corpus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default="runs/looks", help="where gradients are kept")
    parser.add_argument("--quick", action="store_true", help="two small corpora")
    options = parser.parse_args()
    seeds, clips, queries = SMALL if options.quick else WHOLE
    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    hardware, start, figures = machine(), time.monotonic(), Figures()
    print_machine(hardware)
    for seed in seeds:
        corpus = gradients.corpus(seed, clips, queries, folder)
        blank = gradients.untrained(corpus, seed, folder)
        forward = rules.forward_only(unlearning.differences(corpus, seed, folder))
        for name, scores in (*rules.rules(corpus), *forward, *rules.controls(corpus), rules.untrained(blank)):
            for key, value in lift.yardsticks(scores, corpus).items():
                figures.setdefault(name, {}).setdefault(key, []).append(value)
        print(f"corpus {seed}: {len(corpus.clips)} moving clips, {len(corpus.queries)} queries", flush=True)
    header = ["rule", *(key.replace("_", " ") for key in lift.YARDSTICKS)]
    print_table(header, [[name, *(_cell(of[key]) for key in lift.YARDSTICKS)] for name, of in figures.items()])
    seconds = round(time.monotonic() - start, 1)
    print_json({"benchmark": "looks", "machine": hardware, "seconds": seconds, "seeds": seeds, "figures": figures})


def _cell(values: Sequence[float]) -> str:
    interval = student(values)
    return f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


if __name__ == "__main__":
    main()
