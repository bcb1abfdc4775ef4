"""An environment for the libraries that the benchmark compares with: it sees this one's packages and adds theirs.

``pip install -e .[bench]`` puts them into this environment instead, and then nothing is made. The other one lies in the
user's cache and is kept; its name holds the versions that it was made for.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import torch

REQUIREMENTS = ("bergson>=2.5", "dattri>=0.3", "scikit-learn>=1.9", "traker>=0.3.2")  # as in pyproject.toml's [bench]
_SECONDS = 600.0  # for one of them to be installed
_ASK = "import json, sys; from importlib import metadata as m; " + (
    "print(json.dumps({d.name.lower(): d.version for d in m.distributions()}))"
)


def name_of(requirement: str) -> str:
    """ "traker>=0.3.2" -> "traker"."""
    return requirement.partition(">=")[0]


def interpreters() -> dict[str, tuple[str, str]]:
    """Each peer with (the interpreter that has it, its version), or ("", why there is none)."""
    here = {found.name.lower(): found.version for found in metadata.distributions()}
    missing = [each for each in REQUIREMENTS if name_of(each) not in here]
    found = {name: (sys.executable, here[name]) for name in map(name_of, REQUIREMENTS) if name in here}
    return found | (_elsewhere(missing, here) if missing else {})


def _elsewhere(requirements: Iterable[str], here: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Those of the benchmark's own environment, made and filled as needed."""
    folder = environment()
    python = str(folder / "bin" / "python")
    try:
        if not Path(python).exists():
            _create(folder)
        there = _versions(python)
    except (OSError, subprocess.SubprocessError) as error:
        return {name_of(each): ("", f"no environment at {folder}: {error}") for each in requirements}
    pins = folder / "constraints.txt"
    pins.write_text("".join(f"{name}=={version}\n" for name, version in sorted(here.items())))
    failed = {each: _install(python, each, pins) for each in requirements if name_of(each) not in there}
    there = _versions(python)
    return {
        name: (python, there[name]) if name in there else ("", failed[each])
        for each in requirements
        for name in [name_of(each)]
    }


def environment() -> Path:
    """The folder of the environment."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "motion-curation" / f"peers-python{platform.python_version()}-torch{torch.__version__}"


def _create(folder: Path) -> None:
    """An environment that sees this one's packages after its own: the same torch, the same BLAS, no second download."""
    venv.create(folder, with_pip=True, clear=True, symlinks=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", "venv", vars=paths))
    seen = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    (packages / "this_environment.pth").write_text(
        "".join(f"import site; site.addsitedir({each!r})\n" for each in seen)
    )


def _versions(python: str) -> dict[str, str]:
    """What that interpreter has."""
    done = subprocess.run([python, "-c", _ASK], capture_output=True, text=True, check=True, timeout=60)
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def _install(python: str, requirement: str, pins: Path) -> str:
    """Install one peer, with what is here kept as it is; "" or the reason why not."""
    print(f"installing {requirement} into {Path(python).parents[1]}", file=sys.stderr)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1"]
    try:
        done = subprocess.run(
            [*pip, "--constraint", str(pins), requirement], capture_output=True, text=True, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"pip took over {_SECONDS:.0f} s"
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return "pip: " + (lines[-1] if lines else f"exit status {done.returncode}")[:160]
