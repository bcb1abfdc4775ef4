"""Values of ``--set key=value``: the type of the key's field decides how the text is read.

A field of text takes the value as it is typed, with every `#`, `:`, `*` and blank. Numbers, dates and true or false are
read as themselves, so that 010 is ten. Lists and mappings are YAML, and the fields inside them follow the same rules.
"""

from __future__ import annotations

import datetime
import types
import typing
from typing import Any, Literal

import yaml
from pydantic import BaseModel

from pipeline.config.files import Loader
from pipeline.config.texts import text_flaw
from pipeline.errors import first_line

NULLS = ("null", "Null", "NULL", "~")  # of fields that hold no text; those of text are null by `null` alone


def read(root: type[BaseModel], key: str, text: str) -> Any:
    """The value that `key`, a dotted key of `root`, gets from the text of an override.

    A key that does not exist is read as YAML; whoever validates it names it. Raises ValueError with a sentence.
    """
    flaw = text_flaw(text)
    if flaw:
        raise ValueError(f"the value is no text ({flaw})")
    kind = field(root, key.split("."))
    if _is_scalar(kind):
        return _unquoted(text) if _quoted(text) else scalar(text, kind)
    return structure(text, kind)


def written(text: str) -> str:
    """How a text is typed as the value of a field of text or null: `read` gives it back."""
    return f'"{text}"' if _quoted(text) or text == "null" else text


def field(root: type[BaseModel], path: list[str]) -> Any:
    """The annotation of a field below a model; Any where there is none."""
    kind: Any = root
    for name in path:
        model = model_of(kind)
        if model is None or name not in model.model_fields:
            return Any
        kind = model.model_fields[name].annotation
    return kind


# --- scalars ---------------------------------------------------------------------------------------------------------


def scalar(text: str, kind: Any) -> Any:
    """A value that is not quoted. What is no number, date or truth stays text, for validation to refuse by name."""
    members = _members(kind)
    if type(None) in members and text in (("null",) if _has_text(members) else NULLS):
        return None
    if _has_text(members):
        return text
    for number in (int, float):
        if number in members:
            try:
                return number(text)
            except ValueError:
                continue
    return text  # pydantic reads dates, and yes, no, on, off, true and false


def _quoted(text: str) -> bool:
    """Whether one kind of quotes begins and ends the text. They are removed; nothing between them is changed."""
    return len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'"


def _unquoted(text: str) -> str:
    return text[1:-1]


# --- lists and mappings ----------------------------------------------------------------------------------------------


def structure(text: str, kind: Any) -> Any:
    """A list or mapping in YAML, whose scalars are read by the fields that they are for."""
    try:
        _check_tokens(text)
        node = Loader(text).get_single_node()
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or first_line(error)
        hint = " A # after a blank begins a comment there: quote what holds it." if " #" in text else ""
        raise ValueError(f"the value is not valid YAML: {problem}.{hint}") from None
    return None if node is None else _value(node, kind)


def _check_tokens(text: str) -> None:
    """Raise ValueError for what YAML would drop or look up elsewhere: comments, anchors, aliases and tags."""
    end = 0
    for token in yaml.scan(text):
        if "#" in text[end : token.start_mark.index]:
            raise ValueError(f"# begins a comment here, and {text[end:].strip()!r} would be dropped. Quote the text.")
        if isinstance(token, yaml.AnchorToken | yaml.AliasToken | yaml.TagToken):
            sign = text[token.start_mark.index]
            raise ValueError(f"{sign} has a meaning of its own in YAML. Quote the text that begins with it.")
        end = max(end, token.end_mark.index)


def _value(node: yaml.Node, kind: Any) -> Any:
    if isinstance(node, yaml.ScalarNode):
        if node.style in ('"', "'"):
            return node.value
        return scalar(node.value, kind) if _is_scalar(kind) else _guessed(node, kind)
    if isinstance(node, yaml.SequenceNode):
        return [_value(inner, element(kind)) for inner in node.value]
    model = model_of(kind)
    values: dict[str, Any] = {}
    for name, inner in node.value:
        if not isinstance(name, yaml.ScalarNode):
            raise ValueError(f"the value has a key that is no text: {name.value!r}")
        if name.value in values:
            raise ValueError(f"the value has the key {name.value!r} twice; write it once.")
        values[name.value] = _value(inner, field(model, [name.value]) if model else Any)
    return values


def _guessed(node: yaml.ScalarNode, kind: Any) -> Any:
    """A scalar where a list or mapping, or nothing, should be: null, or as YAML reads it."""
    if node.value in NULLS and type(None) in _members(kind):
        return None
    return Loader("").construct_object(node)


# --- kinds -----------------------------------------------------------------------------------------------------------


def _members(kind: Any) -> tuple[Any, ...]:
    """The alternatives of an annotation, without the notes that Annotated adds."""
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _members(typing.get_args(kind)[0])
    if origin in (typing.Union, types.UnionType):
        return tuple(member for one in typing.get_args(kind) for member in _members(one))
    return (kind,)


def _has_text(members: tuple[Any, ...]) -> bool:
    return any(one is str or typing.get_origin(one) is Literal for one in members)


def _is_scalar(kind: Any) -> bool:
    scalars = (str, int, float, bool, datetime.date, type(None))
    return all(one in scalars or typing.get_origin(one) is Literal for one in _members(kind))


def element(kind: Any) -> Any:
    """What a list of this kind holds."""
    for one in _members(kind):
        if typing.get_origin(one) is tuple:
            return typing.get_args(one)[0]
    return Any


def model_of(kind: Any) -> type[BaseModel] | None:
    return next((one for one in _members(kind) if isinstance(one, type) and issubclass(one, BaseModel)), None)
