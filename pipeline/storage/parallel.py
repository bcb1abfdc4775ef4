"""Work spread over threads, its results in order: for calls that spend their time outside Python (Parquet, BLAS)."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TypeVar

from threadpoolctl import threadpool_limits

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def one_thread() -> AbstractContextManager[object]:
    """BLAS on one thread meanwhile: on small matrices its threads wait for one another far longer than they work, all
    the more where other processes want the cores."""
    limits: AbstractContextManager[object] = threadpool_limits(1, "blas")
    return limits


def in_order(call: Callable[[T], R], inputs: Iterable[T]) -> Iterator[R]:
    """``call`` of each in the order given, a few ahead of the one that is asked for: memory holds no more than those.

    BLAS is held to one thread meanwhile: the threads here are the ones that fill the cores.
    """
    threads = 2 * cores()  # twice, for those that wait for a disk or a bucket
    waiting: deque[Future[R]] = deque()
    with one_thread(), ThreadPoolExecutor(threads) as pool:
        try:
            for each in inputs:
                waiting.append(pool.submit(call, each))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # also where the caller stops early or a call raised
            for future in waiting:
                future.cancel()
