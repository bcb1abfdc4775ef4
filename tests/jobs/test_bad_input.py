"""Wrong input: exit status 2, one paragraph that names key, value and remedy, and nothing written is touched."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.curate import curate
from pipeline import config
from pipeline.config import Run
from pipeline.errors import ConfigError, FingerprintError, InputError, NothingUsableError, UsageError
from pipeline.stages import attribution, indexing
from pipeline.training import arms

MakeRun = Callable[..., Run]


def test_exit_status_and_message_of_a_mistyped_key(tmp_path: Path) -> None:
    line = [
        sys.executable,
        "-m",
        "jobs.index_clips",
        "--config",
        "demo",
        "--set",
        f"root={tmp_path}",
        "--set",
        "motion.camara=keep",
    ]
    result = subprocess.run(line, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120)
    assert result.returncode == 2
    assert "motion.camara" in result.stderr
    assert "camera" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir()), "something was written"


@pytest.mark.parametrize(("job", "below"), [("rank_clips", ""), ("workbench", "/x/y")])
def test_a_root_that_is_a_file_or_lies_below_one_is_refused(job: str, below: str, tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text("words")
    line = [sys.executable, "-m", f"jobs.{job}", "--config", "demo", "--set", f"root={file}{below}"]
    result = subprocess.run(line, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120)
    assert result.returncode == 2, result.stderr
    assert f"error: root='{file}{below}': nothing can be written there ({file} is a file)" in result.stderr
    assert "Traceback" not in result.stderr
    assert file.read_text() == "words"


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"data__videos": "/nowhere/clips"}, ["data.videos", "/nowhere/clips"]),
        ({"queries__videos": "/nowhere/queries"}, ["queries.videos", "/nowhere/queries"]),
        ({"model__id": "/nowhere/model"}, ["model.id", "/nowhere/model", "diffusers"]),
        ({"model__id": "nobody/nothing"}, ["model.id", "nobody/nothing"]),
        ({"motion__weights": "/nowhere.safetensors"}, ["motion.weights", "/nowhere.safetensors"]),
        ({"data__frames": 8, "data__stride": 8}, ["data.frames=8", "7", "9"]),
        ({"data__height": 36}, ["data.height=36", "8"]),
        (
            {"resources__extract_features": {"actors": 2, "cpus": 1, "gpus": 4}},
            ["resources.extract_features", "4 GPUs", "Within reach"],
        ),
        ({"evaluate__videos": "/nowhere"}, ["evaluate.videos"]),
    ],
)
def test_wrong_values_end_before_anything_starts(
    small_run: MakeRun, cluster: None, tmp_path: Path, overrides: dict[str, Any], named: list[str]
) -> None:
    run = small_run(tmp_path / "run", **overrides)
    with pytest.raises(UsageError) as error:
        curate(run)
    for part in named:
        assert part in str(error.value)
    assert "\n\n" not in str(error.value)
    assert not (tmp_path / "run" / "clips").exists()


def test_all_missing_places_are_named_together(small_run: MakeRun, tmp_path: Path) -> None:
    places = {"data__videos": "/nowhere/a", "queries__videos": "/nowhere/b", "evaluate__videos": "/nowhere/c"}
    run = small_run(tmp_path / "run", **places, model__id="/nowhere/model", motion__weights="/nowhere.safetensors")
    with pytest.raises(ConfigError) as error:
        attribution.check(run, "index_clips", ("queries", "clips", "held_out"))
    for key in ("data.videos", "queries.videos", "evaluate.videos", "model.id", "motion.weights"):
        assert f"{key}=" in str(error.value), f"{key} is not named: {error.value}"
    assert "\n\n" not in str(error.value)


def test_empty_folder(small_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"data\.videos"):
        attribution.check(small_run(tmp_path / "run", data__videos=str(tmp_path / "empty")), "index_clips", ("clips",))


def test_queries_without_motion_stop_before_the_clips(small_run: MakeRun, cluster: None, tmp_path: Path) -> None:
    run = small_run(tmp_path, motion__still=1000.0)
    with pytest.raises(NothingUsableError, match="none of the 4 queries"):
        curate(run)
    assert not (tmp_path / "clips").exists(), "the clips were touched"


def test_another_fingerprint_is_an_error_not_a_mixture(small_run: MakeRun, cluster: None, tmp_path: Path) -> None:
    indexing.index(small_run(tmp_path), "queries")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.parquet")}
    with pytest.raises(FingerprintError, match=r"data\.stride=9.*data\.stride=4"):
        attribution.check(small_run(tmp_path, data__stride=4), "index_clips")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.parquet")} == before


def test_arms_that_this_configuration_cannot_have(small_run: MakeRun, tmp_path: Path) -> None:
    run = small_run(
        tmp_path, attribution__settings=[{"timestep": 751}], ranking__mask="motion", finetune__arm="no_mask"
    )
    with pytest.raises(ConfigError, match="the arm 'no_mask'"):
        arms.check(run)


@pytest.mark.parametrize("pair", ["novalue", "=1", "a=[1"])
def test_overrides_that_cannot_be_read(pair: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        config.override(pair)


def test_an_override_below_a_plain_value() -> None:
    with pytest.raises(ConfigError, match=r"seed\.x"):
        config.load("demo", {"seed.x": 1})
