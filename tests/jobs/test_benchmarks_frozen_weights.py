"""The benchmark of frozen weights of a byte each: its figures are of what it says."""

from __future__ import annotations

import pytest

from jobs.benchmarks import frozen_weights
from jobs.benchmarks.quality.problem import load_base
from pipeline import config
from pipeline.models import open_model


def test_rounding_is_that_of_three_bits_and_of_every_layer() -> None:
    figures = frozen_weights.rounding(open_model(config.load("demo").model, frozen_weights.CPU))
    assert 0.02 < figures["lowest"] <= figures["all"] <= figures["highest"] < 0.04
    assert figures["bytes_fp8"] < 0.4 * figures["bytes_full"]


@pytest.mark.benchmark
def test_both_ways_have_their_figures() -> None:
    figures = frozen_weights.measure(config.load("demo"), load_base, frozen_weights.Lesson(8, 2, 4, 1e-3), 4, 2)
    assert {how: len(losses) for how, losses in figures["losses"].items()} == {"full": 2, "fp8": 2}
    assert figures["losses"]["full"] != figures["losses"]["fp8"], "both ways trained the same model"
    assert figures["difference"]["low"] <= figures["difference"]["mean"] <= figures["difference"]["high"]
    assert all(seconds > 0 for seconds in figures["seconds_a_step"].values())
