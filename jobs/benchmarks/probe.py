"""Do the video model's own middle layers tell lawful motion from spoiled? A linear probe, on corpora of the synthetic
world.

The probe learns queries against their twins: the same frames in another order (`video/looks.py`). It sees the states
of one layer and how much they change from one latent frame to the next, averaged over places, at two noise levels. It
is then asked about twins of motions that it has not seen, and whether real clips come before cartoons, which no twin is
like. Controls: the same of a model that has learnt nothing, and of the latents. Means are over corpora, with Student's
95 % interval. The last line is JSON.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from jobs.benchmarks.ceilings import machine, print_json, print_machine, print_table
from jobs.benchmarks.quality.retrieval import auc
from pipeline import config
from pipeline.config import Run
from pipeline.models import VideoModel, open_model
from pipeline.models.conditioning import batched, split
from pipeline.models.loss import shared_noise
from pipeline.ranking.lawfulness import named_group
from pipeline.statistics.intervals import student
from pipeline.synthetic import world
from pipeline.synthetic.world import Scene
from pipeline.video.looks import TWINS, twin

SEEDS = (340, 350, 360, 370)  # of corpora on which nothing was chosen
CLIPS, QUERIES = 200, 10
TIMES = (401.0, 601.0)
RIDGE = 10.0  # on standardised states

Floats = npt.NDArray[np.float64]
Frames = npt.NDArray[np.uint8]
Describe = Callable[[Frames, str], Floats]


@dataclass(frozen=True)
class Probe:
    """A ridge regression of +1 (as it is) and -1 (a twin) on standardised states."""

    mean: Floats
    spread: Floats
    weights: Floats

    @classmethod
    def taught(cls, states: Floats, labels: Floats) -> Probe:
        mean, spread = states.mean(0), np.maximum(states.std(0), 1e-6)
        x = (states - mean) / spread
        gram = x @ x.T + RIDGE * np.eye(len(x))
        return cls(mean, spread, x.T @ np.linalg.solve(gram, labels - labels.mean()))

    def scores(self, states: Floats) -> Floats:
        return ((states - self.mean) / self.spread) @ self.weights


def pooled_states(run: Run, model: VideoModel) -> Describe:
    """A video and its caption -> the pooled states of the model's middle block."""
    blocks = model.blocks(model.trained)
    outputs: list[Tensor] = []

    def keep(block: nn.Module, given: object, output: Tensor | tuple[Tensor, ...]) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    blocks[len(blocks) // 2].register_forward_hook(keep)

    @torch.no_grad()
    def describe(frames: Frames, caption: str) -> Floats:
        outputs.clear()
        latent, given = split(model.encode(frames, run.data.fps))
        conditioning = batched([{**given, **model.text(caption)}])
        noise = shared_noise(run.seed, 0, tuple(latent.shape))  # type: ignore[arg-type]
        for t in TIMES:
            moment = torch.tensor([t])
            model.predict(model.schedule.noised(latent[None], noise[None], moment), moment, conditioning)
        return torch.cat([_pooled(state[0].unflatten(0, (latent.shape[1], -1))) for state in outputs]).double().numpy()

    return describe


def pooled_latents(run: Run, model: VideoModel) -> Describe:
    """A video -> its pooled latent."""

    def describe(frames: Frames, caption: str) -> Floats:
        latent, _ = split(model.encode(frames, run.data.fps))
        return _pooled(latent.flatten(2).permute(1, 2, 0)).double().numpy()

    return describe


def _pooled(states: Tensor) -> Tensor:
    """Means over places, of states [frames, places, width] and of the sizes of their changes."""
    return torch.cat([states.mean(1).flatten(), states.diff(dim=0).abs().mean(1).flatten()])


def forgotten(model: VideoModel) -> VideoModel:
    """The model with random weights of the same spread."""
    blank = copy.copy(model)
    blank.trained = copy.deepcopy(model.trained)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in blank.trained.parameters():
            spread = parameter.std().nan_to_num() if parameter.numel() > 1 else torch.tensor(1.0)
            parameter.copy_(parameter.mean() + spread * torch.randn(parameter.shape, generator=generator))
    return blank


def figures(run: Run, describe: Describe, seed: int, clips: int, queries: int) -> dict[str, float]:
    """Of a corpus: AUC of queries above their twins, of motions that the probe has not seen, for each kind of twin and
    on average; and of real clips above cartoons of their motion."""

    def shown(scene: Scene) -> Frames:
        return world.render(scene, run.data.height, run.data.width)

    asked = world.queries(seed + 2, queries, run.data.frames)
    motions = np.array([scene.motion for scene in asked])
    real = np.stack([describe(shown(scene), scene.caption) for scene in asked])
    twins = {
        name: np.stack([describe(twin(shown(scene), name, scene.name), scene.caption) for scene in asked])
        for name in TWINS
    }
    of_twins: dict[str, list[float]] = {name: [] for name in TWINS}
    for motion in dict.fromkeys(motions.tolist()):
        unseen = motions == motion
        probe = _taught(real[~unseen], [states[~unseen] for states in twins.values()])
        for name, states in twins.items():
            of_twins[name].append(auc(probe.scores(real[unseen]), probe.scores(states[unseen])))
    probe = _taught(real, list(twins.values()))
    means = {name: float(np.mean(areas)) for name, areas in of_twins.items()}
    means["all twins"] = float(np.mean(list(means.values())))
    return {**means, "cartoons": _over_cartoons(run, describe, probe, seed, clips)}


def _taught(real: Floats, twins: Sequence[Floats]) -> Probe:
    states = np.concatenate([real, *twins])
    return Probe.taught(states, np.where(np.arange(len(states)) < len(real), 1.0, -1.0))


def _over_cartoons(run: Run, describe: Describe, probe: Probe, seed: int, clips: int) -> float:
    scores: dict[tuple[str, str], list[float]] = {}
    for scene in world.corpus(seed + 1, clips, run.data.frames):
        motion = named_group(scene.caption, list(world.CARTOONS))
        if motion is not None and scene.kind in ("real", "cartoon"):
            states = describe(world.render(scene, run.data.height, run.data.width), scene.caption)
            scores.setdefault((motion, scene.kind), []).append(float(probe.scores(states[None])[0]))
    pairs = [(scores.get((m, "real")), scores.get((m, "cartoon"))) for m in world.CARTOONS]
    return float(np.mean([auc(np.array(real), np.array(cartoon)) for real, cartoon in pairs if real and cartoon]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two small corpora")
    seeds, clips, queries = (SEEDS[:2], 60, 2) if parser.parse_args().quick else (SEEDS, CLIPS, QUERIES)
    torch.set_num_threads(1)
    hardware, start, run = machine(), time.monotonic(), config.load("demo")
    print_machine(hardware)
    model = open_model(run.model, torch.device("cpu"))
    kinds: Mapping[str, Describe] = {
        "the model's middle layer": pooled_states(run, model),
        "control: a model that has learnt nothing": pooled_states(run, forgotten(model)),
        "control: latents": pooled_latents(run, model),
    }
    areas = {
        name: {seed: figures(run, describe, seed, clips, queries) for seed in seeds} for name, describe in kinds.items()
    }
    columns = list(next(iter(areas["control: latents"].values())))
    print_table(["probe on", *columns], [[name, *_cells(of_kind, columns)] for name, of_kind in areas.items()])
    seconds = round(time.monotonic() - start, 1)
    print_json({"benchmark": "probe", "machine": hardware, "seconds": seconds, "auc": areas})


def _cells(of_kind: Mapping[int, Mapping[str, float]], columns: Sequence[str]) -> list[str]:
    intervals = [student([of_corpus[column] for of_corpus in of_kind.values()]) for column in columns]
    return [f"{i.mean:.2f} [{i.low:.2f}, {i.high:.2f}]" for i in intervals]


if __name__ == "__main__":
    main()
