"""Train the benchmark's base model: ``python -m jobs.benchmarks.quality.base_model``.

The demo's model has seen so much of its world that no short fine-tuning teaches it anything. This one is smaller,
shares the demo's autoencoder and text encoder, and knows what the world looks like but hardly how it moves: it has
seen things that lie still, a moving camera, and of the ten motions sliding alone.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from jobs.benchmarks.quality.problem import OUT, make
from jobs.weights.training import timesteps, velocity_error
from pipeline.config import load
from pipeline.models import VideoModel, open_model
from pipeline.synthetic import world

STEPS, WARM, DECAY, BATCH, RATE, SCENES, SEED = 2000, 100, 700, 32, 1e-3, 3000, 9_000_001


def seen() -> list[world.Scene]:
    """What the model is taught from: half slides, the rest lies still or is passed by a moving camera."""
    rng = np.random.default_rng(SEED)
    kinds = rng.choice(("real", "still", "camera"), SCENES, p=(0.5, 0.2, 0.3)).tolist()
    return [world.scene(SEED, f"{n:06d}", kind, "slide" if kind == "real" else "") for n, kind in enumerate(kinds)]


def rate(step: int, steps: int) -> float:
    """Linear warming, then constant, then down to a fiftieth over the last DECAY steps."""
    return RATE * min(1.0, (step + 1) / WARM) * min(1.0, (steps - step) / DECAY + 0.02)


def train(steps: int, out: Path) -> None:
    run = load("demo")
    _, _, height, width = run.geometry
    model = open_model(run.model, torch.device("cpu"))
    scenes = seen()
    latents = torch.stack([model.encode(world.render(scene, height, width)) for scene in scenes])
    texts = torch.cat([model.text([s.caption for s in scenes[i : i + 100]]) for i in range(0, len(scenes), 100)])
    taught(model, latents, texts, steps).save_pretrained(out)


def taught(
    model: VideoModel, latents: Tensor, texts: Tensor, steps: int, average_over: float = 100
) -> WanTransformer3DModel:
    """A new transformer, trained on latents [N, C, f, h, w] and texts [N, tokens, width] that are drawn alike: the
    running average of its weights, over about so many steps."""
    empty = model.text([""])[0]
    torch.manual_seed(1)
    net = make(model)
    average = copy.deepcopy(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.01, betas=(0.9, 0.99))
    shown = 0.0
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        chosen = torch.randint(0, len(latents), (BATCH,), generator=generator)
        text = texts[chosen].clone()
        text[torch.rand(BATCH, generator=generator) < 0.1] = empty
        t = timesteps(generator, BATCH)
        noise = torch.randn((BATCH, *latents.shape[1:]), generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps)
        loss = velocity_error(net, latents[chosen], text, t, noise).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for a, b in zip(average.parameters(), net.parameters(), strict=True):
                a.lerp_(b, 1 / average_over)
        shown = 0.98 * shown + 0.02 * float(loss.detach())
        if (step + 1) % 100 == 0:
            print(f"step {step + 1} loss {shown / (1 - 0.98 ** (step + 1)):.4f}", flush=True)
    return average


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    train(given.steps, given.out)


if __name__ == "__main__":
    main()
