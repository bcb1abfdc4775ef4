"""How a failure of a worker reaches the driver: the exception itself, never a guess at Ray's text.

Of what a worker of Ray Data raises, Ray hands on the text alone, inside a UserCodeException; so an actor tells the
stage's journal of a store's failure before it raises. Ray Train hands on the exception of each worker, pickled, which
loses its causes; so a worker raises the store's failure itself. Seen in Ray 2.60.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import ray.train
from ray.exceptions import RayTaskError

from pipeline.cluster.journal import Teller
from pipeline.errors import StageError, StoreError, store_failure


@contextmanager
def noted(journal: Teller) -> Iterator[None]:
    """Tell the journal of the store's failure that an error of the body came of, if it came of one."""
    try:
        yield
    except Exception as error:
        failure = store_failure(error)
        if failure is not None:
            journal.tell("fails", failure)
        raise


@contextmanager
def surfacing() -> Iterator[None]:
    """Raise the store's failure that an error of the body came of, if it came of one, in that error's place."""
    try:
        yield
    except Exception as error:
        failure = store_failure(error)
        if failure is None or failure is error:
            raise
        raise failure from error


def of_training(error: Exception) -> StageError | StoreError | None:
    """What Ray Train's error came of, in a worker or in its controller: the worker's own verdict on the stage, or a
    store's failure; None where it came of something else."""
    errors: list[BaseException] = [error]
    if isinstance(error, ray.train.WorkerGroupError):
        errors += error.worker_failures.values()
    if isinstance(error, ray.train.ControllerError):
        errors.append(error.controller_failure)
    causes = [one.cause if isinstance(one, RayTaskError) else one for one in errors]
    verdict = next((cause for cause in causes if isinstance(cause, StageError)), None)
    return verdict or next(filter(None, map(store_failure, causes)), None)


def sentence(text: str) -> str:
    """The line of Ray's text that says what happened: the last that names an exception, but for Ray's own wrapping."""
    lines = [line.strip() for line in text.strip().splitlines()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line) and "UserCodeException" not in line]
    return named[-1] if named else lines[-1]
