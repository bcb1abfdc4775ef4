"""How far a video's motion is from the law of its kind, where the world knows the law: 0 is lawful.

What moves is followed by its optical flow, weighed by its length: how fast it drifts, and how fast it turns about its
own centre. Free fall: the drift's speed grows evenly. Slide: it falls evenly. Spin: the turning is constant. Explosion:
the pieces slow down. Each is the root mean square of what the law leaves over, as a share of the mean speed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Flow = npt.NDArray[np.float32]  # [pairs of frames, 2, h, w]

LAWS = ("explode", "free_fall", "slide", "spin")
MOVES = 0.2  # of the longest flow of the clip: what is shorter is background


class Track(NamedTuple):
    """Of every pair of frames: the mean flow, the rate of turning (radians) and the mean length of the flow."""

    drift: Floats  # [pairs, 2]
    turn: Floats  # [pairs]
    speed: Floats  # [pairs]


def track(flow: Flow) -> Track:
    """Follow what moves. ValueError for a flow of another shape."""
    if flow.ndim != 4 or flow.shape[1] != 2 or len(flow) < 3:
        raise ValueError(f"flow of shape {flow.shape}: [pairs, 2, h, w] with three pairs at least are needed")
    u, v = flow.astype(np.float64).transpose(1, 0, 2, 3)
    length = np.hypot(u, v)
    weight = np.where(length > MOVES * length.max(), length, 0.0) + 1e-9
    weight /= weight.sum((1, 2), keepdims=True)
    y, x = np.mgrid[0 : flow.shape[2], 0 : flow.shape[3]].astype(np.float64)

    def mean(values: Floats) -> Floats:
        weighted: Floats = (weight * values).sum((1, 2))
        return weighted

    drift = np.stack([mean(u), mean(v)], 1)
    dx, dy = x - mean(x)[:, None, None], y - mean(y)[:, None, None]
    du, dv = u - drift[:, :1, None], v - drift[:, 1:, None]
    turn = mean(dx * dv - dy * du) / np.maximum(mean(dx * dx + dy * dy), 1e-9)
    return Track(drift, turn, mean(length))


def deviation(motion: str, flow: Flow) -> float:
    """How far a video is from the law of `motion`, one of LAWS. ValueError for another."""
    course = track(flow)
    if motion == "spin":
        return _rest(course.turn, straight=False)
    if motion == "explode":
        rising = np.polyfit(np.linspace(-1, 1, len(course.speed)), course.speed, 1)[0]
        return float(rising / max(course.speed.mean(), 1e-9))
    if motion in ("free_fall", "slide"):
        heading = course.drift.sum(0)
        along = course.drift @ (heading / max(float(np.linalg.norm(heading)), 1e-9))
        return _rest(along, straight=True)
    raise ValueError(f"motion={motion!r}: no law is known of it here; there are {', '.join(LAWS)}")


def _rest(values: Floats, straight: bool) -> float:
    """What a constant, or a straight line, leaves over of values in time."""
    t = np.linspace(-1, 1, len(values))
    fitted = np.polyval(np.polyfit(t, values, int(straight)), t)
    return float(np.sqrt(np.mean((values - fitted) ** 2)) / max(float(np.abs(values).mean()), 1e-9))
