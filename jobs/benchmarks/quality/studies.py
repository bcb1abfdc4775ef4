"""The benchmark's studies, in the order in which they are run; each returns the rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from jobs.benchmarks.quality import budgets, counterfactual, datamodel, influences, kernels, methods, retrieval, tasks
from jobs.benchmarks.quality.datamodel import Design, both_lds
from jobs.benchmarks.quality.influences import Floats, Method, Place
from jobs.benchmarks.quality.kernels import Grams
from jobs.benchmarks.quality.methods import Kernels, Scored, motion_scores
from jobs.benchmarks.quality.problem import World, base_model
from jobs.benchmarks.quality.retraining import Losses, Recipe, Retraining, on
from pipeline.ranking import share
from pipeline.statistics.intervals import bootstrap_mean
from pipeline.synthetic import world

Rows = list[dict[str, Any]]
Key = tuple[str, str, int]  # arm, target and seed

MOTIONS = world.MOTIONS
RIDGE = "control: ridge on composition"
OTHER_NOISE = 10  # what is added to the numbers of the settings' noises to see how repeatable they are
LAW_ARMS = ("base", "all", "all_minus_negative", "random", "motive_whitened", "best", "oracle")


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    world: World
    recipe: Recipe
    subsets: int  # of the skewed design
    halves: int  # subsets of the uniform design
    seeds: int  # of the counterfactual; of the arm random there may be more
    targets: tuple[str, ...]
    laws: tuple[str, ...] = ()  # motions of which videos are made and held against their laws
    films: int = 10  # of each
    exact: int = 0  # subsets of the small problem whose influence is computed exactly
    arms: tuple[str, ...] = counterfactual.ARMS
    randoms: int = 0  # seeds of the arm random, where they are more than `seeds`
    draws: int = 4  # fine-tunings on each skewed subset, under different seeds, whose mean is predicted
    draws_of_halves: int = 2
    others: bool = True  # whether variants and cheaper attributions are looked at
    versions: bool = False  # whether rules by looks, twins and unlearning are
    places: tuple[Place, ...] = ((251.0, 0), (501.0, 0), (751.0, 0), (751.0, 1))


class Studies:
    """What the studies share is loaded or computed once."""

    def __init__(self, plan: Plan, folder: str) -> None:
        self.plan, self.folder = plan, folder
        self.clips, self.queries, self.held_out = tasks.encoded(folder, plan.world)

    @property
    def all(self) -> dict[str, Callable[[], Rows]]:
        return {
            "lds": self.lds,
            "ceiling": self.ceiling,
            "choice": self.choice,
            "ablations": self.ablations,
            "cheap": self.cheap,
            "lengths": self.lengths,
            "retrieval": self.retrieval,
            "counterfactual": self.counterfactual,
            "laws": self.laws,
            "exact": self.exact,
            "lds_of_halves": partial(self.lds, "uniform"),
        }

    # --- what they share ----------------------------------------------------------------------------------------------

    def retrained(self, title: str, trainings: Sequence[Retraining]) -> list[Losses]:
        return tasks.measured(self.folder, self.plan.world, self.plan.recipe, title, trainings)

    @cached_property
    def base(self) -> Losses:
        return self.retrained("base", [Retraining((), 0)])[0]

    @cached_property
    def kernels(self) -> Kernels:
        places = self.plan.places
        again = [(t, noise + OTHER_NOISE) for t, noise in places] if self.plan.others else []
        others = methods.OTHERS if self.plan.others else methods.CONTROLS
        kinds: dict[tuple[str, Any], tuple[float, int, str]] = {
            **{("shared", place): (*place, "shared") for place in places},
            **{("untrained", place): (*place, "untrained") for place in places},
            **{("repeated", place): (*place, "masked") for place in again},
            **{("others", name): (*tasks.PAPER, name) for name in others},
        }
        grams = tasks.grams(self.folder, self.plan.world, self.plan.recipe, list(kinds.values()))
        by_kind: dict[str, dict[Any, Grams]] = {"shared": {}, "untrained": {}, "repeated": {}, "others": {}}
        for (kind, key), of in zip(kinds, grams, strict=True):
            by_kind[kind][key] = of
        return Kernels(**by_kind)

    @cached_property
    def scored(self) -> dict[str, Scored]:
        scenes = self.plan.world.scenes
        captions = [scene.caption for scene in scenes("clips")], [scene.caption for scene in scenes("queries")]
        table = methods.compared(self.kernels, self.clips, self.queries, MOTIONS, captions, self.own)
        if not self.plan.versions:
            return table
        products = tasks.version_grams(self.folder, self.plan.world)
        unlearnt = tasks.unlearnt(self.folder, self.plan.world).astype(np.float64)
        return table | methods.by_versions(products, unlearnt, self.clips)

    @cached_property
    def own(self) -> Losses:
        """The losses of the corpus itself under the base: [N, 2], masked and plain."""
        plan = self.plan
        return tasks.measured(self.folder, plan.world, plan.recipe, "own losses", [Retraining((), 0)], "clips")[0]

    def gain(self, losses: Losses, column: int) -> list[float]:
        """How much lower the masked loss (column 0) or the plain loss (1) of every motion is than the base's, as a
        share of it."""
        rows = [self.held_out.of(motion) for motion in MOTIONS]
        return [1 - float(losses[r, column].mean() / self.base[r, column].mean()) for r in rows]

    def fine_tuned(self, design: Design, column: int = 0) -> tuple[list[Any], Floats]:
        """The subsets of a design and what each gained under each seed [draws, S, T], in a loss as `gain` has it."""
        plan = self.plan
        count, draws = (plan.subsets, plan.draws) if design == "skewed" else (plan.halves, plan.draws_of_halves)
        members = datamodel.subsets(self.clips, design, count)
        trainings = [on(rows, seed) for seed in range(draws) for rows in members]
        gains = [self.gain(losses, column) for losses in self.retrained(f"LDS, {design}", trainings)]
        return members, np.array(gains).reshape(draws, count, -1)

    def gains(self, design: Design) -> tuple[list[Any], Floats]:
        """The subsets of a design and what each gained, mean over the seeds: [S, T]."""
        members, draws = self.fine_tuned(design)
        return members, draws.mean(0)

    def motion_scores(self, scored: Scored) -> Floats:
        return motion_scores(scored, self.queries, MOTIONS)

    # --- the studies --------------------------------------------------------------------------------------------------

    def lds(self, design: Design = "skewed") -> Rows:
        if design == "uniform" and not self.plan.halves:
            return []
        members, gains = self.gains(design)
        predicted = self.predicted(members, gains)
        rows: Rows = []
        for name, values in predicted.items():
            over = datamodel.difference(values, predicted["motive"], gains, True)
            cost = self.scored[name].gradients if name in self.scored else 0
            row = {"method": name, "gradients": cost, **both_lds(values, gains)}
            rows.append(row | {"over_motive": over.value, "over_motive_low": over.low, "over_motive_high": over.high})
        return rows

    def predicted(self, members: list[Any], gains: Floats) -> dict[str, Floats]:
        """What every method predicts of every subset [S, T], and what a ridge on the subsets' composition does, which
        is fitted to the gains of other subsets."""
        predicted = {n: datamodel.predicted(self.motion_scores(s), members) for n, s in self.scored.items()}
        composition = datamodel.composition([self.clips.motions, self.clips.kinds], members)
        return predicted | {RIDGE: datamodel.ridge(composition, gains)}

    def ceiling(self) -> Rows:
        """How well the fine-tunings of half the seeds tell those of the others on the same subset, and what follows for
        the mean of all of them, which LDS is about (Spearman 1910, Brown 1910): the exact expectation would have the
        root of that."""
        members, draws = self.fine_tuned("skewed")
        if len(draws) < 2:
            return []
        halves = draws[::2].mean(0), draws[1::2].mean(0)
        row: dict[str, Any] = {"subsets": len(members), "draws": len(draws), **both_lds(*halves)}
        for name in ("plain", "specific"):
            whole = 2 * row[name] / (1 + row[name])
            row |= {f"{name}_of_mean": whole, f"{name}_of_the_truth": max(0.0, whole) ** 0.5}
        return [row]

    def choice(self) -> Rows:
        """The best of all rules, chosen on one half of the subsets and judged on the other."""
        if not self.plan.others:
            return []
        members, gains = self.gains("skewed")
        named, predicted = datamodel.cross_fitted(dict(self.variants()), members, gains)
        return [{"chosen": " | ".join(named), **both_lds(predicted, gains)}]

    def ablations(self) -> Rows:
        """LDS of every variant."""
        if not self.plan.others:
            return []
        members, gains = self.gains("skewed")
        return [{"ablation": n, **both_lds(datamodel.predicted(v, members), gains)} for n, v in self.variants()]

    def variants(self) -> Iterator[tuple[str, Floats]]:
        return methods.ablations(self.kernels, self.clips, self.queries, MOTIONS, self.parts)

    @property
    def parts(self) -> list[str]:
        return list(kernels.parts(base_model().trained))

    def cheap(self) -> Rows:
        if not self.plan.others:
            return []
        members, gains = self.gains("skewed")
        attributions = list(methods.cheaper(self.kernels, self.clips, self.queries, MOTIONS, len(self.parts)))
        full = attributions[0][2]
        return [
            {"attribution": name, "cost": cost, **methods.alike(scores, full),
             **both_lds(datamodel.predicted(scores, members), gains)}
            for name, cost, scores in attributions
        ]  # fmt: skip

    def lengths(self) -> Rows:
        """Whether length decides where half of the clips are shorter than the queries."""
        rows: Rows = []
        for name, whiten in (("cosine", None), ("whitened", methods.WHITEN)) if self.plan.others else ():
            grams = {tasks.PAPER: self.kernels.others["mixed"]}
            values = influences.values(grams, Method((tasks.PAPER,), "motion", whiten), self.clips)
            scores = influences.by_motion(values, self.queries, MOTIONS)
            area = retrieval.short_over_long(scores, kernels.cut(self.clips), MOTIONS)
            rows.append({"method": name, **area.columns("short_over_long")})
        return rows

    def retrieval(self) -> Rows:
        rows: Rows = []
        for name, scored in self.scored.items():
            scores = motion_scores(scored, self.queries, MOTIONS)
            if np.isfinite(scores[self.clips.moving]).all():
                same = retrieval.same_motion(scores, self.clips, MOTIONS)
                real = retrieval.real_over_cartoon(scores, self.clips, MOTIONS)
                rows.append({"method": name, **same.columns("same_motion"), **real.columns("real_over_cartoon")})
        return rows

    @cached_property
    def picked_by(self) -> counterfactual.Influences:
        at = self.scored
        return counterfactual.Influences(
            at["motive"].values, at["no mask"].values, at["motive, whitened"].values, at["best"].values,
            influences.overlap(self.clips, self.queries, MOTIONS), at[methods.CAPTION].values, at[methods.FLOW].values,
            at[methods.OWN_LOSS].values[:, 0], at[methods.LENGTH].values[:, 0], self._of_further_arms,
        )  # fmt: skip

    @property
    def _of_further_arms(self) -> dict[str, Floats]:
        """What arms pick by that weigh one loss against another, or that know the queries' looks: [N, T]."""
        masked = self.motion_scores(self.scored["best"])
        plain = self.motion_scores(self.scored[f"no mask, {len(self.plan.places)} settings, whitened"])
        tenth = share(counterfactual.TENTH, int(self.clips.moving.sum()))
        by_arm = {
            "within_budget": budgets.mixed(masked, plain, budgets.weights(masked, plain, tenth)),
            "balanced": budgets.mixed(masked, plain, np.array(0.5)),
            "spared": budgets.spared(masked),
        }
        if self.plan.versions:
            by_arm["looks"] = self.motion_scores(self.scored[methods.TWINS])
            by_arm["unlearning"] = self.motion_scores(self.scored[methods.UNLEARNING[0]])
        return by_arm

    def chosen(self, arm: str, target: str, seed: int, part: float = counterfactual.TENTH) -> Retraining:
        by = self.picked_by
        return counterfactual.chosen(arm, self.clips, self.queries, MOTIONS, target, by, seed, part)

    @cached_property
    def choices(self) -> dict[Key, Retraining]:
        """What every arm fine-tunes on for every target, of the targets and of the motions with laws, and seed."""
        return {
            (arm, target, seed): self.chosen(arm, target, seed)
            for arm in self.plan.arms
            for target in dict.fromkeys([*self.plan.targets, *self.plan.laws])
            for seed in range(max(self.plan.seeds, self.plan.randoms) if arm == "random" else self.plan.seeds)
        }

    def laws(self) -> Rows:
        """How far generated videos are from the law of their motion, by what the model was fine-tuned on."""
        trainings = {(arm, m): self.choices[arm, m, 0] for arm in LAW_ARMS[1:] for m in self.plan.laws}
        trainings |= {("base", m): Retraining((), 0) for m in self.plan.laws}
        of_motions = [(task, motion) for (_, motion), task in trainings.items()]
        deviations = tasks.generated(self.folder, self.plan.world, self.plan.recipe, of_motions, self.plan.films)
        by = dict(zip(trainings, deviations, strict=True))
        rows: Rows = []
        for arm in LAW_ARMS if self.plan.laws else ():
            pairs = [(m, n, value) for m in self.plan.laws for n, value in enumerate(by[arm, m])]
            change = [value - by["base", m][n] for m, n, value in pairs]
            films = [f"{m} {n}" for m, n, _ in pairs]
            rows.append({"arm": arm, **bootstrap_mean([v for *_, v in pairs], films).columns("deviation"),
                         **bootstrap_mean(change, films).columns("over_base")})  # fmt: skip
        return rows

    def exact(self) -> Rows:
        """LDS on a small problem that can be differentiated: of the exact influence, and of the methods on the same."""
        if not self.plan.exact:
            return []
        small = tasks.exact(self.folder, self.plan.world, self.plan.targets, self.plan.exact)
        rows = list(tasks.exact_rows(self.clips))
        columns = [MOTIONS.index(target) for target in self.plan.targets]
        scores = {name: motion_scores(s, self.queries, MOTIONS)[rows][:, columns] for name, s in self.scored.items()}
        compared = {"exact influence, by differentiation": small.influence, **scores}
        return [{"method": n, **both_lds(small.weights @ np.nan_to_num(v), small.gains)} for n, v in compared.items()]

    def counterfactual(self) -> Rows:
        return counterfactual.table(self.outcomes)

    @cached_property
    def outcomes(self) -> dict[Key, dict[str, float]]:
        """What every arm did for every target and seed: the changes of the losses, and what it is made of."""
        losses = self.retrained("counterfactual", list(self._judged.values()))
        return {
            key: counterfactual.changes(after, self.base, self.held_out, key[1])
            | counterfactual.shares(task, self.clips, key[1], self.chosen("best", key[1], key[2]))
            for (key, task), after in zip(self._judged.items(), losses, strict=True)
        }

    @cached_property
    def outcomes_in_bands(self) -> dict[str, dict[Key, dict[str, float]]]:
        """The changes of the losses as `outcomes` has them, at the timesteps of each of `comparison.BANDS` alone."""
        return self.changed_in_bands("bands of times", self._judged)

    def changed_in_bands(
        self, title: str, trainings: Mapping[Key, Retraining]
    ) -> dict[str, dict[Key, dict[str, float]]]:
        """By band: the changes of the losses at its timesteps after each of these fine-tunings."""
        plan, measured = self.plan, [Retraining((), 0), *trainings.values()]
        by_band = tasks.measured_in_bands(self.folder, plan.world, plan.recipe, title, measured)
        return {
            band: {
                key: counterfactual.changes(after, base, self.held_out, key[1])
                for key, after in zip(trainings, rest, strict=True)
            }
            for band, (base, *rest) in by_band.items()
        }

    @property
    def _judged(self) -> dict[Key, Retraining]:
        """The choices for the targets, without those for motions with laws alone."""
        return {key: task for key, task in self.choices.items() if key[1] in self.plan.targets}
