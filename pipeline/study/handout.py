"""The page on which people judge pairs, built once: ``ROOT/study/handout`` is given away, ``key.json`` beside it stays.

The folder holds ``index.html`` and ``videos/``, needs no server and no network, and says nothing of the arms. The key
is written last: a folder without it is unfinished and made anew.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import secrets
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.config import Run
from pipeline.errors import ConfigError
from pipeline.pages.report import environment
from pipeline.storage import stores
from pipeline.study import films, pairs
from pipeline.study.films import Generated, Shape
from pipeline.study.pairs import Film, Key, Pair
from pipeline.video.decoder import Decoder
from pipeline.video.frames import write_mp4
from pipeline.video.orientation import Frames

Progress = Callable[[int, int], None]


def place(root: str, *names: str) -> str:
    return stores.join(root, "study", *names)


def key(root: str) -> Key | None:
    """The key of the study that a root holds; None where none was finished."""
    path = place(root, "key.json")
    return Key.model_validate_json(stores.read_bytes(path)) if stores.exists(path) else None


def present_key(run: Run) -> Key | None:
    """The study that the root holds, if it is the one that the configuration asks for; None where there is none yet.

    It is as it was built, whatever became of the arms since. Raises ConfigError where it is another one.
    """
    study_key = key(run.root)
    if study_key is None or not run.study.arms:
        return study_key
    basis = json.loads(json.dumps(pairs.asked(run.study)))
    differs = [name for name in basis if basis[name] != study_key.asked.get(name)]
    if differs:
        name = differs[0]
        raise ConfigError(
            f"study.{name}={basis[name]!r}: {place(run.root)} holds a study with {name}={study_key.asked.get(name)!r}, "
            "whose page may be with people, and answers to it need its key. Score it first, then move that folder "
            "away, or delete it; or ask for that study."
        )
    return study_key


def missing(root: str, made: Key) -> list[str]:
    """The names of the handout's files that are gone."""
    names = {"index.html", *(f"videos/{side.video}.mp4" for pair in made.pairs for side in pair.sides)}
    files = {posixpath.basename(path) for path in stores.files(place(root, "handout"))}
    files |= {f"videos/{posixpath.basename(path)}" for path in stores.files(place(root, "handout", "videos"))}
    return sorted(names - files)


def build(run: Run, decoder: Decoder, progress: Progress, writing: Progress) -> Key:
    """Check the arms' videos, then write the handout and its key. Raises UsageError before anything is written."""
    shown = films.generated(run)
    shapes = films.shapes(run, shown.videos, decoder, progress)
    salt = secrets.token_hex(32)
    planned = pairs.plan(list(shown.videos), shown.captions, run.study, salt)
    stores.remove(place(run.root, "handout"))
    contents = []
    sides = sorted((side.video, pair, n) for pair in planned for n, side in enumerate(pair.sides))
    for done, (video, pair, n) in enumerate(sides):  # by name: times of files tell nothing either
        writing(done, len(sides))
        where = place(run.root, "handout", "videos", f"{video}.mp4")
        contents.append(f"{video} {_write(run, where, pair, n, shown, shapes, decoder)}")
    writing(len(sides), len(sides))
    basis = pairs.asked(run.study)
    study = pairs.digest(salt, json.dumps(basis, sort_keys=True), *contents)
    study_key = Key(
        study=study, salt=salt, asked=basis, arms=run.study.arms, versions=shown.versions, pairs=tuple(planned)
    )
    stores.write_bytes(place(run.root, "handout", "index.html"), page(study_key, served=False))
    stores.write_bytes(place(run.root, "key.json"), study_key.model_dump_json(indent=1).encode())
    return study_key


def _write(
    run: Run, where: str, pair: Pair, side: int, shown: Generated, shapes: dict[Film, Shape], decoder: Decoder
) -> str:
    """Write one side of a pair; the hash of what it was made of."""
    film = (pair.clip_id, pair.seed)
    source = shown.videos[film][pair.sides[side].arm]
    data = stores.read_bytes(source)
    if pair.kind == "broken" and side == 1:
        frames = films.frames_of(run, source, shapes[film], decoder)
        write_mp4(where, spoiled(frames, f"{run.study.seed} {film}"), run.data.fps)
    else:
        stores.write_bytes(where, data)
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def spoiled(frames: Frames, name: str) -> Frames:
    """Frames [F, H, W, 3] in an order that belongs to the name, every other one upside down: broken for every eye,
    also where hardly anything moves."""
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    broken = frames[np.random.default_rng(seed).permutation(len(frames))]
    broken[1::2] = broken[1::2, ::-1].copy()
    return broken


def page(made: Key, served: bool) -> bytes:
    """The page; `served`: answers go to the server that gave it, instead of into a file to download."""
    trials: list[dict[str, Any]] = [
        {"pair": p.pair, "caption": p.caption, "videos": sorted(side.video for side in p.sides)} for p in made.pairs
    ]
    data = {"study": made.study, "seed": made.asked["seed"], "served": served, "trials": trials}
    html = environment().get_template("study.html").render(told=data, question=made.asked["question"])
    return html.encode()
