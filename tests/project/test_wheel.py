"""The wheel has every module and data file, and they load from wherever it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOAD = """
import importlib, pkgutil, sys
import jobs, pipeline
for package in (pipeline, jobs):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith(".__main__"):  # a command, which would run
            loaded = importlib.import_module(module.name)
            assert loaded.__file__.startswith(sys.argv[1]), loaded.__file__
            print(module.name)
from pipeline import config
for name in config.recipes():
    config.load(name)
"""


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no clone")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def test_the_wheel_loads_in_an_empty_folder(tmp_path: Path) -> None:
    names = tracked()
    for name in names:  # a copy, so that nothing is built in the clone
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "source" / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(tmp_path / "source")]
    subprocess.run(build, check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "installed"
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)], check=True)
    files = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    sources = {name for name in names if name.startswith(("pipeline/", "jobs/"))}
    assert sources <= files, f"the wheel lacks {sorted(sources - files)}"
    environment = {**os.environ, "PYTHONPATH": str(target)}
    command = [sys.executable, "-P", "-c", LOAD, str(target)]
    loaded = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr
    modules = {name.removesuffix(".py").replace("/", ".") for name in sources if name.endswith(".py")}
    modules = {name for name in modules if not name.endswith(("__init__", "__main__"))}
    assert modules <= set(loaded.stdout.split())
