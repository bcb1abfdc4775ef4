"""The ranking benchmark: its order of output, and that each way does what its row says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from jobs.benchmarks import ranking
from pipeline import tables
from pipeline.ranking import selection
from pipeline.storage.stores import join


@pytest.mark.benchmark
def test_ceilings_come_first_and_one_line_of_json_last(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(ranking, "matmul_rate", lambda device: 1e11)
    monkeypatch.setattr(ranking, "in_a_process", ranking.measure)
    monkeypatch.setattr(ranking, "SMALL", 500)
    asked = ["--clips", "900", "--part", "200", "--roots", "2", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["ranking", *asked])
    ranking.main()
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split()[0] for line in lines if line.split() and line.split()[0] in ranking.WAYS]
    assert rows[: len(ranking.WAYS)] == list(ranking.WAYS), f"the ceilings do not come first: {rows}"
    results = json.loads(lines[-1])
    assert list(results["ways"]) == list(ranking.WAYS)
    assert all(way["seconds"] > 0 and way["peak_bytes"] > 1e7 for way in results["ways"].values())
    assert results["same"] is True, "the ranking of two roots is not that of one"
    assert results["small_s"].keys() >= {"arrays", "parquet"}
    assert not list(tmp_path.iterdir()), "the tables are still there"


def test_the_table_has_the_clips_it_says_each_of_its_own(tmp_path: Path) -> None:
    ranking.make(str(tmp_path), 450, 200)
    ranked = selection.rank(ranking.run_of(str(tmp_path), None), "motion", None)
    assert len(set(ranked.clip_ids.to_pylist())) == 450
    assert len(ranked.query_ids) == ranking.QUERIES
    assert len(tables.parts(join(str(tmp_path), "features/clips"))) == 3
    values = ranked.influence[0]
    assert values.std() > 0.01, "all clips are alike"
    assert values.min() > 0, "the clips share no direction"


@pytest.mark.benchmark
def test_a_way_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"plain failed: .*features/clips"):
        ranking.in_a_process("plain", str(tmp_path))
