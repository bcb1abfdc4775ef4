"""What pydantic found wrong with a configuration, in one sentence each: the key, the value, what is allowed."""

from __future__ import annotations

import difflib
import typing
from typing import Any

from pydantic import BaseModel


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
    message = str(error["msg"]).removeprefix("Value error, ")
    if key == "webhook.variable":  # what was given may be the URL itself, a secret
        return f"{key}: it must be the name of an environment variable that holds the URL, not the URL."
    return f"{key}={error['input']!r}: {message}." if key else f"{message}."


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
