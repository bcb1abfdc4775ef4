"""What each layout's files say, read back by a reader of their format."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
import yaml

from pipeline.exports import trainers
from pipeline.exports.formats import FORMATS
from pipeline.exports.trainers import ExportedSet

CAPTIONS = ['a ball, "red", rolls', "two\nlines 😀", ""]


def clip(number: int, **changes: Any) -> dict[str, Any]:
    row = {"clip_id": f"c{number}", "file": f"clips/c{number}.mp4", "caption": CAPTIONS[number], "weight": 0.25}
    return {**row, "dataset": 0, "repeats": 1, "rank": number, "influence": 0.5, **changes}


def exported(**changes: list[Any]) -> ExportedSet:
    rows = [clip(n, **{key: values[n] for key, values in changes.items()}) for n in range(3)]
    return ExportedSet(rows, 81, 16.0, 480, 832, "/data/out")


ONE = exported()
TWO = exported(
    dataset=[0, 0, 1],
    repeats=[1, 1, 2],
    weight=[0.25, 0.25, 0.5],
    file=["clips-0/c0.mp4", "clips-0/c1.mp4", "clips-1/c2.mp4"],
)


def test_videofolder_has_relative_names_and_no_column_called_video() -> None:
    rows = [json.loads(line) for line in trainers.videofolder(ONE)["metaclips.jsonl"].splitlines()]
    assert [row["file_name"] for row in rows] == ["clips/c0.mp4", "clips/c1.mp4", "clips/c2.mp4"]
    assert [row["caption"] for row in rows] == CAPTIONS
    assert "video" not in rows[0]


def test_musubi_says_how_many_frames() -> None:
    texts = trainers.musubi(TWO)
    config = tomllib.loads(texts["dataset.toml"])
    assert config["general"]["resolution"] == [832, 480]
    first, second = config["datasets"]
    assert (first["target_frames"], first["frame_extraction"], first["source_fps"]) == ([81], "head", 16.0)
    assert type(first["source_fps"]) is float, "a whole number is refused"
    assert (first["num_repeats"], second["num_repeats"]) == (1, 2)
    assert first["cache_directory"] != second["cache_directory"], "each data set has its own"
    assert first["video_jsonl_file"] == "/data/out/clips-0.jsonl"
    rows = [json.loads(line) for line in texts["clips-0.jsonl"].splitlines()]
    assert rows[1] == {"video_path": "/data/out/clips-0/c1.mp4", "caption": CAPTIONS[1]}
    assert len(texts["clips-1.jsonl"].splitlines()) == 1


def test_diffusion_pipe_has_a_folder_for_each_data_set() -> None:
    config = tomllib.loads(trainers.diffusion_pipe(TWO)["dataset.toml"])
    assert config["frame_buckets"] == [1, 81]
    assert config["size_buckets"] == [[832, 480, 81]]
    assert config["skip_empty_caption"] is False, "clips without a caption would be skipped"
    folders = [(d["path"], d["num_repeats"]) for d in config["directory"]]
    assert folders == [("/data/out/clips-0", 1), ("/data/out/clips-1", 2)]


def test_diffsynth_repeats_rows_and_has_empty_captions() -> None:
    rows = json.loads(trainers.diffsynth(TWO)["metadata.json"])
    assert [row["video"] for row in rows] == ["clips-0/c0.mp4", "clips-0/c1.mp4", "clips-1/c2.mp4", "clips-1/c2.mp4"]
    assert [row["prompt"] for row in rows[:3]] == CAPTIONS


def test_finetrainers_has_a_line_for_each_clip() -> None:
    texts = trainers.finetrainers(ONE)
    assert texts["prompts.txt"].split("\n") == ['a ball, "red", rolls', "two lines 😀", "", ""]
    assert texts["videos.txt"].splitlines() == ["clips/c0.mp4", "clips/c1.mp4", "clips/c2.mp4"]
    assert json.loads(texts["training.json"])["datasets"][0]["video_resolution_buckets"] == [[81, 480, 832]]


def test_ai_toolkit_reads_all_frames() -> None:
    first, second = yaml.safe_load(trainers.ai_toolkit(TWO)["datasets.yaml"])["datasets"]
    assert (first["num_frames"], first["fps"], first["shrink_video_to_frames"]) == (81, 16, True)
    assert (first["folder_path"], second["num_repeats"]) == ("/data/out/clips-0", 2)


def test_simpletuner_has_the_weights_as_probabilities() -> None:
    first, second, text = json.loads(trainers.simpletuner(TWO)["multidatabackend.json"])
    assert (first["probability"], second["probability"]) == (1.0, 1.0), "two clips of half the weight of one"
    assert first["video"] == {"num_frames": 81, "min_frames": 81, "max_frames": 81}
    assert first["repeats"] == 0, "0 is once"
    assert (text["dataset_type"], text["default"]) == ("text_embeds", True)


def test_the_others_read_back() -> None:
    rows = json.loads(trainers.ltx_2(TWO)["dataset.json"])
    assert [row["video"] for row in rows] == [row["file"] for row in TWO.rows], "a file is encoded once"
    videos = json.loads(
        trainers.fastvideo(exported(file=["videos/a.mp4", "videos/b.mp4", "videos/c.mp4"]))["videos2caption.json"]
    )
    assert videos[0] == {
        "path": "a.mp4",
        "cap": CAPTIONS[0],
        "fps": 16,
        "duration": 5.0625,
        "num_frames": 81,
        "resolution": {"width": 832, "height": 480},
    }
    first = json.loads(trainers.data_juicer(ONE)["clips.jsonl"].splitlines()[0])
    assert first["videos"] == ["clips/c0.mp4"]
    assert first["text"] == f"<__dj__video> {CAPTIONS[0]} <|__dj__eoc|>"
    assert trainers.ids(TWO)["ids.txt"] == "c2\nc0\nc1\n", "the heaviest first"


@pytest.mark.parametrize("name", FORMATS)
def test_no_text_stands_where_a_clip_stands(name: str) -> None:
    for path in FORMATS[name].write(TWO):
        assert "/" not in path
        assert path not in ("provenance.parquet", "README.txt", "export.json", "unfinished.json")


def test_a_path_with_quotes_stays_one() -> None:
    odd = ExportedSet(ONE.rows, 81, 16.0, 480, 832, '/a "b"\\c\u007fé')
    path = tomllib.loads(trainers.diffusion_pipe(odd)["dataset.toml"])["directory"][0]["path"]
    assert path == '/a "b"\\c\u007fé/clips'
