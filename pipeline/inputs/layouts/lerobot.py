"""LeRobot's datasets, v2 and v3: a robot's episodes, whose task is the caption, seen by one of its cameras.

In v2 an episode is a file; in v3 many of them share one, each from a time stamp to another.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ConfigError, InputError
from pipeline.inputs import spans
from pipeline.inputs.layouts.contents import Rows, read_text
from pipeline.inputs.video_set import VideoSet
from pipeline.storage.stores import join

FOLDER = "meta"
_FIELD = re.compile(r"\{(\w+)(?::0?(\d)d)?\}")
INFO = f"{FOLDER}/info.json"


def is_root(fs: fsspec.AbstractFileSystem, folder: str) -> bool:
    return bool(fs.isfile(join(folder, INFO)))


def read(fs: fsspec.AbstractFileSystem, root: str, asked: VideoSet) -> Rows:
    """A row for each episode. Raises ConfigError where data.camera names none of several cameras, InputError for
    metadata that is damaged or of another version."""
    path = join(root, INFO)
    try:
        info = json.loads(read_text(fs, path))
        version = str(info["codebase_version"])
        cameras = [name for name, feature in info["features"].items() if feature.get("dtype") == "video"]
        template = info.get("video_path")
        if not cameras or not template:
            raise InputError(f"{path}: it names no videos; datasets with pictures in Parquet are not read.")
        camera = _camera(cameras, asked)
        if version.startswith("v3"):
            rows = [_shared(row, template, camera) for row in _parquet_rows(fs, root, camera)]
        elif version.startswith("v2"):
            rows = [_own_file(row, template, camera, int(info.get("chunks_size", 1000))) for row in _lines(fs, root)]
        else:
            raise InputError(f"{path}: its codebase_version is {version!r}; v2 and v3 are read.")
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, pa.ArrowException, OSError) as error:
        if isinstance(error, InputError | ConfigError):
            raise
        raise InputError(f"{path}: the dataset's metadata cannot be read ({type(error).__name__}: {error}).") from error
    if not rows:
        raise InputError(f"{path}: the dataset has no episodes.")
    return Rows(f"LeRobot {version}, camera {camera}", path, root, rows)


def _camera(cameras: list[str], asked: VideoSet) -> str:
    """The camera that is asked for, by its whole name or the end of it; the only one where none is."""
    if asked.camera is None and len(cameras) == 1:
        return cameras[0]
    matches = [name for name in cameras if asked.camera in (name, name.rpartition(".")[2])]
    if len(matches) == 1:
        return matches[0]
    raise ConfigError(
        f"data.camera={asked.camera!r}: {asked.named} has the videos of {len(cameras)} cameras. Name one of them: "
        f"{', '.join(cameras)}."
    )


def _parquet_rows(fs: fsspec.AbstractFileSystem, root: str, camera: str) -> list[dict[str, Any]]:
    """The episodes of a v3 dataset, in their order."""
    names = ["episode_index", "tasks", "length"]
    names += [f"videos/{camera}/{name}" for name in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")]
    rows: list[dict[str, Any]] = []
    for path in sorted(fs.find(join(root, "meta", "episodes"))):
        if path.endswith(".parquet"):
            with fs.open(path, "rb") as file:
                rows += pq.ParquetFile(file).read(columns=names).to_pylist()
    return sorted(rows, key=lambda row: int(row["episode_index"]))


def _lines(fs: fsspec.AbstractFileSystem, root: str) -> list[dict[str, Any]]:
    """The episodes of a v2 dataset."""
    text = read_text(fs, join(root, "meta", "episodes.jsonl"))
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _shared(row: Mapping[str, Any], template: str, camera: str) -> dict[str, Any]:
    at = {name: row[f"videos/{camera}/{name}"] for name in ("chunk_index", "file_index")}
    start, end = (float(row[f"videos/{camera}/{name}"]) for name in ("from_timestamp", "to_timestamp"))
    file = _filled(template, {"video_key": camera, **{name: int(value) for name, value in at.items()}})
    return {"file_name": file, **_said(row), "span": str(spans.between(start, "s", end, "s"))}


def _own_file(row: Mapping[str, Any], template: str, camera: str, chunk: int) -> dict[str, Any]:
    episode = int(row["episode_index"])
    file = _filled(template, {"video_key": camera, "episode_chunk": episode // chunk, "episode_index": episode})
    return {"file_name": file, **_said(row)}


def _filled(template: str, values: Mapping[str, Any]) -> str:
    """A path from its template, in which a field is a name, perhaps with a width: {episode_index:06d}. Raises KeyError
    for another name, ValueError for any other field."""

    def value(match: re.Match[str]) -> str:
        return str(values[match[1]]).zfill(int(match[2] or 0))

    path = _FIELD.sub(value, template)
    if "{" in path:
        raise ValueError(f"video_path={template!r} has a field that is no name with a width below 10")
    return path


def _said(row: Mapping[str, Any]) -> dict[str, Any]:
    tasks = row.get("tasks")
    texts = [tasks] if isinstance(tasks, str) else list(tasks or [])
    return {"captions": [str(text) for text in texts], "episode_index": int(row["episode_index"])}
