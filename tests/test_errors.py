"""Errors: the codes of rows, the chain of causes, and what each exception ends a job with."""

from __future__ import annotations

import pickle

import pyarrow as pa
import pytest

from pipeline import errors
from pipeline.errors import CODES, ClipError, Retry, StageError, StoreError, UsageError, first_line, store_failure
from pipeline.pages import report
from pipeline.tables import retries


def test_the_codes_of_rows_and_which_are_tried_again() -> None:
    """The fixed words of the tables: whoever adds one decides whether it is tried again."""
    words = ["decode", "too_short", "no_motion", "not_finite", "read", "crashed", "memory", "timeout", "refused"]
    assert list(CODES) == words
    assert {name for name, code in CODES.items() if code.retry is Retry.EVERY_RUN} == {"read"}
    assert {name for name, code in CODES.items() if code.retry is Retry.ONCE} == {"crashed", "memory"}
    column = pa.chunked_array([[f"{name}: x" for name in words] + ["crashed again: x", None]])
    tried = [name for name, again in zip(words, retries.retried(column).to_pylist(), strict=False) if again]
    assert tried == ["read", "crashed", "memory"]
    assert retries.tried_once(column).to_pylist().count(True) == 2


@pytest.mark.parametrize("code", CODES.values(), ids=lambda code: code.name)
def test_every_code_says_what_it_means_and_what_to_do(code: errors.Code) -> None:
    assert code.meaning.endswith(".")
    assert code.remedy.endswith(".")
    assert code.name in report.REASONS, "the page has no word for it"


def test_a_clips_error_has_one_of_the_codes() -> None:
    assert str(ClipError("decode", "it is cut off")) == "decode: it is cut off"
    assert str(ClipError.of_row("decode: frame 3: it is cut off")) == "decode: frame 3: it is cut off"
    assert str(ClipError.of_row("crashed again: it died")) == "crashed: it died"
    assert errors.code_of("crashed again: it died: twice") == "crashed again"
    with pytest.raises(ValueError, match="code='too_long' is none of decode, "):
        ClipError("too_long", "it is longer")


def chained(outer: Exception, cause: Exception | None) -> Exception:
    outer.__cause__ = cause
    return outer


def test_a_stores_failure_is_seen_by_its_class_wherever_it_stands_in_the_chain() -> None:
    class RenamedError(StoreError):
        pass

    failure = RenamedError("get_object s3://b/k: SlowDown")
    assert store_failure(failure) is failure
    assert store_failure(chained(ValueError("x"), chained(RuntimeError("y"), failure))) is failure
    handled = KeyError("while it was handled")
    handled.__context__ = failure
    assert store_failure(handled) is failure
    handled.__suppress_context__ = True  # raise ... from None
    assert store_failure(handled) is None
    circle = chained(ValueError("x"), None)
    circle.__context__ = chained(KeyError("y"), circle)
    assert store_failure(circle) is None


def test_a_text_that_names_a_stores_error_is_none() -> None:
    assert store_failure(RuntimeError("x\npipeline.errors.StoreError: put_object s3://b/k: AccessDenied")) is None


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "MemoryError"),
        (RuntimeError("  \n"), "RuntimeError"),
        (RuntimeError("CUDA out of memory.\nTried to allocate 2 GiB."), "CUDA out of memory."),
        (RuntimeError("\nit failed\r\nhere"), "it failed"),
    ],
)
def test_every_error_has_a_first_line(error: Exception, line: str) -> None:
    assert first_line(error) == line


@pytest.mark.parametrize("error", [ClipError("read", "x"), StageError("finetune", "x"), errors.ConfigError("x")])
def test_an_exception_comes_whole_from_another_process(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_what_ends_a_job_as_wrong_usage() -> None:
    """The exit codes that users rely on: these are 2, and no other exception of ours is."""
    own = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    usage = {kind.__name__ for kind in own if issubclass(kind, UsageError)} - {"UsageError"}
    named = {"ConfigError", "InputError", "MissingTableError", "NothingUsableError", "FingerprintError", "HeldError"}
    assert usage == named
