"""The benchmark of motion against looks: its yardsticks on answers that are known, its rules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.benchmarks import unlearning
from jobs.benchmarks.looks import both_sides, changes, gradients, lift, rules
from jobs.benchmarks.looks import unlearning as of_corpora
from jobs.benchmarks.looks.gradients import Cell
from pipeline import config
from pipeline.models import open_model
from pipeline.motion import colours, judge
from pipeline.synthetic import world

NONE = np.empty(0, np.float32)


def corpus() -> gradients.Corpus:
    """Forty clips and ten queries that are never decoded."""
    scenes = [world.scene(1, f"c{n}", "real", world.MOTIONS[n % 10]) for n in range(40)]
    sides = [
        [gradients.Video(scene, np.zeros((9, 1, 1, 3), np.uint8), torch.ones(1, 1, 1), NONE, NONE) for scene in side]
        for side in (scenes, world.queries(2, 1))
    ]
    return gradients.Corpus(*sides, NONE, NONE, NONE)  # type: ignore[arg-type]


def test_a_score_that_knows_the_motion_has_all_of_its_lift_and_none_of_the_colours() -> None:
    known = corpus()
    motions = [[video.scene.motion for video in side] for side in (known.clips, known.queries)]
    same = np.array([[a == b for b in motions[1]] for a in motions[0]], np.float64)
    yardsticks = lift.yardsticks(same, known)
    assert yardsticks["motion"] == pytest.approx(0.8)  # four of the nearest five: there are no more
    assert yardsticks["motion_lift"] == pytest.approx(8)
    assert yardsticks["group_auc"] == 1
    assert yardsticks["first_ten"] == pytest.approx(0.4)
    assert yardsticks["colour_lift"] < 2
    chance = lift.yardsticks(np.random.default_rng(0).standard_normal(same.shape), known)
    assert chance["motion_lift"] < 2.5


def test_a_score_that_knows_the_colour_has_its_lift() -> None:
    known = corpus()
    colours = [[video.scene.caption.split()[1] for video in side] for side in (known.clips, known.queries)]
    same = np.array([[a == b for b in colours[1]] for a in colours[0]], np.float64)
    yardsticks = lift.yardsticks(same, known)
    assert yardsticks["colour_lift"] > 3 > yardsticks["motion_lift"]


def test_every_rule_and_control_scores_every_clip_for_every_query() -> None:
    rng, known = np.random.default_rng(0), corpus()
    n, q, k = len(known.clips), len(known.queries), 80
    described = [
        replace(
            video,
            description=rng.standard_normal(judge.NUMBERS).astype(np.float32),
            colours=rng.dirichlet(np.ones(colours.NUMBERS)).astype(np.float32),
        )
        for video in (*known.clips, *known.queries)
    ]
    full = gradients.Corpus(
        described[:n],
        described[n:],
        rng.standard_normal((2, 2, 2, n, k), dtype=np.float32),
        rng.standard_normal((2, 2, q, k), dtype=np.float32),
        rng.standard_normal((3, gradients.LOOKS, q, k), dtype=np.float32),
    )
    shapes = {"background": (8, q, k), "mirrored": (2, q, k), "all": (8, q, k), "twins": (3, changes.FEW, q, k)}
    shapes |= {"words": (q, k), "others": (changes.OTHERS, q, k), "lengths": (n,), "losses": (n,), "latents": (n, q)}
    changed = changes.Changes(**{name: rng.standard_normal(of, dtype=np.float32) for name, of in shapes.items()})
    sides = {"clips": (4, n, k), "backwards": (n, k), "untrained_clips": (4, n, k), "untrained_queries": (8, q, k)}
    of_both = {name: rng.standard_normal(of, dtype=np.float32) for name, of in sides.items()}
    names = []
    forward = rules.forward_only(rng.standard_normal((2, n, q), dtype=np.float32))
    of_changes, controls = rules.changed(full, changed), rules.controls(full, changed)
    on_both = rules.on_both_sides(full, changed, both_sides.BothSides(**of_both))
    for name, scores in (*rules.rules(full), *of_changes, *on_both, *forward, *controls, rules.untrained(full)):
        names.append(name)
        assert scores.shape == (n, q), name
        assert np.isfinite(scores).all(), name
        yardsticks = lift.yardsticks(scores, full)
        assert set(yardsticks) == set(lift.YARDSTICKS), name
    assert len(set(names)) == len(names) == 43


def test_a_motion_is_scored_by_its_queries_together_and_less_the_others() -> None:
    known = corpus()
    scores = np.random.default_rng(0).standard_normal((40, 10))
    np.testing.assert_allclose(lift.together(scores, known), scores, atol=1e-12)  # a motion has one query here
    less = lift.together(scores, known, 1.0)
    np.testing.assert_allclose(less[:, 3], scores[:, 3] - np.delete(scores, 3, 1).mean(1))


def test_looks_are_those_of_the_picture() -> None:
    scene = world.scene(1, "a", "real", "roll")
    mask = torch.zeros(1, 8, 8)
    mask[0, 6, 1] = 1
    video = gradients.Video(scene, np.zeros((9, 1, 1, 3), np.uint8), mask, NONE, NONE)
    assert lift._NAMES["place"](video) == "x-", "below the middle, and left of it"
    assert lift._NAMES["colour"](video) == scene.caption.split()[1]
    assert len(lift._NAMES["background"](video)) == 3


def test_a_twin_of_weight_one_is_the_functional_of_both() -> None:
    rng = np.random.default_rng(0)
    real, twins = rng.standard_normal((4, 3, 9), dtype=np.float32), rng.standard_normal((2, 4, 3, 9), dtype=np.float32)
    both, weighted = rules.over(real, twins, "both"), rules.weighted(real, twins, 1.0)
    np.testing.assert_allclose(
        both / np.linalg.norm(both, axis=1, keepdims=True),
        weighted / np.linalg.norm(weighted, axis=1, keepdims=True),
        atol=1e-5,
    )


def test_directions_of_looks_are_those_in_which_a_query_changes_with_its_look() -> None:
    rng = np.random.default_rng(0)
    colour, real = rng.standard_normal((2, 12)), rng.standard_normal((5, 12))
    real -= real @ np.linalg.pinv(colour) @ colour  # no part of a query itself lies where its looks differ
    seen = real + 0.1 * rng.standard_normal((8, 5, 2)) @ colour
    spanned = rules.directions(replace(corpus(), of_looks=seen[None]), 2)
    np.testing.assert_allclose(spanned @ spanned.T, np.eye(2), atol=1e-6)
    np.testing.assert_allclose(colour - colour @ spanned.T @ spanned, 0, atol=0.1)


@pytest.mark.benchmark
def test_a_model_unlearns_queries_learns_them_and_is_as_it_was(tmp_path: Path) -> None:
    run = config.load("demo", {})
    model = open_model(run.model, torch.device("cpu"))
    videos = list(gradients.measured(run, world.queries(5, 1)[:4]))
    queries = of_corpora.encoded(run, model, videos)
    base = unlearning.losses(model, queries)
    with unlearning.moved(model, queries, [0, 1], 1.0):
        unlearnt = unlearning.losses(model, queries)
    with unlearning.moved(model, queries, [0, 1], -1.0):
        learnt = unlearning.losses(model, queries)
    assert (learnt[0, :2] < base[0, :2]).all()
    assert (base[0, :2] < unlearnt[0, :2]).all()
    np.testing.assert_array_equal(unlearning.losses(model, queries), base)

    still = replace(queries, masks=queries.masks * torch.tensor([0.0, 1, 1, 1])[:, None, None, None])
    by_query = unlearning.differences(model, still, queries, ["", "a", "b", "b"])
    assert np.isnan(by_query[0, 0]).all(), "a clip without motion has no masked loss"
    assert np.isnan(by_query[..., 0]).all(), "a query without a motion is not learnt"
    assert np.isfinite(by_query[0, 1:, 1:]).all()
    assert np.isfinite(by_query[1, :, 1:]).all()

    both = gradients.Corpus(videos, videos, NONE, NONE, NONE)
    differences = of_corpora.differences(both, Cell(5, 4, 1), tmp_path)
    assert differences.shape == (2, len(videos), len(videos))
    assert (differences[0].argmax(0) == np.arange(len(videos))).all()  # each query's own video goes along most


@pytest.mark.benchmark
def test_gradients_are_taken_in_every_look_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "LOOKS", 2)
    monkeypatch.setattr(world, "MOTIONS", world.MOTIONS[:5])
    monkeypatch.setattr(changes, "LOOKS", 2)
    cell = Cell(200, 6, 1, shifted=True, base="slide")
    made = gradients.corpus(cell, tmp_path)
    n, q = len(made.clips), len(made.queries)
    assert made.of_clips.shape == (2, 2, 2, n, gradients.DIM)
    assert made.of_queries.shape == (2, 2, q, gradients.DIM)
    assert made.of_looks.shape == (3, 2, q, gradients.DIM)
    np.testing.assert_allclose(
        made.of_looks[0, 0], made.of_queries[1, 1], rtol=1e-4, atol=1e-6
    )  # look 0 is the query itself
    monkeypatch.setattr(gradients, "_gradients", None)
    again = gradients.corpus(cell, tmp_path)
    np.testing.assert_array_equal(again.of_clips, made.of_clips)
    changed = changes.changes(made, cell, tmp_path)
    for looks in (changed.background, changed.mirrored, changed.all):
        assert looks.shape == (2, q, gradients.DIM)
        np.testing.assert_allclose(looks[0], made.of_looks[0, 0], rtol=1e-4, atol=1e-6)
    assert changed.twins.shape == (3, changes.FEW, q, gradients.DIM)
    assert changed.others.shape == (changes.OTHERS, q, gradients.DIM)
    assert changed.latents.shape == (n, q)
    assert (changed.losses > 0).all()
    np.testing.assert_allclose(
        np.linalg.norm(made.of_clips[0, 1, 1], axis=1), changed.lengths, rtol=0.3
    )  # a projection keeps lengths
    both = both_sides.both_sides(made, cell, tmp_path)
    assert both.clips.shape == (changes.FEW, n, gradients.DIM)
    assert both.backwards.shape == (n, gradients.DIM)
    np.testing.assert_allclose(both.clips[0], made.of_clips[1, 1, 0], rtol=1e-4, atol=1e-6)
    assert not np.allclose(both.untrained_clips[0], both.clips[0], atol=1e-3)
