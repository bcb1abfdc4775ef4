"""Figures of stages: a damaged file is left out with a warning."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from pipeline.tables import throughput
from pipeline.tables.throughput import Figures


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"stage": "motion clips", "rows',
        b"\xff",
        b"[]",
        b'{"rows": 3}',
        b'{"stage": 3, "rows": 3}',
        json.dumps({"stage": "motion clips", "rows": 3, "colour": 1}).encode(),
        json.dumps({"stage": "motion clips", "rows": "many"}).encode(),
    ],
)
def test_a_damaged_record_is_left_out_with_its_path(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    throughput.save(throughput.new_file(str(tmp_path), "motion clips"), "motion clips", Figures(seconds=2.0, rows=5))
    damaged = tmp_path / "stats" / "motion_clips-20260101T000000-00000000.json"
    damaged.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert throughput.sums(str(tmp_path)) == {"motion clips": Figures(seconds=2.0, rows=5)}
    assert f"{damaged}: the file is damaged, so its figures are left out" in caplog.text


def test_a_record_of_an_earlier_version_may_lack_figures(tmp_path: Path) -> None:
    (tmp_path / "stats").mkdir()
    (tmp_path / "stats" / "one.json").write_text('{"stage": "motion clips", "rows": 3}')
    assert throughput.sums(str(tmp_path)) == {"motion clips": Figures(rows=3)}
