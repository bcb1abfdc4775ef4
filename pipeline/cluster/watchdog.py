"""What runs in a thread beside long work: a look at it now and then, and when to say that nothing moves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

QUIET = 60.0  # seconds of standstill after which the log says what is waited for; then twice as long


@contextmanager
def looking(look: Callable[[], None], seconds: float, name: str) -> Iterator[None]:
    """Call `look` every so many seconds while the body runs."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(seconds):
            look()

    thread = threading.Thread(target=watch, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Patience:
    """How long a standstill may last before it is said, and said again at doubled intervals."""

    def __init__(self) -> None:
        self._next = QUIET

    def is_over(self, still: float) -> bool:
        """Whether to speak now, after so many seconds of standstill."""
        if still < self._next:
            self._next = QUIET if still < QUIET else self._next
            return False
        self._next *= 2
        return True
