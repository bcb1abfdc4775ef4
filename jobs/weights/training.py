"""What the trainings of the shipped weights share: the world's clips, the learning rate, the state, the velocity loss.

This is no job. `flow`, `autoencoder` and `transformer` are the jobs.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from pipeline.synthetic import world

SIZE, FRAMES, CHANNELS = 32, 9, 8
FLOW_SHIFT = 3.0
HELD_OUT = 1_000_003  # seed of scenes that no training sees
OUT = Path("pipeline/weights/wan-demo")
STATE = Path("runs/weights")

WARM, DECAY, BATCH, RATE = 100, 700, 32, 1e-3  # of the small models that benchmarks train


def clips(seed: int, count: int) -> tuple[torch.Tensor, list[str], torch.Tensor]:
    """Videos [N, 3, F, H, W] in [-1, 1] as uint8 levels, captions, and whether a pixel moves [N, F, H, W]."""
    scenes = world.corpus(seed, count, FRAMES)
    videos = np.stack([world.render(s, SIZE, SIZE) for s in scenes])
    flows = np.stack([np.linalg.norm(world.flow(s, SIZE, SIZE), axis=-1) for s in scenes]) if count <= 512 else None
    moving = torch.zeros(0) if flows is None else torch.from_numpy(np.concatenate([flows, flows[:, -1:]], 1) > 0.1)
    return torch.from_numpy(videos).permute(0, 4, 1, 2, 3), [s.caption for s in scenes], moving


def rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 100 steps, then a cosine to 2 % of the peak."""
    return peak * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * step / steps)))


def save_state(state: dict[str, object], path: Path) -> None:
    """Write what a killed training goes on from. The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def timesteps(generator: torch.Generator, count: int) -> torch.Tensor:
    """Uniform in [0, 1], then the flow shift, on the 1000-step scale: [count]."""
    s = torch.rand(count, generator=generator)
    return 1000 * FLOW_SHIFT * s / (1 + (FLOW_SHIFT - 1) * s)


def velocity_error(
    model: WanTransformer3DModel, h: torch.Tensor, context: torch.Tensor, t: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """Squared error of the predicted velocity of each latent h [B, C, f, h, w] at timesteps t [B]: [B]."""
    s = (t / 1000).view(-1, 1, 1, 1, 1)
    velocity: torch.Tensor = model((1 - s) * h + s * noise, t, context, return_dict=False)[0]
    return ((velocity - (noise - h)) ** 2).mean((1, 2, 3, 4))


def small_rate(step: int, steps: int) -> float:
    """Linear warming, then constant, then down to a fiftieth over the last DECAY steps."""
    return RATE * min(1.0, (step + 1) / WARM) * min(1.0, (steps - step) / DECAY + 0.02)


def average_of_training(
    net: WanTransformer3DModel, empty: Tensor, latents: Tensor, texts: Tensor, steps: int, average_over: float = 100
) -> WanTransformer3DModel:
    """Train a new transformer on latents [N, C, f, h, w] and texts [N, tokens, width] that are drawn alike, `empty` the
    empty caption's: the running average of its weights, over about so many steps."""
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
            group["lr"] = small_rate(step, steps)
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
