"""Private names of other libraries: each use has its row in the table, each row is used, and the library has it."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline.private_names import NAMES, SEEN, PrivateName

ROOT = Path(__file__).parents[2]
OWN = {"pipeline", "jobs"}
DOCUMENTED = {"_asdict", "_replace", "_fields", "_make"}  # of named tuples
FILES = sorted(path for package in OWN for path in (ROOT / package).rglob("*.py"))


class Use(NamedTuple):
    """A private name in a file. `name` is dotted where it is imported, else the last part alone."""

    line: int
    name: str


def is_private(name: str) -> bool:
    return re.fullmatch(r"_[A-Za-z]\w*", name) is not None and name not in DOCUMENTED


def uses(source: str) -> list[Use]:
    """Every private name of another library in a file: imported, an attribute, a key or option, or a method that takes
    the place of an inherited one. A name that the file defines itself is its own."""
    tree = ast.parse(source)
    foreign = {name: module for name, module in imported(tree).items() if module.split(".")[0] not in OWN}
    own = defined(tree) - set(inherited(tree, foreign))
    occurrences = [Use(node.lineno, name) for node in ast.walk(tree) for name in imports(node)]
    occurrences += [Use(node.lineno, name) for node in ast.walk(tree) for name in words(node) if name not in own]
    return [*occurrences, *(Use(1, name) for name in inherited(tree, foreign))]


def imports(node: ast.AST) -> Iterator[str]:
    """The dotted names that a statement imports and of which a part is private."""
    names = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    for name in names:
        parts = name.split(".")
        if parts[0] not in OWN and any(is_private(part) for part in parts):
            yield name


def words(node: ast.AST) -> Iterator[str]:
    """The private names of an attribute, of getattr, of a key and of an option of a call."""
    names: list[str | None] = []
    if isinstance(node, ast.Attribute):
        names.append(node.attr)
    if isinstance(node, ast.keyword):
        names.append(node.arg)
    if isinstance(node, ast.Dict):
        names += [text(key) for key in node.keys]
    if isinstance(node, ast.Subscript):
        names.append(text(node.slice))
    if isinstance(node, ast.Call):
        called = node.func
        if isinstance(called, ast.Attribute) and called.attr in ("get", "pop"):
            names += [text(argument) for argument in node.args[:1]]
        if isinstance(called, ast.Name) and called.id in ("getattr", "hasattr", "setattr"):
            names += [text(argument) for argument in node.args[1:2]]
    yield from (name for name in names if name is not None and is_private(name))


def text(node: ast.expr | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def defined(tree: ast.AST) -> set[str]:
    """What a file calls so itself: functions, classes, variables and attributes that it sets."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return names


def imported(tree: ast.AST) -> dict[str, str]:
    """Names of a file and the modules or objects that they are imported from."""
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {(alias.asname or alias.name).split(".")[0]: alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            modules |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def inherited(tree: ast.AST, foreign: dict[str, str]) -> list[str]:
    """Private methods by which a class replaces those of another library's class."""
    overrides = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef):
            continue
        methods = [m.name for m in node.body if isinstance(m, ast.FunctionDef | ast.AsyncFunctionDef)]
        for base in map(ast.unparse, node.bases):
            first, _, rest = base.partition(".")
            if first in foreign and foreign[first].split(".")[0] not in sys.stdlib_module_names:
                parent = resolve(".".join(filter(None, (foreign[first], rest))))
                overrides += [name for name in methods if is_private(name) and hasattr(parent, name)]
    return overrides


def resolve(dotted: str) -> Any:
    """The object of a dotted path: the longest part of it that is a module, and attributes from there."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            value = getattr(value, part)
        return value
    raise ModuleNotFoundError(dotted)


def stands_for(row: PrivateName, use: Use) -> bool:
    """Whether a row is of what is used: of the name itself, of something in the imported module, or of a key."""
    same = use.name in row.keys or use.name == row.name.split(".")[-1]
    inside = "." in use.name and f"{row.name}.".startswith(f"{use.name}.")
    return same or inside


def test_every_use_has_a_row() -> None:
    missing = []
    for path in FILES:
        file = str(path.relative_to(ROOT))
        rows = [row for row in NAMES if file in row.files]
        missing += [
            f"{file}:{use.line}: {use.name}"
            for use in uses(path.read_text())
            if not any(stands_for(row, use) for row in rows)
        ]
    assert missing == [], "pipeline/private_names.py has no row of that file for them"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("from ray._private import services", "ray._private.services"),
        ("def f():\n    import torch._dynamo", "torch._dynamo"),
        ("import s3fs\nx = s3fs.S3FileSystem._lsdir", "_lsdir"),
        ("x = getattr(model, '_repeated_blocks', None)", "_repeated_blocks"),
        ("ray.init(_temp_dir='/tmp')", "_temp_dir"),
        ("options = {'_temp_dir': '/tmp'}", "_temp_dir"),
        ("import s3fs\nclass S3(s3fs.S3FileSystem):\n    async def _call_s3(self): ...", "_call_s3"),
    ],
)
def test_a_use_is_seen_however_it_is_written(source: str, name: str) -> None:
    assert name in [use.name for use in uses(source)]


def test_own_names_are_no_uses() -> None:
    assert uses("class A:\n    def _b(self): return self._c()\n    def _c(self): self._d = 1\n") == []
    assert uses("from collections import namedtuple\nnamedtuple('A', 'b')(1)._asdict()") == []


@pytest.mark.parametrize("row", NAMES, ids=[row.name for row in NAMES])
def test_the_library_has_the_name_as_it_is_used(row: PrivateName) -> None:
    value = resolve(row.name)
    if row.parameters:
        assert set(row.parameters) <= set(inspect.signature(value).parameters)
    for key in row.keys:
        assert f'"{key}"' in inspect.getsource(value), f"{row.name} does not know {key}"
    for file in row.files:
        source = (ROOT / file).read_text()
        assert all(word in source for word in row.keys or (row.name.split(".")[-1],)), f"{file} does not use it"


@pytest.mark.parametrize("library", sorted(SEEN))
def test_a_library_with_a_private_name_is_bounded_below_the_next_minor_version(library: str) -> None:
    major, minor, *_ = SEEN[library].split(".")
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (asked,) = (d for d in dependencies if re.match(r"[\w-]+", d)[0] == library)  # type: ignore[index]
    assert f"<{major}.{int(minor) + 1}" in asked.split(","), f"{asked} has no bound"
    assert metadata.version(library).split(".")[:2] == [major, minor], "another version than the one that was looked at"


def test_every_library_of_the_table_has_a_version_and_a_name() -> None:
    assert {row.library for row in NAMES} == set(SEEN)
