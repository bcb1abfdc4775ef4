"""The house: packages import downward only, Ray is in one of them, a folder holds no more than fifteen files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A package imports those before it. The order is a clip's journey; docs/architecture.md says what each is for.
LAYERS = (
    *("errors", "config", "storage", "tables", "statistics", "projection", "inputs", "video", "models", "motion"),
    *("attribution", "ranking", "training", "evaluation", "exports", "cluster", "operations", "pages", "study"),
    *("workbench", "stages", "synthetic"),
)
LIBRARY = sorted((ROOT / "pipeline").rglob("*.py"))
FILES = 15


def imports(source: str) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, wherever in it, with the line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def upward(package: str, source: str) -> list[str]:
    """The imports of a file of a package that point at the package's own users, as sentences."""
    sentences = []
    for module, line in imports(source):
        names = module.split(".")
        if names[0] == "jobs" or (names[0] == "pipeline" and LAYERS.index(names[1]) > LAYERS.index(package)):
            sentences.append(f"line {line}: {package} imports {module}")
    return sentences


@pytest.mark.parametrize("path", LIBRARY, ids=[str(p.relative_to(ROOT)) for p in LIBRARY])
def test_a_package_imports_downward_only(path: Path) -> None:
    package = path.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py")
    assert package == "__init__" or upward(package, path.read_text()) == []


@pytest.mark.parametrize(
    "line", ["from pipeline.pages import report", "from pipeline import pages", "import jobs.report"]
)
def test_an_upward_import_is_seen_wherever_it_stands(line: str) -> None:
    assert len(upward("storage", f"def f() -> None:\n    {line}\n")) == 1
    assert upward("study", line) == [] or "jobs" in line


@pytest.mark.parametrize("path", LIBRARY, ids=[str(p.relative_to(ROOT)) for p in LIBRARY])
def test_ray_stands_in_one_package(path: Path) -> None:
    names = {module.split(".")[0] for module, _ in imports(path.read_text())}
    assert "ray" not in names or path.parent.name == "cluster"


def test_only_the_synthetic_world_knows_itself() -> None:
    for path in LIBRARY:
        if path.parent.name != "synthetic":
            assert not any(module.startswith("pipeline.synthetic") for module, _ in imports(path.read_text())), path


@pytest.mark.parametrize("folder", sorted({p.parent for p in LIBRARY}), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_folder_is_seen_at_a_glance(folder: Path) -> None:
    files = [p for p in folder.glob("*.py") if p.name != "__init__.py"]
    assert len(files) <= FILES, f"{folder} has {len(files)} files; a part of them is a package of its own"


JOBS = sorted(p for p in (ROOT / "jobs").glob("*.py") if p.name not in ("__init__.py", "__main__.py"))


@pytest.mark.parametrize("path", JOBS, ids=[p.name for p in JOBS])
def test_a_job_imports_no_other_job(path: Path) -> None:
    """What several jobs need is in pipeline/stages/. The demo is curate on videos of its own."""
    allowed = {"jobs.command"} | ({"jobs.curate.curate"} if path.name == "demo.py" else set())
    assert {module for module, _ in imports(path.read_text()) if module.split(".")[0] == "jobs"} <= allowed


def test_no_benchmark_or_training_is_imported_by_another() -> None:
    """What several need is a module without a command, such as jobs/weights/training.py."""
    files = [p for folder in ("benchmarks", "weights") for p in (ROOT / "jobs" / folder).rglob("*.py")]
    commands = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts)
        for p in files
        if '\nif __name__ == "__main__":' in p.read_text()
    }
    assert "jobs.weights.autoencoder" in commands
    for path in files:
        own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        modules = [module for module, _ in imports(path.read_text())]
        for command in commands - {own}:
            assert not any(f"{module}.".startswith(f"{command}.") for module in modules), f"{path} imports {command}"
