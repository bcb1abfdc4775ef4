"""Arms that are trained side by side: how many at a time, and what a failure leaves."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from pipeline.errors import SpentError
from pipeline.stages.finetuning import _each_in_a_thread


def test_no_more_arms_than_have_room_are_trained_at_a_time() -> None:
    active, most, names, lock = 0, 0, list[str](), threading.Lock()
    pair = threading.Barrier(2)

    def train(name: str) -> None:
        nonlocal active, most
        with lock:
            active += 1
            most = max(most, active)
            names.append(name)
        pair.wait(timeout=30)  # two are under way together, or this test fails
        with lock:
            active -= 1

    _each_in_a_thread([partial(train, name) for name in "abcd"], 2)
    assert most == 2
    assert sorted(names) == list("abcd")


def _fail() -> None:
    raise SpentError("the budget is spent")


def test_after_a_failure_no_arm_is_begun() -> None:
    def never() -> None:
        raise AssertionError("an arm was begun after another one had failed")

    with pytest.raises(SpentError, match="the budget is spent"):
        _each_in_a_thread([_fail, never, never], 1)


def test_an_arm_that_has_begun_goes_on_to_its_end_where_another_fails() -> None:
    begun, ended = threading.Event(), list[str]()

    def train() -> None:
        begun.set()
        ended.append("trained")

    def fail() -> None:
        assert begun.wait(30)
        _fail()

    with pytest.raises(SpentError, match="the budget is spent"):
        _each_in_a_thread([train, fail], 2)
    assert ended == ["trained"]
