"""The keys of a configuration as people read them: dotted name, type, default, meaning."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined


@dataclass(frozen=True)
class Key:
    """`default` is as YAML writes it; None where the key must be given."""

    name: str
    kind: str
    default: str | None
    meaning: str


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[Key]:
    """Every key of a model, those of its sections among them."""
    for name, field in model.model_fields.items():
        dotted = f"{prefix}.{name}" if prefix else name
        inner = section(model, name)
        if inner is not None:
            yield from keys(inner, dotted)
        else:
            yield Key(dotted, kind(field.annotation), _default(field), field.description or "")


def sections(model: type[BaseModel]) -> list[str]:
    return [name for name in model.model_fields if section(model, name) is not None]


def section(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The model of a key that is a section; None where it is none, or there is no such key."""
    field = model.model_fields.get(name)
    annotation = None if field is None else field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def kind(annotation: Any) -> str:
    """A type in words: `whole number`, `text or null`, `min_max | quantile`, `list of number`."""
    origin, members = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return kind(members[0])
    if origin is Literal:
        return " | ".join(map(str, members))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(kind(member) for member in members)
    if origin is tuple:
        return f"list of {kind(members[0])}"
    if origin is dict:
        return f"mapping of {kind(members[0])} to {kind(members[1])}"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)).lower())


def _default(field: Any) -> str | None:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return None
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, tuple):
        value = [one.model_dump(mode="json") if isinstance(one, BaseModel) else one for one in value]
    return yaml.safe_dump(value, default_flow_style=True, width=float("inf")).strip().removesuffix("\n...")
