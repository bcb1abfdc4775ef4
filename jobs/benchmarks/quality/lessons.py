"""What a base model is taught, and how: few motions, so that a short fine-tuning can teach it the others."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from jobs.benchmarks.quality.problem import make
from jobs.weights.training import average_of_training
from pipeline.config import load
from pipeline.models import open_model
from pipeline.synthetic import world


@dataclass(frozen=True)
class Lessons:
    """What a base model is taught: half of its scenes show these motions, the rest lies still or is passed by a moving
    camera."""

    motions: tuple[str, ...]
    seed: int
    scenes: int
    steps: int  # of 32 scenes
    first: int = 1  # the seed of the random weights that it begins with

    @property
    def name(self) -> str:
        """A folder's name, which differs where a field does."""
        fields = hashlib.blake2b(repr(self).encode(), digest_size=4).hexdigest()
        return f"{'-'.join(self.motions)}-{fields}"

    def seen(self) -> list[world.Scene]:
        rng = np.random.default_rng(self.seed)
        kinds = rng.choice(("real", "still", "camera"), self.scenes, p=(0.5, 0.2, 0.3)).tolist()
        motions = [self.motions[n % len(self.motions)] for n in range(self.scenes)]
        return [
            world.scene(self.seed, f"{n:06d}", kind, motion if kind == "real" else "")
            for n, (kind, motion) in enumerate(zip(kinds, motions, strict=True))
        ]


SLIDING = Lessons(("slide",), seed=9_000_001, scenes=3000, steps=2000)  # the base that is shipped
# Another base: other motions, other scenes, other first weights, and fewer steps.
OTHER = Lessons(("compress", "float", "swing"), seed=9_100_001, scenes=1200, steps=900, first=2)


def train(lessons: Lessons, out: Path) -> None:
    """Teach a base model and write it to a folder."""
    run = load("demo")
    _, _, height, width = run.geometry
    model = open_model(run.model, torch.device("cpu"))
    scenes = lessons.seen()
    latents = torch.stack(
        [model.encode(world.render(scene, height, width), run.data.fps)["latent"] for scene in scenes]
    )
    texts = torch.stack([model.text(scene.caption)["text"] for scene in scenes])
    torch.manual_seed(lessons.first)
    average = average_of_training(make(model), model.blank()["text"], latents, texts, lessons.steps)
    average.save_pretrained(out)
