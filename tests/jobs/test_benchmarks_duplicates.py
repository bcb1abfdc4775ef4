"""The benchmark of near-duplicates: its copies, and its short form."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from jobs.benchmarks import duplicates


def test_copies_keep_their_shape() -> None:
    clip = np.random.default_rng(0).integers(0, 256, (18, 32, 32, 3)).astype(np.uint8)
    for name, copy in (duplicates.COPIES | duplicates.DISTINCT).items():  # type: ignore[operator]
        assert copy(clip, 9).shape == (9, 32, 32, 3), name


def test_shares_are_of_the_pairs_at_the_threshold_or_above() -> None:
    values = np.array([0.5, 0.9, 0.95, 1.0], np.float32)
    assert duplicates.described(values, "picture") == {
        "pairs": 4,
        "median": pytest.approx(0.925),
        "shares": [0.75, 0.75, 0.75, 0.5],
    }


@pytest.mark.benchmark
def test_the_short_form_tells_copies_from_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["duplicates", "--quick"])
    duplicates.main()
    results = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    for kind, at in (("picture", 2), ("feature", 2)):
        figures = results[f"synthetic, by {kind}"]
        assert figures["re-encoded, CRF 28"]["shares"][at] == 1, kind
        assert figures["two clips, of two videos"]["shares"][at] == 0, kind
