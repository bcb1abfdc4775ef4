"""Train the benchmark's base model: ``python -m jobs.benchmarks.quality.base_model``.

The demo's model has seen so much of its world that no short fine-tuning teaches it anything. This one is smaller,
shares the demo's autoencoder and text encoder, and knows what the world looks like but hardly how it moves: it has
seen things that lie still, a moving camera, and of the ten motions sliding alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from jobs.benchmarks.quality.problem import OUT, make
from jobs.weights.training import average_of_training
from pipeline.config import load
from pipeline.models import open_model
from pipeline.synthetic import world

STEPS, SCENES, SEED = 2000, 3000, 9_000_001


def seen() -> list[world.Scene]:
    """What the model is taught from: half slides, the rest lies still or is passed by a moving camera."""
    rng = np.random.default_rng(SEED)
    kinds = rng.choice(("real", "still", "camera"), SCENES, p=(0.5, 0.2, 0.3)).tolist()
    return [world.scene(SEED, f"{n:06d}", kind, "slide" if kind == "real" else "") for n, kind in enumerate(kinds)]


def train(steps: int, out: Path) -> None:
    run = load("demo")
    _, _, height, width = run.geometry
    model = open_model(run.model, torch.device("cpu"))
    scenes = seen()
    latents = torch.stack(
        [model.encode(world.render(scene, height, width), run.data.fps)["latent"] for scene in scenes]
    )
    texts = torch.stack([model.text(scene.caption)["text"] for scene in scenes])
    torch.manual_seed(1)
    average = average_of_training(make(model), model.blank()["text"], latents, texts, steps)
    average.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    train(given.steps, given.out)


if __name__ == "__main__":
    main()
