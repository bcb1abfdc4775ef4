"""Labelled clips whose persons are looks of the synthetic world: `python -m jobs.benchmarks.real.puppets FOLDER`.

A person is an outline, its texture and a background, and is the same in all of its clips; what moves how, where, how
fast and which way is drawn anew for every clip, and is independent of the person. So this is a folder on which the
benchmark's truth is known. `--shifted` is another world: other outlines, finer textures, mostly from a moving camera.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.synthetic import world
from pipeline.synthetic.world import Body, Scene
from pipeline.video.frames import write_mp4

ACTIONS = ("bounce", "explode", "free_fall", "roll", "spin", "swing")
SIDE, FRAMES, FPS = 48, 9, 8
SHIFT = 10_000  # what is added to the seed of a shifted world
OUTLINES = ((1.0, 0, 0.0), (1.3, 4, 0.35), (4.0, 2, 0.3), (2.0, 7, 0.3))  # power, lobes and depth; the world has none


def scene(seed: int, person: str, action: str, take: int, shifted: bool) -> Scene:
    """A person's take of an action."""
    looks = world.scene(seed, person, "still")
    name = f"{person} {action} {take}"
    moves = world.scene(seed + 1, name, "real", action, FRAMES, FPS, pan=0.9 if shifted else 0.0)
    first = _shifted(looks.bodies[0], seed, person) if shifted else looks.bodies[0]
    bodies = tuple(
        # The pieces of what explodes are round, and smaller than what they were.
        replace(body, texture=first.texture)
        if len(moves.bodies) > 1
        else replace(body, texture=first.texture, power=first.power, lobes=first.lobes, depth=first.depth)
        for body in moves.bodies
    )
    verb = moves.caption.split(" ", 3)[-1]
    thing = "a shape" if shifted else looks.caption.removesuffix(" standing still")
    return replace(moves, caption=f"{thing} {verb}", background=looks.background, bodies=bodies)


def _shifted(body: Body, seed: int, person: str) -> Body:
    """The same body with an outline and a texture that the world does not have."""
    rng = np.random.default_rng([seed, *person.encode(), 1])
    power, lobes, depth = OUTLINES[rng.integers(len(OUTLINES))]
    texture = world.texture(rng, body.texture.base, (1.5, 4.0), 0.2, 8)
    return replace(body, texture=texture, power=power, lobes=lobes, depth=depth)


def write(folder: Path, seed: int, people: int, takes: int, shifted: bool) -> int:
    """Write the videos, and metadata.jsonl last; returns their number."""
    rows = []
    for person in (f"person{n:02d}" for n in range(1, people + 1)):
        for action in ACTIONS:
            for take in range(takes):
                shown = scene(seed + SHIFT * shifted, person, action, take, shifted)
                name = f"{action}/{person}/{take}.mp4"
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                write_mp4(str(folder / name), world.render(shown, SIDE, SIDE), FPS)
                rows.append({"file_name": name, "action": action, "person": person, "caption": shown.caption})
    (folder / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the videos are written; it must be empty or not be there")
    parser.add_argument("--seed", type=int, default=0, help="of the people and of what they do")
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--takes", type=int, default=2, help="of every action by every person")
    parser.add_argument("--shifted", action="store_true", help="other outlines and textures, a moving camera")
    given = parser.parse_args()
    if given.folder.exists() and any(given.folder.iterdir()):
        parser.error(f"{given.folder} is not empty; name a folder that is, or that is not there.")
    count = write(given.folder, given.seed, given.people, given.takes, given.shifted)
    print(f"{count} videos of {given.people} persons and {len(ACTIONS)} actions in {given.folder}")


if __name__ == "__main__":
    main()
