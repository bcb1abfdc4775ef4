"""The stages through Ray: alone and together, batch and pool, bad files, restart after SIGKILL, the whole of curate."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from jobs.curate import curate
from pipeline import tables
from pipeline.cluster import streaming
from pipeline.config import Run
from pipeline.stages import attribution, indexing
from pipeline.stages.curation import generate_queries
from pipeline.storage import stores
from pipeline.synthetic import world
from pipeline.tables import schemas
from pipeline.video.frames import write_mp4
from tests.support.registered import unregistered

MakeRun = Callable[..., Run]
ROOT = Path(__file__).parents[2]


def features(root: Path, name: str = "clips") -> dict[str, bytes]:
    """Every clip's feature, to the bit."""
    table = tables.read(stores.join(str(root), "features", name))
    assert table is not None
    pairs = zip(table.column("clip_id").to_pylist(), table.column("feature").to_pylist(), strict=True)
    return {i: np.asarray(f or [], np.float32).tobytes() for i, f in pairs}


def masks(root: Path, name: str = "clips") -> dict[str, bytes | None]:
    table = tables.read(stores.join(str(root), "motion", name))
    assert table is not None
    return dict(zip(*(table.column(c).to_pylist() for c in ("clip_id", "mask")), strict=True))


def listed(run: Run, name: str) -> list[dict[str, Any]]:
    """The rows of a set's index."""
    table = tables.read(f"{run.root}/{name}")
    assert table is not None
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def command(root: Path, run: Run) -> list[str]:
    """The command line of a run as a user would give it."""
    path = root.parent / f"{root.name}.yaml"
    path.write_text(json.dumps(run.model_dump(mode="json")))  # JSON is YAML
    return [sys.executable, "-m", "jobs.curate", "--config", str(path)]


@pytest.fixture(scope="module")
def make(small_run: MakeRun, clips_of_world: Callable[[Iterable[int]], str]) -> MakeRun:
    """The small run on 16 of its clips, one of which has no motion."""
    clips = clips_of_world([*range(15), 24])

    def made(root: Path, **changes: Any) -> Run:
        pool = {"actors": 1, "cpus": 1, "batch": 8}
        return small_run(root, data__videos=clips, resources__evaluate=pool, **changes)

    return made


@pytest.fixture(scope="module")
def curated(make: MakeRun, cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole curate: one pass for motion and features, ranking, two arms, evaluation, page."""
    root = tmp_path_factory.mktemp("curated") / "run"
    curate(make(root))
    return root


def test_curate_writes_every_table_and_they_add_up(curated: Path) -> None:
    clips, motion, feature_rows = (
        tables.read(stores.join(str(curated), *p)) for p in (["clips"], ["motion", "clips"], ["features", "clips"])
    )
    assert clips is not None
    assert motion is not None
    assert feature_rows is not None
    readable = clips.filter(pc.is_null(clips.column("error")))
    assert sorted(motion.column("clip_id").to_pylist()) == sorted(readable.column("clip_id").to_pylist())
    assert set(feature_rows.column("clip_id").to_pylist()) <= set(motion.column("clip_id").to_pylist())
    selection = tables.read(stores.join(str(curated), "selection"))
    assert selection is not None
    for group in ("all", "roll", "spin"):
        ids = selection.filter(pc.equal(selection.column("group"), group)).column("clip_id").to_pylist()
        assert sorted(ids) == sorted(clips.column("clip_id").to_pylist()), f"group {group}: not one decision a clip"
    still = [i for i, mask in masks(curated).items() if mask is None]
    ranked = selection.filter(pc.is_valid(selection.column("mean_influence"))).column("clip_id").to_pylist()
    assert still, "the small world has still clips"
    assert set(still) <= set(ranked), "the recipe compares plain gradients of clips, which still ones have too"
    assert (curated / "report" / "index.html").stat().st_size > 50_000
    assert json.loads((curated / "summary.json").read_text())["problems"] == []


def test_every_folder_is_registered(curated: Path) -> None:
    assert unregistered(curated) == [], "a purge knows nothing of it"


def test_tables_are_plain_parquet(curated: Path) -> None:
    for folder in (
        "clips",
        "queries",
        "motion/clips",
        "features/clips",
        "influence",
        "neighbors",
        "selection",
        "evaluation",
    ):
        files = f"{curated}/{folder}/*.parquet"
        rows = duckdb.sql(f"select count(*) from '{files}'").fetchall()[0][0]
        frame = pd.concat(pd.read_parquet(p) for p in (curated / folder).glob("*.parquet"))
        assert rows == len(frame) > 0, folder
        numbers = frame.select_dtypes("number")
        assert not np.isinf(numbers.to_numpy(float)).any(), f"{folder} holds an infinite number"
        table = tables.read(stores.join(str(curated), folder))
        assert table is not None
        for column in table.columns:
            if pa.types.is_floating(column.type):
                assert not pc.any(pc.is_nan(column)).as_py(), f"{folder} holds NaN"


READS = """
import sys
def refuse(event, arguments):
    if event == "pickle.find_class":
        raise SystemExit(f"unpickled {arguments}")
import pyarrow.parquet as pq
sys.addaudithook(refuse)
for path in sys.argv[1:]:
    pq.ParquetFile(path).read().to_pylist()
"""


def test_tables_hold_no_pickles(curated: Path) -> None:
    parts = [str(path) for path in curated.rglob("*.parquet")]
    assert len(parts) > 8
    for path in parts:
        schemas.plain(pq.ParquetFile(path).read())
    done = subprocess.run([sys.executable, "-c", READS, *parts], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_evaluation_pairs_every_arm_with_base(curated: Path) -> None:
    table = tables.read(stores.join(str(curated), "evaluation"))
    assert table is not None
    frame = table.to_pandas()
    losses = frame[frame.metric == "masked_loss"].pivot(index="clip_id", columns="arm", values="value")
    assert set(losses.columns) == {"base", "random", "selected"}
    assert losses.notna().all(axis=None), "an arm lacks a held-out clip"
    assert (losses["base"] != losses["random"]).all(), "fine-tuning changed nothing"
    assert {p.suffix for p in (curated / "generated" / "base").iterdir()} == {".mp4"}


def test_a_second_run_does_nothing_new(curated: Path, make: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ("clips", "motion/clips", "features/clips", "selection", "evaluation")
    before = {f: tables.read(stores.join(str(curated), f)) for f in folders}
    trained = (curated / "finetuned" / "random" / "done.json").stat().st_mtime_ns
    curate(make(curated))
    assert (curated / "finetuned" / "random" / "done.json").stat().st_mtime_ns == trained, "an arm was trained again"
    for folder, table in before.items():
        order = [(c, "ascending") for c in ("clip_id", "arm", "group", "seed", "metric") if c in table.column_names]
        again = tables.read(stores.join(str(curated), folder))
        assert again.sort_by(order).equals(table.sort_by(order)), f"{folder} changed"
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("rank_clips")]
    assert not any("0/" in line for line in lines), "a stage streamed rows that were there"


def test_each_stage_alone_gives_the_same_bits_at_any_batch_pool_and_window(
    curated: Path, make: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "BATCHES", 2)  # windows of few clips: between them parts are merged
    monkeypatch.setattr(streaming, "BATCHES_OF_ACTOR", 1)
    run = make(
        tmp_path,
        resources__extract_features={"actors": 1, "cpus": 1, "batch": 4},
        resources__estimate_motion={"actors": 1, "cpus": 1, "batch": 16},
        resources__index_clips={"actors": 2, "cpus": 1, "batch": 4},
        attribution__hold=1,
    )
    indexing.index(run, "clips")
    attribution.estimate_motion(run, "clips")
    attribution.extract_features(run, "clips")
    assert len(tables.parts(f"{tmp_path}/features/clips")) < 4, (
        "the parts of each window are not merged before the next"
    )
    assert masks(tmp_path) == masks(curated), "masks depend on the stage, batch or pool"
    assert features(tmp_path) == features(curated), "features depend on the stage, batch, pool or on hold"


def test_bad_files_become_rows(small_run: MakeRun, small_world: Path, cluster: None, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    good = next((small_world / "clips").rglob("*.mp4")).read_bytes()
    (videos / "good.mp4").write_bytes(good)
    (videos / "empty.mp4").write_bytes(b"")
    (videos / "text.mp4").write_bytes(b"this is no video " * 100)
    (videos / "torn.mp4").write_bytes(good[: len(good) // 2])
    write_mp4(str(videos / "short.mp4"), world.render(world.scene(1, "s", "real", "spin", frames=4), 32, 32), 8)
    run = small_run(tmp_path / "run", data__videos=str(videos))
    indexing.index(run, "clips")
    rows = listed(run, "clips")
    errors = {Path(row["uri"]).name: (row["error"] or "").split(":")[0] for row in rows}
    assert errors == {
        "good.mp4": "",
        "empty.mp4": "decode",
        "text.mp4": "decode",
        "torn.mp4": "decode",
        "short.mp4": "too_short",
    }
    motion, feature_counts = attribution.attribute(run, "clips")
    assert (motion.rows, motion.errors) == (1, {})
    assert (feature_counts.rows, feature_counts.errors) == (1, {})


def test_videos_that_changed_or_went_give_way(
    small_run: MakeRun, small_world: Path, cluster: None, tmp_path: Path
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for source, name in zip(
        sorted((small_world / "queries").rglob("*.mp4")), ("kept", "changed", "gone"), strict=False
    ):
        (videos / f"{name}.mp4").write_bytes(source.read_bytes())
    run = small_run(tmp_path / "run", data__videos=str(videos))
    indexing.index(run, "clips")
    attribution.estimate_motion(run, "clips")
    before = {Path(row["uri"]).stem: row["clip_id"] for row in listed(run, "clips")}
    assert masks(tmp_path / "run").keys() == set(before.values())
    (videos / "changed.mp4").write_bytes((videos / "gone.mp4").read_bytes())
    (videos / "gone.mp4").unlink()
    indexing.index(run, "clips")
    clips = {Path(row["uri"]).stem: row["clip_id"] for row in listed(run, "clips")}
    assert set(clips) == {"kept", "changed"}
    assert clips["kept"] == before["kept"]
    assert masks(tmp_path / "run").keys() == {before["kept"]}, "a mask of a video that is no more is still there"
    attribution.estimate_motion(run, "clips")
    assert masks(tmp_path / "run").keys() == set(clips.values())


def test_prompts_become_queries(small_run: MakeRun, cluster: None, tmp_path: Path) -> None:
    prompts = [{"prompt": "a red ball rolling", "group": "roll"}, {"prompt": "a blue box spinning", "group": "spin"}]
    run = small_run(tmp_path, queries__videos=None, queries__prompts=prompts, evaluate__videos=None)
    generate_queries(run)
    indexing.index(run, "queries")
    rows = listed(run, "queries")
    assert sorted((r["caption"], r["group"], r["error"]) for r in rows) == [
        ("a blue box spinning", "spin", None),
        ("a red ball rolling", "roll", None),
    ]
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "generated" / "queries").glob("*.mp4")}
    generate_queries(run)
    assert {p: p.stat().st_mtime_ns for p in made} == made, "query videos were generated again"


def killed(line: list[str], environment: dict[str, str], begun: Path) -> None:
    """Run curate as a user does, and kill it once there is something in the folder `begun`."""
    driver = subprocess.Popen(
        line, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 900
    while not any(begun.rglob("*.*")) and time.monotonic() < deadline and driver.poll() is None:
        time.sleep(0.05)
    assert any(begun.rglob("*.*")), "the run never came so far"
    os.kill(driver.pid, signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL, "the kill came too late to show anything"


def test_sigkill_loses_and_doubles_nothing(curated: Path, make: MakeRun, tmp_path: Path) -> None:
    """While features are taken, and again while an arm is trained."""
    root = tmp_path / "run"
    run = make(root, evaluate__generate=0, evaluate__arms=["base"], finetune__steps=40)
    line = command(root, run)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    killed(line, environment, root / "features" / "clips")
    killed(line, environment, root / "finetuned")
    again = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1000)
    assert again.returncode == 0, again.stderr[-2000:]
    assert features(root) == features(curated), "the features of a killed and continued run differ"
    for name in ("motion/clips", "features/clips"):
        ids = [i for p in (root / name).glob("part-*.parquet") for i in pd.read_parquet(p, columns=["clip_id"]).clip_id]
        assert len(ids) == len(set(ids)), f"{name}: a row is there twice"
    assert (root / "finetuned" / "selected" / "done.json").is_file()
