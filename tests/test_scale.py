"""Large inputs: rows in bounded windows, parts in time, tables read and subtracted part by part."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest

from pipeline import ray_data, tables

# --- parts in time ---------------------------------------------------------------------------------------------------


class Clock:
    """A clock that goes on by as much as each row takes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(tables.time, "monotonic", lambda: self.now)

    def rows(self, *seconds: float) -> Iterator[int]:
        for i, second in enumerate(seconds):
            self.now += second
            yield i


def test_finished_rows_are_a_part_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = list(tables.in_parts(Clock(monkeypatch).rows(20, 20, 20, 20, 70, 1, 1)))
    assert groups == [[0, 1, 2], [3, 4], [5, 6]], "finished rows wait for more than 60 s"


def test_a_thousand_rows_are_a_part() -> None:
    assert [len(group) for group in tables.in_parts(range(2500))] == [1000, 1000, 500]
    assert list(tables.in_parts([])) == [], "a part without rows"


def test_a_part_waits_for_gradients_that_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three gradients that share one generation of the projection none is finished before the third."""
    clock, taken = Clock(monkeypatch), list[int]()

    def take() -> Iterator[int]:
        for row in clock.rows(50, 50, 50, 50, 50, 50, 50):
            taken.append(row)
            yield row

    groups = list(tables.in_parts(take(), lambda: len(taken) % 3 == 0))
    assert groups == [[0, 1, 2], [3, 4, 5], [6]]


# --- windows ---------------------------------------------------------------------------------------------------------


def test_blocks_are_drawn_a_window_at_a_time() -> None:
    drawn = []

    def blocks() -> Iterator[pa.Table]:
        for i in range(7):
            drawn.append(i)
            yield pa.table({"clip_id": [f"{i}-{j}" for j in range(10)]})

    windows = ray_data.windows(blocks(), 25)
    assert sum(block.num_rows for block in next(windows)) == 30
    assert drawn == [0, 1, 2], "blocks of a later window are in memory already"
    assert [sum(b.num_rows for b in window) for window in windows] == [30, 10], "rows are lost between windows"
