"""Every exception of this product, and the codes of rows that have an error.

`jobs/command.py` maps exceptions to exit codes: a `UsageError` is 2, everything else that surfaces is 1, and a
`SpentError` is 0. Nothing else in this product ends a process.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Retry(Enum):
    """Whether the next run of the same command tries a clip with an error again."""

    NEVER = "never"
    ONCE = "once more"
    EVERY_RUN = "by every run"


@dataclass(frozen=True)
class Code:
    """What an error of a row starts with: `meaning` and `remedy` are sentences for a person."""

    name: str
    meaning: str
    remedy: str
    retry: Retry = Retry.NEVER


_AGAIN = "The next run of the same command tries it once more."

CODES = {
    code.name: code
    for code in (
        Code(
            "decode",
            "The video cannot be decoded.",
            "Make the video again; a stage is then redone for it, because its version has changed.",
        ),
        Code(
            "too_short",
            "The video has fewer frames than a segment needs.",
            "Take fewer data.frames, or a lower data.fps.",
        ),
        Code(
            "no_motion",
            "Nothing moves in the clip, so it has no motion mask.",
            "It has no feature under the motion mask. With ranking.mask: none or queries it is ranked by its unmasked "
            "one, and with a lower motion.still it may have a mask.",
        ),
        Code(
            "not_finite",
            "The flow, the loss or the gradient of the clip is not finite, or the gradient is zero.",
            "Its gradient cannot be used; other weights or another dtype may give one.",
        ),
        # A store that cannot be read is no clip's fault, and a try costs no more than a request.
        Code("read", "The file cannot be read or fetched.", _AGAIN, Retry.EVERY_RUN),
        # Every try may cost the processes that it dies with, so there is one more and no third.
        Code("crashed", "The process that worked on the clip died.", _AGAIN, Retry.ONCE),
        Code("memory", "The clip took more memory than it may.", _AGAIN, Retry.ONCE),
        Code(
            "timeout",
            "Decoding the video stood still for longer than data.decode_timeout.",
            "A higher data.decode_timeout gives it more time, once its rows are deleted.",
        ),
        Code(
            "refused",
            "The file breaks a rule that protects the cluster.",
            "The sentence says which rule it breaks; data.base and the kind of file decide.",
        ),
    )
}


class ClipError(Exception):
    """A clip that cannot be used. `code` is one of CODES; `sentence` says what happened. `str` of it is the `error`
    column of the clip's row. ValueError for any other code."""

    def __init__(self, code: str, sentence: str) -> None:
        if code not in CODES:
            raise ValueError(f"code={code!r} is none of {', '.join(CODES)}")
        super().__init__(code, sentence)
        self.code, self.sentence = code, sentence

    def __str__(self) -> str:
        return f"{self.code}: {self.sentence}"

    @classmethod
    def of_row(cls, error: str) -> ClipError:
        """The error in a row's `error` column, that of a second try too ("crashed again: ..."). ValueError if it begins
        with none of CODES."""
        code, _, sentence = error.partition(": ")
        return cls(code.removesuffix(" again"), sentence)


def code_of(error: str) -> str:
    """What a row's `error` begins with: one of CODES, or one with " again" where the second try failed too."""
    return error.partition(": ")[0]


# --- what was asked cannot be done: exit 2 ----------------------------------------------------------------------------


class UsageError(ValueError):
    """The command line, the configuration or the input has to change before the same command can succeed (exit 2)."""


class ConfigError(UsageError):
    """A configuration that cannot be used; its message names the key, the value and what is allowed."""


class InputError(UsageError):
    """A manifest, folder, video or file of answers that is there and wrong; its message names the place and the fault.

    A place that is not there is a `ConfigError` of the key that names it.
    """


class MissingTableError(UsageError):
    """A table or another result that an earlier job makes is missing, or a part of it, or it is older than what it
    follows from; the message names the job to run first."""


class NothingUsableError(UsageError):
    """There is input, but not one clip, query, video or answer in it can be used for what was asked."""


class FingerprintError(UsageError):
    """A table was computed under another fingerprint than the one asked for, or on another kind of machine."""


class HeldError(UsageError):
    """Another process holds the run or its study; the text says which, and what to do."""


# --- what failed while it was done: exit 1 ----------------------------------------------------------------------------


class StoreError(OSError):
    """A store that could not be used, after every try: what was asked of it and what it answered, without secrets."""


class DamagedError(StoreError):
    """A part of a table that cannot be read to its end; the text says which, and what to do."""


class LostError(RuntimeError):
    """This process held the run, but for too long could not say so, and another may hold it by now."""


class StageError(RuntimeError):
    """A stage failed on the cluster; the text begins with its name. Its `__cause__` is the error itself where a worker
    could carry it here."""

    def __init__(self, stage: str, sentence: str) -> None:
        super().__init__(stage, sentence)
        self.stage, self.sentence = stage, sentence

    def __str__(self) -> str:
        return f"stage {self.stage} failed: {self.sentence}"


def store_failure(error: BaseException | None) -> StoreError | None:
    """The store's failure that an error came of, if it came of one: the first StoreError on the chain of causes."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        if isinstance(error, StoreError):
            return error
        chain.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the name of its class if the text is empty, as a MemoryError's often is."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed", "allocation_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory: Python's, numpy's and Arrow's, and those of PyTorch, which are
    RuntimeErrors that name it (torch.OutOfMemoryError, the CPU's allocator, cuBLAS and cuDNN)."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)


# --- as much as was allowed: exit 0 -----------------------------------------------------------------------------------


class SpentError(Exception):
    """The budget is spent; the text says what is finished and how to go on."""
