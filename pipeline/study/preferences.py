"""What people's answers say: wins, ties and losses of one arm against another, who passed the catch trials, and how far
people agree and take sides."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any, Literal

import pyarrow as pa

from pipeline.statistics import agreement, intervals
from pipeline.statistics.intervals import Interval
from pipeline.study.answers import Answer
from pipeline.study.pairs import Key, Pair
from pipeline.tables import schemas

Outcome = Literal["win", "tie", "loss"]
OUTCOMES: tuple[Outcome, ...] = ("win", "tie", "loss")
Row = dict[str, Any]


@dataclass(frozen=True)
class Judgement:
    """What one person said of `arm` against `other`, on videos of one caption and seed."""

    person: str
    arm: str
    other: str
    clip_id: str
    seed: int
    pair: str
    outcome: Outcome
    left: str  # the arm that was on the left
    seconds: float


JUDGEMENTS = schemas.JUDGEMENTS


def judgements(answers: Iterable[Answer], key: Key) -> list[Judgement]:
    """The answers to pairs of two arms; those to catch trials are left out."""
    pairs = {pair.pair: pair for pair in key.pairs}
    records = []
    for answer in answers:
        pair = pairs[answer.pair]
        if pair.kind != "arms":
            continue
        ours, theirs = pair.sides
        outcome: Outcome = "tie" if answer.chosen is None else "win" if answer.chosen == ours.video else "loss"
        left = ours.arm if answer.left == ours.video else theirs.arm
        about = (pair.clip_id, pair.seed, pair.pair)
        records.append(Judgement(answer.person, ours.arm, theirs.arm, *about, outcome, left, answer.seconds))
    return records


def right(answer: Answer, pair: Pair) -> bool:
    """Whether the answer to a catch trial is the right one."""
    return answer.chosen == (None if pair.kind == "identical" else pair.sides[0].video)


def people(answers: Sequence[Answer], key: Key, passing: float) -> list[Row]:
    """One row a person, by name: answers, catch trials answered and passed, their share with Wilson's interval, and
    whether the person counts: at least `passing` of them right, or none answered yet."""
    pairs = {pair.pair: pair for pair in key.pairs}
    answers_by_person: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        answers_by_person[answer.person].append(answer)
    rows = []
    for person in sorted(answers_by_person):
        caught = [right(a, pairs[a.pair]) for a in answers_by_person[person] if pairs[a.pair].kind != "arms"]
        share = intervals.wilson(sum(caught), len(caught)) if caught else None
        sided = [a.choice == "left" for a in answers_by_person[person] if a.chosen is not None]
        row = {
            "person": person,
            "answers": len(answers_by_person[person]),
            "of": len(key.pairs),
            "catch": len(caught),
            "passed": sum(caught),
            **_named("share", share),
            "counts": share is None or share.mean >= passing,
            "left": sum(sided) / len(sided) if sided else None,
            "seconds": median(a.seconds for a in answers_by_person[person]),
        }
        rows.append(row)
    return rows


def scores(judged: Sequence[Judgement], arms: Sequence[str], seed: int) -> list[Row]:
    """One row for each two arms, in the order of `arms`: shares of wins, ties and losses and wins less losses, each
    with a 95 % interval (`interval`), and how far people agree."""
    rows = []
    matches = {(j.arm, j.other) for j in judged}
    for arm, other in sorted(matches, key=lambda match: [arms.index(a) for a in match]):
        of = [j for j in judged if (j.arm, j.other) == (arm, other)]
        persons, clips = [j.person for j in of], [j.clip_id for j in of]
        row: Row = {"arm_a": arm, "arm_b": other, "judgements": len(of)}
        row |= {"people": len(set(persons)), "videos": len({j.pair for j in of})}
        values: dict[str, list[float]] = {o: [float(j.outcome == o) for j in of] for o in OUTCOMES}
        values["net"] = [w - loss for w, loss in zip(values["win"], values["loss"], strict=True)]
        for name, x in values.items():
            row |= {**_named(name, interval(x, persons, clips, seed, -1 if name == "net" else 0)), name: fmean(x)}
        rows.append(row | _agreed(of, seed))
    return rows


def interval(
    values: Sequence[float], persons: Sequence[str], clips: Sequence[str], seed: int, least: int
) -> Interval | None:
    """95 % interval of the mean of values between `least` and 1; None for one person or one caption alone.

    It is bootstrapped over people and captions at once, since the judgements of a person, and those of a caption's
    videos, are not independent. Where either are few it is no narrower than Student's of their means. Where all values
    are equal, of which resampling would make an interval of no width, other ones are as rare as Wilson's interval lets
    them be after as many trials as there are people, or captions if these are fewer.
    """
    trials = min(len(set(persons)), len(set(clips)))
    if trials < 2:
        return None
    if len(set(values)) == 1:
        share, value = intervals.wilson(trials, trials).low, values[0]
        return Interval(value, *(share * value + (1 - share) * end for end in (least, 1)))
    estimates = [intervals.bootstrap_mean(values, persons, clips, seed=seed)]
    for labels in (persons, clips):
        if len(set(labels)) < intervals.FEW:
            estimates.append(intervals.student(values, labels))
    low, high = min(one.low for one in estimates), max(one.high for one in estimates)
    return Interval(estimates[0].mean, max(least, low), min(1, high))


def _agreed(judged: Sequence[Judgement], seed: int) -> Row:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for j in judged:
        counts[j.pair][j.outcome] += 1
    estimate = agreement.nominal([[counts[pair][o] for o in OUTCOMES] for pair in sorted(counts)], seed)
    agreed, alpha, low, high = estimate if estimate else (None, None, None, None)
    return {"agreed": agreed, "alpha": alpha, "alpha_low": low, "alpha_high": high}


def _named(name: str, estimate: Interval | None) -> Row:
    return dict.fromkeys((name, f"{name}_low", f"{name}_high")) if estimate is None else dict(estimate.columns(name))


def left_share(judged: Sequence[Judgement], seed: int) -> Row:
    """How often the left video was chosen where one was, over people and captions; half of them where nobody leans."""
    sided = [j for j in judged if j.outcome != "tie"]
    x = [float((j.left == j.arm) == (j.outcome == "win")) for j in sided]
    estimate = interval(x, [j.person for j in sided], [j.clip_id for j in sided], seed, 0)
    return {**_named("left", estimate), "left": fmean(x) if x else None}


def table(judged: Sequence[Judgement], counted: Mapping[str, bool]) -> pa.Table:
    """The judgements one by one: rows of study/judgements/."""
    rows = []
    for j in judged:
        row = asdict(j)
        row |= {"arm_a": row.pop("arm"), "arm_b": row.pop("other"), "counts": counted[j.person]}
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=JUDGEMENTS)
