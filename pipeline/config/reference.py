"""The keys of a configuration as a page: docs/configuration.md.

``python -m pipeline.config.reference docs/configuration.md`` writes the page anew; tests/project/test_documentation.py
holds it equal to the code.
"""

from __future__ import annotations

import sys
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.config.keys import keys, section
from pipeline.config.run import Run

_HEAD = """\
# Configuration

<!-- `python -m pipeline.config.reference docs/configuration.md` writes this page from pipeline/config. -->

A configuration is one YAML file with one section for each stage. A recipe is a complete configuration that ships with
the package; [pipeline/config/recipes](../pipeline/config/recipes) has them, with comments. A run writes the
configuration that it used to `ROOT/config.yaml`, and `--config ROOT/config.yaml` repeats the run.

| rule | what follows |
| --- | --- |
| `--config FILE_OR_RECIPE` names the file | a recipe is named without `.yaml` |
| `--set key=value` overrides one key; it may be given many times | the last one counts where a key is given twice |
| a key has a dotted name, `motion.camera` | an unknown key is an error that names the nearest key |
| the file is UTF-8, or UTF-16 with a byte-order mark | another encoding is an error that names the line |
| text after `--set key=` is taken as it is typed, ` #` and `: ` too | one pair of quotes around the value is removed |
| `null` unsets a key that may be null | |
| lists and mappings after `--set` are YAML without comments | `--set 'evaluate.arms=[base, random]'` |
| `package:PATH` stands for a path inside the installed package | the recipe `demo` names its weights so |
| an address with a key or a signature is refused | credentials come from the environment, a profile or a role |
| every mistake ends the job with exit status 2 before long work starts | see [troubleshooting.md](troubleshooting.md) |

`motion-curation keys` prints the same list; `motion-curation keys SECTION` prints one section.
"""


def page(model: type[BaseModel] = Run) -> str:
    """The page in Markdown: a table for each section, and one for each kind of list member."""
    parts = [_HEAD, "## At the top\n\n" + _table(model, "", nested=False)]
    members: dict[str, type[BaseModel]] = {}
    for name in model.model_fields:
        inner = section(model, name)
        if inner is not None:
            parts.append(f"## {name}\n\n{_intro(inner)}{_table(inner, name)}")
            members.update(_members(inner))
    for title, member in members.items():
        parts.append(f"## A {title}\n\n{_intro(member)}{_table(member, '')}")
    return "\n".join(parts)


def _intro(model: type[BaseModel]) -> str:
    if not model.__doc__:
        return ""
    return textwrap.fill(" ".join(model.__doc__.split()), 120) + "\n\n"


def _table(model: type[BaseModel], prefix: str, nested: bool = True) -> str:
    lines = ["| key | type | allowed | default | meaning |", "| --- | --- | --- | --- | --- |"]
    for key in keys(model, prefix):
        if not nested and "." in key.name:
            continue
        limits = _limits(_field(model, key.name.removeprefix(f"{prefix}.") if prefix else key.name))
        default = "must be given" if key.default is None else f"`{key.default}`"
        cells = [f"`{key.name}`", key.kind, limits, default, key.meaning]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _field(model: type[BaseModel], dotted: str) -> FieldInfo:
    *parents, last = dotted.split(".")
    for parent in parents:
        inner = section(model, parent)
        assert inner is not None, f"{dotted}: {parent} is no section"
        model = inner
    return model.model_fields[last]


def _limits(field: FieldInfo) -> str:
    """What a value may be besides its type: `≥ 1`, `> 0, < 1`, `multiple of 8`."""
    words = []
    for limit in field.metadata:
        if isinstance(limit, annotated_types.Ge):
            words.append(f"≥ {limit.ge}")
        elif isinstance(limit, annotated_types.Gt):
            words.append(f"> {limit.gt}")
        elif isinstance(limit, annotated_types.Le):
            words.append(f"≤ {limit.le}")
        elif isinstance(limit, annotated_types.Lt):
            words.append(f"< {limit.lt}")
        elif isinstance(limit, annotated_types.MultipleOf):
            words.append(f"multiple of {limit.multiple_of}")
    return ", ".join(words)


def _members(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """The models that stand inside lists or instead of null, by their name in `Key.kind`."""
    for field in model.model_fields.values():
        for member in typing.get_args(field.annotation):
            if isinstance(member, type) and issubclass(member, BaseModel):
                yield member.__name__.lower(), member


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
