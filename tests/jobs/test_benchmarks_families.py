"""The benchmark of families, on a few layers."""

from __future__ import annotations

import json
import sys

import pytest

from jobs.benchmarks import families


@pytest.mark.benchmark
def test_every_part_of_every_family_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["families", "--quick", "--families", "ltx-video-2b,cogvideox-2b"])
    families.main()
    printed = capsys.readouterr().out
    results = json.loads(printed[printed.index("\n{") :])
    assert set(results["families"]) == {"ltx-video-2b", "cogvideox-2b"}
    for figures in results["families"].values():
        for part in ("flow", "encode", "gradient and projection", "training step", "TFLOP/s"):
            assert figures[part] > 0


def test_an_unknown_family_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["families", "--quick", "--families", "nobody"])
    with pytest.raises(SystemExit):
        families.main()
    assert "there is no nobody" in capsys.readouterr().err
