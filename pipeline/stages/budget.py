"""`budget`: how much of the cluster a job may hold before it stops, cleanly and between two batches of clips.

GPUs and CPUs count as long as a stage holds its actors, busy or not, as a cluster bills them. Clips are worked in the
order of a hash, so what is finished by then is a uniform sample of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from pipeline.config.operations import Budget, Pool
from pipeline.errors import SpentError

_AGAIN = "with a higher budget the same command goes on."


class Spending:
    """What a job has held of the cluster so far, against what it may."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.gpu_hours, self.cpu_hours = 0.0, 0.0

    def count(self, pool: Pool, actors: int, seconds: float) -> None:
        """Actors of a pool were held for so many seconds."""
        self.gpu_hours += actors * pool.gpus * seconds / 3600
        self.cpu_hours += actors * pool.cpus * seconds / 3600

    def over(self) -> str | None:
        """What is spent, if it is all that the job may."""
        b = self._budget
        for name, most, hours in (("gpu", b.gpu_hours, self.gpu_hours), ("cpu", b.cpu_hours, self.cpu_hours)):
            if most is not None and hours >= most:
                return f"budget.{name}_hours={most:g} is spent ({hours:.3g})"
        return None

    def checkpoint(self, title: str, pool: Pool) -> Callable[[int, int], None]:
        """What a stage asks after every batch, with the rows done and in all; it counts what the stage's actors cost
        since it was last asked. Raises SpentError where rows are left and nothing to work them with."""
        since: float | None = None

        def check(done: int, total: int) -> None:
            nonlocal since
            now = time.monotonic()
            if since is not None:
                self.count(pool, pool.actors, now - since)
            since = now
            spent = self.over()
            if spent and 0 < done < total:
                raise SpentError(
                    f"{title}: {spent} after {done} of {total}. What is finished stays, a uniform sample of the "
                    f"clips; {_AGAIN}"
                )

        return check

    @contextmanager
    def holding(self, title: str, pool: Pool, workers: int) -> Iterator[None]:
        """Count what the body holds. Raises SpentError, before it begins, where nothing is left."""
        spent = self.over()
        if spent:
            raise SpentError(f"{title}: {spent}, so it was not begun; {_AGAIN}")
        start = time.monotonic()
        try:
            yield
        finally:
            self.count(pool, workers, time.monotonic() - start)


_of_job: ContextVar[Spending | None] = ContextVar("spending", default=None)


@contextmanager
def one_job(budget: Budget) -> Iterator[Spending]:
    """The stages of the body are one job and share one budget."""
    spending = Spending(budget)
    token = _of_job.set(spending)
    try:
        yield spending
    finally:
        _of_job.reset(token)


def spending(budget: Budget) -> Spending:
    """What the job has spent that is under way; outside of `one_job` each stage is a job of its own."""
    return _of_job.get() or Spending(budget)
