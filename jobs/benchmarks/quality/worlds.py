"""The same study in several worlds: corpora that no rule was chosen on, two bases, and a shifted world.

A world is a corpus with its queries and held-out clips, and a base. Intervals are Student's over the corpora: the bases
of one corpus hang together. Losses are held out, at drawn timesteps; a loss less random's is less the mean of random's
seeds in the same world.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jobs.benchmarks.quality import datamodel, halves, methods, one_band, report, shares, studies, tasks
from jobs.benchmarks.quality.counterfactual import LOSSES
from jobs.benchmarks.quality.influences import Floats
from jobs.benchmarks.quality.lessons import OTHER, Lessons
from jobs.benchmarks.quality.problem import OUT, World
from jobs.benchmarks.quality.retraining import Recipe
from jobs.benchmarks.quality.studies import Plan, Studies
from jobs.benchmarks.verdicts import Verdict
from pipeline.statistics.intervals import student

Rows = list[dict[str, Any]]
Outcomes = Mapping[tuple[str, str, int], Mapping[str, float]]  # by arm, target and seed
Figures = dict[str, dict[str, float]]  # by method, reliability or arm, then by yardstick

CONFIDENCE = 0.95
PLAIN_AT_MOST = 0.01
BEST, RELIABILITY = "best", "reliability: one fine-tuning by another"
RIVALS = (methods.UNTRAINED, methods.CAPTION, methods.FLOW, methods.OWN_LOSS, methods.LENGTH, methods.OVERLAP,
          methods.RAW, methods.MAGNITUDE, studies.RIDGE)  # fmt: skip
ARMS = ("random", "magnitude", "gradient_length", "own_loss", "mask_overlap", "caption", "nearest_flow", "motive",
        "best", "looks", "unlearning", "within_budget", "balanced", "spared", "oracle")  # fmt: skip
SHARES = ("own_motion", "camera_moves", "of_best")
ARM, BAND, ONE_BAND, HALF, SHARE, LESS_RANDOM = "arm ", "band ", "one band ", "half ", "share ", " less random"
KINDS = ARM, BAND, ONE_BAND, HALF, SHARE  # what figures of anything but LDS begin with
LESS = tuple(f"{name}{LESS_RANDOM}" for name in LOSSES)

CRITERIA: Mapping[str, str] = {
    "controls": f"the best rule's target-specific LDS is not above that of every control at {CONFIDENCE:.0%}, paired "
    "by world: the untrained model in the same form, caption match, nearest flow, own loss, gradient length, mask "
    "overlap, raw latents, magnitude, a ridge on the subset's composition",
    "random": f"its tenth does not lower the target's masked loss below random's at {CONFIDENCE:.0%}",
    "specific": "against random's tenth the others' masked loss falls as much as the target's, or the target's plain "
    f"loss rises by more than {PLAIN_AT_MOST:.0%}",
    "search": "its tenth lowers the target's masked loss no more than caption match does, or no more than the nearest "
    "flow does",
    "within": "of two halves that show the same motions and kinds, the upper one by it does not lower the target's "
    f"masked loss below the lower one's at {CONFIDENCE:.0%}",
    "shifted": "in the shifted world it lowers the target's masked loss no more than random",
}
ADDS = "Influence adds something in these worlds: no criterion of failure came true."
NOTHING = (
    "Influence adds nothing in these worlds that captions and the controls do not: a criterion of failure came true."
)


@dataclass(frozen=True)
class Form:
    """Which worlds, and how much of everything in each."""

    plan: Plan  # of every world, whose own seed and base take the place of the plan's
    seeds: tuple[int, ...]  # of corpora of the training world
    shifted: tuple[int, ...]  # of corpora of the shifted world
    shares: tuple[float, ...] = shares.SHARES  # that arms select, in equally many steps
    one_band_seeds: int = 2  # of fine-tunings whose tenth is drawn in one band of times
    taught: Lessons = OTHER  # the second base; the first is the one that is shipped


@dataclass(frozen=True)
class Cell:
    """A world's corpus and base by their names, as the tables have them."""

    corpus: str
    base: str
    shifted: bool
    plan: Plan


LONG = Form(
    Plan(
        World(160, 5, 6),
        Recipe(steps=26, noises=4),
        subsets=18,
        halves=0,
        seeds=1,
        randoms=3,
        targets=("bounce", "explode", "spin"),
        arms=ARMS,
        draws=2,
        others=False,
        versions=True,
        places=((501.0, 0), (751.0, 0)),
    ),
    seeds=(41_000_001, 42_000_001, 43_000_001),
    shifted=(44_000_001,),
)
QUICK = Form(
    replace(
        LONG.plan,
        world=World(40, 1, 1),
        recipe=Recipe(steps=3, noises=3),
        subsets=5,
        targets=("explode", "spin"),
        randoms=1,
        places=((751.0, 0),),
    ),
    seeds=(41_000_001,),
    shifted=(44_000_001,),
    shares=(0.1, 0.5),
    one_band_seeds=1,
    taught=replace(OTHER, scenes=20, steps=3),
)


def cells(form: Form, folder: str) -> Iterator[Cell]:
    """Every corpus with one of the bases, then every corpus with the other: whoever stops half-way has all corpora and
    both bases."""
    bases: dict[str, Path] = {"slide": OUT, ", ".join(form.taught.motions): tasks.taught(folder, form.taught)}
    corpora = [(seed, False) for seed in form.seeds[:1]]
    corpora += [(seed, True) for seed in form.shifted] + [(seed, False) for seed in form.seeds[1:]]
    for turn in range(len(bases)):
        for number, (seed, is_shifted) in enumerate(corpora):
            name, base = list(bases.items())[(number + turn) % len(bases)]
            world = replace(form.plan.world, seed=seed, shifted=is_shifted, base=base)
            yield Cell(f"{seed:,}", name, is_shifted, replace(form.plan, world=world))


# --- one world --------------------------------------------------------------------------------------------------------


def figures(study: Studies, form: Form) -> Figures:
    """LDS of every method and of the fine-tunings themselves; what every arm's tenth does, also at the times of each
    band, and is made of; what it does when it is drawn in one band alone; what the upper half by a score does less than
    the lower one, under HALF + the score's name; what parts of the corpus by an arm do, under SHARE + part and arm."""
    members, draws = study.fine_tuned("skewed")
    plain_draws = study.fine_tuned("skewed", 1)[1]
    masked, plain = draws.mean(0), plain_draws.mean(0)
    by_name = {name: _lds(values, values, masked, plain) for name, values in study.predicted(members, masked).items()}
    by_name[RELIABILITY] = _lds(draws[0], plain_draws[0], draws[1], plain_draws[1])
    by_half = {HALF + name: of for name, of in halves.differences(study).items()}
    by_share = {SHARE + name: of for name, of in shares.changes(study, form.shares).items()}
    return by_name | _bands(study) | _arms(study) | by_half | by_share | _one_band(study, form.one_band_seeds)


def _lds(by_masked: Floats, by_plain: Floats, masked: Floats, plain: Floats) -> dict[str, float]:
    """Agreement of predicted with measured gains [S, T], of the masked loss and of the plain one."""
    return {
        "masked": datamodel.agreement(by_masked, masked, False),
        "masked, specific": datamodel.agreement(by_masked, masked, True),
        "plain": datamodel.agreement(by_plain, plain, False),
        "plain, specific": datamodel.agreement(by_plain, plain, True),
    }


def _arms(study: Studies) -> Figures:
    """What every arm's tenth does and is made of, under ARM + its name."""
    return {ARM + arm: _means(study, study.outcomes, arm, (*LOSSES, *SHARES)) for arm in study.plan.arms}


def _bands(study: Studies) -> Figures:
    """What every arm's tenth does at the timesteps of each band alone, under BAND + arm and band."""
    return {
        f"{BAND}{arm}, {band}": _means(study, outcomes, arm, LOSSES)
        for arm in study.plan.arms
        for band, outcomes in study.outcomes_in_bands.items()
    }


def _one_band(study: Studies, seeds: int) -> Figures:
    """What tenths do that are drawn in one band of times alone, under ONE_BAND + `_at`. LESS is less random's tenth in
    the same band, with the same clips elsewhere."""
    return {
        ONE_BAND + _at(band, elsewhere, arm, times): _means(study, outcomes, arm, LOSSES)
        for (band, elsewhere), arms in one_band.FORMS.items()
        for times, outcomes in one_band.outcomes(study, band, elsewhere, seeds).items()
        for arm in arms
    }


def _at(band: str, elsewhere: str, arm: str, times: str = one_band.ALL_TIMES) -> str:
    """Names an arm whose tenth is drawn in a band, with these clips elsewhere, and the times of its losses."""
    return f"{arm} at {band}, {elsewhere} elsewhere; {times}"


def _means(study: Studies, outcomes: Outcomes, arm: str, names: Sequence[str]) -> dict[str, float]:
    """An arm's figures, mean over targets, and its changes of losses less random's."""

    def mean(of: str, target: str, name: str) -> float:
        return float(np.mean([row[name] for (a, t, _), row in outcomes.items() if (a, t) == (of, target)]))

    targets = study.plan.targets
    row = {name: float(np.mean([mean(arm, target, name) for target in targets])) for name in names}
    for name in LOSSES:
        less = [mean(arm, target, name) - mean("random", target, name) for target in targets]
        row[f"{name}{LESS_RANDOM}"] = float(np.mean(less))
    return row


# --- all worlds -------------------------------------------------------------------------------------------------------


def run(form: Form, folder: str) -> dict[str, Any]:
    """Every world, each printed when it ends, then all of them; what a killed run left is in FOLDER/report."""
    print("Failure, said before any result:")
    for name, text in CRITERIA.items():
        print(f"  {name}: {text}")
    print(f'Then the sentence is: "{NOTHING}"')
    print(f"Failure of a tenth that is drawn at {one_band.LITTLE} alone, with either of two sets of clips elsewhere:")
    for name, text in one_band.CRITERIA.items():
        print(f"  {name}: {text}")
    print(flush=True)
    measured: list[tuple[Cell, Figures]] = []
    results: dict[str, Any] = {}
    for cell in cells(form, folder):
        measured.append((cell, figures(Studies(cell.plan, folder), form)))
        results = tables(measured)
        for title, rows in results.items():
            report.write(f"{folder}/report/{title.replace(', ', '-').replace(' ', '_')}.parquet", rows)
        print(f"\n{len(measured)} worlds: corpus {cell.corpus}{' (shifted)' * cell.shifted}, base {cell.base}")
        _show_world(measured[-1][1])
    for title, rows in results.items():
        if title != "worlds":
            report.show(title, rows)
    all_verdicts = verdicts(measured)
    report.show("failure", [verdict.row for verdict in all_verdicts])
    at_one_band = [verdict.row for verdict in one_band_verdicts(measured)]
    report.show(f"failure of tenths at {one_band.LITTLE} alone", at_one_band)
    sentence = NOTHING if any(verdict.failed is not False for verdict in all_verdicts) else ADDS
    print(sentence)
    verdict_rows = [verdict.row for verdict in all_verdicts]
    return {**results, "verdicts": verdict_rows, "verdicts at one band": at_one_band, "sentence": sentence}


def _show_world(of: Figures) -> None:
    names = (BEST, "motive", methods.CAPTION, RELIABILITY)
    print(" ".join(f"{name}: {of[name]['masked, specific']:+.2f};" for name in names))
    print(" ".join(f"{arm}: {of[ARM + arm][LESS[0]]:+.1%};" for arm in ARMS), flush=True)


def tables(measured: Sequence[tuple[Cell, Figures]]) -> dict[str, Rows]:
    """LDS and first tenths over all worlds, in the training world, of each base there, and in the shifted world; and
    every world's own figures."""
    groups = {"all worlds": list(measured), "training world": [pair for pair in measured if not pair[0].shifted]}
    for base in dict.fromkeys(cell.base for cell, _ in measured):
        groups[f"base that knows {base}"] = [pair for pair in measured if pair[0].base == base and not pair[0].shifted]
    groups["shifted world"] = [pair for pair in measured if pair[0].shifted]
    results: dict[str, Rows] = {}
    for title, members in groups.items():
        if members:
            results[f"lds, {title}"] = _methods(members)
            results[f"first tenth less random, {title}"] = _named(members, ARM, (*LESS, *SHARES))
            results[f"first tenth, {title}"] = _named(members, ARM, LOSSES)
            results[f"bands of times less random, {title}"] = _named(members, BAND, LESS)
            results[f"bands of times, {title}"] = _named(members, BAND, LOSSES)
            results[f"tenths at one band less random, {title}"] = _named(members, ONE_BAND, LESS)
            results[f"tenths at one band, {title}"] = _named(members, ONE_BAND, LOSSES)
            results[f"upper less lower half, {title}"] = _named(members, HALF, LOSSES)
            results[f"shares, {title}"] = _named(members, SHARE, LOSSES)
    results["worlds"] = [
        {"corpus": cell.corpus, "base": cell.base, "shifted": cell.shifted, "name": name, "yardstick": key,
         "value": value}
        for cell, of in measured for name, row in of.items() for key, value in row.items()
    ]  # fmt: skip
    return results


def _methods(measured: Sequence[tuple[Cell, Figures]]) -> Rows:
    """A row a method: the mean of each LDS over the worlds with its interval, and the best rule's target-specific one
    less its own."""
    first = measured[0][1]
    rows: Rows = []
    for name in first:
        if not name.startswith(KINDS):
            row: dict[str, Any] = {"method": name, "worlds": len(measured)}
            for key in first[name]:
                row |= _over_worlds(measured, [of[name][key] for _, of in measured], key)
            rows.append(row | _over_worlds(measured, _less(measured, name), "best less it, masked, specific"))
    return rows


def _named(measured: Sequence[tuple[Cell, Figures]], kind: str, keys: Sequence[str]) -> Rows:
    """A row an arm, an arm's band of times, a score of halves or a share (`kind` is one of KINDS): the mean of each of
    these figures over the worlds with its interval."""
    rows: Rows = []
    for name in measured[0][1]:
        if name.startswith(kind):
            row: dict[str, Any] = {kind.strip(): name.removeprefix(kind), "worlds": len(measured)}
            for key in keys:
                row |= _over_worlds(measured, [of[name][key] for _, of in measured], key)
            rows.append(row)
    return rows


def _less(measured: Sequence[tuple[Cell, Figures]], name: str) -> list[float]:
    """How much larger the best rule's target-specific LDS is than another's, in every world."""
    return [of[BEST]["masked, specific"] - of[name]["masked, specific"] for _, of in measured]


def _over_worlds(measured: Sequence[tuple[Cell, Figures]], values: Sequence[float], name: str) -> dict[str, float]:
    """The mean with Student's interval over corpora; of a single corpus the mean alone."""
    corpora = [cell.corpus for cell, _ in measured]
    if len(set(corpora)) < 2:
        return {name: float(np.mean(values))}
    return student(values, corpora, CONFIDENCE).columns(name)


def verdicts(measured: Sequence[tuple[Cell, Figures]]) -> list[Verdict]:
    """Which criteria of failure came true; not measured where there is one corpus, or no shifted one."""
    arms = {row["arm"]: row for row in _named(measured, ARM, LESS)}
    tenth, caption, flow = arms[BEST], arms["caption"], arms["nearest_flow"]
    half = next(row for row in _named(measured, HALF, LOSSES) if row["half"] == BEST)
    target, plain, others, _ = LESS
    shifted = [of[ARM + BEST][target] for cell, of in measured if cell.shifted]
    over = {name: _over_worlds(measured, _less(measured, name), "less") for name in RIVALS}
    several = len({cell.corpus for cell, _ in measured}) > 1
    weak = [f"{name} {row['less']:+.2f}" for name, row in over.items() if not row.get("less_low", -1.0) > 0]

    return [
        Verdict("controls", bool(weak) if several else None, "not above " + ", ".join(weak) if weak else "above all"),
        Verdict("random", not tenth[f"{target}_high"] < 0 if several else None, _said(tenth, target)),
        Verdict("specific", tenth[others] <= tenth[target] or tenth[plain] > PLAIN_AT_MOST,
                f"target {tenth[target]:+.2%}, others {tenth[others]:+.2%}, target's plain loss {tenth[plain]:+.2%}"),
        Verdict("search", not tenth[target] < min(caption[target], flow[target]),
                f"{tenth[target]:+.2%} against {caption[target]:+.2%} by captions and {flow[target]:+.2%} by flow"),
        Verdict("within", not half["masked_target_high"] < 0 if several else None, _said(half, "masked_target")),
        Verdict("shifted", not np.mean(shifted) < 0 if shifted else None,
                ", ".join(f"{value:+.2%}" for value in shifted)),
    ]  # fmt: skip


def one_band_verdicts(measured: Sequence[tuple[Cell, Figures]]) -> list[Verdict]:
    """Which criteria of `one_band.CRITERIA` came true, for each kind of clips elsewhere; not measured likewise."""
    several = len({cell.corpus for cell, _ in measured}) > 1
    target, plain, others, _ = LESS
    rows: list[Verdict] = []
    for elsewhere in one_band.ELSEWHERE:
        names = {
            arm: ONE_BAND + _at(one_band.LITTLE, elsewhere, arm) for arm in one_band.FORMS[one_band.LITTLE, elsewhere]
        }
        best = {key: _over_worlds(measured, [of[names[BEST]][key] for _, of in measured], key) for key in LESS}
        rivals = {arm: [of[names[BEST]][target] - of[names[arm]][target] for _, of in measured] for arm in names}
        less = {
            arm: _over_worlds(measured, of, arm) for arm, of in rivals.items() if arm not in (BEST, one_band.RANDOM)
        }
        shifted = [of[names[BEST]][target] for cell, of in measured if cell.shifted]
        mean = {key: row[key] for key, row in best.items()}
        failed = {
            "random": not best[target][f"{target}_high"] < 0 if several else None,
            "specific": mean[others] <= mean[target] or mean[plain] > PLAIN_AT_MOST,
            "search": any(not less[arm][arm] < 0 for arm in ("caption", "nearest_flow")),
            "shifted": bool(np.mean(shifted) > 0) if shifted else None,
        }
        says = {
            "random": _said(best[target], target),
            "specific": f"target {_said(best[target], target)}, others {_said(best[others], others)}, "
            f"target's plain loss {_said(best[plain], plain)}",
            "search": "less " + ", ".join(f"{arm} {_said(row, arm)}" for arm, row in less.items()),
            "shifted": ", ".join(f"{value:+.2%}" for value in shifted),
        }
        rows += [Verdict(f"{name}, {elsewhere} elsewhere", failed[name], says[name]) for name in one_band.CRITERIA]
    return rows


def _said(row: Mapping[str, float], key: str) -> str:
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    return f"{row[key]:+.2%}" + (f" [{low:+.2%}, {high:+.2%}]" if low is not None else "")
