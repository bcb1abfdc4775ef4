"""`motion-curation init`: the file loads, fits videos, model and machine, and overwrites nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
import yaml

from jobs import __main__
from jobs import init as job
from pipeline import config, models
from pipeline.attribution import fingerprints
from pipeline.config import RECIPES, Run
from pipeline.errors import ConfigError, StoreError
from pipeline.inputs.places import check_places
from pipeline.operations import new_config
from pipeline.operations.new_config import TOY, WAN, Value, edited, geometry
from pipeline.operations.survey import Look, Machine, Survey, survey
from pipeline.stages import attribution, video_sets
from pipeline.training import arms

GIB = 1 << 30
LAPTOP, SERVER = Machine(2, 8 * GIB), Machine(64, 512 * GIB, (80 * GIB,) * 4)
FILM = Look(1080, 1920, 25.0, 12.0)


def init(words: list[str]) -> None:
    job.init(job.parser().parse_args(words))


def of(*looks: Look) -> Survey:
    return Survey(100, 10**9, 100, looks)


def written(video_survey: Survey, machine: Machine, folder: Path, queries: str | None = None) -> Run:
    path = folder / "mine.yaml"
    path.write_text(new_config.text("runs/mine", "my videos", queries, video_survey, machine))
    return config.load_line(str(path), [])


@pytest.mark.parametrize(
    ("look", "model", "expected"),
    [
        (FILM, WAN, (81, 480, 848)),
        (Look(1920, 1080, 25.0, 12.0), WAN, (81, 848, 480)),
        (Look(1080, 1920, 25.0, 2.1), WAN, (33, 480, 848)),
        (Look(240, 320, 25.0, 12.0), WAN, (81, 240, 320)),
        (Look(20, 20, 25.0, 0.05), WAN, (5, 64, 64)),
        (FILM, TOY, (9, 64, 112)),
        (Look(512, 512, 25.0, 12.0), TOY, (9, 80, 80)),
        (Look(1080, 1920, 25.0, 0.7), TOY, (5, 64, 112)),
    ],
)
def test_geometry_has_the_videos_shape_and_no_more_than_they_have(
    look: Look, model: new_config.Target, expected: tuple[int, int, int]
) -> None:
    frames, height, width = geometry(of(look), model)
    assert (frames, height, width) == expected
    assert (frames - 1) / model.fps <= max(look.seconds, model.temporal / model.fps)


def test_most_of_the_videos_are_long_enough() -> None:
    lengths = [0.1, *[3.0] * 9]
    frames, _, _ = geometry(of(*(Look(480, 832, 16.0, seconds) for seconds in lengths)), WAN)
    assert frames == 49, "one short video decides for all, or none does"


@pytest.mark.parametrize("gpus", [(), (8 * GIB,), (24 * GIB,) * 2, (80 * GIB,) * 8])
@pytest.mark.parametrize("queries", [None, "my queries"])
def test_a_file_loads_and_keeps_the_recipes_comments(
    gpus: tuple[int, ...], queries: str | None, tmp_path: Path
) -> None:
    run = written(of(FILM), Machine(16, 64 * GIB, gpus), tmp_path, queries)
    assert (run.data.videos, run.queries.videos, run.root) == ("my videos", queries, "runs/mine")
    assert run.queries.source == ("sample" if queries is None else "videos")
    assert run.evaluate.videos is None
    assert run.data.scaler == "ffmpeg"
    pools = run.resources
    assert pools.extract_features.gpus == (1 if gpus else 0)
    assert pools.extract_features.actors * pools.extract_features.cpus <= 16
    text = (tmp_path / "mine.yaml").read_text()
    assert "masked gradients of queries on plain ones of clips" in text
    assert max(map(len, text.splitlines())) <= 140, "a comment is too long to read"


@pytest.mark.parametrize(("side", "is_enlarged"), [(32, True), (76, True), (64, False), (512, False)])
def test_the_file_says_where_videos_are_enlarged(side: int, is_enlarged: bool) -> None:
    text = new_config.text("runs/mine", "my videos", None, of(Look(side, side, 8.0, 2.0)), LAPTOP)
    assert ("at least 64; the videos are smaller, and are enlarged" in text) == is_enlarged
    assert ("no larger than they" in text) != is_enlarged


def test_models_take_the_geometry(tmp_path: Path) -> None:
    run = written(of(Look(700, 400, 30.0, 1.4)), LAPTOP, tmp_path)
    models.family(run.model)
    fingerprints.check_geometry(run)


def test_a_written_file_passes_the_checks_of_curate_and_plan(small_world: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    init([str(path), "--videos", str(small_world / "clips"), "--queries", str(small_world / "queries")])
    run = config.load_line(str(path), [f"root={tmp_path / 'run'}"])
    check_places(run)
    attribution.check(run, "index_clips", video_sets.names(run))
    arms.check(run)
    assert not (tmp_path / "run").exists(), "a check wrote something"


def test_small_gpus_get_adapters_and_a_smaller_attribution(tmp_path: Path) -> None:
    large = written(of(FILM), SERVER, tmp_path)
    assert (large.finetune.lora_rank, large.attribution.height) == (None, None)
    middle = written(of(FILM), Machine(16, 64 * GIB, (24 * GIB,)), tmp_path)
    assert (middle.finetune.lora_rank, middle.attribution.height) == (32, None)
    small = written(of(FILM), Machine(16, 64 * GIB, (12 * GIB,)), tmp_path)
    assert (small.finetune.lora_rank, small.attribution.height, small.attribution.width) == (32, 240, 416)


def test_edited_lines_are_the_recipe_with_other_values() -> None:
    lines = (RECIPES / "tiny.yaml").read_text().splitlines()
    changes = {
        "data.videos": Value("a: b # c"),
        "seed": Value(3),
        "resources.finetune": Value({"actors": 1, "cpus": 2}),
    }
    before, after = yaml.safe_load("\n".join(lines)), yaml.safe_load("\n".join(edited(lines, changes)))
    before["data"]["videos"], before["seed"], before["resources"]["finetune"]["cpus"] = "a: b # c", 3, 2
    assert after == before
    with pytest.raises(KeyError, match=r"data\.nothing"):
        edited(lines, {"data.nothing": Value(1)})


def test_a_survey_opens_a_few_and_passes_over_what_does_not_play(small_world: Path, tmp_path: Path) -> None:
    video_survey = survey(str(small_world / "clips"), "--videos")
    assert (video_survey.count, video_survey.captioned, len(video_survey.looks)) == (30, 30, 8)
    assert {(look.height, look.width, look.fps) for look in video_survey.looks} == {(32, 32, 8.0)}
    assert all(0.9 < look.seconds < 1.5 for look in video_survey.looks)
    (tmp_path / "a.mp4").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"--videos=.*none of the 1 videos.*a\.mp4"):
        survey(str(tmp_path), "--videos")


def test_init_writes_once_and_says_what_to_type(
    small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "my file.yaml"
    words = [str(path), "--videos", str(small_world / "clips"), "--queries", str(small_world / "queries")]
    init(words)
    shown = capsys.readouterr()
    assert f"motion-curation plan --config '{path}'" in shown.out
    assert "motion-curation curate" in shown.out
    assert "the arms caption and random" in shown.out
    assert "add caption" in path.read_text()
    assert "toy" in shown.err
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="not overwritten"):
        init(words)
    assert path.read_bytes() == before


def test_init_names_all_that_is_wrong_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        init([str(tmp_path / "a.yaml"), "--videos", "/nowhere/a", "--queries", "/nowhere/b"])
    assert "--videos='/nowhere/a'" in str(caught.value)
    assert "--queries='/nowhere/b'" in str(caught.value)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=r"ends in \.yaml"):
        init(["tiny", "--videos", "/nowhere/a"])


def test_the_command_is_there_and_ends_with_status_2(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "jobs", "init", str(tmp_path / "a.yaml"), "--videos", "/nowhere"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --videos='/nowhere'")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("gpus", [(), (80 * GIB,)])
@pytest.mark.parametrize(
    ("captioned", "of_queries", "expected"), [(20, None, 0.5), (2, None, 1.0), (20, 0, 1.0), (20, 20, 0.5)]
)
def test_videos_without_captions_are_allowed_where_the_file_is_made_for_them(
    gpus: tuple[int, ...], captioned: int, of_queries: int | None, expected: float, tmp_path: Path
) -> None:
    video_survey = Survey(20, 1, captioned, (FILM,))
    queries = None if of_queries is None else Survey(20, 1, of_queries, (FILM,))
    text = new_config.text(
        "runs/mine", "v", "q" if queries else None, video_survey, Machine(16, 64 * GIB, gpus), queries
    )
    (tmp_path / "mine.yaml").write_text(text)
    assert config.load(str(tmp_path / "mine.yaml")).data.empty_captions == expected


def test_a_store_that_is_away_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(where: str, key: str) -> NoReturn:
        raise StoreError(f"{where}: no answer")

    monkeypatch.setattr("pipeline.operations.survey.survey", away)
    words = ["init", str(tmp_path / "a.yaml"), "--videos", "s3://bucket/x"]
    monkeypatch.setattr(sys, "argv", ["motion-curation", *words])
    with pytest.raises(SystemExit, match="1"):
        __main__.main()
    assert capsys.readouterr().err.startswith("error: s3://bucket/x: no answer")
