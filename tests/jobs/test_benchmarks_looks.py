"""The benchmark of motion against looks: its yardsticks on answers that are known, and its short form."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.benchmarks.looks import __main__ as job
from jobs.benchmarks.looks import gradients, lift
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
    found = lift.yardsticks(same, known)
    assert found["motion"] == pytest.approx(0.8)  # four of the nearest five: there are no more
    assert found["motion_lift"] == pytest.approx(8)
    assert found["group_auc"] == 1
    assert found["first_ten"] == pytest.approx(0.4)
    assert found["colour_lift"] < 2
    chance = lift.yardsticks(np.random.default_rng(0).standard_normal(same.shape), known)
    assert chance["motion_lift"] < 2.5


def test_a_score_that_knows_the_colour_has_its_lift() -> None:
    known = corpus()
    colours = [[video.scene.caption.split()[1] for video in side] for side in (known.clips, known.queries)]
    same = np.array([[a == b for b in colours[1]] for a in colours[0]], np.float64)
    found = lift.yardsticks(same, known)
    assert found["colour_lift"] > 3 > found["motion_lift"]


@pytest.mark.slow
def test_the_short_form_compares_every_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["looks", "--quick", "--folder", str(tmp_path)])
    monkeypatch.setattr(job, "SMALL", ((200, 210), 12, 1))
    monkeypatch.setattr(gradients, "LOOKS", 2)
    job.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]
    assert len(figures) > 15
    assert all(len(of[key]) == 2 for of in figures.values() for key in lift.YARDSTICKS)
    assert figures["control: words of the caption"]["motion_lift"][0] > 2
