"""Errors that a clip may have."""

from __future__ import annotations


class ClipError(Exception):
    """A clip that cannot be used. `code` is decode, too_short, no_motion, not_finite, read, crashed, memory, timeout or
    refused; `sentence` says what happened. `str` of it is the `error` column of the clip's row."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(code, sentence)
        self.code, self.sentence = code, sentence

    def __str__(self) -> str:
        return f"{self.code}: {self.sentence}"
