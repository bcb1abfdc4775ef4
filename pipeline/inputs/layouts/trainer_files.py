"""Configurations of trainers, read for the videos and captions that they name: musubi-tuner, diffusion-pipe,
ai-toolkit, SimpleTuner, finetrainers. What they say of sizes, frames and weights is the trainer's and is not read.
"""

from __future__ import annotations

import json
import logging
import tomllib
from collections.abc import Callable, Mapping
from typing import Any

import fsspec
import yaml

from pipeline.errors import InputError
from pipeline.inputs.layouts.contents import SIDECARS, Place, Places, read_text

log = logging.getLogger(__name__)

ENDS = (".toml", ".yaml", ".yml", ".json")
# Names by which a folder's configuration is known; any other is read where data.videos names it.
NAMES = ("dataset.toml", "datasets.yaml", "multidatabackend.json")


def read(fs: fsspec.AbstractFileSystem, path: str) -> Places | None:
    """The places that a configuration names; None for a file of JSON that is none. Raises InputError for any other."""
    document = _document(fs, path)
    for layout, recognise in _READERS.items():
        places = recognise(document, path)
        if places is None:
            continue
        if not places:
            raise InputError(f"{path}: it is a configuration of {layout}, and it names no videos.")
        return Places(layout, path, places)
    if path.lower().endswith(".json"):
        return None
    raise InputError(
        f"{path}: it is no configuration of videos that is known here: {', '.join(_READERS)}. Name the folder or the "
        "manifest of the videos instead."
    )


def _document(fs: fsspec.AbstractFileSystem, path: str) -> Any:
    text = read_text(fs, path)
    try:
        if path.lower().endswith(".toml"):
            return tomllib.loads(text)
        if path.lower().endswith(".json"):
            return json.loads(text)
        return yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        if path.lower().endswith(".json"):
            return None  # whoever reads it as a manifest says what is wrong with it
        raise InputError(f"{path}: it cannot be read: {error}. Correct it.") from error


def _musubi(document: Any, path: str) -> list[Place] | None:
    """`[[datasets]]` with `video_jsonl_file` or `video_directory`."""
    datasets = _sections(document, "datasets")
    keys = ("video_jsonl_file", "video_directory", "image_jsonl_file", "image_directory")
    if datasets is None or not any(key in dataset for dataset in datasets for key in keys):
        return None
    general = document.get("general") if isinstance(document.get("general"), dict) else {}
    places = []
    for dataset in datasets:
        if "video_jsonl_file" in dataset:
            places.append(Place(_text(dataset, "video_jsonl_file", path)))
        elif "video_directory" in dataset:
            end = dataset.get("caption_extension", general.get("caption_extension", ".txt"))
            places.append(Place(_text(dataset, "video_directory", path), _sidecars(end)))
        else:
            _say_left_out(path, dataset, "pictures")
    return places


def _diffusion_pipe(document: Any, path: str) -> list[Place] | None:
    """`[[directory]]` with `path`."""
    directories = _sections(document, "directory")
    if directories is None or not any("path" in directory for directory in directories):
        return None
    return [Place(_text(directory, "path", path)) for directory in directories]


def _ai_toolkit(document: Any, path: str) -> list[Place] | None:
    """`datasets` with `folder_path` or `dataset_path`, at the top or in `config.process`."""
    datasets = _sections(document, "datasets")
    if datasets is None and isinstance(document, dict) and isinstance(document.get("config"), dict):
        processes = _sections(document["config"], "process") or []
        listed = [_sections(process, "datasets") for process in processes]
        datasets = [dataset for some in listed for dataset in some or []] or None
    if datasets is None or not any(key in dataset for dataset in datasets for key in ("folder_path", "dataset_path")):
        return None
    places = []
    for dataset in datasets:
        key = "dataset_path" if dataset.get("dataset_path") else "folder_path"
        places.append(Place(_text(dataset, key, path), _sidecars(dataset.get("caption_ext", "txt"))))
    return places


def _finetrainers(document: Any, path: str) -> list[Place] | None:
    """`datasets` with `data_root`."""
    datasets = _sections(document, "datasets")
    if datasets is None or not any("data_root" in dataset for dataset in datasets):
        return None
    places = []
    for dataset in datasets:
        if dataset.get("dataset_type", "video") == "video":
            places.append(Place(_text(dataset, "data_root", path)))
        else:
            _say_left_out(path, dataset, str(dataset["dataset_type"]))
    return places


def _simpletuner(document: Any, path: str) -> list[Place] | None:
    """A list of backends, of which those of videos have `instance_data_dir`."""
    if not isinstance(document, list) or not document or not all(isinstance(one, dict) for one in document):
        return None
    if not any("instance_data_dir" in backend and "id" in backend for backend in document):
        return None
    places = []
    for backend in document:
        kind = backend.get("dataset_type", "image")
        if kind == "video" and not backend.get("disabled"):
            places.append(_simpletuner_place(backend, path))
        elif kind not in ("text_embeds", "image_embeds"):
            _say_left_out(path, backend, str(kind))
    return places


def _simpletuner_place(backend: Mapping[str, Any], path: str) -> Place:
    folder = _text(backend, "instance_data_dir", path)
    strategy = backend.get("caption_strategy", "filename")
    if strategy == "textfile":
        return Place(folder)
    if strategy == "instanceprompt":
        return Place(folder, caption=_text(backend, "instance_prompt", path))
    if strategy == "parquet" and isinstance(backend.get("parquet"), dict):
        parquet = backend["parquet"]
        names = {
            _text(parquet, "filename_column", path): "file_name",
            _text(parquet, "caption_column", path): "caption",
        }
        return Place(_text(parquet, "path", path), columns=names, files=folder)
    raise InputError(
        f"{path}: the backend {backend.get('id')!r} has the caption_strategy {strategy!r}; textfile, parquet and "
        "instanceprompt are read. Name its folder or a manifest in data.videos instead."
    )


# --- values ----------------------------------------------------------------------------------------------------------


def _sections(document: Any, name: str) -> list[dict[str, Any]] | None:
    """A document's list of sections of this name; None where there is none."""
    sections = document.get(name) if isinstance(document, dict) else None
    if not isinstance(sections, list) or not sections or not all(isinstance(one, dict) for one in sections):
        return None
    return sections


def _text(section: Mapping[str, Any], key: str, path: str) -> str:
    value = section.get(key)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{path}: its `{key}` is {value!r}; it must be a path or a text.")
    return value.strip()


def _sidecars(end: Any) -> tuple[str, ...]:
    end = str(end).strip().lower()
    return SIDECARS if not end or end == "none" else (end if end.startswith(".") else f".{end}",)


def _say_left_out(path: str, section: Mapping[str, Any], kind: str) -> None:
    shown = next(
        (section[key] for key in ("id", "image_directory", "image_jsonl_file", "data_root") if key in section), ""
    )
    log.warning("%s: a data set of %s is left out (%s).", path, kind, shown)


_READERS: dict[str, Callable[[Any, str], list[Place] | None]] = {
    "musubi-tuner": _musubi,
    "diffusion-pipe": _diffusion_pipe,
    "ai-toolkit": _ai_toolkit,
    "finetrainers": _finetrainers,
    "SimpleTuner": _simpletuner,
}
