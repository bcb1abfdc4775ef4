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


@pytest.mark.parametrize("words", [["--help"], ["--config", "demo", "--set", "motion.hight=3"]])
def test_help_and_wrong_keys_are_said_before_anything_heavy_is_imported(words: list[str]) -> None:
    code = "import sys; from jobs import __main__; sys.argv[1:] = sys.argv[2:]; __main__.main()"
    watch = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules, 'ray' in sys.modules)); {code}"
    ended = subprocess.run(
        [sys.executable, "-c", watch, "", "rank_clips", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.stdout.strip().endswith("False False"), ended.stdout + ended.stderr
    assert ended.returncode == (0 if words == ["--help"] else 2)
    assert words == ["--help"] or "motion.hight" in ended.stderr


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
