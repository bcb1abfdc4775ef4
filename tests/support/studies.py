"""A run whose arms have generated videos, keys and answers, for the tests of the blind study: the world's videos, no
model."""

from __future__ import annotations

import datetime
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline import config, tables
from pipeline.config import Run
from pipeline.config.study import Study
from pipeline.evaluation.held_out import video_place
from pipeline.storage import stores
from pipeline.study import answers, handout, pairs, sqlite_answers
from pipeline.study.answers import Answer
from pipeline.study.pairs import Key, Pair
from pipeline.synthetic import world
from pipeline.tables import schemas
from pipeline.video.frames import write_mp4

NOW = datetime.datetime(2026, 11, 24, 12, tzinfo=datetime.UTC)
EVIL = """</script><script>alert(1)</script><img src=x onerror=alert(2)>"&'{{ 7 * 7 }}"""
FRAMES, FPS, SIZE = 9, 8.0, 32
DISTINCT = 4  # videos an arm; further captions have copies of them, which is faster


def run_of(root: Path | str, arms: tuple[str, ...] = ("base", "motive"), captions: int = 4, **study: Any) -> Run:
    """The configuration, and under its root queries/, evaluation/ and generated/ of these arms."""
    values = {"root": str(root), "study.arms": list(arms), **{f"study.{key}": value for key, value in study.items()}}
    run = config.load("demo", {**values, "data.frames": FRAMES, "data.fps": FPS})
    assert (run.data.height, run.data.width) == (SIZE, SIZE)
    scenes = {f"q{n:02d}": world.scene(5, f"study-{n}", "real", world.MOTIONS[n % 10]) for n in range(captions)}
    queries = [
        {"clip_id": i, "caption": EVIL if i == "q01" else s.caption, "group": s.motion} for i, s in scenes.items()
    ]
    tables.append(stores.join(run.root, "queries"), pa.Table.from_pylist(queries, schema=schemas.QUERIES), {})
    films = [world.render(s, SIZE, SIZE) for s in list(scenes.values())[:DISTINCT]]
    rows = []
    for n, arm in enumerate(arms):
        first: list[str] = []
        for query in queries:
            place = video_place(run.root, arm, f"{query['caption']} {query['clip_id']}", 0)
            if len(first) < len(films):
                write_mp4(place, films[len(first)] ^ n, FPS)
                first.append(place)
            else:
                shutil.copy(first[len(rows) % len(films)], place)
            about = {"arm": arm, "clip_id": query["clip_id"], "uri": place, "seed": 0, "version": f"of {arm}"}
            rows += [{**about, "metric": m, "value": 1.0} for m in ("temporal_flickering", "vbench_dynamic_degree")]
    tables.append(stores.join(run.root, "evaluation"), pa.Table.from_pylist(rows, schema=schemas.EVALUATION), {})
    return run


def key_of(run: Run) -> Key:
    key = handout.key(run.root)
    assert key is not None
    return key


def answer(key: Key, pair: Pair, person: str, video: str | None, flip: bool = False, **more: Any) -> Answer:
    """What a person says of a pair: the video that is better, None for a tie."""
    left, right = (side.video for side in (reversed(pair.sides) if flip else pair.sides))
    choice = "tie" if video is None else "left" if video == left else "right"
    fields = {"study": key.study, "person": person, "pair": pair.pair, "revision": 0, "left": left, "right": right}
    return Answer.model_validate({**fields, "choice": choice, "seconds": 3.5, "at": NOW, **more})


def known(pair: Pair) -> str | None:
    """The right answer to a catch trial; for two arms, the first."""
    return None if pair.kind == "identical" else pair.sides[0].video


def lines(given: list[Answer]) -> str:
    return "".join(f"{a.model_dump_json()}\n" for a in given)


def paper_key(videos: int = 50) -> Key:
    films = [(f"q{n:02d}", 0) for n in range(videos)]
    settings = Study(arms=("base", "motive"))
    planned = pairs.plan(films, {f[0]: "" for f in films}, settings, "ab" * 32)
    asked = pairs.asked(settings)
    versions = dict.fromkeys(settings.arms, "1")
    return Key(study="s", salt="ab" * 32, asked=asked, arms=settings.arms, versions=versions, pairs=tuple(planned))


def recorded_answers(path: Path) -> list[Answer]:
    """What the database of a server holds, in the order in which it was written."""
    return [answers.parse(line) for line in sqlite_answers.read_lines(str(path))]
