"""One call on a node of the cluster, in a process of its own that nothing ran in before or will after it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar, cast

import ray

from pipeline.cluster.nodes import GB
from pipeline.config.operations import Pool
from pipeline.errors import ConfigError, StageError, UsageError, first_line, is_out_of_memory, store_failure

T = TypeVar("T")


def call_alone(title: str, call: Callable[[], T], pool: Pool) -> tuple[T, float]:
    """What a call returns on a node that has room for one actor of the pool, and the seconds that it took, with those
    in which its process started.

    ConfigError where there is too little memory for it. UsageError and StoreError as the call raises them; StageError
    for everything else.
    """
    task = ray.remote(
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
        memory=None if pool.memory is None else int(pool.memory * GB),
        max_retries=0,
        max_calls=1,
    )(_called)
    start = time.perf_counter()
    try:
        result = ray.get(task.remote(call))
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        failure = store_failure(cause)
        if failure is not None:
            raise failure from error
        if isinstance(cause, UsageError):
            raise cause from error
        if is_out_of_memory(cause):
            raise ConfigError(_memory(title, first_line(cause), pool)) from error
        raise StageError(title, f"{type(cause).__name__}: {cause}") from error
    except ray.exceptions.OutOfMemoryError as error:
        raise ConfigError(_memory(title, "Ray ended its process because the node's memory was full", pool)) from error
    except ray.exceptions.RayError as error:
        why = f"its process died ({type(error).__name__}), as one does that is given too little memory"
        raise ConfigError(_memory(title, why, pool)) from error
    return cast(T, result), time.perf_counter() - start


def _called(call: Callable[[], T]) -> T:
    return call()


def _memory(title: str, why: str, pool: Pool) -> str:
    where = "a GPU or the node" if pool.gpus else "the node"
    return (
        f"{title}: one actor, with one clip at a time, had not enough memory of {where}: {why}. Take larger nodes, a "
        "smaller geometry (attribution.height, width and frames) or model, or model.gradient_checkpointing: true."
    )
