"""The benchmarks of features and of ranking fidelity: their figures are of what they say."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch

from jobs.benchmarks import features, fidelity


@pytest.mark.benchmark
def test_features_are_compared_with_the_bare_model_of_the_same_size() -> None:
    rows = features.compare(replace(features.SMALL, clips=2), rounds=1)
    assert [row["kind"] for row in rows] == ["bare forward and backward", "sketched_gaussian", "gaussian"]
    assert rows[0]["time_ratio"] == rows[0]["peak_ratio"] == 1.0
    counted = sum(p.numel() for p in features.transformer(features.SMALL).parameters())
    assert all(row["parameters"] == counted and float(str(row["seconds_per_clip"])) > 0 for row in rows)


def test_a_case_that_fails_is_told() -> None:
    with pytest.raises(RuntimeError, match="failed"):
        features.in_a_process(replace(features.SMALL, heads=0))


@pytest.mark.benchmark
def test_more_numbers_keep_the_ranking_better(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(sys, "argv", ["fidelity", "--quick"])
    fidelity.main()
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    for kind in ("gaussian", "rademacher", "sketched_gaussian", "fastfood"):
        own = sorted((r for r in rows if r["kind"] == kind and not r["whiten"]), key=lambda r: int(r["dim"]))
        assert own[0]["spearman"] < own[-1]["spearman"] <= 1
