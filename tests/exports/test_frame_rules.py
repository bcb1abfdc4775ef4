"""Each trainer's rule reads exactly the ranked frames of an exported clip, and says so where it does not."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.config import load
from pipeline.errors import ConfigError
from pipeline.exports import checks
from pipeline.exports.formats import FORMATS
from pipeline.exports.frame_rules import (
    MODEL_RATES,
    difference,
    diffsynth,
    diffusion_pipe,
    evenly,
    fastvideo,
    ltx_2,
    musubi,
    read_clip,
)

RATES = (8.0, 12.5, 16.0, 23.976, 24.0, 25.0, 29.97, 30.0, 60.0)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("frames", [9, 17, 33, 49, 81, 121, 257])
def test_at_the_clips_own_rate_the_ranked_frames_are_read(name: str, frames: int) -> None:
    layout = FORMATS[name]
    for fps in RATES:
        reading = read_clip(layout.rule, layout.knows_rate, frames, fps, fps)
        assert reading.indices.tolist() == list(range(frames)), f"{name} at {fps}"
        assert reading.speed == pytest.approx(1)
        assert difference(reading, frames) is None


@pytest.mark.parametrize("name", [name for name, layout in FORMATS.items() if not layout.knows_rate])
@pytest.mark.parametrize("fps", [16.0, 24.0, 30.0])
def test_at_another_rate_something_is_said(name: str, fps: float) -> None:
    layout = FORMATS[name]
    for rate in set(MODEL_RATES.values()) - {fps}:
        reading = read_clip(layout.rule, layout.knows_rate, 81, fps, rate)
        assert difference(reading, 81) is not None, f"{name} at {fps} for a model of {rate}"


def test_musubi_skips_frames_and_shows_none_twice() -> None:
    assert musubi(10, 30, 15, 5).tolist() == [0, 2, 4, 6, 8]
    assert musubi(10, 24, 16, 5).tolist() == [0, 2, 3, 5, 6], "two of three, each where a new tick of the model begins"
    assert musubi(9, 16, 24, 9).tolist() == list(range(9)), "it cannot make frames: the model sees them faster"
    assert musubi(10, 16, 16, 7).tolist() == [0, 1, 2, 3, 4], "4 n + 1"
    assert musubi(8, 16, 16, 9).tolist() == [], "too short for its target is passed over"


def test_diffusion_pipe_is_retimed_to_the_models_rate() -> None:
    assert diffusion_pipe(12, 24, 16, 5).tolist() == [0, 1, 3, 4, 6], "8 frames, 11/7 apart"
    assert diffusion_pipe(12, 16, 16, 7).tolist() == [0, 1, 2, 3, 4], "4 n + 1"
    assert diffusion_pipe(81, 24, 16, 81).tolist() == [], "54 frames are no 81"
    assert diffusion_pipe(5, 16, 24, 5).tolist() == [0, 0, 1, 2, 2]


def test_heads_and_squeezers() -> None:
    assert diffsynth(100, 30, 16, 81).tolist() == list(range(81)), "the first ones at the file's own rate"
    assert diffsynth(80, 30, 16, 81).tolist() == list(range(77))
    assert ltx_2(100, 30, 24, 84).tolist() == list(range(81)), "8 n + 1"
    assert ltx_2(80, 30, 24, 81).tolist() == []
    assert evenly(9, 30, 16, 5).tolist() == [0, 2, 4, 6, 8]
    assert fastvideo(12, 24, 16, 5).tolist() == [0, 1, 3, 4, 6]
    assert fastvideo(4, 24, 16, 5).tolist() == []


def test_the_difference_names_the_frames() -> None:
    reading = read_clip(diffusion_pipe, False, 81, 16.0, 24.0)
    sentence = difference(reading, 81)
    assert sentence == "reads 81 frames (0, 0, 1, 2, 2, 3, ... 53) and not 0 to 80"
    slow = read_clip(diffsynth, False, 81, 16.0, 24.0)
    assert np.array_equal(slow.indices, np.arange(81))
    assert "1.5 times as fast" in str(difference(slow, 81))


def test_another_rate_is_refused_or_warned_of() -> None:
    changes = {"data.frames": 81, "data.fps": 16, "export.format": "musubi", "export.model": "hunyuan"}
    run = load("demo", changes)
    with pytest.raises(ConfigError, match=r"musubi-tuner at 24 frames a second .* 1\.5 times as fast"):
        checks.frames(run, checks.layout(run))
    run = load("demo", {**changes, "export.other_frames": "warn"})
    first = checks.frames(run, checks.layout(run))[0]
    assert "1.5 times as fast" in first
    run = load("demo", {**changes, "export.model": "wan"})
    assert checks.frames(run, checks.layout(run)) == []


def test_what_cannot_be_written_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"export\.format is not set"):
        checks.layout(load("demo"))
    with pytest.raises(ConfigError, match=r"data\.width=33"):
        checks.layout(load("demo", {"data.width": 33, "export.format": "musubi"}))
    with pytest.raises(ConfigError, match=r"export\.arm='best' is no arm"):
        load("demo", {"export.arm": "best"})
    run = load("demo", {"export.format": "ltx-2", "data.frames": 13})
    with pytest.raises(ConfigError, match=r"reads 9 frames"):
        checks.frames(run, checks.layout(run))
