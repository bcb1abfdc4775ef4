"""Captions that lie beside videos: a NAME.txt for each, or a captions.json for the files of a folder."""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.config.texts import decode_text
from pipeline.errors import InputError
from pipeline.inputs import refusals
from pipeline.inputs.folders.files import Place, is_file
from pipeline.inputs.layouts import recognition
from pipeline.inputs.manifests import json_documents
from pipeline.inputs.video_columns import Part

LARGEST = 1 << 20  # bytes of a .txt

CaptionMap = dict[str, list[str]]


def of_videos(place: Place, videos: list[str], others: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Path and size of the NAME.txt beside each video that has one."""
    if not place.whole:  # a pattern for videos names no text
        folders = sorted({posixpath.dirname(path) for path in videos})
        others = {str(entry["name"]): entry for folder in folders for entry in place.fs.ls(folder, detail=True)}
    texts: dict[str, tuple[str, Any]] = {}
    for path, info in others.items():
        stem, end = posixpath.splitext(path)
        if end.lower() in place.sidecars and is_file(info) and (end in place.sidecars or stem not in texts):
            texts[stem] = path, info["size"]
    stems = {path: posixpath.splitext(path)[0] for path in videos}
    return {path: texts[stem] for path, stem in stems.items() if stem in texts}


def with_captions(
    place: Place, videos: Mapping[str, Any], captions: Mapping[str, tuple[str, Any]], maps: Mapping[str, CaptionMap]
) -> Part:
    """The rows of video files with their captions. One whose caption cannot be read is a row with an error."""
    texts, errors = read_texts(place, dict(captions.values()))
    rows, own = [], []
    for path, info in videos.items():
        row = place.row(path, info)
        caption = captions[path][0] if path in captions else ""
        rows.append({**row, "error": row["error"] or errors.get(caption)})
        own.append(texts.get(caption, ""))
    part = Part(rows, {"caption": pa.chunked_array([pa.array(own, pa.string())])})
    return apply_maps(place, part, maps) if maps else part


def captions_by_folder(place: Place, others: Mapping[str, Any]) -> dict[str, CaptionMap]:
    """What each folder's captions.json says: captions by the names of files. Raises InputError for one that says
    something else."""
    paths = [path for path in others if posixpath.basename(path).lower() == recognition.CAPTIONS]
    maps: dict[str, CaptionMap] = {}
    for path in paths if place.whole else []:
        if refusals.of_place(place.uri(path), place.base):
            raise InputError(f"{place.named}: {place.below(path)} lies outside data.base; take it away.")
        try:
            with place.fs.open(path, "rb") as file:
                maps[posixpath.dirname(path)] = json_documents.captions(file)
        except ValueError as error:
            raise InputError(
                f"{place.named}: {place.below(path)} cannot be used: {error}. Correct it, or take it away."
            ) from error
    return maps


def apply_maps(place: Place, part: Part, maps: Mapping[str, CaptionMap]) -> Part:
    """A part whose videos have the captions that the captions.json of their folder gives them, before all others."""
    own: list[list[str] | None] = []
    for row in part.rows:
        path = posixpath.join(place.root, row["relative"])
        within = [path.removeprefix(f"{folder}/") for folder in maps if path.startswith(f"{folder}/")]
        names = [*within, posixpath.basename(path)]
        listed = [captions for folder, captions in maps.items() if path.startswith(f"{folder}/")]
        own.append(next((captions[name] for captions in listed for name in names if name in captions), None))
    if not any(own):
        return part
    before = part.columns.get("caption")
    texts = [""] * len(own) if before is None else list(before if isinstance(before, list) else before.to_pylist())
    columns = {name: column for name, column in part.columns.items() if name not in ("caption", "captions")}
    columns["captions"] = [[text] if one is None else one for one, text in zip(own, texts, strict=True)]
    return dataclasses.replace(part, columns=columns)


def read_texts(place: Place, sizes: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """The text of caption files, and an error for each of those that cannot be read."""
    texts: dict[str, str] = {}
    errors: dict[str, str] = {}
    for path, size in sizes.items():
        refused = refusals.of_place(place.uri(path), place.base)
        if refused:
            errors[path] = f"refused: its caption {place.below(path)}: {refused}"
        elif size > LARGEST:
            errors[path] = f"refused: its caption {place.below(path)} has {size} bytes, more than {LARGEST}"
    paths = [path for path in sizes if path not in errors]
    # At once, for a request after the other would take hours on a store; and not by `cat`, which takes patterns.
    contents = place.fs.cat_ranges(paths, None, None, on_error="return") if paths else []
    for path, content in zip(paths, contents, strict=True):
        if isinstance(content, FileNotFoundError | PermissionError):
            errors[path] = f"read: its caption {place.below(path)} may not be read, or is not there any more"
        elif isinstance(content, BaseException):
            raise content
        else:
            try:
                texts[path] = decode_text(content).strip()
            except ValueError as error:
                errors[path] = f"decode: its caption {place.below(path)}: {error}"
    return texts, errors
