"""The quality benchmark's short form, end to end through Ray: what it asserts the long form has shown to be safe."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.benchmarks.quality.__main__ import QUICK, run


@pytest.mark.timeout(1500)
def test_gradients_tell_what_fine_tuning_does(cluster: None, tmp_path: Path) -> None:
    found = run(QUICK, str(tmp_path))
    lds = {row["method"]: row for row in found["lds"]}
    arms = {row["arm"]: row for row in found["counterfactual"]}
    print(json.dumps({n: round(r["specific"], 3) for n, r in lds.items()}))
    print(json.dumps({n: round(r["masked_target"], 4) for n, r in arms.items()}))
    assert pq.read_table(tmp_path / "report" / "lds.parquet").num_rows == len(lds)
    assert (tmp_path / "report" / "lds.png").stat().st_size > 1000
