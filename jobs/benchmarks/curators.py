"""Is it worth a person's time to overrule the ranking? Simulated curators, who know the world's truth and err in one of
ten clips, review some clips of a ranking; the model is fine-tuned on what follows.

For each motion the selection is the best rule's first tenth. A curator keeps a clip that shows the motion as it really
is and drops every other, in one of three queues of the workbench: near the cut, at random, disputed between motions.
`curated` has as many clips as the selection (`ranking/decisions.py`). Every set is fine-tuned under several seeds and
held against the selection, by the change of the held-out masked loss on the motion. Intervals are Student's of 95 %
over motions. The last line is JSON; what is in `--folder` is not computed again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.benchmarks import ceilings
from jobs.benchmarks.quality import counterfactual, tasks
from jobs.benchmarks.quality.influences import Floats
from jobs.benchmarks.quality.problem import Clips, World
from jobs.benchmarks.quality.retraining import Recipe, Retraining, on
from jobs.benchmarks.quality.studies import MOTIONS, Plan, Studies
from pipeline.models.loss import named_generator
from pipeline.ranking import share
from pipeline.ranking.decisions import DROP, KEEP, VERDICTS, curated_order
from pipeline.stages.progress import duration
from pipeline.statistics.intervals import Interval, student

TENTH = 0.1
ERRORS = 0.1  # of what a curator says
QUEUES = ("near the cut", "at random", "disputed")
ARMS = ("selected", *QUEUES, "oracle")
PLACES = ((501.0, 0), (751.0, 0))
LONG = Plan(World(300, 5, 10), Recipe(steps=60), subsets=0, halves=0, seeds=2, others=False, places=PLACES,
            targets=("bounce", "explode", "free_fall", "roll", "spin"))  # fmt: skip
QUICK = Plan(World(120, 2, 3), Recipe(steps=20, noises=3), subsets=0, halves=0, seeds=1, others=False, places=PLACES,
             targets=("explode", "spin"))  # fmt: skip

Order = npt.NDArray[np.int64]  # rows of the corpus, from first to last choice
Key = tuple[str, str, int]  # arm, motion, seed


def ranked(scores: Floats, clips: Clips) -> Order:
    """The clips that move, by their scores [N] for a motion."""
    rows = np.flatnonzero(clips.moving & np.isfinite(scores))
    return np.asarray(rows[np.argsort(-scores[rows], kind="stable")])


def queue(name: str, scores: Floats, column: int, clips: Clips, reviews: int) -> Order:
    """The rows that a curator sees of a motion, `column` of the scores [N, T]."""
    order = ranked(scores[:, column], clips)
    cut = share(TENTH, len(order))
    if name == "near the cut":
        return order[max(0, cut - reviews // 2) :][:reviews]
    if name == "at random":
        return named_generator(f"review {MOTIONS[column]}").permutation(order)[:reviews]
    places = np.full(scores.shape, np.inf)
    for motion in range(scores.shape[1]):
        of_motion = ranked(scores[:, motion], clips)
        places[of_motion, motion] = np.arange(len(of_motion))
    others = np.delete(places, column, 1).min(1)
    disputed = np.maximum(places[:, column], others)  # high for this motion, and as high for another one
    return order[np.argsort(disputed[order], kind="stable")][:reviews]


def said(rows: Order, motion: str, clips: Clips) -> dict[int, bool]:
    """What a curator says of clips: whether each is kept. One of ten is the contrary of the truth."""
    words = {}
    for row in rows.tolist():
        wrong = named_generator(f"curator {motion} {clips.clip_ids[row]}").random() < ERRORS
        words[row] = bool(clips.motions[row] == motion and clips.kinds[row] == "real") != wrong
    return words


def curated(order: Order, words: Mapping[int, bool], clips: Clips) -> Order:
    """The ranking after a curator's word, by the product's own rule."""
    row_of = {clip_id: row for row, clip_id in enumerate(clips.clip_ids)}
    verdict = pa.Table.from_pylist(
        [{"clip_id": clips.clip_ids[row], "verdict": KEEP if keep else DROP} for row, keep in words.items()],
        schema=VERDICTS,
    )
    ids = pa.array([clips.clip_ids[row] for row in order.tolist()], pa.string())
    changed = curated_order(ids, pa.array([], pa.string()), verdict)
    return np.array([row_of[clip_id] for clip_id in changed.to_pylist()], np.int64)


def fine_tunings(study: Studies, reviews: int) -> dict[Key, Retraining]:
    clips, plan = study.clips, study.plan
    scores = study.motion_scores(study.scored["best"])
    trainings: dict[Key, Retraining] = {}
    for motion in plan.targets:
        column = MOTIONS.index(motion)
        order = ranked(scores[:, column], clips)
        count = share(TENTH, len(order))
        sets = {"selected": order[:count]}
        for name in QUEUES:
            words = said(queue(name, scores, column, clips, reviews), motion, clips)
            sets[name] = curated(order, words, clips)[:count]
        real = np.flatnonzero((clips.motions == motion) & (clips.kinds == "real") & clips.moving)
        sets["oracle"] = named_generator(f"oracle {motion}").permutation(real)[:count]
        for arm, rows in sets.items():
            trainings |= {(arm, motion, seed): on(rows, seed) for seed in range(plan.seeds)}
    return trainings


def table(
    study: Studies, trainings: Mapping[Key, Retraining], changes: Mapping[Key, dict[str, float]]
) -> list[dict[str, Any]]:
    """A row an arm: the share of its clips that show the motion, and the changes of the losses, each alone and less the
    selection's, as means over seeds with intervals over motions."""
    clips, motions = study.clips, study.plan.targets
    rows = []
    for arm in ARMS:
        shares = [_shows(clips, trainings[arm, motion, 0], motion) for motion in motions]
        row: dict[str, Any] = {"fine-tuned on": arm, "shows the motion": f"{np.mean(shares):.0%}"}
        for name in ("masked_target", "masked_others", "plain_target"):
            row[name.replace("_", ", ")] = _cell(_by_motion(changes, arm, name, motions))
        less = _by_motion(changes, arm, "masked_target", motions) - _by_motion(
            changes, "selected", "masked_target", motions
        )
        row["masked, target, less the selection's"] = _cell(less) if arm != "selected" else ""
        rows.append(row)
    return rows


def _by_motion(changes: Mapping[Key, dict[str, float]], arm: str, name: str, motions: Sequence[str]) -> Floats:
    """The mean over seeds for each motion."""
    values = [[of[name] for (a, m, _), of in changes.items() if (a, m) == (arm, motion)] for motion in motions]
    return np.array([np.mean(of_motion) for of_motion in values])


def _shows(clips: Clips, task: Retraining, motion: str) -> float:
    rows = [row for row, _ in task.weights]
    return float(np.mean((clips.motions[rows] == motion) & (clips.kinds[rows] == "real")))


def _cell(values: Floats) -> str:
    interval: Interval = student(values)
    return f"{interval.mean:+.1%} [{interval.low:+.1%}, {interval.high:+.1%}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few clips, motions and seeds")
    parser.add_argument("--folder", default="runs/curators", help="where everything is kept")
    given = parser.parse_args()
    plan, reviews = (QUICK, 12) if given.quick else (LONG, 50)
    hardware, start = ceilings.machine(), time.monotonic()
    ceilings.print_machine(hardware)
    study = Studies(plan, given.folder)
    trainings = fine_tunings(study, reviews)
    losses = tasks.measured(given.folder, plan.world, plan.recipe, "curators", list(trainings.values()))
    changes = {
        key: counterfactual.changes(after, study.base, study.held_out, key[1])
        for key, after in zip(trainings, losses, strict=True)
    }
    rows = table(study, trainings, changes)
    ceilings.print_table(list(rows[0]), [[str(cell) for cell in row.values()] for row in rows])
    seconds = time.monotonic() - start
    print(f"{reviews} clips a motion reviewed; {duration(seconds)} in this call")
    ceilings.print_json(
        {"benchmark": "curators", "machine": hardware, "seconds": round(seconds, 1), "reviews": reviews, "table": rows}
    )


if __name__ == "__main__":
    main()
