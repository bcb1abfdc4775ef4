"""Every exception of this product, and the codes of rows that have an error."""

from __future__ import annotations


class ClipError(Exception):
    """A clip that cannot be used. `code` is decode, too_short, no_motion, not_finite, read, crashed, memory, timeout or
    refused; `sentence` says what happened. `str` of it is the `error` column of the clip's row."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(code, sentence)
        self.code, self.sentence = code, sentence

    def __str__(self) -> str:
        return f"{self.code}: {self.sentence}"


class ConfigError(ValueError):
    """A configuration that cannot be used; its message names the key, the value and what is allowed."""


class StoreError(OSError):
    """A store that could not be used, after every try: what was asked of it and what it answered, without secrets."""


class FingerprintError(ValueError):
    """A table was computed under another fingerprint than the one asked for."""
