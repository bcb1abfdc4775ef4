"""A curate that has ended well, called again: it answers at once, until something below its root changes."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config import Run

pytestmark = pytest.mark.whole

ROOT = Path(__file__).parents[2]
NOTHING = "There is nothing to do"
CPU_SECONDS = 5.0  # of a job that finds everything done; it takes one


def called(run: Run) -> tuple[str, float]:
    """What curate prints, in a process of its own, and its seconds of processor."""
    path = Path(f"{run.root}.yaml")
    path.write_text(json.dumps(run.model_dump(mode="json")))  # JSON is YAML
    line = [sys.executable, "-m", "jobs.curate", "--config", str(path)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(line, cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1"}, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ended.returncode == 0, ended.stderr[-3000:]
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return ended.stdout + ended.stderr, seconds


def test_a_run_that_is_done_answers_at_once(tiny_run: Callable[..., Run], tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run")
    first, _ = called(run)
    assert NOTHING not in first
    written = {path: path.stat().st_mtime_ns for path in Path(run.root).rglob("*")}
    again, seconds = called(run)
    assert NOTHING in again, "something of the run changed after its record was written"
    assert f"page: {run.root}/report/index.html" in again
    assert seconds < CPU_SECONDS
    assert {path: path.stat().st_mtime_ns for path in Path(run.root).rglob("*")} == written, "it wrote something"
    part = next((Path(run.root) / "features" / "clips").glob("part-*"))
    part.unlink()
    mended, _ = called(run)
    assert NOTHING not in mended, "a deleted part of a table was not missed"
    assert part.parent.is_dir()
    assert any(part.parent.glob("part-*")), "it was not computed again"
    assert NOTHING in called(run)[0]
