"""The benchmark of lawfulness: its scores, and its short form."""

from __future__ import annotations

import json
import sys

import pytest

from jobs.benchmarks import lawfulness
from pipeline.ranking.lawfulness import named_group
from pipeline.synthetic import world


def test_an_auc_is_of_one_motion() -> None:
    rows = [
        {"motion": "roll", "kind": kind, "distance": d} for kind, d in (("cartoon", 3.0), ("real", 1.0), ("real", 4.0))
    ]
    rows += [{"motion": "spin", "kind": "cartoon", "distance": 0.0}]  # no real one to hold it against
    assert lawfulness.by_motion(rows, "distance") == {"roll": 0.5}


def test_what_is_called_unlawful_is_counted() -> None:
    rows = [{"kind": k, "quantile": q} for k, q in (("cartoon", 0.02), ("cartoon", 0.5), ("real", 0.05), ("real", 0.9))]
    assert lawfulness.called(rows) == (4, 2, 2, 1)


def test_captions_of_both_worlds_name_the_motion_of_every_moving_clip() -> None:
    for cells in lawfulness.CORPORA.values():
        clips, _ = cells[0].scenes()
        for clip in clips:
            assert named_group(clip.caption, world.MOTIONS) == (clip.motion or None), clip.caption
        assert {clip.kind for clip in clips} >= {"real", "cartoon"}


@pytest.mark.benchmark
def test_the_short_form_tells_cartoons(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["lawfulness", "--quick"])
    lawfulness.main()
    worlds = json.loads(capsys.readouterr().out.splitlines()[-1])["worlds"]
    assert list(worlds) == list(lawfulness.CORPORA)
    for printed in worlds.values():
        assert len(printed["auc"]["distance"]) == len(printed["called"]) == len(printed["flaws"]) == 2
    means = [sum(of.values()) / len(of) for of in worlds["the training world"]["auc"]["distance"].values()]
    assert min(means) > 0.65, means
