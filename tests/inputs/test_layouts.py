"""The layouts that trainers, curators and hubs have on disk: each is recognised, with its captions and its spans."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError, InputError
from pipeline.inputs.changes import Listing, check
from pipeline.inputs.videos import videos

NAMES = ("a.mp4", "b.mp4")


def touch(folder: Path, names: Sequence[str] = NAMES) -> Path:
    """A folder with files that are called as videos are; each holds its name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def captions(where: Path | str, **options: Any) -> dict[str, str]:
    """The caption of each video by its file's name, without errors."""
    rows = videos(str(where), **options).to_pylist()
    assert [row["error"] for row in rows] == [None] * len(rows)
    return {Path(row["uri"]).name: row["caption"] for row in rows}


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


AB = {"a.mp4": "one", "b.mp4": "two"}


# --- lists -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "path", "caption"),
    [
        ("metadata.json", "video", "prompt"),  # DiffSynth, finetrainers
        ("dataset.json", "media_path", "caption"),  # LTX-2
        ("dataset.json", "video", "caption"),
        ("videos2caption.json", "path", "cap"),  # FastVideo, Open-Sora-Plan
    ],
)
@pytest.mark.parametrize("below", ["", "videos"])
def test_a_list_in_json(tmp_path: Path, name: str, path: str, caption: str, below: str) -> None:
    touch(tmp_path / below)
    rows = [{path: video, caption: text, "fps": 16} for video, text in AB.items()]
    assert captions(write_json(tmp_path / name, rows)) == AB


def test_a_list_in_a_folder(tmp_path: Path) -> None:
    touch(tmp_path)
    write_json(tmp_path / "metadata.json", [{"video": name, "prompt": text} for name, text in AB.items()])
    assert captions(tmp_path) == AB


def test_data_juicer(tmp_path: Path) -> None:
    touch(tmp_path)
    lines = [
        {
            "videos": [name],
            "text": f"<__dj__video> {text} <|__dj__eoc|>",
            "__dj__stats__": {"video_motion_score": [1.5]},
        }
        for name, text in AB.items()
    ]
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert captions(tmp_path / "clips.jsonl") == AB
    two = {**lines[0], "videos": list(NAMES)}
    (tmp_path / "clips.jsonl").write_text(json.dumps(two) + "\n")
    with pytest.raises(InputError, match="its `videos` lists 2 videos"):
        videos(str(tmp_path / "clips.jsonl"))


@pytest.mark.parametrize("value", ["text", 3, {"name": "my videos"}, [1, 2], [["a.mp4", "one"]]])
def test_json_that_lists_no_videos_is_an_error_that_names_it(tmp_path: Path, value: Any) -> None:
    touch(tmp_path)
    write_json(tmp_path / "metadata.json", value)
    with pytest.raises(InputError, match=r"metadata\.json cannot be read"):
        videos(str(tmp_path))


# --- where the videos lie --------------------------------------------------------------------------------------------


def test_data_files_is_the_base_of_relative_paths(tmp_path: Path) -> None:
    touch(tmp_path / "far" / "videos")
    manifest = write_json(tmp_path / "lists" / "metadata.json", [{"video": n, "prompt": t} for n, t in AB.items()])
    assert set(videos(str(manifest)).column("error").to_pylist()) == {
        "read: the manifest names this file, but it is not there"
    }
    table = videos(str(manifest), files=str(tmp_path / "far" / "videos"))
    assert table.column("relative").to_pylist() == list(NAMES)
    assert table.column("error").null_count == 2
    with pytest.raises(ConfigError, match=r"evaluate\.files=.*there is no such folder"):
        videos(str(manifest), "evaluate.videos", files=str(tmp_path / "nowhere"))


# --- videos without captions -----------------------------------------------------------------------------------------


def test_a_set_without_captions_is_refused_above_the_limit(tmp_path: Path) -> None:
    touch(tmp_path, ("a.mp4", "b.mp4", "c.mp4", "d.mp4"))
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    listed = Listing(str(tmp_path), "data.videos", None, empty_captions=0.5)
    assert listed.captions.sentence() == "without a caption: 2 of 4 videos (50.0%)"
    (tmp_path / "b.txt").unlink()
    for refused in (Listing, check):
        with pytest.raises(InputError, match=r"3 of 4 videos \(75\.0%\), more than data\.empty_captions=0\.5") as error:
            refused(str(tmp_path), "data.videos", None, empty_captions=0.5)
        assert "NAME.txt" in str(error.value)
        assert "metadata.json" in str(error.value)
    assert Listing(str(tmp_path), "data.videos", None, empty_captions=1.0).videos.num_rows == 4


def test_videos_with_errors_do_not_count_as_without_captions(tmp_path: Path) -> None:
    touch(tmp_path, ("a.mp4",))
    rows = [{"video": "a.mp4", "prompt": "one"}, *({"video": f"gone{n}.mp4", "prompt": ""} for n in range(5))]
    where = str(write_json(tmp_path / "list.json", rows))
    assert Listing(where, "data.videos", None, empty_captions=0.5).captions.videos == 1
