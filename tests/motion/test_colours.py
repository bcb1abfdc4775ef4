"""The colours of what moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.motion import colours


def _clip(colour: tuple[int, int, int], size: int = 32) -> tuple[np.ndarray, torch.Tensor]:
    """A square of this colour that moves over grey, and the flow of it alone."""
    frames = np.full((5, size, size, 3), 120, np.uint8)
    flow = torch.zeros(4, 2, size, size)
    for i in range(5):
        frames[i, 8:16, 4 * i : 4 * i + 8] = colour
    for i in range(4):
        flow[i, 0, 8:16, 4 * i : 4 * i + 8] = 4.0
    return frames, flow


def test_only_what_moves_counts() -> None:
    histogram = colours.moving_colours(*_clip((255, 0, 0)))
    red = 3 * colours.LEVELS**2
    assert histogram.sum() == pytest.approx(1, abs=1e-6)
    assert histogram[red] > 0.85
    still = colours.moving_colours(_clip((255, 0, 0))[0], torch.zeros(4, 2, 32, 32))
    assert still[red] == pytest.approx(64 / 1024, abs=1e-6), "without motion every pixel counts alike"


def test_the_flows_size_does_not_matter_much() -> None:
    frames, flow = _clip((0, 255, 0), 192)
    small = torch.nn.functional.interpolate(flow, (48, 48), mode="area")
    near = colours.alike(colours.moving_colours(frames, small)[None], colours.moving_colours(frames, flow)[None])
    assert near[0, 0] > 0.95


def test_the_same_colour_is_alike_and_another_is_not() -> None:
    red, orange, blue = (colours.moving_colours(*_clip(c)) for c in ((250, 10, 10), (230, 40, 20), (10, 10, 250)))
    alike = colours.alike(np.stack([red]), np.stack([red, orange, blue]))
    assert alike.shape == (1, 3)
    assert alike[0, 0] == pytest.approx(1, abs=1e-6)
    assert alike[0, 1] > 0.9 > 0.2 > alike[0, 2]
