"""How the bodies of the synthetic world move: the ten motions and, for seven of them, a cartoon that breaks their law.

A trajectory is given in the body's own direction of motion: how far along it, how far across, the angle, and the scale
along and across, in every frame. Lengths are units of half the frame's shorter side; t runs from 0 to 1 over the clip.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Trajectory = tuple[Floats, Floats, Floats, Floats, Floats]


def trajectory_of(along: Floats, across: Any = 0.0, angle: Any = 0.0, grow: Any = 1.0, widen: Any = 1.0) -> Trajectory:
    full = [np.broadcast_to(np.asarray(v, dtype=np.float64), along.shape).copy() for v in (across, angle, grow, widen)]
    return (along, full[0], full[1], full[2], full[3])


def to_speed(path: Floats, speed: float) -> Floats:
    """Scale a path [frames] or [frames, 2] so that its mean step is `speed`."""
    steps = np.abs(np.diff(path)) if path.ndim == 1 else np.linalg.norm(np.diff(path, axis=0), axis=1)
    scaled: Floats = path * (speed / max(float(steps.mean()), 1e-9))
    return scaled


def _free_fall(t: Floats, speed: float, radius: float, rng: np.random.Generator, cartoon: bool) -> Trajectory:
    # Cartoon: hangs in the air for a while, then drops at a constant speed.
    hang = rng.uniform(0.25, 0.5)
    return trajectory_of(to_speed(np.maximum(t - hang, 0.0) if cartoon else t**2, speed))


def _bounce(t: Floats, speed: float, radius: float, rng: np.random.Generator, cartoon: bool) -> Trajectory:
    # Heights between impacts shrink by the restitution squared; in the cartoon they grow.
    restitution = rng.uniform(1.15, 1.35) if cartoon else rng.uniform(0.65, 0.85)
    start, flight = 0.0, rng.uniform(0.28, 0.4)
    height = np.zeros_like(t)
    begin, length = start - flight / 2, flight  # begins at the top of an arc
    for _ in range(12):
        inside = (t >= begin) & (t < begin + length)
        phase = (t - begin) / length
        height[inside] = (length**2 * 4 * phase * (1 - phase))[inside]
        begin, length = begin + length, length * restitution
    return trajectory_of(to_speed(-height, speed))


def _slide(t: Floats, speed: float, radius: float, rng: np.random.Generator, cartoon: bool) -> Trajectory:
    # Friction slows it down evenly; the cartoon jumps from stop to stop.
    friction = rng.uniform(0.5, 0.9)
    return trajectory_of(to_speed(np.floor(t * 3.999) if cartoon else t - friction * t**2 / 2, speed))


def _roll(t: Floats, speed: float, radius: float, rng: np.random.Generator, cartoon: bool) -> Trajectory:
    # Without slipping the angle is distance over radius; the cartoon spins backwards, twice as fast.
    along = to_speed(t * (1 - rng.uniform(0.0, 0.3) * t), speed * 0.9)
    return trajectory_of(along, angle=along / radius * (-2.0 if cartoon else 1.0))


def _spin(t: Floats, speed: float, radius: float, rng: np.random.Generator, cartoon: bool) -> Trajectory:
    # Constant angular velocity; the cartoon reverses at random moments.
    turn = rng.choice((-1.0, 1.0)) * speed * (len(t) - 1) / (0.6 * radius)
    swing = np.abs((t * rng.uniform(2.0, 3.0)) % 2 - 1) * 0.5
    return trajectory_of(np.zeros_like(t), angle=turn * (swing if cartoon else t))


def _swing(t: Floats, speed: float, radius: float, rng: np.random.Generator, cartoon: bool) -> Trajectory:
    # A pendulum about a pivot above; the cartoon moves at constant speed and turns abruptly.
    length, reach = rng.uniform(0.5, 0.8), rng.uniform(0.5, 0.8)
    phase = rng.uniform(0, 1) + t * rng.uniform(0.8, 1.3)
    angle = reach * (4 * np.abs(phase % 1 - 0.5) - 1 if cartoon else np.cos(2 * np.pi * phase))
    arc = np.stack([length * np.cos(angle), length * np.sin(angle)], 1)
    scale = speed / max(float(np.linalg.norm(np.diff(arc, axis=0), axis=1).mean()), 1e-9)
    angle = angle * min(scale, 1.6 / reach)
    return trajectory_of(length * np.cos(angle), length * np.sin(angle), angle)


def _float(t: Floats, speed: float, radius: float, rng: np.random.Generator, cartoon: bool) -> Trajectory:
    # Drifts against gravity with a gentle sway.
    sway = rng.uniform(0.12, 0.25) * np.sin(2 * np.pi * (t * rng.uniform(1.0, 1.6) + rng.uniform(0, 1)))
    path = to_speed(np.stack([-t, sway], 1), speed)
    return trajectory_of(path[:, 0], path[:, 1], angle=0.4 * path[:, 1])


def _compress(t: Floats, speed: float, radius: float, rng: np.random.Generator, cartoon: bool) -> Trajectory:
    # Flattened against a wall ahead, a little wider for it; it starts drawn out, so that it can move as much as others.
    shrink = 1.6 - np.minimum(speed * (len(t) - 1) / (0.7 * radius), 1.25) * t
    return trajectory_of(-radius * shrink, grow=shrink, widen=shrink**-0.3)


def _stretch(t: Floats, speed: float, radius: float, rng: np.random.Generator, cartoon: bool) -> Trajectory:
    # Held at its back end and drawn out ahead, a little narrower for it.
    grow = 1 + np.minimum(speed * (len(t) - 1) / (1.1 * radius), 1.6) * t
    return trajectory_of(radius * (grow - 1), grow=grow, widen=grow**-0.3)


TRAJECTORIES: dict[str, Callable[[Floats, float, float, np.random.Generator, bool], Trajectory]] = {
    "bounce": _bounce,
    "compress": _compress,
    "float": _float,
    "free_fall": _free_fall,
    "roll": _roll,
    "slide": _slide,
    "spin": _spin,
    "stretch": _stretch,
    "swing": _swing,
}


def poses_of(trajectory: Trajectory, direction: float, centre: Floats) -> Floats:
    """Turn a trajectory into poses [frames, 5] whose bounding box is centred on `centre`."""
    along, across, angle, grow, widen = trajectory
    ahead = np.array([np.cos(direction), np.sin(direction)])
    place = along[:, None] * ahead + across[:, None] * np.array([-ahead[1], ahead[0]])
    place = place - (place.max(0) + place.min(0)) / 2 + centre
    return np.column_stack([place, angle + direction, grow, widen])
