"""The benchmark's studies, in the order in which they are run; each returns the rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.benchmarks import ceilings
from jobs.benchmarks.quality import counterfactual, datamodel, influences, kernels, methods, retrieval, tasks
from jobs.benchmarks.quality.datamodel import Design
from jobs.benchmarks.quality.influences import Floats, Method, Place
from jobs.benchmarks.quality.methods import WHITEN, Kernels, Scored, motion_scores
from jobs.benchmarks.quality.problem import Size, base_model
from jobs.benchmarks.quality.retraining import Losses, Recipe, Retraining, on
from jobs.benchmarks.quality.tasks import PAPER
from pipeline import stores, world
from pipeline.intervals import Interval, bootstrap_mean

Rows = list[dict[str, Any]]
MOTIONS = world.MOTIONS
LAW_ARMS = ("base", "all", "all_minus_harmful", "random", "motive_whitened", "best", "oracle")


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    size: Size
    recipe: Recipe
    subsets: int  # of the skewed design
    again: int  # of these that are fine-tuned on under a second seed as well
    halves: int  # subsets of the uniform design
    seeds: int
    targets: tuple[str, ...]
    laws: tuple[str, ...] = ()  # motions of which videos are made and held against their laws
    films: int = 10  # of each
    exact: int = 0  # subsets of the small problem whose influence is computed exactly
    places: tuple[Place, ...] = ((251.0, 0), (501.0, 0), (751.0, 0), (751.0, 1))


class Studies:
    """What the studies share is loaded or computed once."""

    def __init__(self, plan: Plan, folder: str) -> None:
        self.plan, self.folder = plan, folder
        self.clips, self.queries, self.held_out = tasks.encoded(folder, plan.size)

    @property
    def all(self) -> dict[str, Callable[[], Rows]]:
        return {
            "lds": self.lds,
            "ceiling": self.ceiling,
            "ablations": self.ablations,
            "retrieval": self.retrieval,
            "counterfactual": self.counterfactual,
            "laws": self.laws,
            "exact": self.exact,
            "lds_of_halves": partial(self.lds, "uniform"),
        }

    # --- what they share ----------------------------------------------------------------------------------------------

    def retrained(self, title: str, wanted: Sequence[Retraining]) -> list[Losses]:
        return tasks.measured(self.folder, self.plan.size, self.plan.recipe, title, wanted)

    @cached_property
    def base(self) -> Losses:
        return self.retrained("base", [Retraining((), 0)])[0]

    @cached_property
    def kernels(self) -> Kernels:
        places = self.plan.places
        kinds = [(*place, kind) for kind in ("shared", "crossed") for place in places]
        kinds += [(*PAPER, kind) for kind in methods.CONTROLS]
        found = tasks.grams(self.folder, self.plan.size, kinds)
        count = len(places)
        shared = {place: found[n] | found[count + n] for n, place in enumerate(places)}
        return Kernels(shared, dict(zip(methods.CONTROLS, found[2 * count :], strict=True)))

    @cached_property
    def scored(self) -> dict[str, Scored]:
        return methods.main(self.kernels, self.clips, self.queries, MOTIONS)

    def gain(self, losses: Losses) -> list[float]:
        """How much lower the masked loss of every motion is than the base's, as a share of it."""
        rows = [self.held_out.of(motion) for motion in MOTIONS]
        return [1 - float(losses[r, 0].mean() / self.base[r, 0].mean()) for r in rows]

    def gains(self, design: Design, count: int, seed: int) -> tuple[list[Any], Floats]:
        """The subsets of a design and what each gained [S, T]."""
        members = datamodel.subsets(self.clips, design, count)
        found = self.retrained(f"LDS, {design}", [on(rows, seed) for rows in members])
        return members, np.array([self.gain(losses) for losses in found])

    # --- the studies --------------------------------------------------------------------------------------------------

    def lds(self, design: Design = "skewed") -> Rows:
        count = self.plan.subsets if design == "skewed" else self.plan.halves
        if not count:
            return []
        members, gains = self.gains(design, count, 0)
        rows: Rows = []
        for name, scored in self.scored.items():
            predicted = datamodel.predicted(motion_scores(scored, self.queries, MOTIONS), members)
            rows.append({"method": name, "gradients": scored.gradients, **_scores(predicted, gains)})
        return rows

    def ceiling(self) -> Rows:
        """The same subsets under another seed: no prediction can be better than a second fine-tuning is."""
        members, first = self.gains("skewed", self.plan.again, 0)
        _, second = self.gains("skewed", self.plan.again, 1)
        return [{"subsets": len(members), **_scores(second, first)}]

    def ablations(self) -> Rows:
        """LDS of every variant."""
        members, gains = self.gains("skewed", self.plan.subsets, 0)
        rows: Rows = []
        for name, values in self.variants():
            scores = influences.by_motion(values, self.queries, MOTIONS)
            rows.append({"ablation": name, **_scores(datamodel.predicted(scores, members), gains)})
        return rows

    def variants(self) -> Iterator[tuple[str, Floats]]:
        """What else could have been done, one change at a time: a name and influence on every query [N, Q]."""
        places = self.plan.places

        def of(name: str, method: Method) -> tuple[str, Floats]:
            return name, influences.values(self.kernels.shared, method, self.clips)

        yield of("motive, whitened (timestep 751)", Method((PAPER,), "motion", WHITEN))
        for place in places:
            if place != PAPER:
                yield of(f"timestep {place[0]:g}, noise {place[1]}", Method((place,), "motion", WHITEN))
        yield of("queries masked, clips not", Method((PAPER,), "crossed", WHITEN))
        yield of("unmasked", Method((PAPER,), "none", WHITEN))
        own = influences.values({PAPER: self.kernels.controls["own"]}, Method((PAPER,), "motion", WHITEN), self.clips)
        yield "a noise of its own for each clip", own
        yield of(f"{len(places)} settings", Method(places, "motion", WHITEN))
        for whiten in (None, 0.1, 0.03, 0.003, 0.001):
            yield of(f"{len(places)} settings, lambda {whiten}", Method(places, "motion", whiten))
        yield of(f"{len(places)} settings, unmasked", Method(places, "none", WHITEN))
        yield of(f"{len(places)} settings, queries masked, clips not", Method(places, "crossed", WHITEN))
        yield of(f"{len(places)} settings, queries masked, clips not, lambda 0.001", Method(places, "crossed", 0.001))
        yield of(f"{len(places)} settings, unmasked, lambda 0.001", Method(places, "none", 0.001))
        yield f"{len(places)} settings, masked and unmasked together", methods.both(self.kernels, self.clips).values
        yield "the same, lambda 0.001 (best)", methods.both(self.kernels, self.clips, methods.BEST).values
        yield of(f"{len(places)} settings, by Adam's second moments", Method(places, "adam_motion", WHITEN))
        yield of(
            f"{len(places)} settings, each part of the model alike", Method(places, "motion", WHITEN, by_part=True)
        )
        yield of(f"{len(places)} settings, lengths kept, not whitened", Method(places, "motion", None, lengths=True))
        yield of(f"{len(places)} settings, lengths kept", Method(places, "motion", WHITEN, lengths=True))
        last = tuple(n for n, part in enumerate(self.parts) if part in self.parts[-3:])
        yield of(
            f"{len(places)} settings, the last block and what follows", Method(places, "motion", WHITEN, parts=last)
        )

    @property
    def parts(self) -> list[str]:
        return list(kernels.parts(base_model().transformer))

    def retrieval(self) -> Rows:
        rows: Rows = []
        for name, scored in self.scored.items():
            scores = motion_scores(scored, self.queries, MOTIONS)
            if np.isfinite(scores[self.clips.moving]).all():
                same = retrieval.same_motion(scores, self.clips, MOTIONS)
                real = retrieval.real_over_cartoon(scores, self.clips, MOTIONS)
                rows.append({"method": name, **_told("same_motion", same), **_told("real_over_cartoon", real)})
        return rows

    @cached_property
    def choices(self) -> dict[tuple[str, str, int], Retraining]:
        """What every arm fine-tunes on for every target, of the targets and of the motions with laws, and seed."""
        at = self.scored
        by = counterfactual.Influences(
            at["motive"].values, at["no mask"].values, at["motive, whitened"].values, at["best"].values,
            influences.overlap(self.clips, self.queries, MOTIONS),
        )  # fmt: skip
        return {
            (arm, target, seed): counterfactual.chosen(arm, self.clips, self.queries, MOTIONS, target, by, seed)
            for arm in counterfactual.ARMS
            for target in dict.fromkeys([*self.plan.targets, *self.plan.laws])
            for seed in range(self.plan.seeds)
        }

    def laws(self) -> Rows:
        """How far generated videos are from the law of their motion, by what the model was fine-tuned on."""
        wanted = {(arm, m): self.choices[arm, m, 0] for arm in LAW_ARMS[1:] for m in self.plan.laws}
        wanted |= {("base", m): Retraining((), 0) for m in self.plan.laws}
        given = [(task, motion) for (_, motion), task in wanted.items()]
        found = tasks.generated(self.folder, self.plan.size, self.plan.recipe, given, self.plan.films)
        by = dict(zip(wanted, found, strict=True))
        rows: Rows = []
        for arm in LAW_ARMS if self.plan.laws else ():
            pairs = [(m, n, value) for m in self.plan.laws for n, value in enumerate(by[arm, m])]
            change = [value - by["base", m][n] for m, n, value in pairs]
            films = [f"{m} {n}" for m, n, _ in pairs]
            rows.append({"arm": arm, **_told("deviation", bootstrap_mean([v for *_, v in pairs], films)),
                         **_told("over_base", bootstrap_mean(change, films))})  # fmt: skip
        return rows

    def exact(self) -> Rows:
        """LDS on a small problem that can be differentiated: of the exact influence, and of the methods on the same."""
        if not self.plan.exact:
            return []
        found = tasks.exact(self.folder, self.plan.size, self.plan.targets, self.plan.exact)
        rows = list(tasks.exact_rows(self.clips))
        columns = [MOTIONS.index(target) for target in self.plan.targets]
        scores = {name: motion_scores(s, self.queries, MOTIONS)[rows][:, columns] for name, s in self.scored.items()}
        told = {"exact influence, by differentiation": found.influence, **scores}
        return [{"method": n, **_scores(found.weights @ np.nan_to_num(v), found.gains)} for n, v in told.items()]

    def counterfactual(self) -> Rows:
        wanted = {key: task for key, task in self.choices.items() if key[1] in self.plan.targets}
        losses = self.retrained("counterfactual", list(wanted.values()))
        found = {
            key: counterfactual.changes(after, self.base, self.held_out, key[1])
            for key, after in zip(wanted, losses, strict=True)
        }
        return counterfactual.table(found)


def _scores(predicted: Floats, gains: Floats) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, target_specific in (("plain", False), ("specific", True)):
        score = datamodel.lds(predicted, gains, target_specific)
        found |= {name: score.value, f"{name}_low": score.low, f"{name}_high": score.high}
    return found


def _told(name: str, found: Interval) -> dict[str, float]:
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}


def write(path: str, rows: Rows) -> None:
    with stores.writing(path) as file:
        pq.write_table(pa.Table.from_pylist(rows), file)


def show(title: str, rows: Rows) -> None:
    """A table: words, then every figure that has an interval with it."""
    print(f"\n{title}")
    names = [name for name in rows[0] if not name.endswith(("_low", "_high"))]
    ceilings.print_table(names, [[_cell(row, name) for name in names] for row in rows])


def _cell(row: Mapping[str, Any], name: str) -> str:
    value = row[name]
    if not isinstance(value, float):
        return str(value)
    low = row.get(f"{name}_low")
    return f"{value:+.3f}" if low is None else f"{value:+.3f} [{low:+.3f}, {row[f'{name}_high']:+.3f}]"
