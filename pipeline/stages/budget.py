"""`budget`: how much of the cluster a job may hold before it stops, cleanly and between two batches of clips.

GPUs and CPUs count as long as a stage holds its actors, busy or not, as a cluster bills them. Clips are worked in the
order of a hash, so what is finished by then is a uniform sample of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.config.operations import Budget, Pool
from pipeline.errors import SpentError

Report = Callable[[int, int, dict[str, int]], None]

_held = {"gpu_hours": 0.0, "cpu_hours": 0.0}  # by the stages that this process has been through, as process_time is


class Capped:
    """A stage's progress that ends the job once its budget is spent."""

    def __init__(self, report: Report, title: str, budget: Budget, pool: Pool) -> None:
        self._report, self._title, self._budget, self._pool = report, title, budget, pool
        self._since: float | None = None

    def __call__(self, done: int, total: int, errors: dict[str, int]) -> None:
        self._report(done, total, errors)
        now = time.monotonic()
        if self._since is not None:
            _count(self._pool, self._pool.actors, now - self._since)
        self._since = now
        spent = over(self._budget)
        if spent and 0 < done < total:
            raise SpentError(
                f"{self._title}: {spent} after {done} of {total}. What is finished stays, a uniform sample of the "
                "clips; with a higher budget the same command goes on."
            )


def over(budget: Budget) -> str | None:
    """What this job has spent, if it is all it may."""
    for name, most in (("gpu_hours", budget.gpu_hours), ("cpu_hours", budget.cpu_hours)):
        if most is not None and _held[name] >= most:
            return f"budget.{name}={most:g} is spent ({_held[name]:.3g})"
    return None


@contextmanager
def holding(title: str, budget: Budget, pool: Pool, workers: int) -> Iterator[None]:
    """Count what the body holds. Raises SpentError, before it begins, where nothing is left."""
    spent = over(budget)
    if spent:
        raise SpentError(f"{title}: {spent}, so it was not begun; with a higher budget the same command goes on.")
    start = time.monotonic()
    try:
        yield
    finally:
        _count(pool, workers, time.monotonic() - start)


def _count(pool: Pool, actors: int, seconds: float) -> None:
    _held["gpu_hours"] += actors * pool.gpus * seconds / 3600
    _held["cpu_hours"] += actors * pool.cpus * seconds / 3600
