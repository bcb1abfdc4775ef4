"""Pairs of scenes of the synthetic world, one right and one whose motion is spoiled by a known degree, with the same
looks: what a judge of motion is measured on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pipeline.synthetic import world
from pipeline.synthetic.trajectories import Floats
from pipeline.synthetic.world import Scene

SPOILS: dict[str, tuple[float, ...]] = {
    "cartoon": (1.0,),  # the world's own cartoon of the motion
    "jitter": (0.25, 0.5, 1.0),  # places off by that many mean steps
    "timing": (0.5, 2.0, 3.0),  # time runs as t to this power: other accelerations on the same path
    "frozen": (0.25, 0.5, 1.0),  # the last part of the video stands still
}


def pair(seed: int, name: str, motion: str, how: str, degree: float, frames: int = 9) -> tuple[Scene, Scene]:
    """A right scene and its spoiled version. ValueError for a way of spoiling that this motion does not have."""
    right = world.scene(seed, name, "real", motion, frames, pan=0.0)
    if how == "cartoon":
        return right, world.scene(seed, name, "cartoon", motion, frames, pan=0.0)
    t = np.linspace(0.0, 1.0, frames)
    if how == "jitter":
        rng = np.random.default_rng([seed, *f"jitter {name}".encode()])
        return right, _moved(right, lambda poses: _shaken(poses, degree, rng))
    if how == "timing":
        return right, _moved(right, lambda poses: _at(poses, t, t**degree))
    if how == "frozen":
        return right, _moved(right, lambda poses: _at(poses, t, np.minimum(t, 1 - degree)))
    raise ValueError(f"how={how!r}: use one of {', '.join(SPOILS)}")


def ways(motion: str) -> list[tuple[str, float]]:
    """How a motion can be spoiled, and by what degrees."""
    kinds = [how for how in SPOILS if how != "cartoon" or motion in world.CARTOONS]
    return [(how, degree) for how in kinds for degree in SPOILS[how]]


def _moved(scene: Scene, change: Callable[[Floats], Floats]) -> Scene:
    return replace(scene, bodies=tuple(replace(body, poses=change(body.poses)) for body in scene.bodies))


def _at(poses: Floats, t: Floats, moments: Floats) -> Floats:
    """Poses [frames, 5] at other moments than their own."""
    return np.stack([np.interp(moments, t, column) for column in poses.T], 1)


def _shaken(poses: Floats, degree: float, rng: np.random.Generator) -> Floats:
    step = degree * sum(world.SPEED) / 2
    return poses + np.column_stack([rng.normal(0, step, (len(poses), 2)), np.zeros((len(poses), 3))])
