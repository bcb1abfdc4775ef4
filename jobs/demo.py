"""The whole pipeline on this machine: writes the synthetic world as videos, curates it and shows what came of it."""

from __future__ import annotations

from jobs import command

if __name__ == "__main__":  # above the imports, which take seconds: --help and mistakes are answered at once
    command.main("jobs.demo:demo", __doc__, default="demo", completes=True)

import importlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from pipeline import tables
from pipeline.cluster import streaming
from pipeline.cluster.loading import collector_at_rest
from pipeline.config import Run
from pipeline.errors import ConfigError
from pipeline.evaluation.comparison import LOSSES, comparison
from pipeline.stages import progress, run_record
from pipeline.storage import stores
from pipeline.synthetic import world
from pipeline.video.frames import write_mp4

CLIPS, QUERIES_EACH, HELD_OUT_EACH = 200, 5, 3
HEAVY = "pipeline.stages.attribution"  # of what a curation imports, nearly all the time, and nothing of Ray's own


def write_world(folder: Path, scenes: list[world.Scene], run: Run) -> None:
    """Videos by kind (queries: by motion), with captions and the world's truth in an HF VideoFolder manifest."""
    lines = []
    for scene in scenes:
        name = f"{scene.kind if scene.kind != 'real' or 'clips' in folder.name else scene.motion}/{scene.name}.mp4"
        if not (folder / name).is_file():
            write_mp4(str(folder / name), world.render(scene, run.data.height, run.data.width), scene.fps)
        group = {"group": scene.motion} if folder.name != "clips" else {}
        labels = {"source": scene.kind, "motion": scene.motion if scene.kind == "real" else "", **group}
        lines.append(json.dumps({"file_name": name, "caption": scene.caption, **labels}))
    stores.write_bytes(str(folder / "metadata.jsonl"), ("\n".join(lines) + "\n").encode())


def demo(run: Run) -> None:
    start, frames = time.monotonic(), run.data.frames
    sets = {
        run.data.videos: world.corpus(run.seed + 1, CLIPS, frames),
        run.queries.videos: world.queries(run.seed + 2, QUERIES_EACH, frames),
        run.evaluate.videos: world.queries(run.seed + 3, HELD_OUT_EACH, frames),
    }
    for folder in sets:
        if folder is None or "://" in folder or not Path(folder).parent.name.startswith("world"):
            raise ConfigError(
                f"the demo writes its own videos, into folders below one called world, not into {folder!r}; to curate "
                "your videos, use python -m jobs.curate."
            )
    with collector_at_rest(), ThreadPoolExecutor(2) as threads:
        loaded = threads.submit(importlib.import_module, HEAVY)
        written = [threads.submit(write_world, Path(str(folder)), scenes, run) for folder, scenes in sets.items()]
        streaming.connect()  # Ray's processes start meanwhile
        loaded.result()
        for one in written:
            one.result()
        from jobs.curate import curate  # here for speed: with HEAVY it takes as long as Ray's start

    curate(run)
    table = summary(run)
    run_record.note_last_words(table)
    print(table)
    print(f"\n{progress.duration(time.monotonic() - start)} in all. Look at {run.root}/report/index.html")


def summary(run: Run) -> str:
    """Held-out losses by arm, motion-masked and plain: mean and standard error, and the change from base, paired clip
    by clip."""
    table = tables.read(stores.join(run.root, "evaluation"))
    if table is None:
        return "nothing was held out"
    lines = []
    for metric, words in zip(LOSSES, ("motion-masked", "plain"), strict=True):
        lines.append(f"\n{f'held-out {words} loss':<32} {'mean':>9} {'s.e.':>8} {'change':>9} {'s.e.':>8}")
        lines += [_line(row) for row in comparison(table.filter(pc.equal(table.column("metric"), metric)))]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    line = f"  {row['arm']:<30} {row['mean']:>9.5f} {row['standard_error']:>8.5f}"
    if row["difference"] is None or not row["relative"]:
        return line
    base = row["difference"] / row["relative"]
    return f"{line} {row['relative']:>+9.2%} {row['difference_standard_error'] / base:>8.2%}"
