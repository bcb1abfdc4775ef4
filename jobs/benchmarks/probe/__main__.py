"""Do a video model's own layers tell lawful motion from spoiled? A linear probe on the frozen states of every block, on
corpora of the synthetic world.

The probe learns queries against their twins: the same frames in another order (`video/looks.py`). It sees the states
of one block and how much they change from one latent frame to the next, averaged over places, at one noise level or at
all of them. It is then asked about queries and twins that its lesson left out: other clips, or all of a motion, of a
colour, of an outline, or of a motion and a colour at once; and whether real clips come before cartoons, which no twin
is like. Controls: the same blocks of models that have learnt nothing, and the latents. Ridges, blocks and noise levels
are chosen on other corpora than those that are reported. Means are over corpora, with Student's 95 % interval. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import numpy as np
import torch

from jobs.benchmarks.ceilings import machine, print_json, print_machine, print_table
from jobs.benchmarks.looks.gradients import Cell
from jobs.benchmarks.probe.areas import ALL, LEFT_OUT, RIDGES, TOGETHER, Areas, Kind, area_left_out, areas, kinds
from jobs.benchmarks.probe.states import LATENTS, TIMES, Layer, Reader, states
from jobs.benchmarks.untrained import with_random_weights
from pipeline import config
from pipeline.statistics.intervals import student
from pipeline.video.looks import TWINS

CHOOSING = (380, 390)  # seeds of the corpora that ridges, blocks and noise levels are chosen on
SEEDS = (340, 350, 360, 370)  # of those that are reported, on which nothing was chosen
CLIPS, QUERIES = 200, 10

MODELS = ("the demo's model", "the base that knows sliding")
UNTRAINED = "untrained: "

LESSONS: dict[str, Callable[[Areas], Mapping[str, Mapping[str, float]]]] = {
    "one lesson of all twins": lambda areas: areas.twins,
    "a lesson of each kind of twin": lambda areas: areas.alone,
}

OfKind = Mapping[Kind, Sequence[Areas]]  # areas in every corpus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small corpora, two of them reported")
    quick = parser.parse_args().quick
    choosing, seeds, size = (CHOOSING[:1], SEEDS[:2], (40, 2)) if quick else (CHOOSING, SEEDS, (CLIPS, QUERIES))
    torch.set_num_threads(1)
    hardware, start = machine(), time.monotonic()
    print_machine(hardware)
    reader = opened()
    ridges, of_ridges = chosen_ridges(reader, [Cell(seed, *size) for seed in choosing])
    best = {model: best_kind(of_ridges, model) for model in MODELS}
    of_kinds: dict[Kind, list[Areas]] = {kind: [] for kind in ridges}
    for seed in seeds:
        of_corpus = states(reader, Cell(seed, *size))
        for kind, ridge in ridges.items():
            of_kinds[kind].append(areas(of_corpus, kind, ridge))
        print(f"corpus {seed}: {len(of_corpus.queries)} queries, {len(of_corpus.clips)} clips", flush=True)
    print_blocks(of_kinds)
    print_noise_levels(of_kinds)
    print_best(of_kinds, best)
    print_json(
        {"benchmark": "probe", "machine": hardware, "seconds": round(time.monotonic() - start, 1)}
        | {"ridges": {kind.name: ridge for kind, ridge in ridges.items()}}
        | {"best": {model: kind.name for model, kind in best.items()}}
        | {"choosing": {kind.name: area for kind, area in of_ridges.items()}, "choosing_seeds": choosing}
        | {"areas": {kind.name: dict(zip(seeds, map(asdict, of), strict=True)) for kind, of in of_kinds.items()}}
    )


def opened() -> Reader:
    """The demo's model, the base of the benchmark of quality that knows sliding alone, and both with random weights."""
    run = config.load("demo")
    cells = (Cell(0, 0, 0), Cell(0, 0, 0, base="slide"))
    models = {name: cell.model(run) for name, cell in zip(MODELS, cells, strict=True)}
    blank = {f"{UNTRAINED}{name}": with_random_weights(model) for name, model in models.items()}
    return Reader(run, {**models, **blank})


def chosen_ridges(reader: Reader, cells: Sequence[Cell]) -> tuple[dict[Kind, float], dict[Kind, float]]:
    """The ridge of every kind that does best on these corpora where motion and colour are left out, and how well."""
    of_cells: dict[Kind, list[list[float]]] = {}
    for cell in cells:
        of_corpus = states(reader, cell)
        for kind in kinds(list(of_corpus.of_queries)):
            of_cells.setdefault(kind, []).append([area_left_out(of_corpus, kind, ridge) for ridge in RIDGES])
        print(f"corpus {cell.seed}, to choose on", flush=True)
    means = {kind: np.mean(of, axis=0) for kind, of in of_cells.items()}
    return (
        {kind: RIDGES[int(of.argmax())] for kind, of in means.items()},
        {kind: float(of.max()) for kind, of in means.items()},
    )


def best_kind(of_ridges: Mapping[Kind, float], model: str) -> Kind:
    """The block and noise level of a model that do best on the corpora to choose on."""
    return max((kind for kind in of_ridges if kind.layer[0] == model), key=lambda kind: of_ridges[kind])


def untrained(kind: Kind) -> Kind:
    """The same block and noise level of the model with random weights."""
    model, block = kind.layer
    return Kind((f"{UNTRAINED}{model}", block), kind.time)


def print_blocks(of_kinds: OfKind) -> None:
    """All noise levels together: every block, by what is left out."""
    together = {kind: of for kind, of in of_kinds.items() if kind.time == TOGETHER}
    schemes = list(next(iter(together.values()))[0].twins)
    for title, lesson in LESSONS.items():
        print(f"\n{title}, all noise levels together; queries above their twins, by what is left out:")
        rows = []
        for kind, of in together.items():
            rows.append([kind.name, *(_cell([lesson(a)[scheme][ALL] for a in of]) for scheme in schemes)])
        print_table(["probe on", *schemes], rows)


def print_noise_levels(of_kinds: OfKind) -> None:
    """Every block at every noise level, with motion and colour left out, and of cartoons."""
    layers: list[Layer] = list(dict.fromkeys(kind.layer for kind in of_kinds if kind.layer[0] != LATENTS))
    times = [*(f"{time:g}" for time in TIMES), TOGETHER]
    measures: dict[str, Callable[[Areas], float]] = {
        "queries above their twins, one lesson of all twins": lambda a: a.twins[LEFT_OUT][ALL],
        "queries above their twins, a lesson of each kind of twin": lambda a: a.alone[LEFT_OUT][ALL],
        "real over cartoons": lambda a: a.cartoons,
    }
    for title, measure in measures.items():
        print(f"\n{title}, by the timestep; of queries {LEFT_OUT} are left out:")
        rows = []
        for layer in layers:
            cells = [_cell([measure(a) for a in of_kinds[Kind(layer, time)]]) for time in times]
            rows.append([f"{layer[0]}, block {layer[1]}", *cells])
        print_table(["probe on", *times], rows)


def print_best(of_kinds: OfKind, best: Mapping[str, Kind]) -> None:
    """What was chosen on other corpora, beside its controls, and by how much it is above them."""
    latents = next(kind for kind in of_kinds if kind.layer[0] == LATENTS)
    for title, lesson in LESSONS.items():
        print(f"\nchosen on other corpora; {title}; {LEFT_OUT} left out:")
        rows = []
        for kind in [*best.values(), *map(untrained, best.values()), latents]:
            twins = [_cell([lesson(a)[LEFT_OUT][name] for a in of_kinds[kind]]) for name in (*TWINS, ALL)]
            rows.append([kind.name, *twins, _cell([a.cartoons for a in of_kinds[kind]])])
        print_table(["probe on", *TWINS, ALL, "real over cartoons"], rows)
    rows = []
    for kind in best.values():
        for control in (untrained(kind), latents):
            pairs = list(zip(of_kinds[kind], of_kinds[control], strict=True))
            of_lessons = [
                _cell([f(a)[LEFT_OUT][ALL] - f(b)[LEFT_OUT][ALL] for a, b in pairs]) for f in LESSONS.values()
            ]
            rows.append([kind.name, control.name, *of_lessons, _cell([a.cartoons - b.cartoons for a, b in pairs])])
    print_table(["probe on", "above", *LESSONS, "real over cartoons"], rows)


def _cell(values: Sequence[float]) -> str:
    interval = student(values)
    return f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


if __name__ == "__main__":
    main()
