"""What a stage says while it works: loading, rate, time left; one line in place on a terminal, else plain lines."""

from __future__ import annotations

import io
import sys

import pytest

from pipeline.stages import progress
from pipeline.stages.progress import Progress


class Clock:
    """Seconds that pass when a test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_stage_without_a_first_row_is_loading(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    report = Progress("finetune selected", "step")
    report(0, 40, {})
    clock.now += 20
    report(0, 40, {})
    assert capsys.readouterr().err == (
        "finetune selected: 0/40 [0 s, loading]\nfinetune selected: 0/40 [20 s, loading]\n"
    )


def test_rate_and_time_left_do_not_count_the_loading(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    report = Progress("attribute clips")
    report(0, 40, {})
    for seconds, done in ((20, 10), (10, 20), (5, 25), (15, 40)):
        clock.now += seconds
        report(done, 40, {"no_motion": 3} if done > 10 else {})
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "attribute clips: 0/40 [0 s, loading]"
    assert lines[1].startswith("attribute clips: 10/40 [00:20<")
    assert lines[2] == "attribute clips: 20/40 [00:30<00:20,  1.00row/s, 3 no_motion]"
    assert lines[3].startswith("attribute clips: 40/40 [00:50<00:00,"), "what came within EVERY seconds is a line"
    assert len(lines) == 4


def test_what_an_earlier_job_did_counts_for_no_rate(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    report = Progress("finetune all", "step")
    for seconds, done in ((0, 0), (10, 900), (10, 905)):
        clock.now += seconds
        report(done, 1000, {})
    assert "905/1000 [00:20<03:10,  2.00s/step]" in capsys.readouterr().err


def test_a_terminal_has_one_line_a_stage(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    for title in ("index clips", "motion clips"):
        report = Progress(title)
        for done in range(0, 41, 10):
            clock.now += 1
            report(done, 40, {})
    text = terminal.getvalue()
    lines = [line for line in (line.split("\r")[-1].strip() for line in text.split("\n")) if line]
    assert len(lines) == 2, "a stage has more than its line"
    assert all(
        line.startswith(title) for line, title in zip(lines, ("index clips: 100%|", "motion clips: 100%|"), strict=True)
    )
    assert "index clips: 0/40 [1 s, loading]" in text
    monkeypatch.setenv("TERM", "dumb")
    Progress("rank_clips")(40, 40, {})
    assert terminal.getvalue().endswith("row/s]\n"), "a dumb terminal got a bar"
