"""A planted answer: re-shot copies of the queries lie in the corpus, and ranking must find them.

Retrieval flatters: a mask alone, or a model that learned nothing, finds copies too, because copies share the place of
the mask. So their figures are printed beside, and nothing is claimed from this test but that the chain from frames to
ranking is connected the right way round.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pipeline import config, models, motion
from pipeline.attribution.gradients import ProjectedGradients, take_clip
from pipeline.config.attribution import Setting
from pipeline.models import VideoModel, open_model
from pipeline.projection import Projection
from pipeline.ranking import influence, unit_settings
from pipeline.synthetic import world

CORPUS, COPIES = 30, 5


def reshot(scene: world.Scene) -> world.Scene:
    """The same motion at the same place with another background: what a second camera would have filmed."""
    other = world.scene(99, scene.name, "real", scene.motion)
    return replace(scene, name=f"{scene.name}-copy", background=other.background)


def auc(scores: npt.NDArray[np.float32], planted: npt.NDArray[np.bool_]) -> float:
    """Chance that a query's own copy scores above another clip: scores [N, Q], planted [N, Q]."""
    wins = [
        float((scores[planted[:, q], q][:, None] > scores[~planted[:, q], q]).mean()) for q in range(scores.shape[1])
    ]
    return float(np.mean(wins))


def features(
    model: VideoModel, videos: list[npt.NDArray[np.uint8]], masks: list[torch.Tensor]
) -> npt.NDArray[np.float32]:
    gradients = ProjectedGradients(model.trained, Projection(), hold=len(videos))
    text = model.text("")
    for frames, mask in zip(videos, masks, strict=True):
        take_clip(gradients, model, [Setting()], model.encode(frames, 8.0)["latent"], text, mask, seed=0)
    projected_gradients = gradients.collect()[0].numpy()
    gradients.close()
    return unit_settings(projected_gradients, 1)


def test_ranking_finds_planted_copies(capsys: pytest.CaptureFixture[str]) -> None:
    run = config.load("demo")
    queries = [s for s in world.queries(21, 1) if s.motion in ("bounce", "explode", "roll", "slide", "swing")][:COPIES]
    others = [s for s in world.corpus(22, 2 * CORPUS) if s.motion][:CORPUS]
    scenes = [*queries, *map(reshot, queries), *others]
    videos = [world.render(s, 32, 32) for s in scenes]
    exact = [torch.from_numpy(world.flow(s, 128, 128)).permute(0, 3, 1, 2) for s in scenes]
    motion_masks = [motion.motion_mask(flow, run.motion, models.Grid((1, 2, 2, 2, 2), 8, 8)) for flow in exact]
    masks = [mask if mask is not None else torch.zeros(5, 8, 8) for mask in motion_masks]
    planted = np.zeros((COPIES + CORPUS, COPIES), bool)
    planted[np.arange(COPIES), np.arange(COPIES)] = True

    trained = open_model(run.model, torch.device("cpu"))
    random = open_model(run.model, torch.device("cpu"))
    torch.manual_seed(0)
    for parameter in random.trained.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    flat = torch.stack(masks).flatten(1).numpy()
    ours, theirs = features(trained, videos, masks), features(random, videos, masks)
    figures = {
        "plain cosine": auc(influence(ours[COPIES:], ours[:COPIES]), planted),
        "whitened": auc(influence(ours[COPIES:], ours[:COPIES], whiten=0.01), planted),
        "control, random-init model": auc(influence(theirs[COPIES:], theirs[:COPIES]), planted),
        "control, overlap of the masks alone": auc(influence(flat[COPIES:], flat[:COPIES]), planted),
    }
    with capsys.disabled():
        print("\n" + "\n".join(f"  AUC of planted copies, {name}: {value:.3f}" for name, value in figures.items()))
    assert figures["plain cosine"] > 0.85, f"planted copies are not found: {figures}"
    assert figures["whitened"] > 0.85, f"planted copies are not found: {figures}"
