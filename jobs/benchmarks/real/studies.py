"""The studies of one base, each the rows of a table. A loss's change is relative to the base's; below 0 is better.

Intervals are Student's of 90 % over actions, those of LDS are bootstrapped over subsets and actions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.benchmarks.matching import by_hash, matched_halves
from jobs.benchmarks.quality import datamodel, retrieval
from jobs.benchmarks.quality.counterfactual import TENTH, changes
from jobs.benchmarks.quality.datamodel import Design, both_lds
from jobs.benchmarks.quality.retraining import Losses, Retraining, on
from jobs.benchmarks.real import scores
from jobs.benchmarks.real.bench import Bench, rows_of_grams
from jobs.benchmarks.real.criteria import CONFIDENCE
from jobs.benchmarks.real.footage import rows_of
from pipeline.ranking import share
from pipeline.statistics.intervals import student

Rows = list[dict[str, Any]]
Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

ALL, ALL_BUT = "all", "all but "
ARMS = (scores.RANDOM, scores.CAPTION, scores.FLOW, scores.OWN_LOSS, scores.PAPERS, scores.BEST, scores.TWINS)
HALVES = (scores.BEST, scores.TWINS, scores.PAPERS, scores.OWN_LOSS, scores.MAGNITUDE, scores.FLOW, scores.RANDOM)
REMOVERS = (scores.BEST, scores.TWINS, scores.FLOW)
LEFT_OUT = (scores.RANDOM, scores.CAPTION, scores.EMBEDDING, scores.FLOW, scores.BEST, scores.TWINS)
SHARE = 0.3  # of the corpus in a subset
TOPS = (0.01, 0.05, 0.1)  # of the corpus, that are left out
YARDSTICKS = ("masked", "plain")
RELIABILITY = "reliability: half of the draws"


class Studies:
    """What the studies share is loaded or computed once."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.settings = bench, bench.settings
        self.count = len(bench.corpus)  # rows of the corpus; those of spoiled versions follow
        self.targets = bench.targets

    def tables(self) -> dict[str, Rows]:
        """Every study's rows, by its name."""
        return {
            "lds": [*self.lds("skewed"), *self.lds("uniform")],
            "halves": self.halves(),
            "first tenth": self.first_tenth(),
            "left out": self.left_out(),
            "harm": self.harm(),
            "spoiled or not": self.spoiled_or_not(),
            "removal": self.removal(),
        }

    # --- what they share ----------------------------------------------------------------------------------------------

    def scored(self, rows: Places) -> dict[str, Floats]:
        """Every score of some rows of the corpus and its spoiled versions, which are then the whole corpus."""
        bench, clips = self.bench, len(self.bench.joined)
        grams, blank = (rows_of_grams(of, rows, clips) for of in (self._grams, self._blank))
        of_rows = rows_of(bench.joined, rows)
        directions = bench.directions.of(rows)
        return scores.scores(of_rows, bench.queries, self.targets, grams, blank, bench.own[rows], directions)

    @cached_property
    def _grams(self) -> Any:
        return self.bench.grams("base")

    @cached_property
    def _blank(self) -> Any:
        return self.bench.grams("untrained")

    @cached_property
    def clean(self) -> dict[str, Floats]:
        return self.scored(np.arange(self.count))

    def gains(self, losses: Losses, yardstick: str) -> list[float]:
        """How much lower the loss of every target is than the base's, as a share of it."""
        column, before = YARDSTICKS.index(yardstick), self.bench.before
        rows = [self.bench.held_out.clips.of(target) for target in self.targets]
        return [1 - float(losses[r, column].mean() / before[r, column].mean()) for r in rows]

    # --- (a) ----------------------------------------------------------------------------------------------------------

    def lds(self, design: Design) -> Rows:
        """How well scores tell the losses after fine-tuning on subsets of 30 %, and how well half of the fine-tunings
        tell the others."""
        settings, clips = self.settings, self.bench.corpus.clips
        members = datamodel.subsets(clips, design, settings.subsets, SHARE)
        tasks = [on(rows, seed) for seed in range(settings.draws) for rows in members]
        losses = self.bench.retrained(f"LDS, {design}", tasks)
        predicted = {name: datamodel.predicted(values, members) for name, values in self.clean.items()}
        gains: dict[str, Floats] = {}  # [draws, S, T]
        for yardstick in YARDSTICKS:
            measured = np.array([self.gains(after, yardstick) for after in losses])
            gains[yardstick] = measured.reshape(settings.draws, len(members), -1)
        masked, plain = (gains[yardstick].mean(0) for yardstick in YARDSTICKS)
        predicted |= self._ridges(members, masked)
        title = {"skewed": "skewed", "uniform": "random"}[design]
        halves = [(gains[yardstick][::2].mean(0), gains[yardstick][1::2].mean(0)) for yardstick in YARDSTICKS]
        rows = [_lds_row(title, RELIABILITY, *halves)]
        rows += [_lds_row(title, name, (values, masked), (values, plain)) for name, values in predicted.items()]
        return rows

    def _ridges(self, members: Sequence[Places], gains: Floats) -> dict[str, Floats]:
        """What a subset's composition tells, fitted to other subsets' outcomes."""
        of = self.bench.corpus
        caption = datamodel.predicted(self.clean[scores.CAPTION], list(members))
        people = datamodel.composition([of.people], members)
        return {
            "ridge: action and person": datamodel.ridge(
                datamodel.composition([of.clips.motions, of.people], members), gains
            ),
            "ridge: caption and person": datamodel.ridge(np.concatenate([caption, people], 1), gains),
            "ridge: scene": datamodel.ridge(datamodel.composition([of.scenes], members), gains),
        }

    # --- (b) ----------------------------------------------------------------------------------------------------------

    def halves(self) -> Rows:
        """Upper against lower half by each score within every (action, person): how much lower the target's masked loss
        is after the upper one."""
        of = self.bench.corpus
        cells = list(zip(of.clips.motions.tolist(), of.people.tolist(), strict=True))
        tasks: dict[tuple[str, str, str, int], Retraining] = {}
        for name in HALVES:
            for column, target in enumerate(self.targets):
                upper, lower = matched_halves(self.clean[name][:, column], cells, of.clips.clip_ids)
                for seed in range(self.settings.seeds if len(upper) else 0):
                    tasks[name, target, "upper", seed] = on(upper, seed)
                    tasks[name, target, "lower", seed] = on(lower, seed)
        losses = self.bench.retrained("matched halves", list(tasks.values()))
        after = dict(zip(tasks, losses, strict=True))
        table: Rows = []
        for name in dict.fromkeys(key[0] for key in tasks):
            keys = [(target, seed) for score, target, half, seed in tasks if (score, half) == (name, "upper")]
            row: dict[str, Any] = {"score": name, "clips": len(tasks[name, keys[0][0], "upper", 0].weights)}
            for title, yardstick in (("difference", "masked"), ("plain", "plain")):
                values = [
                    self._gain_of(after[name, target, "upper", seed], target, yardstick)
                    - self._gain_of(after[name, target, "lower", seed], target, yardstick)
                    for target, seed in keys
                ]
                row |= _interval(values, [target for target, _ in keys], title)
            table.append(row)
        return table

    def _gain_of(self, losses: Losses, target: str, yardstick: str) -> float:
        return self.gains(losses, yardstick)[self.targets.index(target)]

    # --- (c) ----------------------------------------------------------------------------------------------------------

    def first_tenth(self) -> Rows:
        """A tenth of the corpus by each arm, for every target and seed; the arm `random` draws anew for every seed."""
        clips = self.bench.corpus.clips
        tasks = {
            (arm, target, seed): on(self._first(arm, column, seed, TENTH), seed)
            for arm in ARMS
            for column, target in enumerate(self.targets)
            for seed in range(self.settings.seeds)
        }
        losses = self.bench.retrained("first tenth", list(tasks.values()))
        held_out, before = self.bench.held_out.clips, self.bench.before
        measured = {key: changes(after, before, held_out, key[1]) for key, after in zip(tasks, losses, strict=True)}
        rows: Rows = []
        for arm in ARMS:
            keys = [key for key in tasks if key[0] == arm]
            labels = [target for _, target, _ in keys]
            own = [clips.motions[row] == key[1] for key in keys for row, _ in tasks[key].weights]
            row: dict[str, Any] = {"arm": arm, "own action": float(np.mean(own))}
            for name in ("masked_target", "plain_target", "masked_others", "plain_others"):
                row |= _interval([measured[key][name] for key in keys], labels, name)
            against = [
                measured[key]["masked_target"] - measured[scores.RANDOM, key[1], key[2]]["masked_target"]
                for key in keys
            ]
            rows.append(row | _interval(against, labels, "over_random"))
        return rows

    def left_out(self) -> Rows:
        """All of the corpus but the first few by a score: how much the target's loss rises for their want. What taught
        a motion is missed most."""
        everything = np.arange(self.count)
        tasks = {
            (arm, top, target, seed): on(np.setdiff1d(everything, self._first(arm, column, seed, top)), seed)
            for arm in LEFT_OUT
            for top in TOPS
            for column, target in enumerate(self.targets)
            for seed in range(self.settings.seeds)
        }
        after = dict(zip(tasks, self.bench.retrained("left out", list(tasks.values())), strict=True))
        rows: Rows = []
        for arm in LEFT_OUT:
            for top in TOPS:
                keys = [key for key in tasks if key[:2] == (arm, top)]
                labels = [target for *_, target, _ in keys]
                row: dict[str, Any] = {"score": arm, "left out": top}
                for yardstick in YARDSTICKS:
                    values = [-self._gain_of(after[key], key[2], yardstick) for key in keys]
                    row |= _interval(values, labels, yardstick)
                over = [
                    self._gain_of(after[scores.RANDOM, *key[1:]], key[2], "masked")
                    - self._gain_of(after[key], key[2], "masked")
                    for key in keys
                ]
                rows.append(row | _interval(over, labels, "over_random"))
        return rows

    def _first(self, arm: str, column: int, seed: int, top: float) -> Places:
        """The rows of the first few by an arm for a target, `top` of the corpus."""
        ids = self.bench.corpus.clips.clip_ids
        order = {clip_id: place for place, clip_id in enumerate(by_hash(seed, ids))}
        count = share(top, self.count)
        if arm == scores.RANDOM:
            return np.array(sorted(range(self.count), key=lambda row: order[ids[row]])[:count])
        score = self.clean[arm][:, column]
        ranked = [row for row in range(self.count) if np.isfinite(score[row])]
        # Clips that a score cannot tell apart, as captions often cannot, are drawn.
        return np.array(sorted(ranked, key=lambda row: (-score[row], order[ids[row]]))[:count])

    # --- (d) ----------------------------------------------------------------------------------------------------------

    @cached_property
    def spoiled(self) -> Places:
        """The rows of the spoiled versions."""
        return np.arange(self.count, len(self.bench.joined))

    @cached_property
    def originals(self) -> Places:
        """The rows of the clips that they are versions of, in their order."""
        joined = self.bench.joined
        place = {clip_id: row for row, clip_id in enumerate(joined.clips.clip_ids)}
        return np.array([place[source] for source in joined.sources[self.spoiled].tolist()])

    @cached_property
    def dirty(self) -> Places:
        """The corpus with the spoiled versions in the place of their originals."""
        return np.concatenate([np.setdiff1d(np.arange(self.count), self.originals), self.spoiled])

    def harm(self) -> Rows:
        """Fine-tuned on clips as they were, on their spoiled versions, on as many other clips."""
        others = np.setdiff1d(np.arange(self.count), self.originals)
        ids = self.bench.corpus.clips.clip_ids

        def drawn(seed: int) -> Places:
            order = {clip_id: place for place, clip_id in enumerate(by_hash(seed, ids))}
            return np.array(sorted(others.tolist(), key=lambda row: order[ids[row]])[: len(self.originals)])

        rows = {"clean": lambda seed: self.originals, "spoiled": lambda seed: self.spoiled, "other": drawn}
        tasks = {(name, seed): on(call(seed), seed) for name, call in rows.items()
                  for seed in range(self.settings.seeds)}  # fmt: skip
        return self._changed("harm", "fine-tuned on", tasks, "clean")

    def spoiled_or_not(self) -> Rows:
        """How well every score tells the spoiled clips from the others, of the action that the data say of each."""
        dirty = self.bench.joined
        scored = self.scored(self.dirty)
        rows_by_way = {str(way): np.flatnonzero(dirty.ways[self.dirty] == way) for way in np.unique(dirty.ways)}
        named = np.isin(dirty.clips.motions[self.dirty], self.targets)
        rows: Rows = []
        for name, values in scored.items():
            own = _of_own(values, dirty.clips.motions[self.dirty].tolist(), self.targets)
            usable = named & np.isfinite(own)
            good = np.intersect1d(rows_by_way[""], np.flatnonzero(usable))
            bad = np.setdiff1d(np.flatnonzero(usable), rows_by_way[""])
            row: dict[str, Any] = {"score": name, "good": len(good), "spoiled": len(bad)}
            row["auc"] = retrieval.auc(own[good], own[bad]) if len(good) and len(bad) else None
            for way, places in rows_by_way.items():
                some = np.intersect1d(places, np.flatnonzero(usable))
                if way:
                    row[way] = retrieval.auc(own[good], own[some]) if len(good) and len(some) else None
            rows.append(row)
        return rows

    def removal(self) -> Rows:
        """The spoiled corpus: all of it, and without the spoiled clips, as many at random, as many by some scores."""
        scored, count = self.scored(self.dirty), len(self.spoiled)
        labels = self.bench.joined.clips.motions[self.dirty].tolist()
        ids = [self.bench.joined.clips.clip_ids[row] for row in self.dirty.tolist()]

        def without_last(name: str, seed: int) -> Places:
            own = _of_own(scored[name], labels, self.targets)
            last = np.argsort(np.where(np.isfinite(own), own, np.inf), kind="stable")[:count]
            return np.delete(self.dirty, last)

        def without_random(seed: int) -> Places:
            drawn = set(by_hash(100 + seed, ids)[:count])
            return np.array(
                [row for row, clip_id in zip(self.dirty.tolist(), ids, strict=True) if clip_id not in drawn]
            )

        rows: dict[str, Any] = {
            ALL: lambda seed: self.dirty,
            f"{ALL_BUT}random": without_random,
            f"{ALL_BUT}the spoiled": lambda seed: np.setdiff1d(self.dirty, self.spoiled),
        }
        rows |= {f"{ALL_BUT}the last by {name}": partial(without_last, name) for name in REMOVERS}
        tasks = {(name, seed): on(call(seed), seed) for name, call in rows.items()
                  for seed in range(self.settings.seeds)}  # fmt: skip
        return self._changed("removal", "trained on", tasks, f"{ALL_BUT}random")

    def _changed(self, title: str, column: str, tasks: Mapping[tuple[str, int], Retraining], reference: str) -> Rows:
        """A row an arm: how its losses change over all targets, and its masked change less the reference's."""
        losses = dict(zip(tasks, self.bench.retrained(title, list(tasks.values())), strict=True))
        rows: Rows = []
        for name in dict.fromkeys(name for name, _ in tasks):
            seeds = [seed for n, seed in tasks if n == name]
            labels = list(self.targets) * len(seeds)
            row: dict[str, Any] = {column: name, "clips": len(tasks[name, 0].weights)}
            for yardstick in YARDSTICKS:
                values = [-gain for seed in seeds for gain in self.gains(losses[name, seed], yardstick)]
                row |= _interval(values, labels, yardstick)
            against = [
                theirs - ours
                for seed in seeds
                for ours, theirs in zip(
                    self.gains(losses[name, seed], "masked"), self.gains(losses[reference, seed], "masked"), strict=True
                )
            ]
            rows.append(
                row | _interval(against, labels, f"over {reference}") | self._preferred(title, tasks, name, reference)
            )
        return rows

    def _preferred(
        self, title: str, tasks: Mapping[tuple[str, int], Retraining], name: str, reference: str
    ) -> dict[str, float]:
        """Which share of the held-out clips the model prefers to their twins, by how much of the clip's loss, and how
        much more than after the reference's fine-tuning under the same seed."""
        mine, theirs = (
            np.stack(self.bench.margins(title, [task for (n, _), task in tasks.items() if n == one]))
            for one in (name, reference)
        )
        actions = self.bench.held_out.clips.motions[self.bench.twinned[1]].tolist()
        over = (mine - theirs).mean(0).tolist()
        columns = {"preferred": float((mine > 0).mean()), "margin": float(mine.mean())}
        return columns | _interval(over, actions, f"margin over {reference}")


def _of_own(values: Floats, actions: Sequence[str], targets: Sequence[str]) -> Floats:
    """Every clip's score for its own action: [N, T] -> [N]; NaN where that is no target."""
    place = {target: column for column, target in enumerate(targets)}
    return np.array(
        [values[row, place[action]] if action in place else np.nan for row, action in enumerate(actions)], np.float64
    )


def _interval(values: Sequence[float], clusters: Sequence[str], name: str) -> dict[str, float]:
    return student(values, clusters, CONFIDENCE).columns(name)


def _lds_row(design: str, name: str, masked: tuple[Floats, Floats], plain: tuple[Floats, Floats]) -> dict[str, Any]:
    """LDS of predicted and measured gains by the masked loss, and the target-specific one by the plain loss."""
    by_plain = datamodel.lds(*plain, target_specific=True)
    row: dict[str, Any] = {"design": design, "score": name}
    row |= {key.replace("plain", "lds"): value for key, value in both_lds(*masked).items()}
    ends = {"specific, plain loss_low": by_plain.low, "specific, plain loss_high": by_plain.high}
    return row | {"specific, plain loss": by_plain.value, **ends}
