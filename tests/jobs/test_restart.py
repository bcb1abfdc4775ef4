"""SIGKILL at random moments of every stage: the same command continues it, to the rows and bytes of a run that was left
alone. This is the long form, for `make soak`; test_jobs kills two runs once each."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline import tables
from pipeline.config import Run
from pipeline.storage import stores

MakeRun = Callable[..., Run]
ROOT = Path(__file__).parents[2]

# What the log shows when a stage begins: ranking begins with the features' last line, the page with the evaluation's.
MOMENTS = ("index queries", "attribute queries", "index clips", "attribute clips", "features/clips: ")
MOMENTS += ("finetune selected", "index held_out", "evaluate: ", "evaluation: ")
TABLES = ("queries", "clips", "motion/queries", "motion/clips", "features/queries", "features/clips", "influence")
TABLES += ("neighbors", "selection", "held_out", "motion/held_out", "evaluation")


class Driver:
    """A curate in a process of its own, on a Ray of its own."""

    def __init__(self, run: Run) -> None:
        path = Path(f"{run.root}.yaml")
        path.write_text(json.dumps(run.model_dump(mode="json")))  # JSON is YAML
        self.log = Path(f"{run.root}.log")
        known = {**os.environ, "PYTHONUNBUFFERED": "1", "RAY_AUTH_MODE": "disabled"}
        with self.log.open("w") as log:
            line = [sys.executable, "-m", "jobs.curate", "--config", str(path)]
            self.process = subprocess.Popen(line, cwd=ROOT, env=known, stdout=log, stderr=log)

    def reached(self, moments: tuple[str, ...]) -> str | None:
        """Wait for the first of these moments and return it; None where the run ends without one."""
        while True:
            ended = self.process.poll() is not None
            said = self.log.read_text()
            logged_moments = [moment for moment in moments if moment in said]
            if logged_moments:
                return logged_moments[0]
            if ended:
                return None
            time.sleep(0.02)

    def end(self) -> None:
        assert self.process.wait(400) == 0, self.log.read_text()[-3000:]

    def kill(self) -> bool:
        """Whether the run was still there to be killed."""
        self.process.kill()
        return self.process.wait() < 0


def content(root: str) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table, features to the bit; uris below the root without the root."""
    rows_by_table = {}
    for name in TABLES:
        table = tables.read(stores.join(root, name))
        assert table is not None, f"there is no table {name}"
        keys = [k for k in ("clip_id", "query_id", "group", "arm", "seed", "metric") if k in table.column_names]
        rows = table.sort_by([(key, "ascending") for key in keys]).to_pylist()
        rows_by_table[name] = [{**r, "uri": (r["uri"] or "").removeprefix(root)} if "uri" in r else r for r in rows]
    return rows_by_table


@pytest.fixture(scope="module")
def undisturbed(
    tiny_run: MakeRun, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, float]]:
    """The tables of a run that was left alone, and how long each of its stages took."""
    run = tiny_run(tmp_path_factory.mktemp("undisturbed") / "run")
    driver, starts = Driver(run), dict[str, float]()
    for moment in MOMENTS:
        assert driver.reached((moment,)), f"{moment!r} is not in the log:\n{driver.log.read_text()}"
        starts[moment] = time.monotonic()
    driver.end()
    ends = [*starts.values(), time.monotonic()][1:]
    return content(run.root), {m: end - start for (m, start), end in zip(starts.items(), ends, strict=True)}


def killed(run: Run, moments: tuple[str, ...], took: dict[str, float], seed: int) -> Counter[str]:
    """Kill a run once in each of these stages, then let it end; returns the kills by stage."""
    chance, kills = random.Random(seed), Counter[str]()
    for i in range(len(moments)):
        driver = Driver(run)
        moment = driver.reached(moments[i:])  # a later one where the stage had ended before the kill
        assert moment, driver.log.read_text()[-3000:]
        time.sleep(chance.uniform(0, took[moment]))
        kills[moment] += driver.kill()
    Driver(run).end()
    print(f"seed {seed}: {kills.total()} kills: {dict(kills)}")
    return kills


def compare(root: str, expected: dict[str, list[dict[str, Any]]]) -> None:
    actual = content(root)
    for name, rows in expected.items():
        assert actual[name] == rows, f"{name} of the killed run differs from that of the run left alone"


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_run_killed_in_every_stage_ends_as_if_left_alone(
    undisturbed: tuple[Any, dict[str, float]], tiny_run: MakeRun, tmp_path: Path, seed: int
) -> None:
    expected, took = undisturbed
    run = tiny_run(tmp_path / "run")
    kills = killed(run, MOMENTS, took, seed)
    assert kills.total() >= 7, "too few kills hit the run"
    compare(run.root, expected)


def test_half_written_files_are_no_rows_and_go_after_a_while(tmp_path: Path) -> None:
    folder = tmp_path / "features" / "clips"
    tables.append(str(folder), pa.table({"clip_id": ["a", "b"], "error": pa.nulls(2, pa.string())}), {})
    (part,) = folder.iterdir()
    old, new = (folder / f".{part.name}.{digit * 32}.tmp" for digit in "ab")
    for path in (old, new):
        path.write_bytes(part.read_bytes()[:100])
    os.utime(old, (0, time.time() - stores.ABANDONED - 1))
    stores.sweep(str(tmp_path))
    assert sorted(folder.iterdir()) == sorted([part, new]), "a dead writer's file goes, a living one's stays"
    table = tables.read(str(folder))
    assert table is not None
    assert table.column("clip_id").to_pylist() == ["a", "b"]
