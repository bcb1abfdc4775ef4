"""The probe finds what states tell, of motions that it has not seen, and nothing where they tell nothing."""

from __future__ import annotations

import numpy as np
import torch

from jobs.benchmarks import probe
from pipeline import config
from pipeline.models import open_model
from pipeline.synthetic import world


def test_a_probe_tells_what_is_linear_in_the_states_and_nothing_of_noise() -> None:
    rng = np.random.default_rng(0)
    labels = np.where(np.arange(200) < 100, 1.0, -1.0)
    informative = rng.normal(size=(200, 40))
    informative[:, 3] += labels
    half = rng.permutation(200) < 100
    for states, low, high in ((informative, 0.7, 1.0), (rng.normal(size=(200, 40)), 0.3, 0.7)):
        scores = probe.Probe.taught(states[half], labels[half]).scores(states[~half])
        above, below = scores[labels[~half] > 0], scores[labels[~half] < 0]
        assert low < probe.auc(above, below) <= high


def test_states_of_the_model_are_of_its_middle_block_and_of_its_weights() -> None:
    run = config.load("demo")
    model = open_model(run.model, torch.device("cpu"))
    describe, blank = probe.pooled_states(run, model), probe.pooled_states(run, probe.forgotten(model))
    scene = world.queries(1, 1, run.data.frames)[0]
    frames = world.render(scene, run.data.height, run.data.width)
    states = describe(frames, scene.caption)
    width = model.trained.config.num_attention_heads * model.trained.config.attention_head_dim  # type: ignore[union-attr]
    latents = 5
    assert states.shape == (len(probe.TIMES) * (latents + latents - 1) * width,)
    assert np.array_equal(states, describe(frames, scene.caption))
    assert not np.allclose(states, describe(frames[::-1].copy(), scene.caption))
    assert not np.allclose(states, blank(frames, scene.caption))
    assert np.array_equal(states, describe(frames, scene.caption)), "the blank model changed the other"


def test_every_kind_of_twin_and_cartoons_have_an_area() -> None:
    run = config.load("demo")
    model = open_model(run.model, torch.device("cpu"))
    areas = probe.figures(run, probe.pooled_latents(run, model), 5, 30, 1)
    assert set(areas) == {*probe.TWINS, "all twins", "cartoons"}
    assert all(0 <= area <= 1 for area in areas.values())
