"""The quality benchmark: its pieces against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jobs.benchmarks.quality import counterfactual, datamodel, influences, kernels, problem, retraining, retrieval
from jobs.benchmarks.quality.metagradient import Differentiable, Problem
from jobs.benchmarks.quality.problem import Clips, Size
from pipeline.ranking import influence
from pipeline.synthetic import world

TINY = Size(clips=24, queries=1, held_out=1)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clips, Clips]:
    """A few clips, and one query of each motion."""
    folder = tmp_path_factory.mktemp("encoded")
    for name in ("clips", "queries"):
        problem.encode(TINY.scenes(name), f"{folder}/{name}")
    return problem.load((f"{folder}/clips",)), problem.load((f"{folder}/queries",))


def test_a_kernel_is_the_product_of_whole_gradients(sets: tuple[Clips, Clips]) -> None:
    clips, queries = sets
    model = retraining.fresh()
    found = dict(kernels.grams(model, clips, queries, 751.0, 0))
    assert set(kernels.PAIRS) - {"projected"} < set(found), "every pair has a kernel"
    near = np.corrcoef(found["gaussian-4096"][0].ravel(), found["motion"].sum(0).ravel())[0, 1]
    assert near > 0.99, "products of projections are products of gradients, nearly"
    parameters = list(model.transformer.parameters())
    noise = kernels.shared_noise(0, 0, tuple(clips.latent.shape[1:]))
    rows = []
    for n in (0, 3):
        errors = kernels.loss_map(model, clips.latent[n][None], clips.text[n][None], torch.tensor([751.0]), noise[None])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(errors.mean(), parameters)]))
    assert found["none"].sum(0)[0, 3] == pytest.approx(float(rows[0] @ rows[1]), rel=1e-4)
    still = np.flatnonzero(~clips.moving)
    assert len(still), "this corpus has still clips"
    assert not found["motion"][:, still].any(), "a clip without motion has no masked gradient"


def test_influence_from_a_kernel_is_that_from_features() -> None:
    rng = np.random.default_rng(0)
    clips, queries = rng.standard_normal((30, 8)), rng.standard_normal((4, 8))
    unit = np.concatenate([clips, queries])
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    for whiten in (None, 0.01):
        found = influences.influence(unit @ unit.T, 30, whiten, np.ones(30, bool))
        wanted = influence(clips.astype(np.float32), queries.astype(np.float32), whiten=whiten)
        np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-5)


def test_subsets_do_not_depend_on_their_number_and_skewed_ones_are_skewed(sets: tuple[Clips, Clips]) -> None:
    clips, _ = sets
    for design in ("skewed", "uniform"):
        few, many = (datamodel.subsets(clips, design, n) for n in (2, 5))  # type: ignore[arg-type]
        assert all((a == b).all() for a, b in zip(few, many, strict=False))
        assert all(len(set(rows.tolist())) == len(rows) for rows in many)


def test_lds_is_one_for_the_truth_and_none_for_noise() -> None:
    rng = np.random.default_rng(1)
    gain = rng.standard_normal((80, 5)) + rng.standard_normal((80, 1))
    for specific in (False, True):
        assert datamodel.lds(gain, gain, specific).value == pytest.approx(1.0)
        noise = datamodel.lds(rng.standard_normal((80, 5)), gain, specific)
        assert noise.low < 0 < noise.high
    common = gain.mean(1, keepdims=True).repeat(5, 1) + 1e-9 * rng.standard_normal((80, 5))
    assert datamodel.lds(common, gain, False).value > 0.5
    assert abs(datamodel.lds(common, gain, True).value) < 0.2, "what all motions share is not target-specific"


def test_auc_counts_pairs() -> None:
    above, below = np.array([1.0, 2.0, 2.0]), np.array([0.0, 2.0])
    pairs = [(a > b) + 0.5 * (a == b) for a in above for b in below]
    assert retrieval.auc(above, below) == pytest.approx(np.mean(pairs))


def test_arms_differ_in_their_clips_alone(sets: tuple[Clips, Clips]) -> None:
    clips, queries = sets
    rng = np.random.default_rng(2)
    by = counterfactual.Influences(*(rng.standard_normal((24, 10)) for _ in range(5)))
    of = {
        arm: counterfactual.chosen(arm, clips, queries, world.MOTIONS, "spin", by, 0)
        for arm in counterfactual.ARMS
        if arm != "oracle"
    }
    tenth = max(1, round(0.1 * clips.moving.sum()))
    assert all(len(of[arm].weights) == tenth for arm in ("random", "magnitude", "motive", "no_mask", "best"))
    assert len(of["all"].weights) == 24 > len(of["all_minus_harmful"].weights)
    assert all(weight > 0 for _, weight in of["weighted"].weights)


def test_the_metagradient_is_the_derivative_of_the_trained_loss(sets: tuple[Clips, Clips]) -> None:
    clips, queries = sets
    found = Differentiable(retraining.fresh(), Problem(clips, rows=(0, 1, 2, 3), steps=2, batch=4, learning_rate=1e-3))
    rows, timesteps = list(queries.of("spin")), (501.0,)
    states = found.trained(torch.ones(4))
    influence = found.influence(states, queries, rows, timesteps)

    def loss(weights: torch.Tensor) -> float:
        with torch.no_grad():
            return float(found.target(found.trained(weights)[-1][0], queries, rows, timesteps).double())

    step = 0.01  # with 0.05 the loss is no straight line
    for n in range(2):
        at = torch.zeros(4)
        at[n] = step
        numeric = -(loss(torch.ones(4) + at) - loss(torch.ones(4) - at)) / (2 * step)
        assert float(influence[n]) == pytest.approx(numeric, rel=0.05, abs=2e-6)
