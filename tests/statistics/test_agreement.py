"""Krippendorff's alpha: the published example, its bounds, and what has no agreement."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.statistics.agreement import nominal

PEOPLE = (  # Krippendorff 2011, section C: four observers, twelve units, missing values
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
)


def test_the_published_example() -> None:
    columns = zip(*(row.split() for row in PEOPLE), strict=True)
    agreement = nominal([[said.count(value) for value in "12345"] for said in columns])
    assert agreement is not None
    assert agreement.alpha == pytest.approx(0.743, abs=5e-4)
    assert agreement.low is not None
    assert agreement.high is not None
    assert agreement.low < 0.743 < agreement.high <= 1


def test_chance_is_zero_and_unanimity_is_one() -> None:
    rng = np.random.default_rng(0)
    said = rng.choice(3, size=(400, 17), p=[0.6, 0.1, 0.3])
    counts = np.stack([(said == value).sum(1) for value in range(3)], 1)
    agreement = nominal(counts)
    assert agreement is not None
    assert agreement.alpha == pytest.approx(0, abs=0.01)
    assert agreement.agreed == pytest.approx(0.6**2 + 0.1**2 + 0.3**2, abs=0.02)
    assert nominal([[5, 0, 0], [0, 0, 5], [5, 0, 0]]) == (1, 1, 1, 1)


def test_where_there_is_nothing_to_agree_on() -> None:
    assert nominal([[1, 0, 0], [0, 1, 0]]) is None, "one person alone"
    agreement = nominal([[3, 0, 0], [4, 0, 0]])
    assert agreement == (1, None, None, None), "all said the same of everything: alpha is not defined"
