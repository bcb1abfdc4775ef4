"""Do clips that break a law of motion make a model's videos break it, and does leaving out unlawful clips mend that?

A corpus has as many real clips as cartoons of the seven motions that have cartoons. The demo's model is fine-tuned on
parts of it for equally many steps, by the product's own loop: on the real half, on the cartoons, on a random half, and
on all but the clips that move least as the queries of their motion do. Then each model makes videos of the same
captions with the same seeds. RAFT's flow of them is measured, the camera's motion taken away:

| measure | what it is |
| --- | --- |
| lawful | whether the video moves more like the real queries of its motion than like cartoons with their looks |
| margin | the logarithm of its distance from the nearest of those cartoons over that from the nearest real query |
| distance | from the nearest real query, as the judge of `jobs.compare` and `lawfulness/` have it |
| deviation | from the law of the motion, for the four motions of which `quality/laws.py` knows it |
| amount | mean length of the flow at RAFT's size: a control, because a video that stands still breaks no law |

Beside them stand the masked losses of real held-out clips, and the measures of rendered real clips and cartoons.
A figure of a corpus is the mean over motions of the mean over captions; intervals are Student's of 95 % over corpora,
of differences between arms of the same corpus. A corpus that `--folder` has is not computed again. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jobs.benchmarks.ceilings import machine, print_json, print_machine, print_table
from jobs.benchmarks.matching import by_hash
from jobs.benchmarks.quality import laws, problem, retraining
from jobs.benchmarks.quality.problem import Clips
from jobs.benchmarks.quality.retraining import Recipe
from pipeline import config, motion
from pipeline.config import Run
from pipeline.models import VideoModel, open_model
from pipeline.motion import movement
from pipeline.motion.judge import Floats, Judge, taught
from pipeline.ranking import lawfulness
from pipeline.statistics.intervals import student
from pipeline.storage import stores
from pipeline.synthetic import world
from pipeline.synthetic.world import Scene

SEEDS = (510, 520, 530, 540)  # of corpora on which nothing was chosen
QUANTILE = 0.05  # the product's `ranking.unlawful`
MEASURES = ("lawful", "margin", "distance", "deviation", "amount")
CONTRASTS = (
    ("real half", "cartoons"),
    ("real half", "random half"),
    ("cartoons", "random half"),
    ("all but the unlawful", "all but as many at random"),
    ("all but the least lawful half", "random half"),
)

Frames = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sizes:
    """How much is made of each motion, how the model is fine-tuned, and how videos are generated."""

    motions: tuple[str, ...] = world.CARTOONS  # those that have a cartoon
    clips: int = 8  # real ones, and as many cartoons
    queries: int = 5  # real ones, and as many cartoons
    captions: int = 4
    sampling: int = 8  # steps of a generated video
    recipe: Recipe = field(default_factory=lambda: Recipe(steps=300, batch=8, learning_rate=1e-3))


QUICK_RECIPE = Recipe(steps=2, batch=4, noises=1)
QUICK = Sizes(motions=("slide", "spin"), clips=2, queries=2, captions=1, sampling=2, recipe=QUICK_RECIPE)


class Measured(NamedTuple):
    """Of one video, in the order of MEASURES; `deviation` is NaN where the law of the motion is not known."""

    lawful: float
    margin: float
    distance: float
    deviation: float
    amount: float


@dataclass(frozen=True)
class Corpus:
    """Encoded clips, what videos are held against, and the scenes that give captions."""

    seed: int
    clips: Clips
    held_out: Clips
    scenes: Sequence[Scene]  # the held-out clips'
    twins: Sequence[Scene]  # cartoons with the looks and captions of `scenes`
    real: Judge
    cartoons: Judge


class Camera:
    """Measures videos by RAFT's flow, the camera's motion taken away."""

    def __init__(self, run: Run) -> None:
        self.run, self.device = run, torch.device("cpu")
        self.raft = motion.load_raft(run.motion, self.device)

    def rendered(self, scene: Scene) -> Frames:
        return world.render(scene, self.run.data.height, self.run.data.width)

    def flow(self, frames: Frames) -> Tensor:
        flow = motion.estimate(frames, self.raft, self.run.motion, self.device)
        return flow - motion.camera_motion(flow)

    def description(self, frames: Frames) -> Floats:
        return np.array(movement.movement(frames, self.flow(frames))["description"])

    def measured(self, frames: Frames, name: str, material: Corpus) -> Measured:
        """A video of the motion `name`, held against the queries and cartoons of a corpus."""
        flow = self.flow(frames)
        description = np.array(movement.movement(frames, flow)["description"])
        distance, other = (judge.distance(name, description) for judge in (material.real, material.cartoons))
        known = laws.deviation(name, flow.numpy()) if name in laws.LAWS else float("nan")
        return Measured(
            float(distance < other), float(np.log(other / distance)), distance, known, motion.statistics(flow)[0]
        )

    def films(self, material: Corpus, model: VideoModel, sampling: int) -> Iterator[Measured]:
        """The measures of the videos that a model makes of the captions, each with a seed of its own and the corpus."""
        data, guidance = self.run.data, self.run.evaluate.guidance
        for n, scene in enumerate(material.scenes):
            geometry, seed = (data.frames, data.height, data.width), 1000 * material.seed + n
            frames = model.generate(scene.caption, geometry, data.fps, seed, sampling, guidance)
            yield self.measured(frames, scene.motion, material)


# --- a corpus, and what each model is fine-tuned on -------------------------------------------------------------------


def scenes(motions: Sequence[str], seed: int, each: int, kind: str, frames: int, pan: float = 0.0) -> list[Scene]:
    """`each` scenes of every motion. A cartoon has the looks of the real scene of the same seed."""
    names = [(f"{name}-{n:02d}", name) for name in motions for n in range(each)]
    return [world.scene(seed, clip, kind, name, frames, pan=pan) for clip, name in names]


def corpus(seed: int, sizes: Sizes, camera: Camera) -> Corpus:
    """The corpus of a seed, with queries and held-out clips of the seeds that follow. Its cartoons have looks of their
    own."""

    def drawn(offset: int, each: int, kind: str, pan: float = 0.0) -> list[Scene]:
        return scenes(sizes.motions, seed + offset, each, kind, camera.run.data.frames, pan)

    spoiled = [replace(scene, name=f"cartoon-{scene.name}") for scene in drawn(4, sizes.clips, "cartoon", pan=0.1)]
    clips = _encoded([*drawn(1, sizes.clips, "real", pan=0.1), *spoiled])
    real, spoiled_queries = (
        taught([(scene.motion, camera.description(camera.rendered(scene))) for scene in drawn(2, sizes.queries, kind)])
        for kind in ("real", "cartoon")
    )
    of_captions, twins = (drawn(3, sizes.captions, kind) for kind in ("real", "cartoon"))
    cartoons = Judge(spoiled_queries.queries, real.spread)  # one measure for both
    return Corpus(seed, clips, _encoded(of_captions), of_captions, twins, real, cartoons)


def _encoded(some: Sequence[Scene]) -> Clips:
    with tempfile.TemporaryDirectory() as folder:
        problem.encode(some, folder)
        return problem.load((folder,))


def arms(material: Corpus) -> dict[str, Rows]:
    """The rows of the corpus that each arm is fine-tuned on."""
    clips, every = material.clips, np.arange(len(material.clips))
    half = len(clips) // 2
    pairs = zip(clips.motions.tolist(), clips.movement, strict=True)
    distance = np.array([material.real.distance(name, description) for name, description in pairs])
    unlawful = lawfulness.quantiles(distance, lawfulness.leave_one_out(material.real)) <= QUANTILE
    row_of = {clip_id: row for row, clip_id in enumerate(clips.clip_ids)}
    shuffled = np.array([row_of[clip_id] for clip_id in by_hash(material.seed, clips.clip_ids)])
    cartoon = clips.kinds == "cartoon"
    return {
        "real half": every[~cartoon],
        "cartoons": every[cartoon],
        "random half": np.sort(shuffled[half:]),
        "all but the unlawful": every[~unlawful],
        "all but as many at random": np.sort(shuffled[int(unlawful.sum()) :]),
        "all but the least lawful half": np.sort(np.argsort(distance, kind="stable")[:half]),
    }


# --- figures ----------------------------------------------------------------------------------------------------------


def by_motion(scenes: Sequence[Scene], rows: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """The mean of each measure over the videos of each motion, of those that are known for it."""
    table, names = np.array(rows), np.array([scene.motion for scene in scenes])
    means = {name: table[names == name].mean(0) for name in dict.fromkeys(names.tolist())}
    return {
        name: {measure: float(mean[n]) for n, measure in enumerate(MEASURES) if np.isfinite(mean[n])}
        for name, mean in means.items()
    }


def figures(seed: int, sizes: Sizes, camera: Camera) -> dict[str, dict[str, Any]]:
    """Of every arm of a corpus, of the base and of what is rendered: the measures of its videos by motion; how many
    clips and cartoons it was fine-tuned on; and the masked loss of the held-out clips."""
    material, model = corpus(seed, sizes, camera), open_model(camera.run.model, torch.device("cpu"))
    state = copy.deepcopy(model.trained.state_dict())
    table: dict[str, dict[str, Any]] = {}
    for name, some in (("rendered real clips", material.scenes), ("rendered cartoons", material.twins)):
        rows = [camera.measured(camera.rendered(scene), scene.motion, material) for scene in some]
        table[name] = {"measures": by_motion(some, rows)}
    every = {"base": np.arange(0), **arms(material)}
    for name, chosen in every.items():
        model.trained.load_state_dict(state)
        if len(chosen):
            retraining.fine_tuned(retraining.on(chosen, seed), material.clips, sizes.recipe, model)
        loss = retraining.losses(model, material.held_out, sizes.recipe)[..., 0].mean()
        films = list(camera.films(material, model, sizes.sampling))
        cartoons = int((material.clips.kinds[chosen] == "cartoon").sum())
        table[name] = {"measures": by_motion(material.scenes, films), "loss": float(loss)}
        table[name] |= {"clips": len(chosen), "cartoons": cartoons}
        print(f"corpus {seed}, {name}: {_cells(overall([table[name]]))}", flush=True)
    return table


def overall(tables: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of each measure over motions and corpora, of one arm's figures in each corpus."""
    motions = [of for table in tables for of in table["measures"].values()]
    return {measure: float(np.mean([of[measure] for of in motions if measure in of])) for measure in MEASURES}


def contrasts(corpora: Sequence[Mapping[str, Mapping[str, Any]]], one: str, other: str) -> dict[str, list[float]]:
    """The difference of each measure between two arms in each corpus; of the loss, as a share of the other's."""
    pairs = [(overall([table[one]]), overall([table[other]])) for table in corpora]
    differences = {measure: [a[measure] - b[measure] for a, b in pairs] for measure in MEASURES}
    return differences | {"loss": [table[one]["loss"] / table[other]["loss"] - 1 for table in corpora]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two tiny corpora")
    parser.add_argument("--folder", type=Path, default=Path("runs/generated-laws"))
    options = parser.parse_args()
    seeds, sizes = ((50, 60), QUICK) if options.quick else (SEEDS, Sizes())
    torch.set_num_threads(1)
    hardware, start = machine(), time.monotonic()
    print_machine(hardware)
    camera = Camera(config.load("demo"))
    corpora = [_computed_once(options.folder, seed, sizes, camera) for seed in seeds]
    print_table(
        ["videos of", "clips", "cartoons", *MEASURES, "masked loss over the base's"],
        [_line(name, [table[name] for table in corpora], corpora) for name in corpora[0]],
    )
    differences = {f"{one} less {other}": contrasts(corpora, one, other) for one, other in CONTRASTS}
    print_table(
        ["difference", *MEASURES, "masked loss"],
        [[name, *(_interval(v, m) for m, v in of.items())] for name, of in differences.items()],
    )
    seconds = round(time.monotonic() - start, 1)
    print_json(
        {"benchmark": "generated_laws", "machine": hardware, "seconds": seconds, "sizes": asdict(sizes)}
        | {"differences": differences, "corpora": dict(zip(map(str, seeds), corpora, strict=True))}
    )


def _computed_once(folder: Path, seed: int, sizes: Sizes, camera: Camera) -> dict[str, dict[str, Any]]:
    place, identity = folder / f"{seed}.json", json.loads(json.dumps(asdict(sizes)))
    if place.exists():
        stored: dict[str, Any] = json.loads(place.read_text())
        if stored["sizes"] == identity:
            return dict(stored["figures"])
    table = figures(seed, sizes, camera)
    stores.write_bytes(str(place), json.dumps({"sizes": identity, "figures": table}).encode())
    return table


def _line(name: str, tables: Sequence[Mapping[str, Any]], corpora: Sequence[Mapping[str, Any]]) -> list[str]:
    numbers = [f"{overall(tables)[measure]:.2f}" for measure in MEASURES]
    if "loss" not in tables[0]:
        return [name, "", "", *numbers, ""]
    counts = [f"{np.mean([table[key] for table in tables]):.0f}" for key in ("clips", "cartoons")]
    change = np.mean([table["loss"] / of["base"]["loss"] - 1 for table, of in zip(tables, corpora, strict=True)])
    return [name, *counts, *numbers, f"{change:+.1%}"]


def _cells(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{measure} {value:.2f}" for measure, value in numbers.items())


def _interval(values: Sequence[float], measure: str) -> str:
    mean, low, high = student(values)
    if measure in ("lawful", "loss"):
        return f"{mean:+.1%} [{low:+.1%}, {high:+.1%}]"
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


if __name__ == "__main__":
    main()
