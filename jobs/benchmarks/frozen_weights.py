"""Do adapters that are trained over frozen weights of a byte each come out as well?
``python -m jobs.benchmarks.frozen_weights``.

The demo's model, and the base model of the quality benchmark, which does not know the motion yet. Adapters are trained
on clips of one motion by the product's own loop, with `finetune.frozen_weights` full and fp8, under the same seeds: the
same clips, times and noises. They are written, loaded on the whole model as evaluation does, and held against each
other on other clips of that motion, at times and noises that all of them share. The last line is JSON.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jobs.benchmarks.ceilings import machine, print_json, print_machine, print_table
from jobs.benchmarks.quality.problem import load_base
from pipeline import config
from pipeline.config import Finetune, Run
from pipeline.models import VideoModel, fp8, open_model
from pipeline.models.conditioning import batched
from pipeline.models.loss import loss_map, named_generator
from pipeline.models.trained_weights import load_weights
from pipeline.statistics.intervals import student
from pipeline.synthetic import world
from pipeline.training import loop
from pipeline.training.training_set import ClipSet, EncodedClip, Row

CPU = torch.device("cpu")
MOTION = "swing"
HELD_OUT, SEEDS = 64, 4
TIMES = 6  # of each held-out clip
BATCH = 8
WAYS = ("full", "fp8")

Figures = dict[str, Any]


@dataclass(frozen=True)
class Lesson:
    """How adapters are trained: clips, steps, rank, and the rate that falls to 0."""

    clips: int
    steps: int
    rank: int
    rate: float


SHORT, LONG, QUICK = Lesson(64, 60, 8, 1e-3), Lesson(128, 200, 32, 4e-3), Lesson(24, 4, 8, 1e-3)


def encoded(run: Run, model: VideoModel, seed: int, count: int) -> list[EncodedClip]:
    """Clips of the motion, that a seed determines, as the transformer takes them."""
    clips, (_, fps, height, width) = list[EncodedClip](), run.geometry
    for number in range(count):
        scene = world.scene(seed, f"{MOTION}-{number:03d}", "real", MOTION)
        clips.append(EncodedClip(model.encode(world.render(scene, height, width), fps), (model.text(scene.caption),)))
    return clips


def rounding(model: VideoModel) -> dict[str, float]:
    """What storing the layers costs them: the error over the size of the weights, all together, the smallest and the
    largest of a layer; and bytes."""
    errors, sizes = list[float](), list[float]()
    (transformer,) = model.transformers().values()
    before = {name: m.weight.detach().clone() for name, m in transformer.named_modules() if type(m) is nn.Linear}
    full = sum(p.nbytes for p in transformer.parameters())
    fp8.compress(model)
    for name, module in transformer.named_modules():
        if isinstance(module, fp8.Fp8Linear):
            weight = before[name]
            errors.append(float((fp8.restored(module.weight, module.scale, weight.dtype) - weight).square().sum()))
            sizes.append(float(weight.square().sum()))
    by_layer = [(error / size) ** 0.5 for error, size in zip(errors, sizes, strict=True)]
    return {
        "all": (sum(errors) / sum(sizes)) ** 0.5,
        "lowest": min(by_layer),
        "highest": max(by_layer),
        "bytes_full": full,
        "bytes_fp8": sum(p.nbytes for p in transformer.parameters()),
    }


def trained(model: VideoModel, clips: Sequence[EncodedClip], how: str, lesson: Lesson, seed: int, folder: str) -> float:
    """Train adapters on clips and write them. Seconds of a step, the median."""
    finetune = Finetune.model_validate(
        {
            "steps": lesson.steps,
            "batch": BATCH,
            "learning_rate": lesson.rate,
            "schedule": "linear",
            "lora_rank": lesson.rank,
            "frozen_weights": how,
        }
    )
    dropped = EncodedClip({}, (model.blank(),))

    def read(row: Row | None) -> EncodedClip:
        if row is None:
            return dropped
        return clips[row["place"]]

    training = loop.begin(model, finetune, seed)
    rows = [{"clip_id": str(place), "place": place} for place in range(len(clips))]
    seconds = [line.seconds for line in loop.train(training, ClipSet(model, rows, read), finetune, seed)]
    loop.save_weights(training, folder)
    return statistics.median(seconds)


@torch.no_grad()
def held_out_loss(model: VideoModel, clips: Sequence[EncodedClip]) -> float:
    """The mean over clips, at times that share [0, 1] evenly and noises of the clip's own."""
    model.trained.eval()
    latent = torch.stack([clip.clip["latent"] for clip in clips])
    conditioning = batched([clip.captions[0] for clip in clips])
    losses = list[Tensor]()
    for number in range(TIMES):
        uniform = torch.full((len(clips),), (number + 0.5) / TIMES)
        normal = named_generator(f"held out {number}").standard_normal(tuple(latent.shape), np.float32)
        errors = loss_map(model, latent, conditioning, model.schedule.times(uniform), torch.from_numpy(normal))
        losses.append(errors.mean())
    return float(torch.stack(losses).mean())


def measure(run: Run, make: Callable[[], VideoModel], lesson: Lesson, held_out: int, seeds: int) -> Figures:
    """The figures of a model that `make` loads anew."""
    base = make()
    clips = encoded(run, base, 1_000_001, lesson.clips)
    others = encoded(run, base, 1_000_003, held_out)
    losses: dict[str, list[float]] = {how: [] for how in WAYS}
    seconds: dict[str, list[float]] = {how: [] for how in WAYS}
    figures: Figures = {"base": held_out_loss(base, others), "rounding": rounding(base)}
    figures["base, stored as fp8"] = held_out_loss(base, others)
    print(f"base {figures['base']:.5f}, stored as fp8 {figures['base, stored as fp8']:.5f}", flush=True)
    for seed in range(seeds):
        for how in WAYS:
            with tempfile.TemporaryDirectory() as folder:
                seconds[how].append(trained(make(), clips, how, lesson, seed, folder))
                model = make()
                load_weights(model, folder)
            losses[how].append(held_out_loss(model, others))
        print(f"seed {seed}: full {losses['full'][-1]:.5f}, fp8 {losses['fp8'][-1]:.5f}", flush=True)
    interval = student([stored - whole for whole, stored in zip(losses["full"], losses["fp8"], strict=True)])
    return figures | {
        "losses": losses,
        "difference": interval._asdict(),
        "deviation_of_seeds": statistics.stdev(losses["full"]),
        "seconds_a_step": {how: statistics.median(values) for how, values in seconds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few clips, seeds and steps")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)  # small tensors: more threads only wait for one another
    hardware, start, run = machine(), time.monotonic(), config.load("demo")
    print_machine(hardware)
    demo = partial(open_model, run.model, CPU)
    subjects: dict[str, tuple[Callable[[], VideoModel], Lesson]] = {
        "the demo's model": (demo, SHORT),
        "a model without the motion": (load_base, SHORT),
        "a model without the motion, more steps": (load_base, LONG),
    }
    figures = {}
    for title, (make, lesson) in subjects.items():
        print(f"{title}:", flush=True)
        figures[title] = measure(run, make, QUICK, 8, 2) if quick else measure(run, make, lesson, HELD_OUT, SEEDS)
    print("\nheld-out loss of the whole model with adapters, and the difference paired by seed, 95 %\n")
    header = ["model", "base", "full", "fp8", "fp8 less full", "between seeds", "rounding", "s a step, full, fp8"]
    print_table(header, [[title, *_cells(one)] for title, one in figures.items()])
    seconds = round(time.monotonic() - start, 1)
    print_json({"benchmark": "frozen_weights", "machine": hardware, "seconds": seconds, "models": figures})


def _cells(figures: Figures) -> list[str]:
    full, stored = (statistics.fmean(figures["losses"][how]) for how in WAYS)
    d, r, seconds = figures["difference"], figures["rounding"], figures["seconds_a_step"]
    return [
        f"{figures['base']:.5f}",
        f"{full:.5f}",
        f"{stored:.5f}",
        f"{d['mean']:+.5f} [{d['low']:+.5f}, {d['high']:+.5f}]",
        f"{figures['deviation_of_seeds']:.5f}",
        f"{r['all']:.2%}",
        f"{seconds['full']:.4f}, {seconds['fp8']:.4f}",
    ]


if __name__ == "__main__":
    main()
