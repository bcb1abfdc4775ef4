"""Everything that is wrong with a configuration in one message: who mends one key does not meet the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pipeline.errors import ConfigError, UsageError


class FaultsError(ConfigError):
    """One fault as a sentence after its source, several as a list below their number."""

    def __init__(self, sentences: Sequence[str], source: str = "") -> None:
        super().__init__(sentences, source)
        self.sentences, self.source = list(dict.fromkeys(sentences)), source

    def __str__(self) -> str:
        head = f"{self.source}: " if self.source else ""
        if len(self.sentences) == 1:
            return head + self.sentences[0]
        lines = [f"{head}{len(self.sentences)} things are wrong:"]
        lines += [f"  - {sentence}" for sentence in self.sentences]
        return "\n".join(lines)


class Faults:
    """Collects the UsageErrors of checks that do not depend on one another.

    >>> faults = Faults()
    >>> with faults.collected():
    ...     check_videos()
    >>> with faults.collected():
    ...     check_weights()
    >>> faults.check()      # raises one ConfigError that has the sentences of both
    """

    def __init__(self) -> None:
        self._errors: list[UsageError] = []

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Run a check. What it finds wrong is kept for `check`; any other exception passes."""
        try:
            yield
        except UsageError as error:
            self._errors.append(error)

    def check(self) -> None:
        """Raise what the checks found: a single error as it is, several as one."""
        if len(self._errors) == 1:
            raise self._errors[0]
        sentences: list[str] = []
        source = ""
        for error in self._errors:
            if isinstance(error, FaultsError):
                sentences += error.sentences
                source = error.source or source
            else:
                sentences.append(str(error))
        if sentences:
            raise FaultsError(sentences, source)
