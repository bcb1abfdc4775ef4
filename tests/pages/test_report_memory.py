"""What the page, the arms and a night hold in memory of every clip: numbers in columns, and no Python object."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import config, tables
from pipeline.config import Run
from pipeline.operations import nights
from pipeline.pages import report
from pipeline.tables import scanning, schemas
from pipeline.training import arms

N, K, GROUPS = 30_000, 8, ("all", "roll", "spin")
SETTINGS = [{"timestep": 751.0, "noise": 0, "mask": "motion"}]


def column(kind: pa.DataType, count: int) -> pa.Array:
    return pa.nulls(count, kind)


def filled(schema: pa.Schema, **columns: Any) -> pa.Table:
    count = len(columns["clip_id"])
    arrays = [columns.get(f.name, column(f.type, count)) for f in schema]
    return pa.table(arrays, schema=schema)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = str(tmp_path_factory.mktemp("many"))
    rng, ids = np.random.default_rng(0), [f"a-clip-with-some-name-{i:07d}" for i in range(N)]
    version, source = pa.array(["v"] * N), pa.array([f"shelf {i % 7}" for i in range(N)])
    failed = pa.array(["decode: frame 3 is damaged." if i % 50 == 3 else None for i in range(N)], pa.string())
    readable = [i for i in range(N) if i % 50 != 3]
    clips = {"clip_id": pa.array(ids), "uri": pa.array(ids), "version": version, "source": source}
    tables.replace(f"{root}/clips", filled(schemas.CLIPS, **clips), {})
    masks = pa.array([bytes([i % 251, 255, 3, 4]) for i in range(N)])
    shapes = pa.array([[1, 2, 2]] * N, pa.list_(pa.int32()))
    mean = pa.array(rng.random(N), pa.float32())
    moved = {**clips, "mask": masks, "mask_shape": shapes, "motion_mean": mean, "error": failed}
    tables.replace(f"{root}/motion/clips", filled(schemas.motion_schema(schemas.CLIPS), **moved), {})
    some = pa.array(readable)
    tables.replace(
        f"{root}/features/clips", featured(rng, pa.array(ids).take(some), version.take(some)), {}, settings=SETTINGS
    )
    asked = {"clip_id": pa.array(["q0", "q1"]), "version": pa.array(["v"] * 2), "group": pa.array(["roll", "spin"])}
    tables.replace(f"{root}/queries", filled(schemas.QUERIES, **asked), {})
    moving = {**asked, "mask": masks[:2], "mask_shape": shapes[:2]}
    tables.replace(f"{root}/motion/queries", filled(schemas.motion_schema(schemas.QUERIES), **moving), {})
    tables.replace(
        f"{root}/features/queries", featured(rng, pa.array(["q0", "q1"]), version[:2]), {}, settings=SETTINGS
    )
    ranks, tenth = np.arange(len(readable)), len(readable) // 10
    decision = pa.array(np.where(ranks < tenth, "selected", np.where(ranks >= 9 * tenth, "harmful", "neutral")))
    ranked = {"clip_id": pa.array(ids).take(some), "rank": pa.array(ranks), "decision": decision}
    ranked["mean_influence"] = pa.array(-ranks / len(readable), pa.float32())
    chosen = [filled(schemas.SELECTION, **ranked, group=pa.array([group] * len(readable))) for group in GROUPS]
    tables.replace_streamed(f"{root}/selection", schemas.SELECTION, chosen, {})
    values = {"root": root, "evaluate.videos": None, "ranking.mask": "motion", "motion.of": "all"}
    values |= {"attribution.settings": SETTINGS, "attribution.projection.dim": K}
    return config.load("demo", values)


def featured(rng: np.random.Generator, ids: pa.Array, version: pa.Array) -> pa.Table:
    count = len(ids)
    vectors = {"feature": (count, K), "norm": (count, 1), "loss": (count, 1)}
    made = {name: tables.vectors(rng.random(shape).astype(np.float32) + 1) for name, shape in vectors.items()}
    return filled(schemas.features_schema(1, K), clip_id=ids, version=version, **made)


def peak_bytes(call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> float:
    """Bytes a clip that Python and NumPy hold at their peak, beside blocks of a few clips."""
    monkeypatch.setattr(scanning, "BLOCK_ROWS", 1000)
    call()  # what is loaded once
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1] / N
    finally:
        tracemalloc.stop()


def test_the_measure_sees_a_dictionary_a_clip(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tables.read(f"{run.root}/clips", ["clip_id", "uri", "version"])
    assert table is not None
    assert peak_bytes(table.to_pylist, monkeypatch) > 250


def test_a_page_holds_columns(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    summaries: list[dict[str, Any]] = []
    assert peak_bytes(lambda: summaries.append(report.write(run, lambda row: None)), monkeypatch) < 400
    assert summaries[0]["problems"] == []
    assert sum(summaries[0]["decisions"].values()) == N - N // 50
    assert summaries[0]["overlap"]["spin"]["mask_overlap"]["spearman"] is not None
    assert sum(sum(c.values()) for c in summaries[0]["selection"]["roll"].values()) == N - N // 50


@pytest.mark.parametrize("arm", ["all", "all_minus_harmful", "magnitude", "mask_overlap", "motive_whitened", "random"])
def test_an_arm_holds_columns(run: Run, monkeypatch: pytest.MonkeyPatch, arm: str) -> None:
    one = run.model_copy(update={"finetune": run.finetune.model_copy(update={"arm": arm})})
    assert peak_bytes(lambda: arms.training_set(one), monkeypatch) < 250


def test_a_night_holds_columns(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def compared() -> None:
        now = nights.selection_of(run.root, "all")
        assert nights.arrivals(now, now)["new"] == 0
        assert nights.changes(now, now)["added"] == 0

    assert peak_bytes(compared, monkeypatch) < 250
