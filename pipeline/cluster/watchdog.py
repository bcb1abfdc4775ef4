"""What runs in a thread beside long work: a look at it now and then, and when to say that nothing moves."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.config.credentials import scrubbed
from pipeline.errors import first_line

log = logging.getLogger(__name__)

QUIET = 60.0  # seconds of standstill after which the log says what is waited for; then twice as long


@contextmanager
def looking(look: Callable[[], None], seconds: float, name: str) -> Iterator[None]:
    """Call `look` every so many seconds while the body runs.

    A look that raises is a warning, once for each reason until a look succeeds again. The body goes on, and so do the
    looks: a request that fails says nothing about the work.
    """
    over = threading.Event()

    def watch() -> None:
        last_reason = ""
        while not over.wait(seconds):
            try:
                look()
                last_reason = ""
            except Exception as error:  # of a store, of Ray or of what is reported to
                reason = reason_of(error)
                if reason != last_reason:
                    log.warning("%s: a look at the work failed (%s); the next is in %g s", name, reason, seconds)
                last_reason = reason

    thread = threading.Thread(target=watch, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def reason_of(error: Exception) -> str:
    """An error in one line for the log, without secrets."""
    return scrubbed(f"{type(error).__name__}: {first_line(error)}")


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
