"""What NeMo Curator and Cosmos-Curator write: clips that are cut, captioned and scored, with a file of JSON for each.

`clips/UUID.mp4` and `metas/v0/UUID.json` (or `metas_jsonl/v0/*.jsonl`). A clip of several windows has a caption for
each; its windows are then spans of it. A clip that was not cut out is a span of its source video.
"""

from __future__ import annotations

import json
import logging
import posixpath
from collections import Counter
from collections.abc import Mapping
from typing import Any

import fsspec

from pipeline.errors import InputError
from pipeline.inputs import spans
from pipeline.inputs.layouts.contents import LARGEST, Rows, read_text
from pipeline.inputs.video_set import VideoSet
from pipeline.storage.stores import join

log = logging.getLogger(__name__)

FOLDERS = ("metas", "metas_jsonl")
METAS = tuple(f"{name}/v0" for name in FOLDERS)
_READ_KEYS = (
    "span_uuid",
    "clip_location",
    "windows",
    "valid",
    "errors",
    "duration_span",
    "source_video",
    "clip_format",
)


def is_root(fs: fsspec.AbstractFileSystem, folder: str) -> bool:
    return any(fs.isdir(join(folder, name)) for name in METAS)


def read(fs: fsspec.AbstractFileSystem, root: str, asked: VideoSet) -> Rows:
    """A row for each clip, or for each of its windows. Scores pass through. Clips that the curator calls invalid are
    left out, and counted. Raises InputError."""
    metas = next(join(root, name) for name in METAS if fs.isdir(join(root, name)))
    rows: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    for path, meta in _metas(fs, metas):
        if meta.get("valid") is False:
            left_out["invalid"] += 1
            continue
        try:
            rows += _rows(meta)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise InputError(
                f"{asked.named}: {path} is no clip's metadata ({type(error).__name__}: {error}). Correct it, or take "
                "it away."
            ) from error
    if left_out:
        log.warning("%s: clips that the curator calls invalid are left out: %d.", asked.named, left_out["invalid"])
    if not rows:
        raise InputError(f"{asked.named}: {metas} has no clip that is valid.")
    return Rows("a curator's output", metas, root, rows)


def _metas(fs: fsspec.AbstractFileSystem, folder: str) -> list[tuple[str, dict[str, Any]]]:
    """The path and the object of every clip's metadata. Raises InputError."""
    sizes = {path: int(info["size"]) for path, info in fs.find(folder, detail=True).items()}
    paths = sorted(path for path in sizes if path.endswith((".json", ".jsonl")))
    for path in paths:
        if sizes[path] > LARGEST:
            raise InputError(f"{path}: it has {sizes[path]} bytes; {LARGEST} are in memory at most.")
    single = [path for path in paths if path.endswith(".json")]
    texts = dict(zip(single, fs.cat_ranges(single, None, None), strict=True)) if single else {}
    metas: list[tuple[str, dict[str, Any]]] = []
    for path in paths:
        try:
            text = texts[path].decode() if path in texts else read_text(fs, path)
            lines = [text] if path in texts else text.splitlines()
            objects = [json.loads(line) for line in lines if line.strip()]
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: it cannot be read: {error}.") from error
        for one in objects:
            if not isinstance(one, dict):
                raise InputError(f"{path}: it is no object with the metadata of a clip.")
            metas.append((path, one))
    return metas


def _rows(meta: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not is_cut(meta):
        said = _said(meta)
        return [{"file_name": meta["source_video"], "caption": "", **said, "span": said["source_span"]}]
    # The address that the curator wrote to may be another one by now; the folder's layout is not.
    file = posixpath.join("clips", posixpath.basename(str(meta.get("clip_location") or f"{meta['span_uuid']}.mp4")))
    return [{"file_name": file, **row} for row in of_clip(meta)]


def is_cut(meta: Mapping[str, Any]) -> bool:
    """Whether a clip is a file of its own; else it is a stretch of its source video."""
    return meta.get("clip_format") != "source_span"


def of_clip(meta: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a clip's metadata says of it: one row, or a row for each of several windows with a caption, whose `span` is
    the text of the window's frames. Raises what the metadata's flaws raise: KeyError, TypeError, ValueError, ..."""
    said = _said(meta)
    windows = [window for window in meta.get("windows") or [] if isinstance(window, dict)]
    captioned = [(window, texts) for window in windows if (texts := _captions(window))]
    if len(captioned) < 2:
        texts = captioned[0][1] if captioned else {"caption": ""}
        return [{**texts, **said}]
    rows = []
    for window, texts in captioned:
        # Its last frame is part of a window.
        span = spans.between(int(window["start_frame"]), "f", int(window["end_frame"]) + 1, "f")
        rows.append({**texts, **said, "span": str(span)})
    return rows


def _said(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Where a clip comes from, and what passes through."""
    source = str(meta["source_video"])
    said = {"span_uuid": str(meta["span_uuid"]), "source_video": source, "source": source}
    duration = meta.get("duration_span")
    if duration is not None:
        said["source_span"] = str(spans.between(float(duration[0]), "s", float(duration[1]), "s"))
    return said | _passed(meta)


def _captions(window: Mapping[str, Any]) -> dict[str, str]:
    """A window's caption, and the enhanced one where it has both: MODEL_caption, MODEL_enhanced_caption."""
    texts = {name: text for name, text in sorted(window.items()) if name.endswith("caption") and isinstance(text, str)}
    plain = [text.strip() for name, text in texts.items() if not name.endswith("enhanced_caption") and text.strip()]
    enhanced = [text.strip() for name, text in texts.items() if name.endswith("enhanced_caption") and text.strip()]
    if not plain and not enhanced:
        return {}
    own = {"caption": (plain or enhanced)[0]}
    return {**own, "enhanced_caption": enhanced[0]} if plain and enhanced else own


def _passed(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers and texts that pass through; what lies one level deeper as OUTER_INNER."""
    others: dict[str, Any] = {}
    for name, value in meta.items():
        if name in _READ_KEYS:
            continue
        if isinstance(value, dict):
            others |= {f"{name}_{inner}": one for inner, one in value.items() if isinstance(one, int | float | str)}
        elif isinstance(value, int | float | str):
            others[name] = value
    return others
