"""How well k numbers keep the ranking of the whole gradients: ``python -m jobs.benchmarks.fidelity``.

The demo's model and settings, clips of its world; influence by the unprojected gradients of all parameters is exact, by
cosine and whitened. Every kind of projection is held against it: Spearman's correlation over the clips, mean over the
queries, and the share of the exact top tenth that is still in the top tenth.
"""

from __future__ import annotations

import argparse
import time
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from jobs.benchmarks.ceilings import machine, print_json, print_machine, print_table
from jobs.benchmarks.exact_influence import exact, survivors
from pipeline import config, models, motion
from pipeline.config import Run
from pipeline.config.attribution import Kind
from pipeline.models import VideoModel, open_model
from pipeline.models.conditioning import batched, split
from pipeline.models.loss import loss_map, masked_mean, shared_noise
from pipeline.projection import Projection
from pipeline.ranking import influence
from pipeline.statistics.correlations import spearman_by_column
from pipeline.synthetic import world

SIZES = (128, 256, 512, 1024, 2048, 4096)
WHITEN = 0.01


def gradients(run: Run, scenes: list[world.Scene]) -> Tensor:
    """The masked loss's whole gradients of rendered clips that move: [clips, D] float32."""
    device = torch.device("cpu")
    model, raft = open_model(run.model, device), motion.load_raft(run.motion, device)
    parameters = list(model.trained.parameters())
    rows = []
    for scene in scenes:
        loss = masked_loss(run, model, raft, scene)
        if loss is not None:
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    return torch.stack(rows)


def masked_loss(run: Run, model: VideoModel, raft: torch.nn.Module, scene: world.Scene) -> Tensor | None:
    _, _, height, width = run.geometry
    clip = world.render(scene, height, width)
    latent, of_clip = split(model.encode(clip, run.geometry[1]))
    flow = motion.estimate(clip, raft, run.motion, torch.device("cpu"))
    mask = motion.motion_mask(flow, run.motion, models.grid(run))
    if mask is None:
        return None
    setting = run.attribution.settings[0]
    noise = shared_noise(run.seed, setting.noise, tuple(latent.shape))
    conditioning = batched([{**of_clip, **model.text(scene.caption)}])
    errors = loss_map(model, latent[None], conditioning, torch.tensor([setting.timestep]), noise[None])
    return masked_mean(errors, mask[None])


def compare(clips: Tensor, queries: Tensor, kind: Kind, seeds: int, sizes: tuple[int, ...]) -> list[dict[str, object]]:
    truth = {whiten: exact(clips, queries, whiten) for whiten in (None, WHITEN)}
    scores: dict[tuple[int, float | None], list[tuple[float, float]]] = {}
    for seed in range(seeds):
        p = Projection(kind, max(sizes), seed)
        both = torch.cat([p(part) for part in torch.cat([clips, queries]).split(64)])
        for size in sizes:  # the first rows are the smaller projection
            cut = both[:, :size]
            for whiten, right in truth.items():
                projected = torch.as_tensor(
                    influence(cut[: len(clips)].numpy(), cut[len(clips) :].numpy(), whiten=whiten)
                )
                alike = float(spearman_by_column(right.numpy(), projected.numpy()).mean())
                scores.setdefault((size, whiten), []).append((alike, survivors(right, projected)))
    return [
        {
            "kind": kind,
            "dim": size,
            "whiten": whiten,
            "spearman": float(np.mean([s for s, _ in values])),
            "top_tenth_kept": float(np.mean([share for _, share in values])),
        }
        for (size, whiten), values in scores.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few clips, one seed, small projections")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)  # small tensors: more threads only wait for one another
    hardware, run = machine(), config.load("demo")
    print_machine(hardware)
    start = time.monotonic()
    scenes = world.corpus(1_000_001, 24 if quick else 400)
    clips, queries = gradients(run, scenes), gradients(run, world.queries(1_000_002, 1 if quick else 3))
    print(f"{len(clips)} clips and {len(queries)} queries with motion, D = {clips.shape[1]:,}", end="")
    print(f" ({time.monotonic() - start:.0f} s)\n")
    seeds, sizes = (1, (128, 512)) if quick else (3, SIZES)
    rows = [row for kind in get_args(Kind) for row in compare(clips, queries, kind, seeds, sizes)]
    for whiten, title in ((None, "cosine"), (WHITEN, f"whitened, lambda {WHITEN}")):
        print(f"{title}: Spearman with the unprojected gradients / share of the exact top tenth kept")
        table = []
        for kind in get_args(Kind):
            mine = [row for row in rows if row["kind"] == kind and row["whiten"] == whiten]
            table.append([kind, *(f"{row['spearman']:.3f} / {row['top_tenth_kept']:.0%}" for row in mine)])
        print_table(["kind", *(f"k = {size}" for size in sizes)], table)
    print_json(
        {"benchmark": "fidelity", "machine": hardware, "clips": len(clips), "queries": len(queries), "rows": rows}
    )


if __name__ == "__main__":
    main()
