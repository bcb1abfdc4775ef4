"""Reading a configuration's YAML: whatever is not certain ends with a sentence that names the file and the line."""

from __future__ import annotations

import codecs
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.credentials import scrubbed
from pipeline.config.texts import decode_text


class Loader(yaml.SafeLoader):
    """YAML without two traps: a key that stands twice, of which the last would win, and a value that its type refuses
    with an error that names no line."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, IndexError, AttributeError) as error:  # of `!!int x`, of 2024-13-45, and so on
            kind = str(node.tag).rsplit(":", 1)[-1]
            why = f" ({error})" if isinstance(error, ValueError) else ""
            raise yaml.constructor.ConstructorError(
                None, None, f"{node.value!r} is no {kind}{why}", node.start_mark
            ) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[Hashable, int] = {}
        for name, _ in node.value:
            merged = not node.start_mark.index <= name.start_mark.index < node.end_mark.index  # by `<<` from elsewhere
            if merged or name.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(name, deep=True)
            if isinstance(key, Hashable) and key in lines:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key `{key}` stands on line {lines[key]} already; write it once", name.start_mark
                )
            if isinstance(key, Hashable):
                lines[key] = name.start_mark.line + 1
        return super().construct_mapping(node, deep)


def parse(text: str) -> Any:
    """What a text of YAML says, built of plain values only. Raises yaml.YAMLError."""
    return Loader(text).get_single_data()


def read(path: Path) -> dict[str, Any]:
    """The mapping that a configuration file holds. Raises ValueError with a sentence, and OSError."""
    return mapping(path.read_bytes(), str(path))


def mapping(data: bytes, path: str) -> dict[str, Any]:
    """The mapping that the bytes of a configuration hold, which lay at `path`. Raises ValueError with a sentence.

    UTF-8, and UTF-16 or UTF-32 with a byte-order mark, are read.
    """
    try:
        text = decode_text(data)
    except ValueError as error:
        raise ValueError(f"{path}{_line(data)}: {error}.") from None
    try:
        values = parse(text)
        _walk(values)
    except yaml.YAMLError as error:
        raise ValueError(_sentence(path, text, error)) from None
    except RecursionError:
        raise ValueError(f"{path}: its values lie too deep within one another, or within themselves.") from None
    if values is None:
        raise ValueError(f"{path}: the file is empty. A configuration is a mapping of keys (root, data, model, ...).")
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a configuration is a mapping of keys (root, data, queries, model, ...).")
    for key in values:
        if not isinstance(key, str):
            raise ValueError(f"{path}: a key of a configuration is a text, and {key!r} is none.")
    return values


def _walk(value: Any) -> None:
    """Raise RecursionError for a list or mapping that holds itself, by an alias."""
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _walk(inner)


def _line(data: bytes) -> str:
    """Where the first byte is that is not UTF-8, or the first NUL; empty for other encodings."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        return ""
    try:
        data.decode()
        at = max(0, data.find(b"\0"))
    except UnicodeDecodeError as error:
        at = error.start
    lines = data.count(b"\n", 0, at)
    return f", line {lines + 1}"


def _sentence(path: str, text: str, error: yaml.YAMLError) -> str:
    """One sentence on invalid YAML, in place of PyYAML's several lines."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        what = f"it holds the character U+{error.character:04X}, which YAML does not allow"
        return f"{path}, line {line}: {what}. Remove it."
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = "" if mark is None else f", line {mark.line + 1}"
    hint = " Indent with blanks, not with tabs." if "\\t" in str(problem) else ""
    return f"{path}{where}: this is not valid YAML: {scrubbed(str(problem or error))}.{hint}"
