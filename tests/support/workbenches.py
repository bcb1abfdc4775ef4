"""A ranked run of a few clips, for the tests of the workbench: the world's videos, made-up features, no model."""

from __future__ import annotations

import datetime
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from pipeline import config, tables
from pipeline.config import Run
from pipeline.pages.loopback import Server
from pipeline.ranking import influence, select, unit_settings
from pipeline.storage import stores
from pipeline.synthetic import world
from pipeline.tables import schemas
from pipeline.video.frames import write_mp4
from pipeline.workbench.bench import Bench
from pipeline.workbench.routes import protected
from tests.support import browsers
from tests.support.studies import EVIL

FRAMES, FPS, SIZE, K = 9, 8.0, 32, 16
GROUPS = ("roll", "spin")
GONE, CUT_OFF, COPY = "clip-03", "clip-05", "clip-07"  # a video that is not there, one cut off, one like clip-08
HOSTILE = "clip-02"
PRINT = {"data.fps": FPS, "data.frames": FRAMES}
LAWFUL = {  # clips whose flow is known: distance, quantile, law, what names the motion, flaw
    "clip-01": (0.4, 0.8, "timing", "caption", None),
    "clip-02": (2.5, 0.02, "jerk", "caption", None),
    "clip-04": (3.5, 0.02, "turning", "caption", None),
    "clip-06": (9.0, 0.02, "amount", "flow", None),
    "clip-09": (0.9, 0.3, "timing", "caption", "frozen"),
}
SETTINGS = [{"timestep": 751.0, "noise": 0, "mask": "motion"}]
START = datetime.datetime(2026, 11, 28, 12, tzinfo=datetime.UTC)


def names(count: int, kind: str = "clip") -> list[str]:
    return [f"{kind}-{n:02d}" for n in range(count)]


def run_of(root: Path | str, count: int = 24, home: Path | None = None, **more: Any) -> Run:
    """The configuration of a run, and under its root all tables up to the selection. Videos lie in `home`."""
    values = {"root": str(root), "data.frames": FRAMES, "data.fps": FPS, "ranking.mask": "motion"}
    values |= {"motion.of": "all", **more}
    run = config.load("demo", {**values, "attribution.settings": SETTINGS, "attribution.projection.dim": K})
    folder = home or Path(root).parent / "videos"
    ids, queries = names(count), names(4, "query")
    for kind, listed in (("clips", ids), ("queries", queries)):
        tables.append(stores.join(run.root, kind), clips(listed, folder, kind), PRINT)
    rng = np.random.default_rng(3)
    values_of = {"clips": rng.standard_normal((count, K)), "queries": rng.standard_normal((4, K))}
    values_of["clips"][ids.index(COPY)] = values_of["clips"][ids.index("clip-08")] + 0.01 * rng.standard_normal(K)
    for kind, listed in (("clips", ids), ("queries", queries)):
        rows = np.asarray(values_of[kind], np.float32)
        columns = {
            "clip_id": listed,
            "version": ["1"] * len(listed),
            "feature": tables.vectors(rows),
            "norm": tables.vectors(np.linalg.norm(rows, axis=1, keepdims=True)),
            "loss": tables.vectors(np.ones((len(listed), 1), np.float32)),
            "num_frames": pa.array([FRAMES] * len(listed), pa.int32()),
            "error": pa.nulls(len(listed), pa.string()),
        }
        table = pa.table(columns, schema=schemas.features_schema(1, K))
        tables.append(stores.join(run.root, "features", kind), table, PRINT, settings=SETTINGS)
    rank(run, ids, queries, *(np.asarray(values_of[kind], np.float32) for kind in ("clips", "queries")))
    recorded = {**run.model_dump(mode="json"), "versions": {"python": "3"}}
    stores.write_bytes(stores.join(run.root, "config.yaml"), yaml.safe_dump(recorded).encode())
    return run


def rank(run: Run, ids: list[str], queries: list[str], rows: Any, asked: Any, turn: float = 1.0) -> None:
    """Write influence/ and selection/ of these features."""
    scores = turn * influence(unit_settings(rows, 1), unit_settings(asked, 1), None)
    table = pa.table([pa.array(ids), tables.vectors(scores)], schema=schemas.influence_schema(len(queries)))
    tables.replace(stores.join(run.root, "influence"), table, PRINT, query_ids=queries)
    parts = []
    for group in ("all", *GROUPS):
        chosen = [n for n in range(len(queries)) if group in ("all", GROUPS[n % 2])]
        part = select(scores[:, chosen], ids, fraction=0.25, harmful=0.1, unlawful={"clip-10": "odd", "clip-11": "odd"})
        parts.append(part.append_column("group", pa.repeat(pa.scalar(group), part.num_rows)))
    selection = pa.concat_tables(parts).select(schemas.SELECTION.names).cast(schemas.SELECTION)
    tables.replace(stores.join(run.root, "selection"), selection, PRINT, query_ids=queries)


def write_lawfulness(run: Run) -> Run:
    """The same run, with a table lawfulness/ of the clips of LAWFUL."""
    columns = ("distance", "quantile", "law", "named_by", "flaw")
    rows = [
        {"clip_id": clip, "group": "roll", "flaw_measure": 0.4, **dict(zip(columns, values, strict=True))}
        for clip, values in LAWFUL.items()
    ]
    table = pa.Table.from_pylist(rows, schema=schemas.LAWFULNESS)
    tables.replace(stores.join(run.root, "lawfulness"), table, PRINT)
    return run


def clips(ids: list[str], folder: Path, kind: str) -> pa.Table:
    """Rows of clips/ or queries/ with a video each."""
    films = [world.render(world.scene(5, f"workbench-{n}", "real", world.MOTIONS[n]), SIZE, SIZE) for n in range(3)]
    for n, film in enumerate(films):
        write_mp4(str(folder / f"film-{n}.mp4"), film, FPS)
    rows = []
    for n, clip_id in enumerate(ids):
        path = folder / kind / f"{clip_id}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / f"film-{n % 3}.mp4", path)
        uri = str(path)
        if clip_id == GONE:
            path.unlink()
        if clip_id == CUT_OFF:
            path.write_bytes(path.read_bytes()[:300])
        caption = EVIL if clip_id == HOSTILE else f"a {('red', 'blue')[n % 2]} ball number {n}"
        row = {"clip_id": clip_id, "uri": uri, "version": "1", "source": f"source {n % 3}", "start_frame": 0}
        row |= {"num_frames": FRAMES, "fps": FPS, "height": SIZE, "width": SIZE, "caption": caption}
        rows.append(row | ({"group": GROUPS[n % 2]} if kind == "queries" else {}))
    return pa.Table.from_pylist(rows, schema=schemas.QUERIES if kind == "queries" else schemas.CLIPS)


class Served:
    """A workbench that can be stopped and started again on its port, as its job would."""

    def __init__(self, run: Run, token: str = "a-token") -> None:
        self.run, self.token, self.port = run, token, 0
        self.start()

    def start(self) -> None:
        self.bench = Bench(self.run)
        self.server = Server(self.port, protected(self.bench, self.token))
        self.port = self.server.port
        self.thread = browsers.served(self.server)

    def stop(self) -> None:
        browsers.stopped(self.server, self.thread)
        self.bench.close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/{self.token}/"


def words(root: str) -> list[dict[str, Any]]:
    """The rows of decisions/ on disk."""
    table = tables.read(stores.join(root, "decisions"))
    return [] if table is None else table.to_pylist()
