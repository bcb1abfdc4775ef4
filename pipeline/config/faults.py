"""Everything that is wrong with a configuration in one message: who mends one key does not meet the next.

What pydantic says of a value becomes a sentence: the key, the value, what is allowed.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel

from pipeline.config import overrides
from pipeline.errors import ConfigError, UsageError

NAME = "a name has letters, digits, dots, dashes and underscores, no slash, and begins with neither dot nor dash"
PATTERNS = {  # the regular expressions of the configuration, in words
    r"^\w[\w.-]{0,99}$": f"{NAME}; it has at most 100 characters",
    r"^\w[\w.-]*$": NAME,
    r"^[\w.]+:\w+$": "write the module, a colon and the class, package.module:Family",
}


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


def explained(error: dict[str, Any], whole: type[BaseModel]) -> str:
    """One sentence on a validation error of a model or of what lies in it."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        allowed = _keys(whole, [p for p in error["loc"][:-1] if isinstance(p, str)])
        close = difflib.get_close_matches(str(error["loc"][-1]), allowed, 1)
        hint = f" Did you mean `{close[0]}`?" if close else ""
        return f"`{key}` is no configuration key.{hint} Allowed here: {', '.join(allowed)}."
    if error["type"] == "missing":
        return f"`{key}` is missing; set it in the file or with --set {key}=..."
    message = _form(error, whole) or str(error["msg"]).removeprefix("Value error, ")
    if key == "webhook.variable":  # what was given may be the URL itself, a secret
        return f"{key}: it must be the name of an environment variable that holds the URL, not the URL."
    return f"{key}={error['input']!r}: {message}." if key else f"{message}."


def _form(error: dict[str, Any], whole: type[BaseModel]) -> str | None:
    """How a value is written, where pydantic names a type of Python or a regular expression; None for other faults."""
    if error["type"] == "string_pattern_mismatch":
        return PATTERNS.get(error["ctx"]["pattern"])
    if error["type"] == "tuple_type":
        value = error["input"]
        example = f"[{value}]" if isinstance(value, str | int | float) else "[ONE, TWO]"
        return f"this is a list, which is written in brackets: {example}"
    if error["type"] not in ("dict_type", "model_type"):
        return None
    kind = overrides.field(whole, [part for part in error["loc"] if isinstance(part, str)])
    model = overrides.model_of(overrides.element(kind) if isinstance(error["loc"][-1], int) else kind)
    names = f" Its keys are {', '.join(model.model_fields)}" if model else ""
    return f"this is a mapping, which is written in braces: {{KEY: VALUE}}, or {{}} for an empty one.{names}"


def _keys(model: type[BaseModel], path: list[str]) -> list[str]:
    """The keys of a part of the configuration; lists are those of what they hold."""
    for part in path:
        kind = model.model_fields[part].annotation
        inner = next(
            (a for a in (kind, *typing.get_args(kind)) if isinstance(a, type) and issubclass(a, BaseModel)), None
        )
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)
