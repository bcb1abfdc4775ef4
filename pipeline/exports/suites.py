"""Videos that an arm generated, in the layouts in which evaluation suites look for them: file names, and one table.

A suite knows its videos by its own prompts, which are the captions of the run's queries where such a suite is used.
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import tables
from pipeline.config import Run
from pipeline.errors import ConfigError, InputError, MissingTableError
from pipeline.evaluation.comparison import is_held_out
from pipeline.storage import stores

_CAPTIONS = ("prompt_en", "prompt", "caption", "description", "text")
_NAMES = ("id_stem", "generated_video_name", "video_name", "video", "index", "id", "name")
_DIMENSIONS = ("dimension", "dimensions")
_LONGEST = 180  # characters of a prompt in VBench-2.0's file names


@dataclass(frozen=True)
class Video:
    """A generated video. `clip_id` is the query whose caption it was made from, `version` the training of the arm."""

    clip_id: str
    caption: str
    seed: int
    version: str
    uri: str


@dataclass(frozen=True)
class Prompt:
    """An entry of a suite's list. `name` is the file that it looks for, `place` its number in the list, from 1."""

    caption: str
    name: str
    dimensions: tuple[str, ...]
    place: int


@dataclass(frozen=True)
class Suite:
    """`files` gives each video its paths in the export. `takes_list`: it needs the suite's own list of prompts."""

    title: str
    files: Callable[[str, Sequence[Video], Sequence[Prompt]], dict[str, Video]]
    takes_list: bool = True


def generated_videos(run: Run) -> list[Video]:
    """The videos that `export.arm` generated, by query and seed, of those that evaluation/ has. Raises UsageError where
    there are none."""
    folder, arm = stores.join(run.root, "evaluation"), run.export.arm
    table, queries = tables.read(folder), tables.read(stores.join(run.root, "queries"), ["clip_id", "caption"])
    rows = [] if table is None else [row for row in table.to_pylist() if row["arm"] == arm]
    captions = {} if queries is None else {row["clip_id"]: row["caption"] for row in queries.to_pylist()}
    # Held-out losses stand in the table too; their `uri` is that of a video which nobody generated.
    videos = {
        (row["clip_id"], row["seed"]): Video(
            row["clip_id"], captions[row["clip_id"]].strip(), row["seed"], row["version"], row["uri"]
        )
        for row in rows
        if not is_held_out(row["metric"]) and captions.get(row["clip_id"])
    }
    if not videos:
        raise MissingTableError(
            f"export.arm={arm!r}: evaluation/ in root={run.root!r} has no video that this arm generated. Run `python "
            "-m jobs.evaluate` with the arm in evaluate.arms and evaluate.generate above 0 first."
        )
    return [videos[key] for key in sorted(videos)]


# --- layouts ---------------------------------------------------------------------------------------------------------


def vbench2(arm: str, videos: Sequence[Video], prompts: Sequence[Prompt]) -> dict[str, Video]:
    """{dimension}/{prompt}-{0, 1, 2}.mp4, the seeds in their order."""
    files = {}
    for prompt in prompts:
        name = prompt.caption[:_LONGEST].replace("/", "_")
        for dimension in prompt.dimensions:
            for number, video in enumerate(_of(prompt, videos)):
                files[f"{dimension.replace(' ', '_')}/{name}-{number}.mp4"] = video
    return files


def videophy2(arm: str, videos: Sequence[Video], prompts: Sequence[Prompt]) -> dict[str, Video]:
    return {f"videos/{posixpath.basename(video.uri)}": video for video in videos}


def vmbench(arm: str, videos: Sequence[Video], prompts: Sequence[Prompt]) -> dict[str, Video]:
    """videos/0001.mp4 and so on, by the index of the prompt; of several seeds the first."""
    files = {}
    for prompt in prompts:
        number = int(prompt.name) if prompt.name.isdigit() else prompt.place
        for video in _of(prompt, videos)[:1]:
            files[f"videos/{number:04d}.mp4"] = video
    return files


def phyground(arm: str, videos: Sequence[Video], prompts: Sequence[Prompt]) -> dict[str, Video]:
    """videos/ARM/{id_stem}.mp4; of several seeds the first."""
    return {f"videos/{arm}/{_file(p)}": video for p in prompts for video in _of(p, videos)[:1]}


def physics_iq(arm: str, videos: Sequence[Video], prompts: Sequence[Prompt]) -> dict[str, Video]:
    """ARM/{generated_video_name}; of several seeds the first."""
    return {f"{arm}/{_file(p)}": video for p in prompts for video in _of(p, videos)[:1]}


SUITES: Mapping[str, Suite] = {
    "vbench2": Suite("VBench-2.0", vbench2),
    "videophy2": Suite("VideoPhy-2", videophy2, takes_list=False),
    "vmbench": Suite("VMBench", vmbench),
    "phyground": Suite("PhyGround", phyground),
    "physics-iq": Suite("Physics-IQ", physics_iq),
}


def texts(name: str, base: str, files: Mapping[str, Video]) -> dict[str, str]:
    """The files beside the videos: VideoPhy-2's table of captions and paths."""
    if name != "videophy2":
        return {}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("caption", "videopath"))
    writer.writerows((video.caption, posixpath.join(base, path)) for path, video in sorted(files.items()))
    return {"videophy2.csv": text.getvalue()}


def _of(prompt: Prompt, videos: Sequence[Video]) -> list[Video]:
    """The videos of a prompt, by seed."""
    return sorted((v for v in videos if v.caption == prompt.caption), key=lambda video: video.seed)


def _file(prompt: Prompt) -> str:
    name = posixpath.basename(prompt.name) or f"{prompt.place:04d}"
    return name if name.endswith(".mp4") else f"{name}.mp4"


# --- the suite's list ------------------------------------------------------------------------------------------------


def read_prompts(text: str, path: str) -> list[Prompt]:
    """A suite's list of prompts: JSON (a list of objects or texts), CSV, or a text file with a prompt a line. Raises
    InputError for anything else, and for an entry without a prompt."""
    rows: list[Any]
    try:
        if path.endswith(".json"):
            rows = json.loads(text)
        elif path.endswith(".csv"):
            rows = list(csv.DictReader(io.StringIO(text)))
        else:
            rows = [line for line in text.split("\n") if line.strip()]
    except ValueError as error:
        raise InputError(f"export.suite={path!r}: it is no JSON ({error}).") from error
    if not isinstance(rows, list) or not rows:
        raise InputError(f"export.suite={path!r}: it must hold a list of prompts.")
    return [_prompt(row, place, path) for place, row in enumerate(rows, 1)]


def _prompt(row: Any, place: int, path: str) -> Prompt:
    if isinstance(row, str):
        return Prompt(row.strip(), "", (), place)
    columns = row if isinstance(row, dict) else {}
    caption = next((columns[name] for name in _CAPTIONS if isinstance(columns.get(name), str)), None)
    if caption is None:
        raise InputError(
            f"export.suite={path!r}: entry {place} has no prompt. It must be a text, or have one of the fields "
            f"{', '.join(_CAPTIONS)}; it has {', '.join(map(str, columns)) or 'none'}."
        )
    name = next((str(columns[key]) for key in _NAMES if columns.get(key) not in (None, "")), "")
    dimensions = next((columns[key] for key in _DIMENSIONS if columns.get(key)), ())
    listed = (dimensions,) if isinstance(dimensions, str) else tuple(map(str, dimensions))
    return Prompt(caption.strip(), name, listed, place)


def check(run: Run) -> Suite:
    """The suite that is asked for. Raises ConfigError where its list is missing, or its videos are of other lengths."""
    suite, e, d = SUITES[str(run.export.format)], run.export, run.data
    if suite.takes_list and e.suite is None:
        raise ConfigError(
            f"export.format={e.format}: {suite.title} names its videos by its own list of prompts. Set export.suite "
            "to that file (.json, .csv, or .txt with a prompt a line)."
        )
    if e.format == "physics-iq" and (abs(d.frames / d.fps - 5) > 1e-6 or d.fps not in (8, 16, 24, 30)):
        raise ConfigError(
            f"export.format=physics-iq: its videos last exactly 5 seconds at 8, 16, 24 or 30 frames a second, and "
            f"data.frames={d.frames} at data.fps={d.fps:g} are {d.frames / d.fps:g} seconds."
        )
    return suite
