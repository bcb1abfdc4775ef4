"""The jobs by name, and the keys of a configuration."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jobs import __main__ as command
from pipeline import config
from pipeline.config import Run, keys

ROOT = Path(__file__).parents[2]


def ran(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "jobs", *words], cwd=ROOT, capture_output=True, text=True)


def test_every_job_is_listed_with_a_sentence() -> None:
    jobs = {path.stem for path in (ROOT / "jobs").glob("*.py") if "command.main(" in path.read_text()}
    assert jobs, "no job is known to the test"
    listed = ran()
    assert listed.returncode == 0, listed.stderr
    for name in jobs:
        assert command.summaries()[name], f"{name} has no docstring"
        assert f"  {name} " in listed.stdout


def test_a_job_gets_its_own_arguments() -> None:
    shown = ran("rank_clips", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "usage: motion-curation rank_clips" in shown.stdout
    refused = ran("rank_clips", "--config", "no/such/recipe")
    assert refused.returncode == 2
    assert "no such recipe" in refused.stderr
    assert ran("rank_clips").returncode == 2, "--config may not be left out"


HEAVY = ("torch", "torchvision", "ray", "diffusers", "transformers", "scipy")
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.py") if "command.main(" in path.read_text())
WRONG = ["--config", "demo", "--set", "motion.hight=3"]
CPU_SECONDS = 2.0  # of a child; it takes half a second where torch is not imported, and five to nine where it is


@pytest.mark.parametrize("words", [["--help"], WRONG], ids=["help", "wrong key"])
@pytest.mark.parametrize(("through", "job"), [*(("module", job) for job in JOBS), ("command", "rank_clips")])
def test_help_and_wrong_keys_are_said_before_anything_heavy_is_imported(
    through: str, job: str, words: list[str]
) -> None:
    module, arguments = (f"jobs.{job}", words) if through == "module" else ("jobs", [job, *words])
    code = (
        "import atexit, resource, runpy, sys\n"
        "def tell():\n"
        f"    usage = resource.getrusage(resource.RUSAGE_SELF)\n"
        f"    print([m for m in {HEAVY} if m in sys.modules], usage.ru_utime + usage.ru_stime, flush=True)\n"
        "atexit.register(tell)\n"
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
    )
    line = [sys.executable, "-c", code, *arguments]
    ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)
    modules, _, seconds = ended.stdout.splitlines()[-1].rpartition(" ")
    assert modules == "[]", f"{modules} were imported first"
    assert float(seconds) < CPU_SECONDS
    assert ended.returncode == (0 if words == ["--help"] else 2), ended.stderr
    assert words == ["--help"] or "motion.hight" in ended.stderr


@pytest.mark.parametrize("job", ["curate", "index_clips", "nightly", "plan"])
def test_places_that_are_not_there_are_all_said_before_anything_heavy_is_imported(job: str, tmp_path: Path) -> None:
    places = {key: f"/nowhere/{key}" for key in ("data.videos", "queries.videos", "evaluate.videos", "model.id")}
    places |= {"motion.weights": "/nowhere/raft.pth", "root": str(tmp_path / "run")}
    words = [word for key, value in places.items() for word in ("--set", f"{key}={value}")]
    code = (
        f"import atexit, runpy, sys; atexit.register(lambda: print([m for m in {HEAVY} if m in sys.modules]))\n"
        f"runpy.run_module('jobs.{job}', run_name='__main__', alter_sys=True)"
    )
    line = [sys.executable, "-c", code, "--config", "demo", *words]
    ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (2, "[]\n"), ended.stderr
    for key in ("data.videos", "queries.videos", "evaluate.videos", "model.id", "motion.weights"):
        assert f"{key}='/nowhere/" in ended.stderr, f"{key} is not named: {ended.stderr}"
    assert not list(tmp_path.iterdir()), "something was written"


@pytest.mark.parametrize(
    ("words", "hint"),
    [(["curat"], "Did you mean curate?"), (["keys", "moton"], "name one section"), (["keys", "root"], "one section")],
)
def test_what_is_no_job_or_section_is_refused(words: list[str], hint: str) -> None:
    refused = ran(*words)
    assert refused.returncode == 2
    assert hint in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


def test_the_keys_are_those_of_a_configuration() -> None:
    listed = {key.name: key for key in keys.keys(Run)}
    values = {name: yaml.safe_load(key.default) for name, key in listed.items() if key.default is not None}
    given = {name: "x" for name, key in listed.items() if key.default is None}
    assert set(given) == {"root", "data.videos", "model.id"}
    run = config.load("demo", {**values, **given, "queries.videos": "x"})
    assert run.motion == config.Motion(), "the defaults that are shown are not those that are used"
    assert run.ranking == config.Ranking()
    shown = ran("keys", "motion").stdout
    assert "motion.height: whole number = 240\n      working size of the flow" in shown
    assert "data.frames" not in shown
