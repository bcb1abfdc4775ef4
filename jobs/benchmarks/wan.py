"""Does fine-tuning on what influence selects teach a motion, on your model and your videos? ``python -m
jobs.benchmarks.wan --set data.videos=... --set queries.videos=... --set evaluate.videos=...``

For each motion of the queries every arm is fine-tuned anew and held against the base on held-out clips of that motion
and of the others: masked and plain loss, at times drawn as training draws them. What failure is, is printed before any
result. The job stops where `budget.gpu_hours` is spent (24 unless it is set), and the same command goes on. A line of
JSON comes last, and ROOT/specificity.json has it.
"""

from __future__ import annotations

from jobs import command

if __name__ == "__main__":  # above the imports, which take seconds: --help and mistakes are answered at once
    command.main("jobs.benchmarks.wan:specificity", __doc__, default="wan2.1-t2v-1.3b", lists_videos=True)

import hashlib
import json
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import ValidationError

from jobs.benchmarks import ceilings
from jobs.benchmarks.verdicts import Verdict
from pipeline import tables
from pipeline.attribution import fingerprints
from pipeline.cluster import resources, streaming, training
from pipeline.config import Arm, Run
from pipeline.errors import ConfigError, InputError, NothingUsableError
from pipeline.evaluation.comparison import BASE, LOSSES
from pipeline.operations import tracking
from pipeline.stages import attribution, budget, curation, indexing, run_record, two_stages, video_sets
from pipeline.stages.evaluation import evaluate
from pipeline.stages.finetuning import finetune_arms, with_arm
from pipeline.stages.ranking import rank_clips
from pipeline.statistics import intervals
from pipeline.storage import stores
from pipeline.storage.stores import join
from pipeline.training import arms

GPU_HOURS = 24.0
CONFIDENCE = 0.9
PLAIN_AT_MOST = 0.01
MOTIONS = 4  # fewer show nothing
ARMS: tuple[Arm, ...] = ("random", "caption", "lawful", "own_loss", "magnitude", "motive", "selected")

CRITERIA: Mapping[str, str] = {
    "random": f"the selection does not lower the motion's masked loss below random's at {CONFIDENCE:.0%} over motions",
    "specific": "with the selection the other motions' masked loss falls as much as the motion's, or its plain loss "
    f"rises by more than {PLAIN_AT_MOST:.0%}",
    "search": "the selection lowers the motion's masked loss no more than clips whose caption names it, or where no "
    "caption does, no more than those with the nearest flow",
    "hard": "the selection lowers it no more than the clips on which the base's own loss is highest",
}
ADDS = "Influence adds something on these data: no criterion of failure came true."
NOTHING = "Use captions and flow: on these data influence adds nothing that they do not."
FEW = f"Nothing can be concluded from {{motions}} motions; {MOTIONS} are the fewest."

Changes = dict[str, dict[str, float]]  # by arm: the relative change of each loss, on the motion and on the others


def specificity(run: Run) -> None:
    run = _with_budget(run)
    if run.evaluate.videos is None:
        raise InputError(
            "evaluate.videos is null: without held-out clips of the queries' motions nothing can be measured. Give "
            "some of each motion, in folders named like the groups of the queries."
        )
    attribution.check(run, "index_clips", video_sets.names(run))
    print("Failure, said before any result:")
    for name, text in CRITERIA.items():
        print(f"  {name}: {text}")
    print(f'Then the sentence is: "{NOTHING}"\n', flush=True)
    named = possible(run)
    with budget.one_job(run.budget):
        _measure(run, named)


def _with_budget(run: Run) -> Run:
    """The run with the benchmark's budget where none is set, and without generated videos: it looks at none."""
    spending = run.budget if run.budget.gpu_hours else run.budget.model_copy(update={"gpu_hours": GPU_HOURS})
    return run.model_copy(update={"budget": spending, "evaluate": run.evaluate.model_copy(update={"generate": 0})})


def possible(run: Run) -> list[Arm]:
    """The arms that the configuration can have; what others lack is said."""
    named = []
    for arm in ARMS:
        try:
            Run.model_validate(with_arm(run, arm).model_dump())
            arms.check(run, [arm])
        except (ConfigError, ValidationError) as error:
            why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            print(f"the arm {arm} is left out: {why}")
        else:
            named.append(arm)
    return named


def _measure(run: Run, named: Sequence[Arm]) -> None:
    tracking.check(run)
    run_record.record(run)
    streaming.connect()
    resources.check(run, curation.STAGES)
    curation.attribute_queries(run)
    curation.index_data(run)
    two_stages.clips(run)
    rank_clips(run)
    indexing.index(run, "held_out")
    attribution.estimate_motion(run, "held_out")
    motion_of = held_out_motions(run)
    motions = _targets(run, motion_of)
    measured = {motion: _of_motion(run, motion, motion_of, named) for motion in motions}
    rows = table(measured)
    ceilings.print_table(list(rows[0]), [[str(cell) for cell in row.values()] for row in rows])
    by_criterion = verdicts(measured)
    for verdict in by_criterion:
        print(f"{verdict.row['criterion']}: {verdict.row['verdict']} ({verdict.figures})")
    says = sentence(by_criterion, len(motions))
    print(says)
    of_run = {
        "benchmark": "wan",
        "machine": ceilings.machine(),
        "model": run.model.id,
        "criteria": dict(CRITERIA),
        "changes": measured,
        "verdicts": [verdict.row for verdict in by_criterion],
        "sentence": says,
    }
    stores.write_bytes(join(run.root, "specificity.json"), json.dumps(of_run, indent=1, allow_nan=False).encode())
    ceilings.print_json(of_run)


def held_out_motions(run: Run) -> dict[str, str]:
    """The motion of each held-out clip that moves: its column `ranking.group_column`, or without one its folder."""
    rows, column = tables.read(join(run.root, "motion", "held_out")), run.ranking.group_column
    assert rows is not None, "its motion has just been measured"
    if column is not None and column not in rows.column_names:
        raise InputError(
            f"ranking.group_column={column!r}: the manifest evaluate.videos={run.evaluate.videos!r} gave no such "
            "column. Name the column of motions alike in both manifests, or leave it out: then folders are motions."
        )
    moving = [row for row in rows.to_pylist() if row["error"] is None]
    return {row["clip_id"]: row[column] if column else _folder(row["uri"]) for row in moving}


def _folder(uri: str) -> str:
    return posixpath.basename(posixpath.dirname(uri))


def _targets(run: Run, motion_of: Mapping[str, str]) -> list[str]:
    """The motions of which there are queries and held-out clips. Raises InputError where there are fewer than two."""
    queries = tables.read(join(run.root, "queries"))
    assert queries is not None, "its queries have features"
    asked = {row["group"] for row in queries.to_pylist() if row["error"] is None}
    motions = sorted(asked & set(motion_of.values()))
    if len(motions) < 2:
        raise InputError(
            f"evaluate.videos={run.evaluate.videos!r}: its moving clips show {sorted(set(motion_of.values()))}, and "
            f"the queries ask for {sorted(asked)}. Two motions at least must be in both: name the folders alike, or "
            "name the manifest's column of motions in ranking.group_column."
        )
    return motions


def _of_motion(run: Run, motion: str, motion_of: Mapping[str, str], named: Sequence[Arm]) -> Changes:
    """What each arm's fine-tuning for a motion does to the held-out losses. It is kept in ROOT/specificity/, and read
    from there where it was measured with the same clips, model and configuration."""
    one = run.model_copy(update={"finetune": run.finetune.model_copy(update={"group": motion})})
    versions = _versions(one, named)
    identity = json.dumps([motion, versions, fingerprints.evaluation(one), sorted(motion_of.items())], sort_keys=True)
    place = join(run.root, "specificity", f"{hashlib.blake2b(identity.encode(), digest_size=12).hexdigest()}.json")
    if stores.exists(place):
        earlier: Changes = json.loads(stores.read_bytes(place))["changes"]
        return earlier
    one = one.model_copy(update={"evaluate": one.evaluate.model_copy(update={"arms": (BASE, *versions)})})
    print(f"\n{motion}: {', '.join(versions)}", flush=True)
    finetune_arms(one, versions)
    evaluate(one)
    values = tables.read(join(run.root, "evaluation"))
    assert values is not None, "it has just been written"
    measured = changes(values.to_pylist(), motion_of, motion)
    stores.write_bytes(place, json.dumps({"motion": motion, "changes": measured}, allow_nan=False).encode())
    return measured


def _versions(run: Run, named: Sequence[Arm]) -> dict[Arm, str]:
    """Those arms that have clips for the run's group, each with the name of its training; what others lack is said."""
    versions: dict[Arm, str] = {}
    for arm in named:
        one = with_arm(run, arm)
        try:
            rows = arms.training_set(one)
        except NothingUsableError as error:
            print(f"{run.finetune.group}: the arm {arm} is left out: {error}")
            continue
        assert rows is not None, "only the base has none"
        versions[arm] = training.version(one, rows)
    return versions


def changes(values: Sequence[Mapping[str, Any]], motion_of: Mapping[str, str], motion: str) -> Changes:
    """By arm: masked_target, plain_target, masked_others, plain_others, each the mean loss over the base's, less 1."""
    means: dict[tuple[str, str, bool], float] = {}
    for arm in dict.fromkeys(row["arm"] for row in values):
        for metric in LOSSES:
            for own in (True, False):
                losses = [
                    row["value"]
                    for row in values
                    if (row["arm"], row["metric"]) == (arm, metric) and (motion_of.get(row["clip_id"]) == motion) == own
                ]
                means[arm, metric, own] = float(np.mean(losses)) if losses else float("nan")
    places = [(metric.partition("_")[0], metric, own) for metric in LOSSES for own in (True, False)]
    return {
        arm: {
            f"{word}_{'target' if own else 'others'}": means[arm, metric, own] / means[BASE, metric, own] - 1
            for word, metric, own in places
        }
        for arm in dict.fromkeys(arm for arm, _, _ in means)
        if arm != BASE
    }


def table(measured: Mapping[str, Changes]) -> list[dict[str, str]]:
    """A row an arm that every motion has: means over motions with Student's intervals, and paired with random."""
    rows = []
    for arm in _arms_of_all(measured):
        row = {"arm": arm}
        for name in ("masked_target", "masked_others", "plain_target", "plain_others"):
            row[name.replace("_", ", ")] = _cell([of_motion[arm][name] for of_motion in measured.values()])
        row["masked, target, over random"] = _cell(_over(measured, arm, "random"))
        rows.append(row)
    return rows


def verdicts(measured: Mapping[str, Changes]) -> list[Verdict]:
    """What the changes say of every criterion."""
    shared = _arms_of_all(measured)
    search = "caption" if "caption" in shared else "lawful"
    over_random = intervals.student(_over(measured, "selected", "random"), confidence=CONFIDENCE)
    target, others, plain = (
        float(np.mean([of_motion["selected"][name] for of_motion in measured.values()]))
        for name in ("masked_target", "masked_others", "plain_target")
    )
    by_criterion = [
        Verdict("random", not over_random.high < 0, _interval(over_random)),
        Verdict(
            "specific",
            others <= target or plain > PLAIN_AT_MOST,
            f"motion {target:+.2%}, others {others:+.2%}, plain {plain:+.2%}",
        ),
    ]
    for name, rival in (("search", search), ("hard", "own_loss")):
        if rival not in shared:
            by_criterion.append(Verdict(name, None, f"not every motion has the arm {rival}"))
            continue
        less = float(np.mean(_over(measured, "selected", rival)))
        by_criterion.append(Verdict(name, not less < 0, f"against {rival} {less:+.2%}"))
    return by_criterion


def sentence(by_criterion: Sequence[Verdict], motions: int) -> str:
    if motions < MOTIONS:
        return FEW.format(motions=motions)
    return NOTHING if any(verdict.failed is not False for verdict in by_criterion) else ADDS


def _arms_of_all(measured: Mapping[str, Changes]) -> list[str]:
    return [arm for arm in ARMS if all(arm in of_motion for of_motion in measured.values())]


def _over(measured: Mapping[str, Changes], arm: str, rival: str) -> list[float]:
    """The change of the motion's masked loss by an arm, less that by another one, for each motion."""
    return [of_motion[arm]["masked_target"] - of_motion[rival]["masked_target"] for of_motion in measured.values()]


def _cell(values: Sequence[float]) -> str:
    return _interval(intervals.student(values, confidence=CONFIDENCE))


def _interval(interval: intervals.Interval) -> str:
    return f"{interval.mean:+.2%} [{interval.low:+.2%}, {interval.high:+.2%}]"
