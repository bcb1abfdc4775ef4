"""A look beside long work, and a standstill that is said at doubled intervals."""

from __future__ import annotations

import logging
import threading

import pytest

from pipeline.cluster import watchdog


def test_it_looks_while_the_body_runs_and_no_longer() -> None:
    seen, third = [], threading.Event()

    def look() -> None:
        seen.append(threading.current_thread().name)
        if len(seen) == 3:
            third.set()

    with watchdog.looking(look, 0.001, "watch"):
        assert third.wait(10)
    after = len(seen)
    assert set(seen) == {"watch"}
    assert not [thread for thread in threading.enumerate() if thread.name == "watch"]
    assert len(seen) == after


def test_it_ends_with_a_body_that_raises() -> None:
    def body() -> None:
        with watchdog.looking(lambda: None, 0.001, "watch"):
            raise KeyError

    with pytest.raises(KeyError):
        body()
    assert not [thread for thread in threading.enumerate() if thread.name == "watch"]


def test_a_look_that_fails_is_a_warning_without_secrets_and_the_next_looks_come(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORE_TOKEN", "0123456789abcdef")
    looks, sixth = list[int](), threading.Event()

    def look() -> None:
        looks.append(len(looks))
        if len(looks) in (1, 2, 4):
            raise OSError("no answer to 0123456789abcdef\nsecond line")
        if len(looks) == 6:
            sixth.set()

    with caplog.at_level(logging.WARNING), watchdog.looking(look, 0.001, "watch"):
        assert sixth.wait(10), "the watchdog's thread died at its first error"
    said = "watch: a look at the work failed (OSError: no answer to ****); the next is in 0.001 s"
    assert caplog.messages == [said, said], "once for each reason until a look succeeds again"


def test_a_standstill_is_said_at_doubled_intervals_and_afresh_after_a_move() -> None:
    patience, q = watchdog.Patience(), watchdog.QUIET
    said = [still for still in (0, q - 1, q, q + 1, 2 * q, 3 * q, 4 * q, 5 * q) if patience.is_over(still)]
    assert said == [q, 2 * q, 4 * q]
    assert not patience.is_over(0)
    assert patience.is_over(q)
