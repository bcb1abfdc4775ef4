"""Loading a process faster."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """Leave Python's collector of cycles out while much is imported and loaded, which stays as long as the process.

    To look through it again and again is a fifth of the time that an actor takes to load. What is there at the end is
    not looked through later either; with it stays what little is garbage, 12,000 objects of an actor.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


def train(config: dict[str, Any]) -> None:
    """What Ray Train calls in each worker. Its controller unpickles this function too, but does not call it: so it
    stands here, where nothing imports PyTorch."""
    with collector_at_rest():
        from pipeline.cluster import training
    training.worker(config["task"], config["permission"])
