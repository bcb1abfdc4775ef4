"""The layouts that trainers, curators and hubs have on disk: each is recognised, with its captions and its spans."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from pipeline.config import Data
from pipeline.errors import ClipError, ConfigError, InputError
from pipeline.exports import formats
from pipeline.exports.trainers import ExportedSet
from pipeline.inputs.changes import Listing, check
from pipeline.inputs.layouts import line_files
from pipeline.inputs.video_set import VideoSet
from pipeline.inputs.videos import videos
from pipeline.video.decoder import Decoder
from pipeline.video.indexing import index
from tests.support import numbered

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
    listed = Listing(VideoSet(str(tmp_path), empty_captions=0.5))
    assert listed.captions.sentence() == "without a caption: 2 of 4 videos (50.0%)"
    (tmp_path / "b.txt").unlink()
    for refused in (Listing, check):
        with pytest.raises(InputError, match=r"3 of 4 videos \(75\.0%\), more than data\.empty_captions=0\.5") as error:
            refused(VideoSet(str(tmp_path), empty_captions=0.5))
        assert "NAME.txt" in str(error.value)
        assert "metadata.json" in str(error.value)
    assert Listing(VideoSet(str(tmp_path), empty_captions=1.0)).videos.num_rows == 4


def test_videos_with_errors_do_not_count_as_without_captions(tmp_path: Path) -> None:
    touch(tmp_path, ("a.mp4",))
    rows = [{"video": "a.mp4", "prompt": "one"}, *({"video": f"gone{n}.mp4", "prompt": ""} for n in range(5))]
    where = str(write_json(tmp_path / "list.json", rows))
    assert Listing(VideoSet(where, empty_captions=0.5)).captions.videos == 1


# --- folders and hubs ------------------------------------------------------------------------------------------------


def test_a_text_beside_each_video(tmp_path: Path) -> None:
    touch(tmp_path)
    for name, text in AB.items():
        (tmp_path / name).with_suffix(".txt").write_text(f"{text}\n")
    assert captions(tmp_path) == AB


@pytest.mark.parametrize("end", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("path", ["file_name", "file_names", "video_file_name"])
def test_hugging_face_videofolder(tmp_path: Path, end: str, path: str) -> None:
    touch(tmp_path)
    rows = [
        {path: [name] if path == "file_names" and end != "csv" else name, "text": text} for name, text in AB.items()
    ]
    if end == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "metadata.parquet")
    elif end == "jsonl":
        (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [f"{path},text", *(f"{row[path]},{row['text']}" for row in rows)]
        (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n")
    assert captions(tmp_path) == AB


def test_hugging_face_parquet_with_videos(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    videos_of = [{"bytes": name.encode(), "path": name} for name in AB]
    table = pa.table({"video": pa.array(videos_of, kind), "text": list(AB.values())})
    pq.write_table(table, tmp_path / "train-00000-of-00001.parquet", row_group_size=1)
    assert videos(str(tmp_path)).column("caption").to_pylist() == ["one", "two"]


@pytest.mark.parametrize("end", ["txt", "caption", "prompt", "text", "video_caption", "short_caption", "captions"])
def test_webdataset(tmp_path: Path, end: str) -> None:
    with tarfile.open(tmp_path / "shard-000.tar", "w") as tar:
        for name, text in AB.items():
            for member, data in ((name, b"video"), (f"{Path(name).stem}.{end}", text.encode())):
                header = tarfile.TarInfo(member)
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
    assert videos(str(tmp_path)).column("caption").to_pylist() == ["one", "two"]


# --- trainers --------------------------------------------------------------------------------------------------------


def test_diffsynth_csv(tmp_path: Path) -> None:
    touch(tmp_path)
    (tmp_path / "metadata.csv").write_text("video,prompt\na.mp4,one\nb.mp4,two\n")
    assert captions(tmp_path) == AB


@pytest.mark.parametrize("texts", line_files.CAPTIONS)
@pytest.mark.parametrize("paths", line_files.VIDEOS)
def test_a_caption_a_line_and_a_video_a_line(tmp_path: Path, texts: str, paths: str) -> None:
    """finetrainers, FastVideo, CogVideoX."""
    touch(tmp_path / "videos")
    (tmp_path / texts).write_text("one\ntwo\n")
    (tmp_path / paths).write_text("videos/a.mp4\nvideos/b.mp4\n")
    assert captions(tmp_path) == AB
    assert captions(tmp_path / paths) == AB
    (tmp_path / texts).write_text("one\ntwo\nthree\n")
    with pytest.raises(InputError, match=f"{texts} has 3 lines, and {paths} has 2"):
        videos(str(tmp_path))


def test_finetrainers_configuration(tmp_path: Path) -> None:
    touch(tmp_path / "set")
    write_json(tmp_path / "set" / "metadata.json", [{"video": name, "prompt": text} for name, text in AB.items()])
    sets = [{"data_root": "set", "dataset_type": "video"}, {"data_root": "pictures", "dataset_type": "image"}]
    assert captions(write_json(tmp_path / "training.json", {"datasets": sets})) == AB


def test_diffusion_pipe(tmp_path: Path) -> None:
    """captions.json goes before the text beside a video; other videos have that."""
    touch(tmp_path / "set", ("a.mp4", "b.mp4", "c.mp4"))
    write_json(tmp_path / "set" / "captions.json", {"a.mp4": ["one"], "b.mp4": "two"})
    (tmp_path / "set" / "a.txt").write_text("not this")
    (tmp_path / "set" / "c.txt").write_text("three")
    expected = {**AB, "c.mp4": "three"}
    assert captions(tmp_path / "set") == expected
    (tmp_path / "dataset.toml").write_text('resolutions = [512]\n[[directory]]\npath = "set"\nnum_repeats = 0.5\n')
    assert captions(tmp_path / "dataset.toml") == expected
    assert captions(tmp_path) == expected, "the configuration of a folder is found without being named"


def test_captions_json_names_members_of_tars(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        header = tarfile.TarInfo("a.mp4")
        header.size = 5
        tar.addfile(header, io.BytesIO(b"video"))
    touch(tmp_path, ("b.mp4",))
    write_json(tmp_path / "captions.json", {name: [text, f"{text} again"] for name, text in AB.items()})
    table = videos(str(tmp_path))
    assert sorted(table.column("captions").to_pylist()) == [["one", "one again"], ["two", "two again"]]


@pytest.mark.parametrize("value", [{"a.mp4": 3}, ["a.mp4"], {"author": "me"}, {}])
def test_captions_json_that_is_none_is_an_error_that_names_it(tmp_path: Path, value: Any) -> None:
    touch(tmp_path)
    write_json(tmp_path / "captions.json", value)
    with pytest.raises(InputError, match=r"captions\.json cannot be used"):
        videos(str(tmp_path))


def test_musubi(tmp_path: Path) -> None:
    touch(tmp_path / "one", ("a.mp4",))
    (tmp_path / "one" / "a.caption").write_text("one")
    touch(tmp_path / "two", ("b.mp4",))
    row = {"video_path": str(tmp_path / "two" / "b.mp4"), "caption": "two"}
    (tmp_path / "two.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "dataset.toml").write_text(
        '[general]\ncaption_extension = ".caption"\n'
        '[[datasets]]\nvideo_directory = "one"\ncache_directory = "c"\n'
        f'[[datasets]]\nvideo_jsonl_file = "{tmp_path}/two.jsonl"\n'
        '[[datasets]]\nimage_directory = "pictures"\n'
    )
    assert captions(tmp_path / "dataset.toml") == AB
    assert videos(str(tmp_path)).column("relative").to_pylist() == ["one/a.mp4", "two/b.mp4"]


def test_moving_what_a_configuration_names_changes_no_relative_path(tmp_path: Path) -> None:
    for home in ("here", "there"):
        touch(tmp_path / home / "x", ("a.mp4",))
        touch(tmp_path / home / "y", ("a.mp4",))
        (tmp_path / home / "d.toml").write_text('[[directory]]\npath = "x"\n[[directory]]\npath = "y"\n')
    here, there = (videos(str(tmp_path / home / "d.toml")).column("relative").to_pylist() for home in ("here", "there"))
    assert here == there == ["x/a.mp4", "y/a.mp4"]


@pytest.mark.parametrize("nested", [False, True])
def test_ai_toolkit(tmp_path: Path, nested: bool) -> None:
    touch(tmp_path / "one", ("a.mp4",))
    (tmp_path / "one" / "a.md").write_text("one")
    touch(tmp_path, ("b.mp4",))
    write_json(tmp_path / "two.json", {str(tmp_path / "b.mp4"): {"caption": "two", "caption_short": "t"}})
    sets = [{"folder_path": "one", "caption_ext": "md", "num_frames": 81}, {"dataset_path": str(tmp_path / "two.json")}]
    document = {"job": "extension", "config": {"process": [{"datasets": sets}]}} if nested else {"datasets": sets}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(document))
    assert captions(tmp_path / "train.yaml") == AB


def test_simpletuner(tmp_path: Path) -> None:
    touch(tmp_path / "one", ("a.mp4",))
    (tmp_path / "one" / "a.txt").write_text("one")
    touch(tmp_path / "two", ("b.mp4",))
    touch(tmp_path / "three", ("c.mp4",))
    pq.write_table(pa.table({"name": ["b"], "said": ["two"]}), tmp_path / "two.parquet")
    backend = {"type": "local", "dataset_type": "video"}
    columns = {"path": "two.parquet", "filename_column": "name", "caption_column": "said"}
    backends = [
        {**backend, "id": "1", "instance_data_dir": "one", "caption_strategy": "textfile"},
        {**backend, "id": "2", "instance_data_dir": "two", "caption_strategy": "parquet", "parquet": columns},
        {
            **backend,
            "id": "3",
            "instance_data_dir": "three",
            "caption_strategy": "instanceprompt",
            "instance_prompt": "x",
        },
        {"id": "4", "type": "local", "dataset_type": "image", "instance_data_dir": "pictures"},
        {"id": "texts", "dataset_type": "text_embeds"},
    ]
    assert captions(write_json(tmp_path / "backends.json", backends)) == {**AB, "c.mp4": "x"}
    backends[0]["caption_strategy"] = "webshart"
    with pytest.raises(InputError, match="caption_strategy 'webshart'"):
        videos(str(write_json(tmp_path / "backends.json", backends)))


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.toml", "[[", "it cannot be read"),
        ("a.toml", "[general]\n", "it is no configuration of videos"),
        ("a.yaml", "datasets:\n- folder_path: 3\n", "its `folder_path` is 3"),
        ("a.toml", '[[directory]]\npath = "nowhere"\n', "names a place that cannot be read"),
        ("a.toml", '[[directory]]\npath = "https://example.com/x"\n', "names a place that cannot be read"),
        ("a.toml", '[[datasets]]\nimage_directory = "x"\n', "it names no videos"),
    ],
)
def test_a_configuration_that_cannot_be_used(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=sentence):
        videos(str(tmp_path / name))


# --- public sets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["", "data/train"])
def test_openvid(tmp_path: Path, at: str) -> None:
    touch(tmp_path / "video")
    (tmp_path / at).mkdir(parents=True, exist_ok=True)
    header = "video,caption,aesthetic score,motion score,temporal consistency score,camera motion,frame,fps,seconds"
    lines = [f'{name},"{text}",5.1,2.5,0.99,static,81,24,3.4' for name, text in AB.items()]
    (tmp_path / at / "OpenVid-1M.csv").write_text("\n".join([header, *lines]) + "\n")
    assert captions(tmp_path / at / "OpenVid-1M.csv") == AB
    assert videos(str(tmp_path / at)).column("motion score").to_pylist() == [2.5, 2.5]


def test_panda(tmp_path: Path) -> None:
    touch(tmp_path / "videos", ("x1.mp4", "x2.webm"))
    lines = [
        "videoID,url,timestamp,caption,matching_score",
        "x1,https://www.youtube.com/watch?v=x1,\"[['0:00:16.300', '0:00:32.566'], ['0:01:00.000', '0:01:02.500']]\","
        '"[\'a man\', ""it\'s a dog""]","[0.5, 0.25]"',
        "x2,https://www.youtube.com/watch?v=x2,\"[['0:00:01.000', '0:00:02.000']]\",['a cat'],[0.125]",
    ]
    (tmp_path / "panda70m.csv").write_text("\n".join(lines) + "\n")
    rows = videos(str(tmp_path / "panda70m.csv")).to_pylist()
    assert [(Path(r["uri"]).name, r["span"], r["caption"], r["matching_score"], r["error"]) for r in rows] == [
        ("x1.mp4", "16.3s-32.566s", "a man", 0.5, None),
        ("x1.mp4", "60s-62.5s", "it's a dog", 0.25, None),
        ("x2.webm", "1s-2s", "a cat", 0.125, None),
    ]


def test_hd_vila(tmp_path: Path) -> None:
    touch(tmp_path, ("x1.mp4",))
    rows = [
        {"clip_id": f"x1.{n}.mp4", "video_id": "x1", "url": "https://www.youtube.com/watch?v=x1", "caption": f"c{n}"}
        | {"span_start": f"00:00:0{n}.000", "span_end": f"00:00:0{n + 1}.500"}
        for n in (1, 4)
    ]
    (tmp_path / "hdvila.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    listed = videos(str(tmp_path / "hdvila.jsonl")).to_pylist()
    assert [(row["span"], row["caption"], row["error"]) for row in listed] == [
        ("1s-2.5s", "c1", None),
        ("4s-5.5s", "c4", None),
    ]
    assert listed[0]["manifest_clip_id"] == "x1.1.mp4"


# --- curators --------------------------------------------------------------------------------------------------------


def _meta(uuid: str, windows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "span_uuid": uuid,
        "source_video": "/raw/film.mp4",
        "duration_span": [12.5, 20.0],
        "width_source": 1920,
        "clip_location": f"s3://old/clips/{uuid}.mp4",
        "motion_score": {"global_mean": 0.75, "per_patch_min_256": 0.125},
        "aesthetic_score": 4.5,
        "windows": windows,
        "valid": True,
        **more,
    }


@pytest.mark.parametrize("as_lines", [False, True])
def test_curators(tmp_path: Path, as_lines: bool, caplog: pytest.LogCaptureFixture) -> None:
    """NeMo Curator and Cosmos-Curator: clips that are cut already, so their place in the source is no span of them."""
    touch(tmp_path / "clips", ("u1.mp4", "u2.mp4", "u3.mp4"))
    touch(tmp_path / "filtered_clips", ("u4.mp4",))
    one = {"start_frame": 0, "end_frame": 99, "qwen_caption": "one", "qwen_enhanced_caption": "one, enhanced"}
    two = {"start_frame": 100, "end_frame": 199, "qwen_caption": "two"}
    metas = [_meta("u1", [one]), _meta("u2", [one, two]), _meta("u3", []), _meta("u4", [one], valid=False)]
    if as_lines:
        (tmp_path / "metas_jsonl" / "v0").mkdir(parents=True)
        (tmp_path / "metas_jsonl" / "v0" / "0.jsonl").write_text("".join(json.dumps(m) + "\n" for m in metas))
    else:
        for meta in metas:
            write_json(tmp_path / "metas" / "v0" / f"{meta['span_uuid']}.json", meta)
    rows = videos(str(tmp_path)).to_pylist()
    assert [(Path(r["uri"]).name, r["caption"], r["span"], r["error"]) for r in rows] == [
        ("u1.mp4", "one", None, None),
        ("u2.mp4", "one", "0f-100f", None),
        ("u2.mp4", "two", "100f-200f", None),
        ("u3.mp4", "", None, None),
    ]
    first = rows[0]
    assert first["enhanced_caption"] == "one, enhanced"
    assert (first["aesthetic_score"], first["motion_score_global_mean"]) == (4.5, 0.75)
    assert (first["source"], first["source_span"]) == ("/raw/film.mp4", "12.5s-20s")
    assert "invalid are left out: 1" in caplog.text


def test_a_clip_that_a_curator_did_not_cut_is_a_span_of_its_source(tmp_path: Path) -> None:
    touch(tmp_path / "raw", ("film.mp4",))
    meta = _meta("u1", [], source_video=str(tmp_path / "raw" / "film.mp4"), clip_format="source_span")
    write_json(tmp_path / "out" / "metas" / "v0" / "u1.json", meta)
    (row,) = videos(str(tmp_path / "out")).to_pylist()
    assert (Path(row["uri"]).name, row["span"], row["error"]) == ("film.mp4", "12.5s-20s", None)


@pytest.mark.parametrize("text", ["{", "[]", '{"span_uuid": "u1"}', "3"])
def test_a_clips_metadata_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    touch(tmp_path / "clips", ("u1.mp4",))
    (tmp_path / "metas" / "v0").mkdir(parents=True)
    (tmp_path / "metas" / "v0" / "u1.json").write_text(text)
    with pytest.raises(InputError, match=r"u1\.json"):
        videos(str(tmp_path))


# --- robots ----------------------------------------------------------------------------------------------------------

TOP, WRIST = "observation.images.top", "observation.images.wrist"


def _lerobot(root: Path, version: str, cameras: Sequence[str]) -> Path:
    features = {camera: {"dtype": "video", "shape": [48, 64, 3]} for camera in cameras}
    info = {
        "codebase_version": version,
        "fps": 30,
        "chunks_size": 1000,
        "features": features | {"action": {"dtype": "x"}},
    }
    if version == "v2.1":
        info["video_path"] = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
        lines = [{"episode_index": n, "tasks": [text], "length": 60} for n, text in enumerate(("one", "two"))]
        (root / "meta").mkdir(parents=True)
        (root / "meta" / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        for camera in cameras:
            touch(root / "videos" / "chunk-000" / camera, [f"episode_{n:06d}.mp4" for n in (0, 1)])
    else:
        info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        rows: list[dict[str, Any]] = []
        for n, text in enumerate(("one", "two", "three")):
            row: dict[str, Any] = {"episode_index": n, "tasks": [text], "length": 60}
            for camera in cameras:
                row |= {f"videos/{camera}/chunk_index": 0, f"videos/{camera}/file_index": n // 2}
                row |= {
                    f"videos/{camera}/from_timestamp": 2.0 * (n % 2),
                    f"videos/{camera}/to_timestamp": 2.0 * (n % 2) + 2,
                }
            rows.append(row)
        (root / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), root / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
        for camera in cameras:
            touch(root / "videos" / camera / "chunk-000", ["file-000.mp4", "file-001.mp4"])
    write_json(root / "meta" / "info.json", info)
    return root


def test_lerobot_v2(tmp_path: Path) -> None:
    rows = videos(str(_lerobot(tmp_path, "v2.1", [TOP]))).to_pylist()
    assert [(r["relative"], r["caption"], r["episode_index"], r["error"]) for r in rows] == [
        (f"videos/chunk-000/{TOP}/episode_000000.mp4", "one", 0, None),
        (f"videos/chunk-000/{TOP}/episode_000001.mp4", "two", 1, None),
    ]


def test_lerobot_v3_has_episodes_as_spans_of_shared_files(tmp_path: Path) -> None:
    rows = videos(str(_lerobot(tmp_path, "v3.0", [TOP]))).to_pylist()
    assert [(Path(r["uri"]).name, r["caption"], r["span"], r["error"]) for r in rows] == [
        ("file-000.mp4", "one", "0s-2s", None),
        ("file-000.mp4", "two", "2s-4s", None),
        ("file-001.mp4", "three", "0s-2s", None),
    ]


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_camera_is_chosen_by_its_name(tmp_path: Path, version: str) -> None:
    root = _lerobot(tmp_path, version, [TOP, WRIST])
    for camera in ("wrist", WRIST):
        assert {WRIST in row["uri"] for row in videos(str(root), camera=camera).to_pylist()} == {True}
    for camera in (None, "left"):
        with pytest.raises(ConfigError, match=rf"data\.camera=.*2 cameras.*{TOP}, {WRIST}"):
            videos(str(root), camera=camera)


def test_a_damaged_robots_dataset_is_an_error(tmp_path: Path) -> None:
    root = _lerobot(tmp_path, "v3.0", [TOP])
    (root / "meta" / "episodes" / "chunk-000" / "file-000.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(InputError, match=r"info\.json: the dataset's metadata cannot be read"):
        videos(str(root))
    write_json(
        root / "meta" / "info.json",
        {"codebase_version": "v9", "features": {TOP: {"dtype": "video"}}, "video_path": "x"},
    )
    with pytest.raises(InputError, match="its codebase_version is 'v9'"):
        videos(str(root))


# --- several lists ---------------------------------------------------------------------------------------------------


def test_two_lists_in_one_folder_are_an_error_that_names_both(tmp_path: Path) -> None:
    touch(tmp_path)
    (tmp_path / "metadata.csv").write_text("video,prompt\na.mp4,one\n")
    write_json(tmp_path / "videos2caption.json", [{"path": "b.mp4", "cap": "two"}])
    with pytest.raises(InputError, match=r"metadata\.csv and videos2caption\.json each say"):
        videos(str(tmp_path))
    assert captions(tmp_path / "videos2caption.json") == {"b.mp4": "two"}


@pytest.mark.parametrize("name", ["dataset.toml", "multidatabackend.json"])
def test_a_known_list_below_that_is_not_read_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    touch(tmp_path / "sub")
    (tmp_path / "sub" / name).write_text("")
    with pytest.raises(InputError, match=rf"sub/{name} says what the videos of its folder are"):
        videos(str(tmp_path))


# --- our own exports -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, one in formats.FORMATS.items() if one.clips == "files"])
def test_what_we_export_we_read(tmp_path: Path, name: str) -> None:
    """Each clip once, with its caption, also where a weight repeats its row."""
    layout = formats.FORMATS[name]
    rows = [
        {
            **{"clip_id": f"c{n}", "file": f"{layout.folder}/c{n}.mp4", "caption": f"caption {n}", "weight": 0.5},
            **{"dataset": 0, "repeats": 1 + n, "rank": n, "influence": 0.5},
        }
        for n in range(3)
    ]
    touch(tmp_path, [row["file"] for row in rows])
    for row in rows if layout.captions else ():
        (tmp_path / row["file"]).with_suffix(".txt").write_text(row["caption"])
    clips = ExportedSet(rows, 81, 16.0, 480, 832, str(tmp_path))
    for file, text in layout.write(clips).items():
        (tmp_path / file).write_text(text)
    where = tmp_path / "clips.jsonl" if name == "data-juicer" else tmp_path
    assert captions(where) == {f"c{n}.mp4": f"caption {n}" for n in range(3)}


# --- folders of pictures ---------------------------------------------------------------------------------------------


def _pictures(folder: Path, count: int, end: str = "png", first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(numbered.picture(first + number)).save(folder / f"frame{number}.{end}")
    return folder


@pytest.mark.parametrize("end", ["png", "jpg"])
def test_a_folder_of_pictures_is_a_clip(tmp_path: Path, end: str) -> None:
    """Frame 9 comes before frame 10, and a picture is a frame at the rate of the set."""
    _pictures(tmp_path / "clips" / "x", 20, end)
    _pictures(tmp_path / "clips" / "y", 20, end, first=50)
    (tmp_path / "clips" / "x.txt").write_text("one")
    (tmp_path / "clips" / "y.txt").write_text("two")
    rows = videos(str(tmp_path / "clips"), fps=8.0).to_pylist()
    assert [(r["relative"], r["caption"], r["error"]) for r in rows] == [("x", "one", None), ("y", "two", None)]
    data = Data(videos="x", frames=9, fps=8.0, height=32, width=64)
    with Decoder() as decoder:
        for row, first in zip(rows, (0, 50), strict=True):
            clips = index(row, data, decoder)
            assert [clip["start_frame"] for clip in clips] == [0, 9]
            shown = numbered.numbers(decoder.frames(row["uri"], 9, 9, 8.0, 32, 64))
            assert shown == list(range(first + 9, first + 18))
            half = numbered.numbers(decoder.frames(row["uri"], 0, 5, 4.0, 32, 64))
            assert half == list(range(first, first + 10, 2)), "another rate takes other pictures"


def test_a_manifest_may_name_folders_of_pictures(tmp_path: Path) -> None:
    """musubi-tuner's JSONL; `fps` of a row is the rate of its pictures."""
    _pictures(tmp_path / "x", 4)
    touch(tmp_path, ("b.mp4",))
    rows = [{"video_path": "x", "caption": "one", "fps": 24}, {"video_path": "b.mp4", "caption": "two", "fps": 16}]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    listed = videos(str(tmp_path / "list.jsonl")).to_pylist()
    assert [row["error"] for row in listed] == [None, None]
    assert listed[0]["uri"] == f"{tmp_path}/x/#24fps"


def test_a_folder_of_pictures_that_changed_has_another_version(tmp_path: Path) -> None:
    _pictures(tmp_path / "x", 4)
    before = videos(str(tmp_path)).column("version").to_pylist()
    assert videos(str(tmp_path)).column("version").to_pylist() == before
    _pictures(tmp_path / "x", 5)
    assert videos(str(tmp_path)).column("version").to_pylist() != before


def test_pictures_beside_videos_are_no_clips(tmp_path: Path) -> None:
    touch(tmp_path)
    _pictures(tmp_path / "previews", 4)
    assert set(captions(tmp_path)) == set(NAMES)


def test_folders_that_are_no_clips_are_rows_with_errors(tmp_path: Path) -> None:
    _pictures(tmp_path / "one", 1)
    _pictures(tmp_path / "both", 2)
    _pictures(tmp_path / "both", 2, "jpg")
    outside = _pictures(tmp_path / "elsewhere" / "x", 2)
    inside = tmp_path / "in" / "linked"
    inside.mkdir(parents=True)
    for picture in outside.iterdir():
        (inside / picture.name).symlink_to(picture)
    rows = [{"video": str(tmp_path / name), "caption": "c"} for name in ("one", "both")]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    errors = videos(str(tmp_path / "list.jsonl")).column("error").to_pylist()
    assert errors[0].startswith("too_short: the folder has 1 pictures")
    assert errors[1].startswith("refused: its pictures are PNG and JPEG")
    (row,) = videos(str(tmp_path / "in"), base=str(tmp_path / "in")).to_pylist()
    assert row["error"] == "refused: it lies outside data.base"
    (outside / "frame0.png").write_bytes(b"no picture")
    (row,) = videos(str(tmp_path / "elsewhere")).to_pylist()
    with Decoder() as decoder, pytest.raises(ClipError, match="decode: its first picture has no header"):
        decoder.index(row["uri"], 2, 16.0)


def test_a_configuration_that_leads_to_itself_ends(tmp_path: Path) -> None:
    touch(tmp_path)
    (tmp_path / "dataset.toml").write_text('[[directory]]\npath = "."\n')
    assert set(captions(tmp_path)) == set(NAMES), "its own folder is read as a folder"
    (tmp_path / "dataset.toml").write_text('[[datasets]]\nvideo_jsonl_file = "dataset.toml"\n')
    with pytest.raises(InputError, match="it leads to itself"):
        videos(str(tmp_path))


def test_what_is_wrong_in_a_list_of_json_is_said_with_its_entry(tmp_path: Path) -> None:
    touch(tmp_path)
    rows = [{"video": "a.mp4", "prompt": "one"}, {"video": "b.mp4", "prompt": {"en": "two"}}]
    with pytest.raises(InputError, match="entry 2: its `prompt` is an object; it must be a text"):
        videos(str(write_json(tmp_path / "metadata.json", rows)))


# --- Lance -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_blob", [False, True])
@pytest.mark.parametrize("below", ["train.lance", "data/train.lance"])
def test_lance(tmp_path: Path, as_blob: bool, below: str) -> None:
    lance = pytest.importorskip("lance")
    film = Path(numbered.write(tmp_path / "v.mp4", "libx264", range(30))).read_bytes()
    film_of = pa.large_binary()
    field = pa.field("video_blob", film_of, metadata={"lance-encoding:blob": "true"} if as_blob else None)
    schema = pa.schema(
        [field, ("caption", pa.string()), ("embedding", pa.list_(pa.float32(), 1024)), ("fps", pa.int64())]
    )
    embeddings = pa.FixedSizeListArray.from_arrays(pa.array([0.0] * 2048, pa.float32()), 1024)
    columns = [pa.array([film, b"no video"], film_of), pa.array(["one", "two"]), embeddings, pa.array([25, 25])]
    place = tmp_path / "set"
    (place / below).parent.mkdir(parents=True)
    lance.write_dataset(pa.table(columns, schema=schema), str(place / below))
    rows = videos(str(place)).to_pylist()
    assert [(r["relative"], r["caption"], r["manifest_fps"], r["error"]) for r in rows] == [
        (f"{below}/0", "one", 25, None),
        (f"{below}/1", "two", 25, None),
    ]
    assert "embedding" not in rows[0]
    with Decoder() as decoder:
        clips = [clip for row in rows for clip in index(row, Data(videos="x", frames=9, fps=25.0), decoder)]
        assert [clip["error"] and clip["error"].split(":")[0] for clip in clips] == [None, None, None, "decode"]
        assert numbered.numbers(decoder.frames(rows[0]["uri"], 9, 3, 25.0, 32, 64)) == [9, 10, 11]


def test_lance_without_its_library_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.lance" / "_versions").mkdir(parents=True)
    monkeypatch.setitem(sys.modules, "lance", None)
    with pytest.raises(InputError, match=r"pip install 'motion-curation\[lance\]'"):
        videos(str(tmp_path))


# --- hostile metadata ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template", ["{video_key.__class__}/{episode_index:06d}.mp4", "{episode_index:999999999d}.mp4", "{elsewhere}.mp4"]
)
def test_a_robots_template_is_no_program(tmp_path: Path, template: str) -> None:
    root = _lerobot(tmp_path, "v2.1", [TOP])
    info = json.loads((root / "meta" / "info.json").read_text())
    write_json(root / "meta" / "info.json", {**info, "video_path": template})
    with pytest.raises(InputError, match=r"info\.json: the dataset's metadata cannot be read"):
        videos(str(root))


@pytest.mark.parametrize("template", ["../{episode_index}.mp4", "https://example.com/{episode_index}.mp4"])
def test_a_robots_template_leads_nowhere_else(tmp_path: Path, template: str) -> None:
    root = _lerobot(tmp_path / "robot", "v2.1", [TOP])
    info = json.loads((root / "meta" / "info.json").read_text())
    write_json(root / "meta" / "info.json", {**info, "video_path": template})
    errors = videos(str(root), base=str(root)).column("error").to_pylist()
    assert [error.split(":")[0] for error in errors] == ["refused", "refused"]


def test_a_curators_metadata_leads_to_no_other_file(tmp_path: Path) -> None:
    touch(tmp_path / "out" / "clips", ("u1.mp4",))
    touch(tmp_path, ("secret.mp4",))
    write_json(tmp_path / "out" / "metas" / "v0" / "u1.json", _meta("u1", [], clip_location="../../secret.mp4"))
    outside = _meta("u2", [], source_video="../secret.mp4", clip_format="source_span")
    write_json(tmp_path / "out" / "metas" / "v0" / "u2.json", outside)
    rows = videos(str(tmp_path / "out"), base=str(tmp_path / "out")).to_pylist()
    assert [row["error"] for row in rows] == [
        "read: the manifest names this file, but it is not there",
        "refused: it lies outside data.base",
    ]


def test_a_configuration_leads_to_no_place_outside_the_base(tmp_path: Path) -> None:
    touch(tmp_path / "outside")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "dataset.toml").write_text('[[directory]]\npath = "../outside"\n')
    errors = videos(str(tmp_path / "inside"), base=str(tmp_path / "inside")).column("error").to_pylist()
    assert errors == ["refused: it lies outside data.base"] * 2


def test_links_in_circles_end(tmp_path: Path) -> None:
    touch(tmp_path / "set")
    (tmp_path / "set" / "again").symlink_to(tmp_path / "set")
    (tmp_path / "x.toml").write_text('[[directory]]\npath = "set"\n')
    assert set(captions(tmp_path / "x.toml")) == set(NAMES)
    assert videos(str(tmp_path / "x.toml")).num_rows == 2, "nothing is doubled"


def test_spans_in_the_metadata_of_folders_below(tmp_path: Path) -> None:
    """Where the types of a CSV's cells are decided for all folders together."""
    for name in ("x", "y"):
        touch(tmp_path / name)
        (tmp_path / name / "metadata.csv").write_text("file_name,text,start,end\na.mp4,one,1.0,2.5\na.mp4,two,2.5,4\n")
    rows = videos(str(tmp_path)).to_pylist()
    listed = [(row["relative"], row["caption"], row.get("span")) for row in rows if "a.mp4" in row["relative"]]
    assert listed == [
        ("x/a.mp4", "one", "1s-2.5s"),
        ("x/a.mp4", "two", "2.5s-4s"),
        ("y/a.mp4", "one", "1s-2.5s"),
        ("y/a.mp4", "two", "2.5s-4s"),
    ]


def test_a_row_without_spans_among_rows_of_many_is_an_error_of_its_own(tmp_path: Path) -> None:
    touch(tmp_path)
    rows = [
        {"video": "a.mp4", "timestamp": [["0", "1"], ["2", "3"]], "caption": ["one", "two"]},
        {"video": "b.mp4", "timestamp": [], "caption": []},
    ]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    errors = videos(str(tmp_path / "list.jsonl")).column("error").to_pylist()
    assert errors[:2] == [None, None]
    assert errors[2].startswith("refused: line 2: its `timestamp` is '[]'")
