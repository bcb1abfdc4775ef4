"""The benchmark of generated motion: what its arms are made of, its means and differences, and its short form."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.benchmarks import generated_laws
from jobs.benchmarks.generated_laws import QUICK, Camera, Corpus, Measured
from pipeline import config
from pipeline.synthetic import world


@pytest.fixture(scope="module")
def camera() -> Camera:
    return Camera(config.load("demo"))


@pytest.fixture(scope="module")
def corpus(camera: Camera) -> Corpus:
    return generated_laws.corpus(50, replace(QUICK, motions=("slide",), clips=3), camera)


def test_arms_leave_out_what_they_say(corpus: Corpus) -> None:
    cartoon = corpus.clips.kinds == "cartoon"
    assert cartoon.sum() == 3
    arms = generated_laws.arms(corpus)
    halves = [name for name in arms if "half" in name] + ["cartoons"]
    assert {len(arms[name]) for name in halves} == {3}
    assert not cartoon[arms["real half"]].any()
    assert cartoon[arms["cartoons"]].all()
    # Cartoons of sliding jump from stop to stop, which no other clip does.
    assert arms["all but the least lawful half"].tolist() == arms["real half"].tolist()
    assert len(arms["all but the unlawful"]) == len(arms["all but as many at random"])


def test_a_rendered_video_is_lawful_and_its_cartoon_is_not(camera: Camera, corpus: Corpus) -> None:
    right, wrong = (
        camera.measured(camera.rendered(some[0]), "slide", corpus) for some in (corpus.scenes, corpus.twins)
    )
    assert corpus.scenes[0].caption == corpus.twins[0].caption
    assert (right.lawful, wrong.lawful) == (1.0, 0.0)
    assert right.margin > 0 > wrong.margin
    assert right.deviation < wrong.deviation


def test_means_are_over_motions_and_leave_out_laws_that_are_not_known() -> None:
    scenes = [world.scene(1, f"{n}", "real", name) for n, name in enumerate(("slide", "slide", "roll"))]
    rows = [Measured(1, 1.0, 2.0, 0.5, 1.0), Measured(0, 0.0, 4.0, 1.5, 1.0), Measured(1, 0.5, 1.0, math.nan, 3.0)]
    table = {"measures": generated_laws.by_motion(scenes, rows)}
    assert "deviation" not in table["measures"]["roll"]
    expected = {"lawful": 0.75, "margin": 0.5, "distance": 2.0, "deviation": 1.0, "amount": 2.0}
    assert generated_laws.overall([table]) == pytest.approx(expected)


def test_differences_are_of_arms_of_one_corpus() -> None:
    def arm(value: float, loss: float) -> dict[str, object]:
        return {"measures": {"slide": dict.fromkeys(generated_laws.MEASURES, value)}, "loss": loss}

    corpora = [{"a": arm(3.0, 1.1), "b": arm(1.0, 1.0)}, {"a": arm(8.0, 0.9), "b": arm(7.0, 1.0)}]
    differences = generated_laws.contrasts(corpora, "a", "b")
    assert differences["margin"] == [2.0, 1.0]
    assert differences["loss"] == pytest.approx([0.1, -0.1])


@pytest.mark.benchmark
def test_the_short_form_measures_every_arm_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["generated_laws", "--quick", "--folder", str(tmp_path)])
    generated_laws.main()
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(printed["corpora"]) == 2
    for table in printed["corpora"].values():
        assert {"rendered real clips", "rendered cartoons", "base", "real half", "cartoons"} < set(table)
    monkeypatch.setattr(generated_laws, "figures", lambda *_: pytest.fail("computed again"))
    generated_laws.main()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["corpora"] == printed["corpora"]
