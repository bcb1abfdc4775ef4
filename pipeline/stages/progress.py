"""What a job says while it works: rows done, the rate and the time left; then what it achieved."""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from pipeline.tables import Outcomes
from pipeline.tables.throughput import Figures

EVERY = 10.0  # seconds between two plain lines
PLAIN = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class Progress:
    """Rows done, the rate and the time left: a line that renews itself on a terminal, else a plain line at most every
    EVERY seconds. Until the first row is done the line says that the stage is loading: its actors import and load
    their models then.

    Rows that are done at once, because an earlier job did them, count for no rate.
    """

    def __init__(self, title: str, unit: str = "row") -> None:
        self._title, self._unit = title, unit
        self._start = time.monotonic()
        self._first: tuple[float, int] | None = None  # when the first rows were done, and how many
        self._said = -EVERY
        self._bar: tqdm[Any] | None = None

    def __call__(self, done: int, total: int, errors: dict[str, int]) -> None:
        elapsed = time.monotonic() - self._start
        if done and self._first is None:
            self._first = elapsed, done
        line = self._line(done, total, elapsed, errors)
        if _on_terminal():
            self._renew(line, done, total)
        elif done >= total or elapsed - self._said >= EVERY:
            self._said = elapsed
            print(line, file=sys.stderr, flush=True)

    def _line(self, done: int, total: int, elapsed: float, errors: dict[str, int]) -> str:
        notes = [f"{count} {code}" for code, count in errors.items()]
        if not done and total:
            return f"{self._title}: 0/{total} [{duration(elapsed)}, {', '.join(['loading', *notes])}]"
        return tqdm.format_meter(
            n=done,
            total=total,
            elapsed=elapsed,
            rate=self._rate(done, total, elapsed),
            prefix=self._title,
            unit=self._unit,
            postfix=", ".join(notes),
            ncols=shutil.get_terminal_size().columns - 2 if _on_terminal() else None,
            bar_format=None if _on_terminal() else PLAIN,
        )

    def _rate(self, done: int, total: int, elapsed: float) -> float | None:
        """Rows a second since the first ones, so that loading does not count; over all of it at the end."""
        if self._first is None or done >= total or done == self._first[1]:
            return None
        since, before = self._first
        return (done - before) / max(elapsed - since, 1e-9)

    def _renew(self, line: str, done: int, total: int) -> None:
        """The line in its place on the terminal, where tqdm keeps what is logged meanwhile apart from it."""
        if self._bar is None:
            self._bar = tqdm(total=total, bar_format="{desc}", leave=True, file=sys.stderr)
        self._bar.set_description_str(line)
        if done >= total:
            self._bar.close()
            self._bar = None


class FilmProgress(Progress):
    """Minutes of film done, the rate in times real time, and the time left; rows are parts of `left` seconds of film,
    of `seconds` in all."""

    def __init__(self, title: str, seconds: float, left: float) -> None:
        super().__init__(title)
        self._seconds, self._left = seconds, left

    def _line(self, done: int, total: int, elapsed: float, errors: dict[str, int]) -> str:
        if not done or not total:
            return super()._line(done, total, elapsed, errors)
        now = self._left * done / total
        minutes = (self._seconds - self._left + now) / 60
        rate = self._left / total * (self._rate(done, total, elapsed) or done / max(elapsed, 1e-9))
        notes = "".join(f", {count} {code}" for code, count in errors.items())
        return (
            f"{self._title}: {minutes:.0f} of {self._seconds / 60:.0f} min of film "
            f"[{duration(elapsed)}, {duration((self._left - now) / rate)} left, {rate:.1f} x real time{notes}]"
        )


def _on_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def duration(seconds: float) -> str:
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def achieved(title: str, figures: Figures) -> None:
    """What a stage did in this job: clips a second, how busy its actors were, bytes read, errors."""
    if figures.rows:
        print(f"{title}: {figures.line()}")


def counts(title: str, rows: int, errors: dict[str, int]) -> None:
    """The last line of a stage: how many rows, how many of them failed and why."""
    failed = sum(errors.values())
    listed = f" ({', '.join(f'{n} {code}' for code, n in errors.items())})" if errors else ""
    print(f"{title}: {rows} rows = {rows - failed} results + {failed} errors{listed}")


@dataclass(frozen=True)
class Counted:
    """How many rows a table has, and how many of them failed, by code."""

    rows: int
    errors: dict[str, int]


def counted(outcomes: Outcomes, title: str) -> Counted:
    counts(title, len(outcomes), outcomes.errors)
    return Counted(len(outcomes), outcomes.errors)
