"""Fine-tuning by a plain loop, as one writes it first, and by Ray Train on one worker: seconds a step of either."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from pipeline.cluster import training
from pipeline.config import Run
from pipeline.models import open_model
from pipeline.models.conditioning import batched, split
from pipeline.models.loss import loss_map
from pipeline.training.training_set import draw

CHECKPOINT = 300
CLIPS = 16  # that are trained on: encoding them is in neither way's seconds


def seconds_a_step(run: Run, rows: pa.Table, folder: Path, few: int, steps: int, with_ray: bool) -> float:
    """Of those steps beyond the first `few`, so that what is loaded and encoded once is in neither way's. Ray Train
    writes a checkpoint every CHECKPOINT steps, which takes the time of some of the demo's steps."""
    rows = rows.slice(0, CLIPS)
    way = _with_ray if with_ray else _looped
    first = way(_for(run, folder / "few", few), rows)
    return (way(_for(run, folder / "all", steps), rows) - first) / (steps - few)


def _for(run: Run, root: Path, steps: int) -> Run:
    changes = {"arm": "random", "steps": steps, "caption_dropout": 0.0, "checkpoint_every": CHECKPOINT}
    finetune = run.finetune.model_copy(update=changes)
    return run.model_copy(update={"root": str(root), "finetune": finetune})


def _with_ray(run: Run, rows: pa.Table) -> float:
    begun = time.monotonic()
    training.finetune(run, rows.append_column("weight", pa.array([1.0] * rows.num_rows)))
    return time.monotonic() - begun


def _looped(run: Run, rows: pa.Table) -> float:
    """The clips lie in memory, and their noises are PyTorch's own."""
    begun, config = time.monotonic(), run.finetune
    torch.set_num_threads(int(run.resources.finetune.cpus))
    model = open_model(run.model, torch.device("cpu"))
    frames_of, clips = training.frames_by_decoder(run), []
    for row in rows.to_pylist():
        latent, given = split(model.encode(frames_of(row), run.data.fps))
        clips.append((latent, {**given, **model.text(row["caption"] or "")}))
    parameters = list(model.trained.train().requires_grad_(True).parameters())
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    for step in range(config.steps):
        chosen = [clips[int(draw(run.seed, step, place).clip * len(clips))] for place in range(config.batch)]
        latent = torch.stack([one for one, _ in chosen])
        timestep = model.schedule.times(torch.rand(len(chosen)), latent[0].numel())
        conditioning = batched([given for _, given in chosen])
        loss = loss_map(model, latent, conditioning, timestep, torch.randn_like(latent)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        assert np.isfinite(float(loss.detach())), "the recipe's rate is a small one"
    return time.monotonic() - begun
