"""Another world than the one that the shipped weights have seen: the same ten motions by bodies of other outlines, with
finer textures, at higher speeds, mostly before a moving camera. Its captions name the motion and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pipeline.synthetic import world
from pipeline.synthetic.world import Body, Scene

OUTLINES = ((1.0, 0, 0.0), (1.3, 4, 0.35), (4.0, 2, 0.3), (2.0, 7, 0.3))  # power, lobes and depth; the world has none
SPEED = (0.06, 0.12)  # as `world.SPEED`
PAN = 0.9  # the chance that the camera moves
THING = "a shape"


def body(first: Body, rng: np.random.Generator) -> Body:
    """The same body with an outline and a texture that the world does not have."""
    power, lobes, depth = OUTLINES[rng.integers(len(OUTLINES))]
    texture = world.texture(rng, first.texture.base, (1.5, 4.0), 0.2, 8)
    return replace(first, texture=texture, power=power, lobes=lobes, depth=depth)


def dressed(bodies: tuple[Body, ...], look: Body) -> tuple[Body, ...]:
    """Bodies that move as they do with the texture and the outline of another. The pieces of what explodes stay round,
    and smaller than what they were."""
    if len(bodies) > 1:
        return tuple(replace(piece, texture=look.texture) for piece in bodies)
    return tuple(
        replace(one, texture=look.texture, power=look.power, lobes=look.lobes, depth=look.depth) for one in bodies
    )


def scene(seed: int, name: str, kind: str = "real", motion: str = "", frames: int = 9, fps: int = 8) -> Scene:
    """The scene that (seed, name) determine, as `world.scene` has it."""
    moves = world.scene(seed, name, kind, motion, frames, fps, PAN, SPEED)
    look = body(moves.bodies[0], np.random.default_rng([seed, *name.encode(), 1]))
    verb = moves.caption.split(" ", 3)[-1]
    return replace(moves, caption=f"{THING} {verb}", bodies=dressed(moves.bodies, look))


def corpus(seed: int, count: int, frames: int = 9) -> list[Scene]:
    """As `world.corpus`."""
    return [scene(seed, name, kind, motion, frames) for name, kind, motion in world.labels(seed, count)]


def queries(seed: int, each: int, frames: int = 9) -> list[Scene]:
    """As `world.queries`, but before a camera that mostly moves."""
    return [scene(seed, name, "real", motion, frames) for name, motion in world.query_labels(each)]
