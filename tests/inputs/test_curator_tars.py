"""Cosmos-Curator's shards: clips in tars under `video`, and their metadata in tars of the same name under `metas`."""

from __future__ import annotations

import io
import json
import logging
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Data
from pipeline.errors import InputError
from pipeline.inputs.videos import videos
from pipeline.synthetic import world
from pipeline.video.decoder import Decoder
from pipeline.video.frames import write_mp4
from pipeline.video.indexing import index

BIN = "v0/resolution_720/aspect_ratio_16_9/frames_0_255"
ONE = {"start_frame": 0, "end_frame": 7, "qwen_caption": "one", "qwen_enhanced_caption": "one, enhanced"}
TWO = {"start_frame": 8, "end_frame": 15, "qwen_caption": "two"}


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("films") / "a.mp4"
    write_mp4(str(path), world.render(world.scene(0, "a", "real", "slide", frames=16), 32, 48), 8.0)
    return path.read_bytes()


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(timeout=30) as running_decoder:
        yield running_decoder


def _meta(uuid: str, *windows: dict[str, Any], **more: Any) -> bytes:
    meta = {
        "span_uuid": uuid,
        "source_video": "/raw/film.mp4",
        "duration_span": [12.5, 20.0],
        "clip_location": f"s3://old/clips/{uuid}.mp4",
        "motion_score": {"global_mean": 0.75},
        "aesthetic_score": 4.5,
        "windows": windows,
        "valid": True,
    }
    return json.dumps(meta | more).encode()


def _tar(path: Path, members: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def _written(root: Path, film: bytes, metas: Mapping[str, bytes], tar: str = "part_000000/000000.tar") -> Path:
    """The folder of one bin, with the clips u1 and u2 in a tar."""
    folder = root / BIN
    _tar(folder / "video" / tar, {"u1.mp4": film, "u2.mp4": film})
    _tar(folder / "metas" / tar, metas)
    _tar(folder / "t5_xxl" / tar, {"u1.pickle": b"e", "u2.pickle": b"e"})
    return folder


BOTH = {"u1.json": _meta("u1", ONE), "u2.json": _meta("u2", ONE, TWO)}


@pytest.mark.parametrize("named", [".", "v0", BIN, f"{BIN}/video", f"{BIN}/video/part_000000/000000.tar"])
def test_captions_windows_and_scores_come_from_the_tar_beside(
    tmp_path: Path, film: bytes, named: str, decoder: Decoder, caplog: pytest.LogCaptureFixture
) -> None:
    _written(tmp_path, film, BOTH)
    rows = videos(str(tmp_path / named)).to_pylist()
    assert [(row["uri"].rpartition(":")[2], row["caption"], row["span"], row["error"]) for row in rows] == [
        ("u1.mp4", "one", None, None),
        ("u2.mp4", "one", "0f-8f", None),
        ("u2.mp4", "two", "8f-16f", None),
    ]
    assert rows[0]["enhanced_caption"] == "one, enhanced"
    assert (rows[0]["aesthetic_score"], rows[0]["motion_score_global_mean"]) == (4.5, 0.75)
    assert (rows[0]["source"], rows[0]["source_span"], rows[0]["span_uuid"]) == ("/raw/film.mp4", "12.5s-20s", "u1")
    assert "a curator's metadata beside them: 1" in caplog.text
    assert "left out" not in caplog.text, "embeddings of captions are no surprise"
    if named == "v0":
        clips = [clip for row in rows for clip in index(row, Data(videos="x", frames=5, fps=8.0), decoder)]
        starts = [(clip["error"], clip["start_frame"]) for clip in clips]
        assert starts == [(None, 0), (None, 5), (None, 10), (None, 0), (None, 8)], "the windows of u2 are spans of it"


def test_a_set_of_several_tars_keeps_every_clip_to_its_own_metadata(tmp_path: Path, film: bytes) -> None:
    _written(tmp_path, film, BOTH)
    other = {"u1.json": _meta("u1", TWO), "u2.json": _meta("u2", TWO)}
    _written(tmp_path, film, other, "part_000000/000001.tar")
    assert videos(str(tmp_path)).column("caption").to_pylist() == ["one", "one", "two", "two", "two"]


def test_a_video_without_metadata_and_metadata_without_a_video_are_said(
    tmp_path: Path, film: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    _written(tmp_path, film, {"u1.json": _meta("u1", ONE), "u9.json": _meta("u9", ONE), "u2.txt": b"no metadata"})
    rows = videos(str(tmp_path)).to_pylist()
    assert [(row["caption"], row["error"]) for row in rows] == [("one", None), ("", None)]
    for sentence in ("videos without metadata in", ": 1 (u2).", "words of no video: 2", "u9.json", "u2.txt"):
        assert sentence in caplog.text
    assert "without a caption: 1 of 2 videos" in caplog.text


def test_a_tar_of_metadata_that_is_missing_is_an_error_that_names_it(tmp_path: Path, film: bytes) -> None:
    folder = _written(tmp_path, film, BOTH)
    (folder / "metas" / "part_000000" / "000000.tar").unlink()
    with pytest.raises(InputError, match=r"metas/part_000000/000000\.tar\. Copy it there"):
        videos(str(tmp_path))


def test_a_tar_of_other_clips_metadata_is_an_error_that_names_both(tmp_path: Path, film: bytes) -> None:
    _written(tmp_path, film, {"u8.json": _meta("u8", ONE)})
    with pytest.raises(InputError, match=r"metas/part_000000/000000\.tar must have .* it has u8\.json, .* are u1, u2"):
        videos(str(tmp_path))


def test_a_damaged_tar_of_metadata_is_an_error_that_names_it(tmp_path: Path, film: bytes) -> None:
    tar = _written(tmp_path, film, BOTH) / "metas" / "part_000000" / "000000.tar"
    tar.write_bytes(tar.read_bytes()[:700])
    with pytest.raises(InputError, match=r"metas/part_000000/000000\.tar, which has the captions .* cut off"):
        videos(str(tmp_path))


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"span_uuid": "u1"}', b'{"a": 1, "a": 2}', b"\xff\xfe\x00"])
def test_metadata_that_cannot_be_used_is_its_clips_error(tmp_path: Path, film: bytes, text: bytes) -> None:
    _written(tmp_path, film, {"u1.json": text, "u2.json": _meta("u2", ONE)})
    first, second = videos(str(tmp_path)).to_pylist()
    assert first["error"].startswith("decode: ")
    assert "metas/part_000000/000000.tar/u1.json" in first["error"]
    assert (second["caption"], second["error"]) == ("one", None)


def test_clips_that_the_curator_calls_invalid_are_left_out_and_counted(
    tmp_path: Path, film: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    _written(tmp_path, film, {"u1.json": _meta("u1", ONE, valid=False), "u2.json": _meta("u2", ONE)})
    assert videos(str(tmp_path)).column("span_uuid").to_pylist() == ["u2"]
    assert "calls invalid are left out" in caplog.text


def test_metadata_without_videos_is_said(tmp_path: Path, film: bytes, caplog: pytest.LogCaptureFixture) -> None:
    folder = _written(tmp_path, film, BOTH)
    _tar(folder / "metas" / "part_000000" / "000001.tar", BOTH)
    assert len(videos(str(tmp_path))) == 3
    assert "tars of metadata that are of no tar of videos: 1" in caplog.text


def test_metadata_outside_the_base_is_an_error(tmp_path: Path, film: bytes) -> None:
    video = _written(tmp_path, film, BOTH) / "video"
    with pytest.raises(InputError, match=r"lies outside data\.base"):
        videos(str(video), base=str(video))


def test_tars_in_a_folder_called_video_alone_are_read_as_before(
    tmp_path: Path, film: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    _tar(tmp_path / "video" / "0.tar", {"u1.mp4": film, "u1.txt": b"beside"})
    (tmp_path / "metas").mkdir()
    (tmp_path / "metas" / "notes.md").write_text("no tars")
    with caplog.at_level(logging.WARNING):
        assert videos(str(tmp_path)).column("caption").to_pylist() == ["beside"]
    assert "curator" not in caplog.text
