"""The paper's comparison for your own data and model: fine-tunes the arms of `evaluate.arms` from one run's features,
evaluates them all alike, and lets a judge decide between each pair of them. A page and tables in ROOT/comparison/."""

from __future__ import annotations

from jobs import command

if __name__ == "__main__":  # above the imports, which take seconds: --help and mistakes are answered at once
    command.main("jobs.compare:compare", __doc__, of_roots=True)

import json
from collections.abc import Mapping
from typing import NamedTuple

import pyarrow as pa

from pipeline import tables
from pipeline.cluster import resources, streaming, training
from pipeline.config import Arm, Run
from pipeline.errors import ConfigError, NothingUsableError
from pipeline.evaluation import comparison, contests
from pipeline.operations import costs, pilot, tracking
from pipeline.pages import comparison as comparison_page
from pipeline.pages.comparison import Compared
from pipeline.ranking import lawfulness
from pipeline.ranking.lawfulness import UnlawfulCounts
from pipeline.stages import attribution, indexing, judging, pilots, run_record, video_sets
from pipeline.stages.evaluation import evaluate
from pipeline.stages.finetuning import finetune_arms, with_arm
from pipeline.stages.report import video_by
from pipeline.storage import stores
from pipeline.storage.stores import join
from pipeline.training import arms
from pipeline.video.decoders import decoder_for

STAGES = ("finetune", "evaluate")
HELD_OUT = ("index_clips", "estimate_motion")


def compare(run: Run) -> None:
    named = checked(run)
    trainings = {arm: _training(run, arm) for arm in named}
    stages = [*(HELD_OUT if run.evaluate.videos else ()), *STAGES]
    streaming.connect()
    run = pilots.with_pools(run, stages)
    run_record.record(run)
    resources.check(run, stages)
    if run.evaluate.videos:
        indexing.index(run, "held_out")
        video_sets.check_disjoint(run)
    counts = _lawfulness(run, trainings)
    _tell_cost(run, trainings, counts)
    finetune_arms(run, named)
    evaluate(run)
    results = tables.read(join(run.root, "evaluation"))
    results = None if results is None else contests.shared(results, named)
    if results is None or not results.num_rows:
        raise NothingUsableError(
            "evaluate: there is nothing to compare the arms by: no held-out clip moves, and no query has a caption to "
            "generate a video from. Give evaluate.videos that move, or queries with captions."
        )
    _write(run, _compared(run, results, counts))


def checked(run: Run) -> list[Arm]:
    """The arms that are compared. Raises UsageError for what can be known to be wrong before anything starts."""
    e, named = run.evaluate, list(dict.fromkeys(run.evaluate.arms))
    if len(named) < 2:
        raise ConfigError(
            f"evaluate.arms={list(e.arms)}: a comparison takes at least two different arms, for example "
            "--set 'evaluate.arms=[base, random, motive_whitened]'."
        )
    if e.videos is None and not e.generate:
        raise ConfigError(
            "evaluate.videos is null and evaluate.generate=0: there is nothing to compare the arms by. Give held-out "
            "videos (evaluate.videos), or let every arm generate some (evaluate.generate=10)."
        )
    arms.check(run, named)
    attribution.check(run, "index_clips", ("held_out",) if e.videos else ())
    attribution.check(run, "finetune")
    tracking.check(run)
    judging.check_files(run)
    return named


class Training(NamedTuple):
    """The training that an arm needs: its version, and the ids of its clips."""

    version: str
    clip_ids: pa.Array


def _training(run: Run, arm: Arm) -> Training:
    """Raises UsageError where the run lacks what the arm's rule asks for, before anything is written."""
    one = with_arm(run, arm)
    rows = arms.training_set(one)
    if rows is None:
        return Training("base", pa.array([], pa.string()))
    return Training(training.version(one, rows), rows.column("clip_id").combine_chunks())


def _lawfulness(run: Run, trainings: Mapping[Arm, Training]) -> dict[str, UnlawfulCounts]:
    """How many of each arm's clips have a flaw or break a law; nothing where lawfulness/ has no rows."""
    columns = ["clip_id", "quantile", "law", "named_by", "flaw"]
    rows = tables.read(join(run.root, "lawfulness"), columns)
    if rows is None or not rows.num_rows:
        return {}
    return {
        arm: lawfulness.count_unlawful(rows, of.clip_ids, run.ranking.unlawful)
        for arm, of in trainings.items()
        if len(of.clip_ids)
    }


# --- the cost --------------------------------------------------------------------------------------------------------


def _tell_cost(run: Run, trainings: Mapping[Arm, Training], counts: Mapping[str, UnlawfulCounts]) -> None:
    """Say what is still to do, and what that takes by a few steps that are measured first."""
    for arm, (_, clip_ids) in trainings.items():
        clips = f"{len(clip_ids):,} clips" if len(clip_ids) else "the base model as it is"
        print(f"arm {arm}: {clips}{comparison_page.lawfulness_words(counts.get(arm))}")
    version_by_arm = {arm: version for arm, (version, _) in trainings.items()}
    missing = [a for a in version_by_arm if a != "base" and training.finished(run, a) != version_by_arm[a]]
    losses, videos = _missing(run, version_by_arm)
    if not missing and not losses and not videos:
        print("every arm is trained and evaluated already")
        return
    seconds = costs.seconds_by_part(_pilot(run), pilot.AS_IT_IS)
    passes = losses * run.evaluate.passes
    arm_costs = costs.arms_of(run, len(missing), passes, videos, {part: sum(s) / len(s) for part, s in seconds.items()})
    print(f"\nstill to do, at most: {', '.join(missing) or 'no arm'} to train, {losses} losses, {videos} videos")
    pilots.print_table([*costs.table(arm_costs, run.prices), costs.total(arm_costs, run.prices)])
    print("", flush=True)


def _missing(run: Run, version_by_arm: dict[Arm, str]) -> tuple[int, int]:
    """How many losses of held-out clips and their twins, and how many videos evaluation/ lacks, at most."""
    e, folder = run.evaluate, join(run.root, "evaluation")
    done = tables.read(folder, ["arm", "clip_id", "seed", "version", "metric"])
    rows = [r for r in ([] if done is None else done.to_pylist()) if version_by_arm.get(r["arm"]) == r["version"]]
    asked = (
        "masked_loss",
        *(comparison.MARGINS[twin] for twin in e.twins),
    )  # one of each pass: of the clip, and of each twin
    losses = {(r["arm"], r["clip_id"], r["metric"]) for r in rows if r["metric"] in asked}
    videos = {(r["arm"], r["clip_id"], r["seed"]) for r in rows if not comparison.is_held_out(r["metric"])}
    held_out = tables.read(join(run.root, "held_out"), ["error"]) if e.videos else None
    clips = 0 if held_out is None else held_out.column("error").null_count
    captions = _captions(run)
    return (
        max(0, len(version_by_arm) * clips * len(asked) - len(losses)),
        max(0, len(version_by_arm) * min(e.generate, captions) * len(e.seeds) - len(videos)),
    )


def _captions(run: Run) -> int:
    queries = tables.read(join(run.root, "queries"), ["caption", "error"])
    rows = [] if queries is None else queries.to_pylist()
    return len({row["caption"] for row in rows if row["caption"] and row["error"] is None})


def _pilot(run: Run) -> pa.Table:
    """Seconds of a few steps, measured once for each configuration of them."""
    folder = join(run.root, "comparison", "pilot")
    settings = {
        "model": run.model.model_dump(mode="json"),
        "data": run.data.model_dump(mode="json", include={"frames", "fps", "height", "width"}),
        "finetune": run.finetune.model_dump(mode="json", include={"batch", "accumulate", "lora_rank"}),
        "guidance": run.evaluate.guidance,
        "pool": run.resources.finetune.model_dump(mode="json"),
    }
    place = join(folder, "measured.json")
    if not stores.exists(place) or json.loads(stores.read_bytes(place)) != settings:
        stores.remove(folder)
        pilots.training_pilot(run, folder, arms.decodable(run))
        stores.write_bytes(place, json.dumps(settings).encode())
    rows = tables.read(join(folder, "pilot"))
    assert rows is not None, "it has just been written"
    return rows


# --- the result ------------------------------------------------------------------------------------------------------


def _compared(run: Run, evaluation: pa.Table, counts: Mapping[str, UnlawfulCounts]) -> Compared:
    """Everything that the page and the tables say."""
    rows = evaluation.to_pylist()
    order = comparison.ordered(run.evaluate.arms)
    measured = judging.distances(run, evaluation)
    distances = {arm: measured[arm] for arm in order}
    judged = contests.verdicts("held_out_loss", contests.losses(evaluation, order), contests.LOSS_MARGIN)
    judged += contests.verdicts("generated_video", distances, contests.VIDEO_MARGIN)
    return Compared(
        arms=tuple(order),
        metrics=comparison.comparison(evaluation),
        verdicts=judged,
        tallies=contests.tallies(judged),
        distances=distances,
        videos={(r["arm"], r["clip_id"], r["seed"]): r["uri"] for r in rows if not comparison.is_held_out(r["metric"])},
        lawfulness=counts,
    )


def _write(run: Run, outcome: Compared) -> None:
    comparison_page.write_tables(run, outcome)
    with decoder_for(run) as decoder:
        page = comparison_page.write(run, outcome, video_by(run, decoder))
    print(comparison_page.text(outcome))
    print(f"\npage: {page}")
