"""Two stages of attribution through Ray, from videos to the page: who gets which features, what the others are told,
and that a run which was killed ends as one that was left alone."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import tables
from pipeline.config import Run
from pipeline.stages import attribution, indexing, two_stages
from pipeline.stages.ranking import rank_clips
from pipeline.stages.report import report
from tests.support.registered import unregistered

pytestmark = pytest.mark.whole

MakeRun = Callable[..., Run]
ROOT = Path(__file__).parents[2]
CLIPS = 12
SHARES = {"top": 0.25, "bottom": 0.1, "audit": 0.3}
SETTINGS = [{"timestep": 501, "of": "queries"}, {"timestep": 501, "mask": "none", "of": "clips"}]
CHEAPER = {"frames": 5, "settings": SETTINGS}  # another geometry has motion of its own
WRITTEN = ("shortlist/motion/clips", "shortlist/features/clips", "shortlist/features/queries", "shortlist/chosen")
WRITTEN += ("motion/clips", "features/clips", "features/queries", "influence", "neighbors", "selection")


def rows(root: str, name: str) -> list[dict[str, Any]]:
    table = tables.read(f"{root}/{name}")
    assert table is not None, f"there is no table {name}"
    keys = [k for k in ("clip_id", "query_id", "group", "rank", "sign") if k in table.column_names]
    records: list[dict[str, Any]] = table.sort_by([(key, "ascending") for key in keys]).to_pylist()
    return records


def features(root: str, name: str = "features/clips") -> dict[str, bytes]:
    """Every clip's feature, to the bit."""
    return {r["clip_id"]: np.asarray(r["feature"], np.float32).tobytes() for r in rows(root, name)}


@pytest.fixture(scope="module")
def make(small_run: MakeRun, clips_of_world: Callable[[Iterable[int]], str]) -> MakeRun:
    clips = clips_of_world(range(CLIPS))

    def made(root: Path, **changes: Any) -> Run:
        pool = {"actors": 1, "cpus": 1, "batch": 4}
        return small_run(root, data__videos=clips, resources__extract_features=pool, **changes)

    return made


@pytest.fixture(scope="module")
def undivided(make: MakeRun, cluster: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Index, and the full setting of every clip and query."""
    run = make(tmp_path_factory.mktemp("undivided") / "run")
    for name in ("queries", "clips"):
        indexing.index(run, name)
        attribution.attribute(run, name)
    return run.root


def divided(make: MakeRun, undivided: str, root: Path) -> Run:
    """A run in two stages, with the index and nothing else."""
    for name in ("queries", "clips"):
        for part in Path(undivided, name).glob("*.parquet"):
            (root / name).mkdir(parents=True, exist_ok=True)
            (root / name / part.name).write_bytes(part.read_bytes())
    return make(root, attribution__shortlist={**SHARES, **CHEAPER})


def work(run: Run) -> None:
    two_stages.queries(run)
    two_stages.clips(run)
    rank_clips(run)


@pytest.fixture(scope="module")
def whole(make: MakeRun, undivided: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = divided(make, undivided, tmp_path_factory.mktemp("whole") / "run")
    work(run)
    return run


def test_every_clip_has_the_cheaper_feature_and_the_chosen_the_full_one(whole: Run, undivided: str) -> None:
    full, cheaper = features(whole.root), features(whole.root, "shortlist/features/clips")
    chosen = rows(whole.root, "shortlist/chosen")
    assert unregistered(whole.root) == []
    assert len(cheaper) == CLIPS
    assert {r["clip_id"] for r in chosen} <= cheaper.keys()
    assert full.keys() == {r["clip_id"] for r in chosen if r["reason"]}, "not the shortlist alone"
    reasons = [r["reason"] for r in chosen]
    moving = len(chosen)
    counted = [reasons.count("top"), reasons.count("bottom"), sum(r["audited"] for r in chosen)]
    assert counted == [round(share * moving) for share in SHARES.values()]
    assert all(r["audited"] for r in chosen if r["reason"] == "audit")
    every = features(undivided)
    assert full == {i: every[i] for i in full}, "the full setting of a shortlist is not that of an undivided run"
    assert features(whole.root, "features/queries") == features(undivided, "features/queries")
    assert len(next(iter(cheaper.values()))) < len(next(iter(full.values()))), "the cheaper variant has fewer settings"


def test_every_clip_is_decided_on_and_the_others_are_told_why(whole: Run) -> None:
    chosen = {r["clip_id"]: r for r in rows(whole.root, "shortlist/chosen")}
    for group in ("all", "roll", "spin"):
        decided = {r["clip_id"]: r for r in rows(whole.root, "selection") if r["group"] == group}
        assert len(decided) == CLIPS, f"group {group}: not one decision a clip"
        for clip, row in decided.items():
            if clip in chosen and chosen[clip]["reason"]:
                assert row["rank"] is not None, f"{clip} has features and is not ranked"
                continue
            assert (row["decision"], row["rank"], row["votes"]) == ("neutral", None, 0)
            place = f"not on the shortlist, rank {chosen[clip]['rank']} of" if clip in chosen else "no_motion: "
            assert row["reason"].startswith(f"not ranked: {place}")


def test_log_and_summary_tell_how_good_the_shortlist_is(whole: Run, capsys: pytest.CaptureFixture[str]) -> None:
    rank_clips(whole)
    report(whole)
    said = capsys.readouterr().out
    summary = json.loads(Path(whole.root, "summary.json").read_text())
    quality = summary["shortlist"]
    assert quality["compared"] == quality["audited"] == sum(r["audited"] for r in rows(whole.root, "shortlist/chosen"))
    assert -1 <= quality["spearman"] <= 1
    assert quality["found_top"]["count"] == 1
    assert re.search(rf"shortlist: of {quality['clips']} clips {quality['top']} first, {quality['bottom']} last", said)
    assert f"rank correlation of the two influences is {quality['spearman']:.2f}" in said
    assert "on the shortlist for their rank" in said
    assert summary["problems"] == []
    assert "not on the shortlist" in Path(whole.root, "report", "index.html").read_text()


def killed(run: Run, moment: str) -> str:
    """Run curate as a user does, kill it when its log shows `moment`, and return the log."""
    path, log = Path(f"{run.root}.yaml"), Path(f"{run.root}.log")
    path.write_text(json.dumps(run.model_dump(mode="json")))  # JSON is YAML
    known = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    line = [sys.executable, "-m", "jobs.curate", "--config", str(path)]
    with log.open("w") as output:
        driver = subprocess.Popen(line, cwd=ROOT, env=known, stdout=output, stderr=output, start_new_session=True)
    deadline = time.monotonic() + 900
    while moment not in log.read_text() and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(driver.pid, signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL, log.read_text()[-3000:]
    return log.read_text()


def test_killed_between_the_stages_it_ends_as_if_left_alone(
    whole: Run, make: MakeRun, undivided: str, tmp_path: Path
) -> None:
    run = divided(make, undivided, tmp_path / "run")
    assert "clips for the full setting" in killed(run, "clips for the full setting")
    assert tables.parts(f"{run.root}/shortlist/chosen")
    left = tables.read(f"{run.root}/features/clips")
    assert left is None or left.num_rows < len(features(whole.root)), "the kill came too late to show anything"
    work(run)
    for name in WRITTEN:
        assert rows(run.root, name) == rows(whole.root, name), f"{name} of the killed run differs"
    again = {name: [p.stat().st_mtime_ns for p in Path(run.root, name).iterdir()] for name in WRITTEN[:3]}
    two_stages.clips(run)
    assert again == {name: [p.stat().st_mtime_ns for p in Path(run.root, name).iterdir()] for name in WRITTEN[:3]}


def test_rows_that_are_equal_are_equal(whole: Run) -> None:
    """The comparison above sees a bit that differs."""
    first, *_ = rows(whole.root, "features/clips")
    other = np.asarray(first["feature"], np.float32)
    other[0] = np.nextafter(other[0], np.float32(np.inf))
    assert pa.array([first["feature"]]) != pa.array([other.tolist()])
