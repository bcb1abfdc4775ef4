"""How well lawfulness tells cartoons from real clips, on corpora of two synthetic worlds, by RAFT's flow of the videos.

A cartoon has the looks of a real clip and breaks one law of its motion. The score of a clip is the distance of its
movement from the nearest of five queries of the motion that its caption names. Beside it stand scores that need no
query: more motion, less motion and more jerk. An AUC is of one motion and corpus, its mean over motions is of a corpus,
and the interval is Student's of 95 % over corpora. The corpora are none that the rule was made with. Then real clips
are spoiled on purpose, written as H.264, and looked at for flaws. All of it is done in the training world and in the
shifted one, which has other outlines, textures and speeds, and mostly a moving camera. The last line is JSON.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import torch

from jobs.benchmarks.ceilings import machine, print_json, print_machine, print_table
from jobs.benchmarks.looks.gradients import Cell
from jobs.benchmarks.quality.retrieval import auc
from pipeline import config, motion
from pipeline.config import Run
from pipeline.motion import flaws, judge, movement
from pipeline.motion.flaws import FLAWS
from pipeline.motion.judge import COURSES, STRETCHES, Floats
from pipeline.ranking import lawfulness
from pipeline.statistics.intervals import student
from pipeline.synthetic import world
from pipeline.synthetic.world import Scene
from pipeline.video.frames import write_mp4
from pipeline.video.looks import twin

CLIPS, QUERIES = 200, 5
CORPORA = {
    "the training world": [Cell(seed, CLIPS, QUERIES) for seed in (70, 80, 90, 100)],
    "the shifted world": [Cell(seed, CLIPS, QUERIES, shifted=True) for seed in (400, 410, 420)],
}
QUICK = {
    "the training world": [Cell(seed, 40, QUERIES) for seed in (50, 60)],
    "the shifted world": [Cell(seed, 40, QUERIES, shifted=True) for seed in (50, 60)],
}
QUANTILE = 0.05
SCORES = ("distance", "more_motion", "less_motion", "more_jerk")

WAYS = ("as it is", "frozen", "stuttering", "shuffled", "spliced")

Frames = npt.NDArray[np.uint8]  # [F, H, W, 3]
Describe = Callable[[Scene], Floats]


def describer(run: Run) -> Describe:
    """A scene -> the description of its movement, as movement/ has it."""
    device = torch.device("cpu")
    raft = motion.load_raft(run.motion, device)

    def describe(scene: Scene) -> Floats:
        frames = world.render(scene, run.data.height, run.data.width)
        flow = motion.estimate(frames, raft, run.motion, device)
        return np.array(movement.movement(frames, flow - motion.camera_motion(flow))["description"])

    return describe


def corpus_scores(cell: Cell, describe: Describe) -> list[dict[str, Any]]:
    """Every clip of a corpus whose caption names a motion: kind, motion, scores, quantile."""
    clips, queries = cell.scenes()
    of_queries = judge.taught([(scene.motion, describe(scene)) for scene in queries])
    among, rows = lawfulness.leave_one_out(of_queries), []
    for scene in clips:
        group = lawfulness.named_group(scene.caption, list(of_queries.queries))
        if group is None:
            continue
        description = describe(scene)
        distance = of_queries.distance(group, description)
        courses = dict(zip(COURSES, description.reshape(len(COURSES), STRETCHES).mean(1).tolist(), strict=True))
        rows.append(
            {
                "kind": scene.kind,
                "motion": group,
                "distance": distance,
                "more_motion": courses["amount"],
                "less_motion": -courses["amount"],
                "more_jerk": courses["jerk"],
                "quantile": float(lawfulness.quantiles(np.array([distance]), among)[0]),
            }
        )
    return rows


def with_flaws(cell: Cell, run: Run) -> dict[str, list[float]]:
    """Of a corpus' clips with real motion, spoiled in each of WAYS: the share with each flaw, and with any."""

    def measured(scenes: Sequence[Scene], way: str) -> Floats:
        return np.array([flaws.flaws(_coded(_spoiled(scenes, n, way, run), run.data.fps)) for n in range(len(scenes))])

    clips, queries = cell.scenes()
    of_queries = measured(queries, WAYS[0])
    real = [scene for scene in clips if scene.kind == "real"]
    shares = {}
    for way in WAYS:
        spoils = flaws.spoils(measured(real, way), of_queries)
        shares[way] = [*spoils.mean(0).tolist(), float(spoils.any(1).mean())]
    return shares


def _spoiled(scenes: Sequence[Scene], number: int, way: str, run: Run) -> Frames:
    frames = world.render(scenes[number], run.data.height, run.data.width)
    if way == "spliced":
        other = world.render(scenes[(number + 1) % len(scenes)], run.data.height, run.data.width)
        half = len(frames) // 2
        return np.concatenate([frames[:-half], other[-half:]])
    return frames if way == WAYS[0] else twin(frames, way, scenes[number].name)


def _coded(frames: Frames, fps: float) -> Frames:
    """As a decoder gives them back."""
    with tempfile.TemporaryDirectory() as folder:
        write_mp4(f"{folder}/video.mp4", frames, fps)
        with av.open(f"{folder}/video.mp4") as container:
            return np.stack([picture.to_ndarray(format="rgb24") for picture in container.decode(video=0)])


def by_motion(rows: Sequence[dict[str, Any]], score: str) -> dict[str, float]:
    """The AUC of cartoons above real clips, for each motion that has both."""
    areas = {}
    for name in world.CARTOONS:
        cartoon, real = (
            np.array([row[score] for row in rows if (row["motion"], row["kind"]) == (name, kind)])
            for kind in ("cartoon", "real")
        )
        if len(cartoon) and len(real):
            areas[name] = auc(cartoon, real)
    return areas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two small corpora of each world")
    corpora = QUICK if parser.parse_args().quick else CORPORA
    torch.set_num_threads(1)
    hardware, run, start = machine(), config.load("demo"), time.monotonic()
    print_machine(hardware)
    describe = describer(run)
    worlds = {name: measured_world(name, cells, run, describe) for name, cells in corpora.items()}
    seconds = round(time.monotonic() - start, 1)
    print_json({"benchmark": "lawfulness", "machine": hardware, "seconds": seconds, "worlds": worlds})


def measured_world(name: str, cells: Sequence[Cell], run: Run, describe: Describe) -> dict[str, Any]:
    """Measure the corpora of a world and print them: `auc` by score, seed and motion, `called` and `flaws` by seed."""
    print(f"\n{name}:", flush=True)
    rows = {cell.seed: corpus_scores(cell, describe) for cell in cells}
    areas = {score: {seed: by_motion(of_seed, score) for seed, of_seed in rows.items()} for score in SCORES}
    print_table(["score", *(f"corpus {seed}" for seed in rows), "mean, 95 %"], [_line(s, areas[s]) for s in SCORES])
    print_table(["motion", *(f"corpus {seed}" for seed in rows)], _motions(areas["distance"]))
    calls = {seed: called(of_seed) for seed, of_seed in rows.items()}
    print_table(
        ["corpus", "named", "cartoons", f"quantile at most {QUANTILE:g}", "cartoons of them"],
        [[f"{seed}", *(f"{n}" for n in of_seed)] for seed, of_seed in calls.items()],
    )
    spoiled = {cell.seed: with_flaws(cell, run) for cell in cells}
    print_table(
        ["real clips", *FLAWS, "any flaw", "least to most over corpora"], [_flaws(spoiled, way) for way in WAYS]
    )
    return {"auc": areas, "called": calls, "flaws": spoiled}


def called(rows: Sequence[dict[str, Any]]) -> tuple[int, int, int, int]:
    """How many clips are named, how many are cartoons, how many are called unlawful, and how many of those are
    cartoons."""
    unlawful = [row for row in rows if row["quantile"] <= QUANTILE]
    counts = [sum(row["kind"] == "cartoon" for row in some) for some in (rows, unlawful)]
    return len(rows), counts[0], len(unlawful), counts[1]


def _line(score: str, areas: dict[int, dict[str, float]]) -> list[str]:
    means = [float(np.mean(list(of_corpus.values()))) for of_corpus in areas.values()]
    interval = student(means)
    mean = f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
    return [score.replace("_", " "), *(f"{value:.2f}" for value in means), mean]


def _flaws(spoiled: dict[int, dict[str, list[float]]], way: str) -> list[str]:
    shares = np.array([of_corpus[way] for of_corpus in spoiled.values()])
    ends = f"{shares[:, -1].min():.0%} to {shares[:, -1].max():.0%}"
    return [way, *(f"{share:.0%}" for share in shares.mean(0)), ends]


def _motions(areas: dict[int, dict[str, float]]) -> list[list[str]]:
    def cell(of_corpus: dict[str, float], name: str) -> str:
        return f"{of_corpus[name]:.2f}" if name in of_corpus else "-"

    return [[name, *(cell(of_corpus, name) for of_corpus in areas.values())] for name in world.CARTOONS]


if __name__ == "__main__":
    main()
