"""The files of each layout, beside the clips: a pure function each, from the clips to texts by relative path.

Field names and defaults are those that docs/exports.md names the versions of. Paths are relative where the reader
takes them so; else they begin with `base`, where the export will lie for the trainer.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

Row = Mapping[str, Any]
Texts = dict[str, str]


@dataclass(frozen=True)
class ExportedSet:
    """The clips of an export that could be cut, by clip_id: a row has `clip_id`, `file`, `caption`, `weight`,
    `dataset`, `repeats`, `rank` and `influence`. All have `frames` at `fps`, `height` and `width`. `base`: where the
    export will lie for its reader."""

    rows: list[Row]
    frames: int
    fps: float
    height: int
    width: int
    base: str

    def at(self, *names: str) -> str:
        """A path in the export as a reader that runs elsewhere takes it."""
        return posixpath.join(self.base, *names)

    def datasets(self) -> dict[int, list[Row]]:
        """The clips of each data set, by its number."""
        sets: dict[int, list[Row]] = {}
        for row in self.rows:
            sets.setdefault(row["dataset"], []).append(row)
        return dict(sorted(sets.items()))

    def repeated(self) -> list[Row]:
        """Each clip as many times as its weight asks for. A round of all comes before any clip's second turn, so that
        a reader that stops early has seen most of them."""
        most = max((row["repeats"] for row in self.rows), default=0)
        return [row for turn in range(most) for row in self.rows if row["repeats"] > turn]


# --- loaders ---------------------------------------------------------------------------------------------------------


def videofolder(clips: ExportedSet) -> Texts:
    """metaclips.jsonl with `file_name` relative to it. No column is called `video`: the loader makes that one."""
    columns = ("clip_id", "caption", "weight", "rank", "influence")
    return {"metaclips.jsonl": _lines({"file_name": r["file"], **{c: r[c] for c in columns}} for r in clips.rows)}


def webdataset(clips: ExportedSet) -> Texts:
    """The names of the shards, a line each; a shard's members are {key}.mp4, {key}.txt and {key}.json."""
    return {"shards.txt": "".join(f"{name}\n" for name in sorted({row["file"] for row in clips.rows}))}


def data_juicer(clips: ExportedSet) -> Texts:
    columns = ("clip_id", "weight", "rank", "influence")
    rows = (
        {
            "videos": [row["file"]],
            "text": f"<__dj__video> {row['caption']} <|__dj__eoc|>",
            **{column: row[column] for column in columns},
        }
        for row in clips.rows
    )
    return {"clips.jsonl": _lines(rows)}


def ids(clips: ExportedSet) -> Texts:
    """An id a line, the heaviest clips first."""
    ordered = sorted(clips.rows, key=lambda row: (-row["weight"], row["rank"] is None, row["rank"] or 0))
    return {"ids.txt": "".join(f"{row['clip_id']}\n" for row in ordered)}


def table(clips: ExportedSet) -> Texts:
    """Nothing beside provenance.parquet, which every export has."""
    return {}


# --- trainers --------------------------------------------------------------------------------------------------------


def musubi(clips: ExportedSet) -> Texts:
    """dataset.toml, and a JSONL for each data set. `target_frames` must be said: its default is one frame. With
    `source_fps` a model of another rate gets too few frames, and not another speed."""
    texts, sections = Texts(), list[str]()
    for number, rows in clips.datasets().items():
        name = f"clips-{number}.jsonl"
        texts[name] = _lines({"video_path": clips.at(row["file"]), "caption": row["caption"]} for row in rows)
        sections.append(
            "\n[[datasets]]\n"
            f"video_jsonl_file = {_quoted(clips.at(name))}\n"
            f"cache_directory = {_quoted(clips.at('cache', str(number)))}\n"
            f"target_frames = [{clips.frames}]\n"
            'frame_extraction = "head"\n'
            f"source_fps = {float(clips.fps)!r}\n"
            f"num_repeats = {rows[0]['repeats']}\n"
        )
    general = f"[general]\nresolution = [{clips.width}, {clips.height}]\nbatch_size = 1\nenable_bucket = true\n"
    return {**texts, "dataset.toml": general + "".join(sections)}


def diffusion_pipe(clips: ExportedSet) -> Texts:
    """dataset.toml with a folder for each data set. Clips without a caption are trained on too."""
    head = (
        f"size_buckets = [[{clips.width}, {clips.height}, {clips.frames}]]\n"
        f"frame_buckets = [1, {clips.frames}]\n"
        "enable_ar_bucket = false\n"
        "skip_empty_caption = false\n"
    )
    sections = [
        f"\n[[directory]]\npath = {_quoted(clips.at(folder))}\nnum_repeats = {count}\n"
        for folder, count in _folders(clips)
    ]
    return {"dataset.toml": head + "".join(sections)}


def diffsynth(clips: ExportedSet) -> Texts:
    """metadata.json with `video` and `prompt`; a clip of more weight stands in more rows. From a CSV an empty caption
    would be read as no text at all."""
    return {"metadata.json": _listed({"video": row["file"], "prompt": row["caption"]} for row in clips.repeated())}


def finetrainers(clips: ExportedSet) -> Texts:
    """prompts.txt and videos.txt, line by line, and training.json."""
    rows = clips.repeated()
    config = {
        "data_root": clips.base,
        "dataset_type": "video",
        "video_resolution_buckets": [[clips.frames, clips.height, clips.width]],
        "reshape_mode": "bicubic",
    }
    return {
        "prompts.txt": "".join(f"{one_line(row['caption'])}\n" for row in rows),
        "videos.txt": "".join(f"{row['file']}\n" for row in rows),
        "training.json": json.dumps({"datasets": [config]}, indent=2) + "\n",
    }


def ai_toolkit(clips: ExportedSet) -> Texts:
    """The list `datasets` of its configuration."""
    datasets = [
        {
            "folder_path": clips.at(folder),
            "caption_ext": "txt",
            "num_frames": clips.frames,
            "fps": _whole(clips.fps),
            "shrink_video_to_frames": True,
            "resolution": [min(clips.height, clips.width)],
            "num_repeats": count,
        }
        for folder, count in _folders(clips)
    ]
    return {"datasets.yaml": yaml.safe_dump({"datasets": datasets}, sort_keys=False, allow_unicode=True)}


def simpletuner(clips: ExportedSet) -> Texts:
    """multidatabackend.json: a backend for each data set with its probability. `repeats: 0` is once."""
    backends: list[dict[str, Any]] = [
        {
            "id": f"clips-{number}",
            "type": "local",
            "dataset_type": "video",
            "instance_data_dir": clips.at(posixpath.dirname(rows[0]["file"])),
            "caption_strategy": "textfile",
            "metadata_backend": "discovery",
            "cache_dir_vae": clips.at("cache", "vae", str(number)),
            "resolution": min(clips.height, clips.width),
            "resolution_type": "pixel",
            "video": {"num_frames": clips.frames, "min_frames": clips.frames, "max_frames": clips.frames},
            "repeats": 0,
            "probability": sum(row["weight"] for row in rows),
        }
        for number, rows in clips.datasets().items()
    ]
    most = max((backend["probability"] for backend in backends), default=1.0)
    for backend in backends:
        backend["probability"] = round(backend["probability"] / most, 9)
    texts = {"id": "texts", "type": "local", "dataset_type": "text_embeds", "default": True}
    backends.append({**texts, "cache_dir": clips.at("cache", "text")})
    return {"multidatabackend.json": json.dumps(backends, indent=2) + "\n"}


def ltx_2(clips: ExportedSet) -> Texts:
    """dataset.json with `caption` and `video`. A file is encoded once, so a repeated row would count for nothing."""
    return {"dataset.json": _listed({"caption": row["caption"], "video": row["file"]} for row in clips.rows)}


def fastvideo(clips: ExportedSet) -> Texts:
    """videos2caption.json; `path` is relative to `videos/`."""
    facts = {
        "fps": _whole(clips.fps),
        "duration": clips.frames / clips.fps,
        "num_frames": clips.frames,
        "resolution": {"width": clips.width, "height": clips.height},
    }
    rows = [{"path": posixpath.basename(r["file"]), "cap": r["caption"], **facts} for r in clips.repeated()]
    return {"videos2caption.json": _listed(rows)}


# --- texts -----------------------------------------------------------------------------------------------------------


def _folders(clips: ExportedSet) -> list[tuple[str, int]]:
    """The folder of each data set, and how often it is repeated."""
    return [(posixpath.dirname(rows[0]["file"]), rows[0]["repeats"]) for rows in clips.datasets().values()]


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def _listed(rows: Iterable[Mapping[str, Any]]) -> str:
    """A JSON list, a row a line."""
    return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"


def _quoted(text: str) -> str:
    """A basic string of TOML: JSON's escapes are among its own, but for those of half characters."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def one_line(text: str) -> str:
    """A caption without line breaks: some readers take each line of a text file for a caption of its own."""
    return " ".join(text.split())


def _whole(fps: float) -> int | float:
    return int(fps) if float(fps).is_integer() else float(fps)
