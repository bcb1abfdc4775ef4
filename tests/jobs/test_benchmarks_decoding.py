"""The decoding benchmark: its films show what they say, and each way gives the frames asked for."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from jobs.benchmarks.decoding import __main__ as decoding
from jobs.benchmarks.decoding import films, ways


def test_a_film_repeats_its_piece_and_every_frame_shows_its_number(tmp_path: Path) -> None:
    films.write_piece(tmp_path / "piece.mp4", films.CODECS[0], films.Scene(144, 256), 50)
    films.repeat(tmp_path / "piece.mp4", tmp_path / "film.mp4", 50, 3)
    with av.open(str(tmp_path / "film.mp4")) as film:
        frames = list(film.decode(video=0))
    assert [round(float(frame.time) * films.RATE) for frame in frames] == list(range(150))
    small = np.stack([frame.to_ndarray(format="rgb24", width=128, height=72) for frame in frames])
    assert films.read_numbers(small) == [number % 50 for number in range(150)]


@pytest.mark.benchmark
def test_the_short_form_compares_ways_that_are_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decoding, "in_a_process", ways.measure)
    monkeypatch.setattr(sys, "argv", ["decoding", "--quick"])
    decoding.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    names = ways.available()
    assert [row["way"] for row in figures["films"]] == names * 4
    assert all(row["seconds"] > 0 and row["cpu_seconds"] > 0 for row in figures["films"])
    for row in figures["segments"]:
        assert row["exact"] == row["of"] == decoding.QUICK.segments, f"{row['way']} gives other frames of {row['film']}"
    assert [row["way"] for row in figures["many"]] == ["pyav_many", "index_many"]
    assert figures["export"]["clips"] == decoding.QUICK.clips
    assert [row["way"] for row in figures["s3"]] == ["local", "s3://"] * 2
