"""The benchmark for a GPU: what it does with parts that fail or take too long, its tables, its short form."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.benchmarks.gpu import __main__ as gpu
from jobs.benchmarks.gpu.__main__ import Part


def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Part:
    (tmp_path / "part.py").write_text(text)
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    return Part("a part", ("part",))


def test_the_last_line_of_a_part_is_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = script(tmp_path, monkeypatch, "print('so far')\nprint('{\"a\": 1}')")
    assert gpu.measured(part, False, 60)["figures"] == {"a": 1}


def test_a_part_that_fails_or_takes_too_long_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = script(tmp_path, monkeypatch, "print('no memory')\nraise SystemExit(3)")
    assert gpu.measured(part, False, 60)["failure"] == "exit status 3: no memory"
    part = script(tmp_path, monkeypatch, "import time\ntime.sleep(600)")
    assert gpu.measured(part, False, 1.0)["failure"] == "it took more than the 1 s that were left"
    part = script(tmp_path, monkeypatch, "print('done')")
    assert gpu.measured(part, False, 60)["failure"] == "its last line is no JSON: done"


def test_a_part_that_is_interrupted_may_say_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import time\ntry:\n    time.sleep(600)\nexcept KeyboardInterrupt:\n    print('{\"whole\": false}')"
    part = script(tmp_path, monkeypatch, text)
    monkeypatch.setattr(gpu, "GRACE", 10.0)
    assert gpu.measured(part, False, 15.0)["figures"] == {"whole": False}


def test_without_a_gpu_only_the_short_form_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit, match="2"):
        gpu.main()
    assert "--quick runs anywhere" in capsys.readouterr().err


def test_tables_are_made_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = {"rows": 40, "seconds": 200.0, "busy_share": 0.97}
    curation = {
        **{
            "whole": True,
            "clips": 40,
            "geometry": [81, 480, 832],
            "writing_s": 60.0,
            "seconds": 300.0,
            "stages": {"attribute": stage},
        },
        **{"attribution_s_a_clip": 5.0, "actor_busy_s_a_clip": 4.5, "card_busy": 0.9, "card_gib": 50.0},
    }
    one_way = {"s_a_clip": 3.5, "card_busy": 0.97, "peak_gib": 30.0}
    parts: dict[str, Any] = {
        "tests": {"seconds": 20.0, "figures": {"summary": "30 passed"}},
        "curation": {"seconds": 365.0, "figures": curation},
        "overlap": {"seconds": 60.0, "figures": {"ways": {"prepared meanwhile": one_way}, "lowest_cosine": 0.99999}},
        "training": {"seconds": 30.0, "figures": {"adapters": {"step_s": 1.5, "peak_gib": 20.0, "loss": 1.0}}},
        "stages": {"seconds": 60.0, "figures": {"bill_s": {"gradient": 2.5}}},
        "families": {"seconds": 0.0, "failure": "no time was left"},
    }
    machine = {"gpu": "A card", "cpu": "", "torch": "2", "date": "today"}
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps({"machine": machine, "parts": parts}))
    monkeypatch.setattr(sys, "argv", ["gpu", "--tables", str(path)])
    gpu.main()
    text = capsys.readouterr().out
    for line in (
        "A card, torch 2, today",
        "| tests | 20 | 30 passed |",
        "| families | 0 | no time was left |",
        "| attribute | 40 | 200.0 | 97% |",
        "| prepared meanwhile | 3.50 | 97% | 30.0 |",
        "| adapters | 1.500 | 20.0 |",
        "| seconds a clip, all in | 3.6 | 4.5 |",
        "| seconds of a gradient | 2 | 2.5 |",
        "| share of the time that the card is busy | 0.95 | 0.9 |",
    ):
        assert line in text.splitlines(), f"{line} is not in\n{text}"


@pytest.mark.benchmark
def test_the_short_form_curates_and_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu", "--quick", "--only", "curation,overlap,training", "--json", str(path)])
    gpu.main()
    parts = json.loads(path.read_text())["parts"]
    assert not {name: part["failure"] for name, part in parts.items() if "failure" in part}
    assert parts["curation"]["figures"]["stages"]["attribute clips"]["rows"] == 6
    assert parts["overlap"]["figures"]["lowest_cosine"] == pytest.approx(1)
    losses = {name: one["loss"] for name, one in parts["training"]["figures"].items()}
    assert losses["every parameter, FSDP2 on one rank"] == pytest.approx(losses["every parameter"], rel=1e-3)
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["parts"].keys() == parts.keys()
