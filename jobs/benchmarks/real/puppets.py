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

from pipeline.synthetic import shifted, world
from pipeline.synthetic.world import Scene
from pipeline.video.frames import write_mp4

ACTIONS = ("bounce", "explode", "free_fall", "roll", "spin", "swing")
SIDE, FRAMES, FPS = 48, 9, 8
SHIFT = 10_000  # what is added to the seed of a shifted world


def scene(seed: int, person: str, action: str, take: int, is_shifted: bool) -> Scene:
    """A person's take of an action."""
    looks = world.scene(seed, person, "still")
    name = f"{person} {action} {take}"
    moves = world.scene(seed + 1, name, "real", action, FRAMES, FPS, pan=shifted.PAN if is_shifted else 0.0)
    look = looks.bodies[0]
    if is_shifted:
        look = shifted.body(look, np.random.default_rng([seed, *person.encode(), 1]))
    verb = moves.caption.split(" ", 3)[-1]
    thing = shifted.THING if is_shifted else looks.caption.removesuffix(" standing still")
    bodies = shifted.dressed(moves.bodies, look)
    return replace(moves, caption=f"{thing} {verb}", background=looks.background, bodies=bodies)


def write(folder: Path, seed: int, people: int, takes: int, is_shifted: bool) -> int:
    """Write the videos, and metadata.jsonl last; returns their number."""
    rows = []
    for person in (f"person{n:02d}" for n in range(1, people + 1)):
        for action in ACTIONS:
            for take in range(takes):
                shown = scene(seed + SHIFT * is_shifted, person, action, take, is_shifted)
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
    arguments = parser.parse_args()
    if arguments.folder.exists() and any(arguments.folder.iterdir()):
        parser.error(f"{arguments.folder} is not empty; name a folder that is, or that is not there.")
    count = write(arguments.folder, arguments.seed, arguments.people, arguments.takes, arguments.shifted)
    print(f"{count} videos of {arguments.people} persons and {len(ACTIONS)} actions in {arguments.folder}")


if __name__ == "__main__":
    main()
