"""The scores of a blind study as tables, JSON, a page, and the lines that its job prints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from pipeline import tables
from pipeline.config import Run
from pipeline.pages.report import environment
from pipeline.storage import stores
from pipeline.study import handout, preferences
from pipeline.study.answers import Answer
from pipeline.study.pairs import Key
from pipeline.study.preferences import OUTCOMES, Row
from pipeline.tables import schemas

SCORES = schemas.SCORES


def score(run: Run, key: Key, answers: Sequence[Answer]) -> dict[str, Any]:
    """The numbers of a study: `scores` of everyone and of those who passed, `people`, `left`."""
    seed = key.asked["seed"]
    people = preferences.people(answers, key, run.study.passing)
    counted = {row["person"]: row["counts"] for row in people}
    judged = preferences.judgements(answers, key)
    of_counted = [j for j in judged if counted[j.person]]
    return {
        "study": key.study,
        "question": key.asked["question"],
        "arms": list(key.arms),
        "versions": key.versions,
        "passing": run.study.passing,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "scores": {
            "passed": preferences.scores(of_counted, key.arms, seed),
            "everyone": preferences.scores(judged, key.arms, seed),
        },
        "left": preferences.left_share(of_counted, seed),
        "people": people,
    }


def write(run: Run, key: Key, answers: Sequence[Answer]) -> dict[str, Any]:
    """Write ``study/judgements/``, ``study/scores/``, ``study/results.json`` and ``study/results.html``; returns what
    the JSON holds."""
    numbers = score(run, key, answers)
    counted = {row["person"]: row["counts"] for row in numbers["people"]}
    judged = preferences.table(preferences.judgements(answers, key), counted)
    rows = [{"who": who, **row} for who, scores in numbers["scores"].items() for row in scores]
    print_of = {"study": key.study}
    tables.replace(handout.place(run.root, "judgements"), judged, print_of)
    tables.replace(handout.place(run.root, "scores"), pa.Table.from_pylist(rows, schema=SCORES), print_of)
    text = json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False)
    stores.write_bytes(handout.place(run.root, "results.json"), text.encode())
    page = environment().get_template("study_results.html").render(found=numbers, run=run, interval_of=interval)
    stores.write_bytes(handout.place(run.root, "results.html"), page.encode())
    return numbers


def interval(row: Mapping[str, Any], name: str) -> str:
    """A share's interval in per cent, empty where there is none."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return "" if low is None else f"{100 * low:.1f} to {100 * high:.1f}"


def lines(results: Mapping[str, Any]) -> list[str]:
    """The table as the paper prints it, win / tie / loss in per cent, with 95 % intervals."""
    people: list[Row] = results["people"]
    failed = [row["person"] for row in people if not row["counts"]]
    shown = {"everyone": f"{len(people)} people{'' if failed else ', none failed the catch trials'}"}
    if failed:
        shown = {"passed": f"{len(people) - len(failed)} people who passed the catch trials", **shown}
    wide = max(len(words) for words in [*shown.values(), *map(_versus, results["scores"]["everyone"])])
    output = [results["question"]]
    for who, title in shown.items():
        rows = results["scores"][who]
        output.append(f"{title:<{wide}}" + "".join(f"{f'{name} %':>20}" for name in OUTCOMES) + "  judgements  alpha")
        output += [f"{_versus(row):<{wide}}{_shares(row)}{row['judgements']:>12}{_alpha(row):>7}" for row in rows]
        output += [] if rows else ["no pair of two arms was judged"]
    if failed:
        output.append(f"failed the catch trials (below {results['passing']:.0%} right): {', '.join(failed)}")
    if results["left"]["left"] is not None:
        output.append(f"the left video was chosen in {results['left']['left']:.1%} of the choices")
    return output


def _versus(row: Row) -> str:
    return f"{row['arm_a']} vs {row['arm_b']}"


def _shares(row: Row) -> str:
    return "".join(f"{f'{100 * row[name]:.1f} {_brackets(row, name)}':>20}" for name in OUTCOMES)


def _brackets(row: Row, name: str) -> str:
    return f"({interval(row, name).replace(' to ', '-') or '-'})"


def _alpha(row: Row) -> str:
    return "-" if row["alpha"] is None else f"{row['alpha']:.2f}"
