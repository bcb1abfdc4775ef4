"""What a job says while it works: rows done, the rate and the time left; then what it achieved."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass

from pipeline.tables import Outcomes
from pipeline.tables.throughput import Figures


class Progress:
    """Rows done, the rate and the time left: a line that renews itself on a terminal, else one every ten seconds."""

    def __init__(self, title: str) -> None:
        self.title, self.start, self.last = title, time.monotonic(), -10.0
        self.terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def __call__(self, done: int, total: int, errors: dict[str, int]) -> None:
        spent = time.monotonic() - self.start
        finished = done >= total
        if not (self.terminal or finished or done == 0 or spent - self.last >= 10):
            return
        self.last = spent
        left = f", {duration(spent / done * (total - done))} left" if 0 < done < total else ""
        rate = f", {done / spent:.3g} a second" if done and spent else ""
        failed = "".join(f", {count} {code}" for code, count in errors.items())
        line = f"{self.title:<18} {done:>7}/{total}  {duration(spent)}{rate}{left}{failed}"
        if self.terminal:
            bar = "#" * round(24 * done / max(total, 1))
            print(
                f"\r\033[K{self.title:<18} [{bar:<24}] {line[19:]}",
                end="\n" if finished else "",
                file=sys.stderr,
                flush=True,
            )
        else:
            print(line, file=sys.stderr, flush=True)


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
