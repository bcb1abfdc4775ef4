"""What Cosmos-Curator's pipeline `shard` writes: clips in tars, and their metadata in tars of the same path.

    v0/resolution_720/aspect_ratio_16_9/frames_0_255/video/part_000000/000000.tar     UUID.mp4 of each clip
    v0/resolution_720/aspect_ratio_16_9/frames_0_255/metas/part_000000/000000.tar     UUID.json, as in `curators`
    v0/resolution_720/aspect_ratio_16_9/frames_0_255/t5_xxl/part_000000/000000.tar    UUID.pickle, which is not read

A folder is known by its tars in `video`, and in `metas` or `t5_xxl`. What lies between these and the tars is any path.
"""

from __future__ import annotations

import json
import logging
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import fsspec

from pipeline.config.texts import decode_text
from pipeline.errors import ClipError, InputError
from pipeline.inputs import refusals
from pipeline.inputs.folders.files import some
from pipeline.inputs.layouts import curators
from pipeline.inputs.manifests.json_blocks import distinct
from pipeline.inputs.manifests.span_columns import SPAN
from pipeline.inputs.shards import tar_files
from pipeline.inputs.video_columns import Part, check_text, column_of, plain_value
from pipeline.storage.stores import join

log = logging.getLogger(__name__)

VIDEOS, METAS, EMBEDDINGS = "video", "metas", "t5_xxl"
_END = ".tar"

Row = dict[str, Any]


@dataclass(frozen=True)
class Pairs:
    """Path and bytes of the tar with the metadata, by the path of the tar with the videos; and the tars without videos,
    which are of metadata or of embeddings."""

    metas: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    others: frozenset[str] = frozenset()


def pairs(fs: fsspec.AbstractFileSystem, tars: Mapping[str, Any], named: str, base: str | None) -> Pairs:
    """Which of these tars, with what the store says of each, are a curator's, and where their metadata lies. A tar of
    metadata without videos is a warning.

    Raises InputError for a tar of videos without one of metadata, and for one of metadata outside `base`."""
    sizes_by_folder: dict[str, dict[str, int] | None] = {}  # of tars of metadata; the folder is that above `video`
    metas: dict[str, tuple[str, int]] = {}
    for tar in tars:
        folder, below = _split(tar, VIDEOS)
        if folder is None:
            continue
        if folder not in sizes_by_folder:
            sizes_by_folder[folder] = _metadata_sizes(fs, folder, tars)
        sizes = sizes_by_folder[folder]
        if sizes is None:
            continue
        path = join(folder, METAS, below)
        if path not in sizes:
            raise InputError(
                f"{named}: {tar} is a curator's shard of videos, and the shard with their captions and scores is not "
                f"there: {path}. Copy it there, or take the shard of videos away."
            )
        uri = path if "file" in fs.protocol else str(fs.unstrip_protocol(path))
        if refusals.of_place(uri, base):
            raise InputError(f"{named}: {path}, which has the captions of {tar}, lies outside data.base. Move it.")
        metas[tar] = path, sizes[path]
    folders = [folder for folder, sizes in sizes_by_folder.items() if sizes is not None]
    others = {tar for tar in tars for kind in (METAS, EMBEDDINGS) if _split(tar, kind)[0] in folders}
    paired = {path for path, _ in metas.values()}
    widowed = [tar for tar in sorted(others) if _split(tar, METAS)[0] in folders and tar not in paired]
    if metas:
        log.warning("%s: tars of videos that are read with a curator's metadata beside them: %d.", named, len(metas))
    if widowed:
        log.warning("%s: tars of metadata that are of no tar of videos: %d (%s).", named, len(widowed), some(widowed))
    return Pairs(metas, frozenset(others))


def _split(path: str, name: str) -> tuple[str | None, str]:
    """The folder that `name` lies in and the path below `name`, for a tar below a folder of that name; else None."""
    head, between, below = path.rpartition(f"/{name}/")
    return (head, below) if between and path.lower().endswith(_END) else (None, path)


def _metadata_sizes(fs: fsspec.AbstractFileSystem, folder: str, tars: Mapping[str, Any]) -> dict[str, int] | None:
    """The tars of metadata beside those of videos, with their bytes; None where neither these nor embeddings are. The
    store is asked where none is among `tars`: the folder `video`, or a tar in it, may be what was named."""
    sizes: dict[str, dict[str, int]] = {}
    for name in (METAS, EMBEDDINGS):
        within = join(folder, name)
        entries = {path: info for path, info in tars.items() if path.startswith(f"{within}/")}
        try:
            entries = entries or fs.find(within, detail=True)
        except PermissionError:
            log.warning("%s may not be listed; whether it has the captions of videos is not known.", within)
        sizes[name] = {path: int(info["size"]) for path, info in entries.items() if path.lower().endswith(_END)}
    return sizes[METAS] if any(sizes.values()) else None


def with_metadata(fs: fsspec.AbstractFileSystem, part: Part, path: str, size: int, named: str) -> Part:
    """The videos of a tar with what the tar of metadata at `path`, of `size` bytes, says of them: a row for each, or
    for each of several windows. A video whose metadata cannot be used is a row with an error. Those without metadata
    are a warning, and so are those that the curator calls invalid, which are left out.

    Raises InputError for a tar that cannot be read, and for one that is of none of the videos."""
    try:
        contents = tar_files.texts(fs, path, size)
    except ValueError as error:
        raise InputError(f"{named}: {path}, which has the captions of videos, cannot be used: {error}.") from error
    metas = {posixpath.splitext(name)[0]: data for name, data in contents.items() if data is not None}
    keys = [_key(row) for row in part.rows]
    videos = {key for key in keys if key is not None}
    if videos and not metas.keys() & videos:
        raise InputError(
            f"{named}: {path} must have the metadata of the videos in the shard of that name, and has none of theirs: "
            f"it has {some(list(contents)) or 'no members'}, where the videos are {some(sorted(videos))}."
        )
    listed = {name: column if isinstance(column, list) else column.to_pylist() for name, column in part.columns.items()}
    rows: list[Row] = []
    values: list[Row] = []
    invalid = 0
    for at, (row, key) in enumerate(zip(part.rows, keys, strict=True)):
        own = {name: column[at] for name, column in listed.items() if column[at] is not None}
        if key is None or key not in metas:
            rows.append(row)
            values.append(own)
            continue
        try:
            said = _said(metas[key], f"{path}/{key}.json")
        except ClipError as error:
            rows.append({**row, "error": row["error"] or str(error)})
            values.append(own)
            continue
        if said is None:
            invalid += 1
            continue
        for one in said:
            rows.append({**row, "origin": f"{path}/{key}.json"})
            values.append(own | {name: value for name, value in one.items() if name != "caption" or value})
    bare = sorted(videos - metas.keys())
    if bare:
        log.warning("%s: videos without metadata in %s: %d (%s).", named, path, len(bare), some(bare))
    if invalid:
        log.warning("%s: clips that the curator calls invalid are left out of %s: %d.", named, path, invalid)
    names = list(dict.fromkeys(["caption", *(name for own in values for name in own)]))
    columns = {name: column_of([own.get(name) for own in values]) for name in names}
    unmatched = [
        f"{path}/{name}" for name in contents if contents[name] is None or posixpath.splitext(name)[0] not in videos
    ]
    return Part(rows, columns, [*part.unmatched, *unmatched])


def _key(row: Row) -> str | None:
    """The name of a video in its tar without its end; None for what is no video but a damaged place in the tar."""
    match = refusals.REFERENCE.fullmatch(row["uri"])
    return posixpath.splitext(posixpath.normpath(match["name"]))[0] if match else None


def _said(data: bytes | ClipError, name: str) -> list[Row] | None:
    """What a clip's metadata says; None where it calls the clip invalid. Raises ClipError: the video's."""
    if isinstance(data, ClipError):
        raise data
    try:
        meta = json.loads(decode_text(data), object_pairs_hook=distinct)
        if not isinstance(meta, dict):
            raise ValueError("it is no object")
        if meta.get("valid") is False:
            return None
        if not curators.is_cut(meta):
            raise ValueError("its clip_format says that the clip was not cut out of its source")
        rows = []
        for row in curators.of_clip(meta):
            for key, value in row.items():
                check_text(key)
                row[key] = plain_value(value)
            rows.append({(SPAN if key == "span" else key): value for key, value in row.items()})
        return rows
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise ClipError("decode", f"{name} is no clip's metadata ({type(error).__name__}: {error})") from error
