"""How often the automatic judge of `jobs.compare` agrees with the truth, on pairs of videos of the synthetic world.

One video of a pair moves by the law of its motion, the other is spoiled by a known degree (`synthetic/spoiled.py`);
both look alike. The judge knows five queries of each motion, as the demo's, and sees the videos' optical flow by RAFT
alone.
Beside it stand two judges that are often taken, the video that moves more and the smoother one, and the judge itself
on a harder task: the right video is of another scene, with its own place, size, direction and speed. Agreement is the
share of right verdicts among those that are no tie, with Wilson's 95 % interval, in which all pairs of one spoiled
scene count as a single trial. The last line is JSON.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from jobs.benchmarks.ceilings import machine, print_json, print_machine, print_table
from pipeline import config, motion
from pipeline.config import Run
from pipeline.evaluation.contests import VIDEO_MARGIN, VIDEO_RULE, verdict
from pipeline.evaluation.metrics import temporal_flickering
from pipeline.motion import judge
from pipeline.motion.judge import Floats, Judge
from pipeline.statistics.intervals import Interval, wilson
from pipeline.synthetic import spoiled, world
from pipeline.synthetic.world import Scene

Frames = npt.NDArray[np.uint8]
Describe = Callable[[Frames], Floats]
Seen = tuple[Frames, Floats]  # a video and its description

SEED, QUERIES = 2_000_000, 5  # not the seeds that the judge was made with
JUDGES = ("nearest_query", "other_scene", "more_motion", "smoother")
KINDS = spoiled.ways("roll")  # a motion that can be spoiled in every way


def describer(run: Run) -> Describe:
    """Frames -> their description, by the run's RAFT on the CPU."""
    device = torch.device("cpu")
    raft = motion.load_raft(run.motion, device)

    def describe(frames: Frames) -> Floats:
        return judge.description(motion.estimate(frames, raft, run.motion, device).numpy())

    return describe


def rendered(scene: Scene, run: Run) -> Frames:
    return world.render(scene, run.data.height, run.data.width)


def taught(run: Run, describe: Describe, each: int = QUERIES) -> Judge:
    scenes = world.queries(SEED, each, run.data.frames)
    return judge.taught([(scene.motion, describe(rendered(scene, run))) for scene in scenes])


def verdicts(run: Run, describe: Describe, judge: Judge, each: int) -> list[dict[str, Any]]:
    """For every pair: scene, motion, how, degree, and each judge's verdict, 1 where it prefers the right video."""
    rows = []
    for motion_name in world.MOTIONS:
        kinds, scenes = spoiled.ways(motion_name), [f"{motion_name}-{i:02d}" for i in range(each)]

        def pair(scene: str, how: str, degree: float, name: str = motion_name) -> tuple[Scene, Scene]:
            return spoiled.pair(SEED + 1, scene, name, how, degree, run.data.frames)

        rights = [_seen(pair(scene, *kinds[0])[0], run, describe) for scene in scenes]  # the same in every pair
        for i, scene in enumerate(scenes):
            for how, degree in kinds:
                wrong = _seen(pair(scene, how, degree)[1], run, describe)
                judged = _judged(judge, motion_name, rights[i], rights[(i + 1) % each], wrong)
                rows.append({"scene": scene, "motion": motion_name, "how": how, "degree": degree, **judged})
    return rows


def _seen(scene: Scene, run: Run, describe: Describe) -> Seen:
    frames = rendered(scene, run)
    return frames, describe(frames)


def _judged(of_queries: Judge, name: str, right: Seen, other: Seen, wrong: Seen) -> dict[str, int]:
    ours, others, theirs = (of_queries.distance(name, numbers) for _, numbers in (right, other, wrong))
    more = [float(np.exp(numbers[: judge.STRETCHES]).mean()) for _, numbers in (right, wrong)]
    rough = [1 - temporal_flickering(frames) for frames, _ in (right, wrong)]
    return {
        "nearest_query": verdict(ours, theirs, VIDEO_MARGIN),
        "other_scene": verdict(others, theirs, VIDEO_MARGIN),
        "more_motion": verdict(more[1], more[0], VIDEO_MARGIN),
        "smoother": verdict(rough[0], rough[1], VIDEO_MARGIN),
    }


def agreement(rows: list[dict[str, Any]], name: str = "nearest_query") -> dict[str, Any]:
    """How many pairs a judge decides rightly, wrongly or not, and the share of the right ones among the decided."""
    counts = Counter(row[name] for row in rows)
    right, ties, wrong = counts[1], counts[0], counts[-1]
    if not right + wrong:
        return {"right": right, "ties": ties, "wrong": wrong, "share": None, "low": None, "high": None}
    scenes = len({row["scene"] for row in rows if row[name]})  # what is independent
    return {"right": right, "ties": ties, "wrong": wrong, **_named(wilson(right / (right + wrong) * scenes, scenes))}


def _named(share: Interval) -> dict[str, float]:
    return {"share": share.mean, "low": share.low, "high": share.high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two pairs of each motion and way")
    each = 2 if parser.parse_args().quick else 10
    torch.set_num_threads(1)
    hardware, run, start = machine(), config.load("demo"), time.monotonic()
    print_machine(hardware)
    describe = describer(run)
    judge = taught(run, describe)
    pairs = verdicts(run, describe, judge, each)
    print(f"\nthe judge: {VIDEO_RULE}\n")
    rows = [_row(how, degree, [p for p in pairs if (p["how"], p["degree"]) == (how, degree)]) for how, degree in KINDS]
    rows += [_row(name, None, [p for p in pairs if p["motion"] == name]) for name in world.MOTIONS]
    rows.append(_row("all", None, pairs))
    print_table(
        ["spoiled by, or motion", "degree", "pairs", "right", "ties", "wrong", *(f"{n}, 95 %" for n in JUDGES)],
        [_line(row) for row in rows],
    )
    seconds = round(time.monotonic() - start, 1)
    print_json({"benchmark": "judge", "machine": hardware, "seconds": seconds, "rule": VIDEO_RULE, "rows": rows})


def _row(what: str, degree: float | None, mine: list[dict[str, Any]]) -> dict[str, Any]:
    return {"what": what, "degree": degree, "pairs": len(mine), **{name: agreement(mine, name) for name in JUDGES}}


def _line(row: dict[str, Any]) -> list[str]:
    counts = [f"{row['pairs']}", *(f"{row[JUDGES[0]][key]}" for key in ("right", "ties", "wrong"))]
    degree = "" if row["degree"] is None else f"{row['degree']:g}"
    return [row["what"], degree, *counts, *(_share(row[name]) for name in JUDGES)]


def _share(counts: dict[str, Any]) -> str:
    """The agreement, its interval, and how many of the pairs were decided."""
    if counts["share"] is None:
        return "-"
    decided = counts["right"] + counts["wrong"]
    return f"{counts['share']:.1%} [{counts['low']:.1%}, {counts['high']:.1%}] of {decided}"


if __name__ == "__main__":
    main()
