"""Checks of a configuration that need the model's."""

from __future__ import annotations

import pytest

from pipeline import config
from pipeline.attribution import fingerprints
from pipeline.errors import ConfigError


def test_sides_that_the_model_cannot_generate_are_refused_where_it_shall_generate() -> None:
    """The demo's transformer takes multiples of 8; generation failed at the end of a run, with those of 16 alone."""
    eights = {"data.height": 40, "data.width": 40}
    with pytest.raises(ConfigError, match=r"data\.height=40: the model takes multiples of 16; use 32 or 48"):
        fingerprints.check_geometry(config.load("demo", eights))
    fingerprints.check_geometry(config.load("demo", {**eights, "evaluate.generate": 0}))
    fingerprints.check_geometry(config.load("demo", {"attribution.height": 24, "attribution.width": 40}))
