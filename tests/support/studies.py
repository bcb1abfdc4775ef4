"""A run whose arms have generated videos, for the tests of the blind study: the world's videos, no model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline import config, tables
from pipeline.config import Run
from pipeline.evaluation.held_out import video_place
from pipeline.storage import stores
from pipeline.synthetic import world
from pipeline.tables import schemas
from pipeline.video.frames import write_mp4

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
