"""The probe finds what states tell, of what its lesson left out, and nothing where they tell nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from jobs.benchmarks.looks.gradients import Cell
from jobs.benchmarks.probe import __main__ as command
from jobs.benchmarks.probe import areas, ridge, states
from jobs.benchmarks.probe.areas import ALL, LEFT_OUT, TOGETHER, Kind
from jobs.benchmarks.quality.retrieval import auc
from jobs.benchmarks.untrained import with_random_weights
from pipeline import config
from pipeline.models import open_model
from pipeline.synthetic import world
from pipeline.video.looks import TWINS

VERSIONS = 1 + len(TWINS)
LAYER = ("a model", 0)


def test_a_probe_tells_what_is_linear_in_the_states_and_nothing_of_noise() -> None:
    rng = np.random.default_rng(0)
    labels = np.where(np.arange(200) < 100, 1.0, -1.0)
    linear = rng.normal(size=(200, 40))
    linear[:, 3] += 2 * labels
    half = rng.permutation(200) < 100
    for of, low, high in ((linear, 0.7, 1.0), (rng.normal(size=(200, 40)), 0.3, 0.7)):
        scores = ridge.Probe(of[half], labels[half], 0.1).scores(of[~half])
        assert low < auc(scores[labels[~half] > 0], scores[labels[~half] < 0]) <= high


@pytest.mark.parametrize("width", [7, 90])
def test_scores_of_what_is_left_out_are_those_of_a_probe_taught_on_the_rest(width: int) -> None:
    rng = np.random.default_rng(width)
    of, labels = rng.normal(size=(60, width)) + 3, np.tile([1.0, -1.0, -1.0], 20)
    left_out = np.repeat(np.arange(20) < 6, 3)
    probe = ridge.Probe(of, labels, 0.2)
    x = np.column_stack([(of - of.mean(0)) / of.std(0), np.ones(60)])
    penalties = 0.2 * width * np.diag([*np.ones(width), 0])
    rest, y = x[~left_out], labels[~left_out]
    expected = x[left_out] @ np.linalg.solve(rest.T @ rest + penalties, rest.T @ y)
    np.testing.assert_allclose(probe.scores_without(left_out), expected, atol=1e-10)
    np.testing.assert_allclose(probe.scores_of_its_own(), probe.scores(of), atol=1e-10)


def test_a_fold_asks_about_nothing_that_its_lesson_has() -> None:
    queries = world.queries(1, 20)
    by_name = ridge.folds(queries)
    assert list(by_name) == ["nothing", "clips", "motion", "colour", "outline", "motion and colour"]
    for name, some in by_name.items():
        asked = np.sum([fold.asked for fold in some], axis=0)
        assert (asked == 1).all(), f"{name}: every query is asked about once"
        for fold in some[name == "nothing" :]:
            assert not (fold.asked & ~fold.left_out).any(), name
    for fold in by_name[LEFT_OUT]:
        asked_of = [queries[n] for n in np.flatnonzero(fold.asked)]
        lesson = [queries[n] for n in np.flatnonzero(~fold.left_out)]
        assert len({(scene.motion, scene.caption.split()[1]) for scene in asked_of}) == 1
        assert asked_of[0].motion not in {scene.motion for scene in lesson}
        assert asked_of[0].caption.split()[1] not in {scene.caption.split()[1] for scene in lesson}
    assert {len({queries[n].motion for n in np.flatnonzero(fold.asked)}) for fold in by_name["clips"]} == {10}


def of_states(per_query: states.Array, queries: Sequence[world.Scene]) -> states.States:
    """A corpus of these states [Q, versions, D] of one layer, with clips of noise."""
    clips = [world.scene(1, f"{n}", ("real", "cartoon")[n % 2], world.CARTOONS[n % 7]) for n in range(56)]
    noise = np.random.default_rng(1).normal(size=(len(clips), 1, per_query.shape[-1])).astype(np.float32)
    return states.States(queries, clips, {LAYER: per_query[:, :, None]}, {LAYER: noise})


def test_what_only_a_motion_a_colour_or_a_kind_of_twin_tells_is_not_there_without_it() -> None:
    rng, queries = np.random.default_rng(0), world.queries(1, 20)
    sign = np.where(np.arange(VERSIONS) == 0, 1.0, -1.0)[:, None]
    names = {"motion": [q.motion for q in queries], "colour": [q.caption.split()[1] for q in queries]}
    kind = Kind(LAYER, TOGETHER)
    for look, of_queries in names.items():
        directions = {name: 5 * rng.normal(size=200) / np.sqrt(200) for name in dict.fromkeys(of_queries)}
        own = np.stack([directions[name] for name in of_queries])[:, None] * sign
        measured = areas.areas(of_states((own + rng.normal(size=own.shape)).astype(np.float32), queries), kind, 0.1)
        assert measured.twins["nothing"][ALL] > 0.9
        assert measured.twins["clips"][ALL] > 0.9
        for scheme, of_scheme in measured.twins.items():
            if look in scheme:
                assert 0.3 < of_scheme[ALL] < 0.7, f"{scheme} left out, and what only a {look} tells"
        assert 0.2 < measured.cartoons < 0.8

    unlike = rng.normal(size=(len(queries), VERSIONS, 6))  # of two twins one changes more and the other less
    unlike[:, 1:3, 0] += (-4, 4)
    measured = areas.areas(of_states(unlike.astype(np.float32), queries), kind, 0.1)
    first, second = list(TWINS)[:2]
    assert min(measured.alone[LEFT_OUT][first], measured.alone[LEFT_OUT][second]) > 0.9
    assert min(measured.twins[LEFT_OUT][first], measured.twins[LEFT_OUT][second]) < 0.7
    assert max(measured.alone[LEFT_OUT][other] for other in list(TWINS)[2:]) < 0.7

    everywhere = of_states((sign + rng.normal(size=(len(queries), VERSIONS, 4))).astype(np.float32), queries)
    measured = areas.areas(everywhere, kind, 0.1)
    assert areas.area_left_out(everywhere, kind, 0.1) == pytest.approx(measured.twins[LEFT_OUT][ALL])
    assert min(of[ALL] for of in measured.twins.values()) > 0.9


def test_states_are_of_every_block_and_noise_level_and_of_the_weights() -> None:
    run = config.load("demo")
    model = open_model(run.model, torch.device("cpu"))
    blank = with_random_weights(model)
    reader = states.Reader(run, {"trained": model, "untrained": blank})
    scene = world.queries(1, 1, run.data.frames)[0]
    frames = world.render(scene, run.data.height, run.data.width)
    of = reader.read(frames, scene.caption)
    blocks, width = len(model.blocks(model.trained)), 128
    assert set(of) == {(states.LATENTS, 0), *((name, n) for name in reader.models for n in range(blocks))}
    latents = 5
    for layer in set(of) - {(states.LATENTS, 0)}:
        assert of[layer].shape == (len(states.TIMES), (latents + latents - 1) * width)
    again, backwards = reader.read(frames, scene.caption), reader.read(frames[::-1].copy(), scene.caption)
    for n in range(blocks):
        np.testing.assert_array_equal(of["trained", n], again["trained", n])
        assert not np.allclose(of["trained", n], backwards["trained", n])
        assert not np.allclose(of["trained", n], of["untrained", n])
        assert not np.allclose(of["trained", n][0], of["trained", n][1])
    assert not np.allclose(of["trained", 0], of["trained", 1])
    own = [parameter.detach().clone() for parameter in model.trained.parameters()]
    with_random_weights(model)
    assert all(torch.equal(a, b) for a, b in zip(own, model.trained.parameters(), strict=True))


def test_a_kind_is_of_one_noise_level_or_of_all() -> None:
    of = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_array_equal(Kind(LAYER, "401").of(of), of[:, 1])
    np.testing.assert_array_equal(Kind(LAYER, TOGETHER).of(of), of.reshape(2, 12))
    names = [kind.name for kind in areas.kinds([LAYER, (states.LATENTS, 0)])]
    assert names == [*(f"a model, block 0, {time}" for time in ("201", "401", "601", "all")), "latents"]


def test_a_corpus_has_queries_twins_and_clips_of_motions_that_have_cartoons() -> None:
    run = config.load("demo")
    model = open_model(run.model, torch.device("cpu"))
    of = states.states(states.Reader(run, {"model": model}), Cell(5, 20, 1))
    assert of.of_queries[states.LATENTS, 0].shape[:3] == (10, VERSIONS, 1)
    assert of.of_queries["model", 1].shape[:3] == (10, VERSIONS, len(states.TIMES))
    assert of.of_clips["model", 1].shape[:2] == (len(of.clips), len(states.TIMES))
    assert {clip.motion for clip in of.clips} <= set(world.CARTOONS)


@pytest.mark.benchmark
def test_the_short_form_says_what_it_chose_and_every_layer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["probe", "--quick"])
    command.main()
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    blocks = 4 + 3
    assert len(printed["areas"]) == 2 * 4 * blocks + 1
    assert not set(printed["choosing_seeds"]) & {int(seed) for seed in printed["areas"]["latents"]}
    assert set(printed["best"]) == set(command.MODELS)
    for of_kind in printed["areas"].values():
        for of_corpus in of_kind.values():
            lessons = [*of_corpus["twins"].values(), *of_corpus["alone"].values()]
            assert all(set(of) == {*TWINS, ALL} for of in lessons)
            shares = [of_corpus["cartoons"], *(area for of in lessons for area in of.values())]
            assert all(0 <= share <= 1 for share in shares)
