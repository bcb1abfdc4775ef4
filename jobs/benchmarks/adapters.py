"""Does the ranking by the gradients of adapters follow that by the gradients of every parameter?
``python -m jobs.benchmarks.adapters``.

The demo's model and its own ranking: masked gradients of queries, plain ones of clips. Adapters are warmed up on the
corpus by the product's own loop, written, and loaded as `attribution.lora` loads them. Influence by their gradients,
unprojected and projected, is held against influence by the unprojected gradients of every parameter: Spearman's
correlation over the clips of each query, the share of each query's top tenth, and the share of the tenth with the
highest mean. Controls: adapters that have learnt nothing, and the weights that are adapted, without adapters. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.benchmarks.ceilings import machine, print_json, print_machine, print_table
from jobs.benchmarks.exact_influence import exact, survivors
from pipeline import config, models, motion
from pipeline.attribution.gradients import ProjectedGradients, restrict, take_clip
from pipeline.config import Finetune, Run
from pipeline.config.attribution import Setting
from pipeline.models import Conditioning, VideoModel, open_model
from pipeline.models.conditioning import split
from pipeline.models.lora import load_adapters
from pipeline.models.loss import named_generator
from pipeline.projection import Projection
from pipeline.ranking import influence
from pipeline.statistics.correlations import spearman_by_column
from pipeline.synthetic import world
from pipeline.training import loop
from pipeline.training.training_set import ClipSet, EncodedClip, Row

CPU = torch.device("cpu")
ATTENTION = r"attn\d\.to_(q|k|v|out\.0)\.weight$"  # what the adapters of Wan adapt
CLIPS, QUERIES = 200, 2  # queries of each motion
WHITEN = 0.01
WHOLE, ADAPTED = "every parameter", "the adapted weights themselves"


@dataclass(frozen=True)
class Clip:
    """A rendered clip as the transformer takes it; a corpus clip has no `mask`, for its gradient is plain."""

    latent: Tensor
    conditioning: Conditioning
    mask: Tensor | None


@dataclass(frozen=True)
class WarmUp:
    """Adapters: their rank and the steps that they were trained; untrained ones have a B of chance."""

    rank: int
    steps: int

    @property
    def title(self) -> str:
        state = f"after {self.steps} steps" if self.steps else "control: untrained, B of chance"
        return f"adapters of rank {self.rank}, {state}"


WARM_UPS = (WarmUp(8, 0), WarmUp(8, 20), WarmUp(8, 80), WarmUp(2, 80), WarmUp(32, 80))


def encoded(run: Run, model: VideoModel, scenes: Sequence[world.Scene], masked: bool) -> list[Clip]:
    raft, (_, fps, height, width) = motion.load_raft(run.motion, CPU), run.geometry
    clips = []
    for scene in scenes:
        frames = world.render(scene, height, width)
        latent, of_clip = split(model.encode(frames, fps))
        mask = None
        if masked:
            mask = motion.motion_mask(motion.estimate(frames, raft, run.motion, CPU), run.motion, models.grid(run))
        clips.append(Clip(latent, {**of_clip, **model.text(scene.caption)}, mask))
    return clips


def warmed_up(run: Run, clips: Sequence[Clip], how: WarmUp, seed: int, folder: str) -> None:
    """Train adapters on clips and write them as fine-tuning does."""
    model = open_model(run.model, CPU)
    finetune = Finetune(steps=how.steps or 1, batch=8, learning_rate=1e-3, lora_rank=how.rank)
    training = loop.begin(model, finetune, seed)
    dropped = EncodedClip({}, (model.blank(),))

    def read(row: Row | None) -> EncodedClip:
        if row is None:
            return dropped
        clip = clips[row["place"]]
        return EncodedClip({"latent": clip.latent}, ({"text": clip.conditioning["text"]},))

    if how.steps:
        rows = [{"clip_id": str(place), "place": place} for place in range(len(clips))]
        for _ in loop.train(training, ClipSet(model, rows, read), finetune, seed):
            pass
    else:
        for name, parameter in training.parameters.items():
            if "lora_B" in name:
                normal = named_generator(f"chance {seed} {name}").standard_normal(tuple(parameter.shape), np.float32)
                parameter.data.copy_(torch.from_numpy(normal) * 0.01)
    loop.save_weights(training, folder)


def with_adapters(run: Run, folder: str) -> VideoModel:
    model = open_model(run.model, CPU)
    load_adapters(model, run.model, folder)
    restrict(model.trained, ".*", model.family.idle, adapters=True)
    return model


class Unprojected:
    """Stands where `ProjectedGradients` does, and keeps whole gradients of what counts."""

    def __init__(self, model: VideoModel) -> None:
        self._parameters = [p for p in model.trained.parameters() if p.requires_grad]
        self.rows: list[Tensor] = []

    def take(self, loss: Tensor, keep_graph: bool = False) -> None:
        derivatives = torch.autograd.grad(loss, self._parameters, retain_graph=keep_graph, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(self._parameters, derivatives, strict=True)]
        self.rows.append(torch.cat([part.flatten() for part in parts]))


def gradients(run: Run, model: VideoModel, clips: Sequence[Clip], mask: str) -> Tensor:
    """Of clips under a mask, [clips, numbers that count]; those that stand still have none under "motion"."""
    collected = Unprojected(model)
    setting = Setting(timestep=run.attribution.settings[0].timestep, mask=mask)
    for clip in clips:
        take_clip(collected, model, [setting], clip.latent, clip.conditioning, clip.mask, run.seed)  # type: ignore[arg-type]
    return torch.stack(collected.rows)


Scores = dict[str, Tensor]  # influence [clips, queries] by "cosine", "whitened" and those two projected


def scores(run: Run, model: VideoModel, clips: Sequence[Clip], queries: Sequence[Clip]) -> Scores:
    """By what counts of a model."""
    pair = gradients(run, model, clips, "none"), gradients(run, model, queries, "motion")
    a = run.attribution.projection
    p = Projection(a.kind, a.dim, a.seed)
    features, asked = (torch.cat([p(part) for part in rows.split(64)]).numpy() for rows in pair)
    return {
        "cosine": exact(*pair, None),
        "whitened": exact(*pair, WHITEN),
        "cosine, projected": torch.as_tensor(influence(features, asked, whiten=None)),
        "whitened, projected": torch.as_tensor(influence(features, asked, whiten=WHITEN)),
    }


def fidelity(truth: Scores, own: Scores) -> dict[str, dict[str, float]]:
    """Of each way to compute influence, against the unprojected one of every parameter."""
    figures = {}
    for way, values in own.items():
        exactly = truth[way.partition(",")[0]]
        by_query = spearman_by_column(exactly.numpy(), values.double().numpy())
        figures[way] = {
            "spearman": float(by_query.mean()),
            "lowest": float(by_query.min()),
            "highest": float(by_query.max()),
            "top_tenth": survivors(exactly, values),
            "chosen_tenth": survivors(exactly.mean(1, keepdim=True), values.mean(1, keepdim=True)),
        }
    return figures


# --- what it costs ----------------------------------------------------------------------------------------------------


def seconds_a_clip(run: Run, model: VideoModel, clips: Sequence[Clip]) -> float:
    """Of features as the recipe takes them: gradients that are held, and the projection."""
    a = run.attribution
    projected = ProjectedGradients(
        model.trained, Projection(a.projection.kind, a.projection.dim, a.projection.seed), a.hold
    )
    start = time.perf_counter()
    for clip in clips:
        take_clip(projected, model, [Setting(mask="none")], clip.latent, clip.conditioning, None, run.seed)
    projected.collect()
    seconds = time.perf_counter() - start
    projected.close()
    return seconds / len(clips)


def costs(run: Run, by_title: dict[str, VideoModel], clips: Sequence[Clip], rounds: int) -> list[dict[str, Any]]:
    """Turn by turn; medians."""
    seconds: dict[str, list[float]] = {title: [] for title in by_title}
    for turn in range(rounds + 1):
        for title, model in by_title.items():
            pace = seconds_a_clip(run, model, clips)
            if turn:  # the first is to warm up
                seconds[title].append(pace)
    rows: list[dict[str, Any]] = []
    for title, model in by_title.items():
        count, median = counted(model), statistics.median(seconds[title])
        held_bytes = 4 * count * run.attribution.hold
        rows.append({"what": title, "numbers": count, "seconds_a_clip": median, "held_bytes": held_bytes})
    return rows


# --- the benchmark ----------------------------------------------------------------------------------------------------


def measure(run: Run, count: int, asked: int, warm_ups: Sequence[WarmUp], rounds: int) -> dict[str, Any]:
    base = open_model(run.model, CPU)
    clips = encoded(run, base, world.corpus(1_000_001, count), masked=False)
    queries = [c for c in encoded(run, base, world.queries(1_000_002, asked), masked=True) if c.mask is not None]
    print(f"{len(clips)} clips, {len(queries)} queries", flush=True)
    restrict(base.trained, ".*", base.family.idle)
    truth = scores(run, base, clips, queries)
    rows, timed = [_row(WHOLE, base, fidelity(truth, truth))], {WHOLE: base}
    attention = open_model(run.model, CPU)
    restrict(attention.trained, ATTENTION, attention.family.idle)
    rows.append(_row(f"control: {ADAPTED}", attention, fidelity(truth, scores(run, attention, clips, queries))))
    timed[ADAPTED] = attention
    for how in warm_ups:
        with tempfile.TemporaryDirectory() as folder:
            warmed_up(run, clips, how, run.seed, folder)
            model = with_adapters(run, folder)
        rows.append(_row(how.title, model, fidelity(truth, scores(run, model, clips, queries))))
        timed[f"adapters of rank {how.rank}"] = model
    of_costs = costs(run, timed, clips[: 2 * run.attribution.hold], rounds)
    return {"clips": len(clips), "queries": len(queries), "rows": rows, "costs": of_costs}


def _row(title: str, model: VideoModel, figures: dict[str, dict[str, float]]) -> dict[str, Any]:
    spearman = ", ".join(f"{way} {of_way['spearman']:.3f}" for way, of_way in figures.items())
    print(f"{title}: {spearman}", flush=True)
    return {"what": title, "numbers": counted(model), "fidelity": figures}


def counted(model: VideoModel) -> int:
    return sum(p.numel() for p in model.trained.parameters() if p.requires_grad)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few clips, one short warm-up")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)  # small tensors: more threads only wait for one another
    hardware, start, run = machine(), time.monotonic(), config.load("demo")
    print_machine(hardware)
    figures = measure(run, 40, 1, (WarmUp(4, 4),), 1) if quick else measure(run, CLIPS, QUERIES, WARM_UPS, 3)
    print("\nagainst influence by the unprojected gradients of every parameter\n")
    for way in ("cosine", "cosine, projected", "whitened", "whitened, projected"):
        print(f"{way}:")
        print_table(
            ["gradients of", "numbers", "Spearman", "lowest to highest query", "top tenth", "chosen tenth"],
            [_cells(row, way) for row in figures["rows"]],
        )
    print_table(
        ["features of", "numbers", "s a clip", "bytes of held gradients"],
        [
            [c["what"], f"{c['numbers']:,}", f"{c['seconds_a_clip']:.4f}", f"{c['held_bytes']:,}"]
            for c in figures["costs"]
        ],
    )
    seconds = round(time.monotonic() - start, 1)
    print_json({"benchmark": "adapters", "machine": hardware, "seconds": seconds, **figures})


def _cells(row: dict[str, Any], way: str) -> list[str]:
    of_way = row["fidelity"][way]
    return [
        str(row["what"]),
        f"{row['numbers']:,}",
        f"{of_way['spearman']:.3f}",
        f"{of_way['lowest']:.2f} to {of_way['highest']:.2f}",
        f"{of_way['top_tenth']:.0%}",
        f"{of_way['chosen_tenth']:.0%}",
    ]


if __name__ == "__main__":
    main()
