"""Which layout a place has: decided by what lies in it, without a flag."""

from __future__ import annotations

import posixpath

import fsspec

from pipeline.errors import InputError
from pipeline.inputs.layouts import curators, lerobot, line_files, trainer_files
from pipeline.inputs.layouts.contents import Places, Rows
from pipeline.inputs.video_set import VideoSet
from pipeline.storage.stores import join

# Names of files that list the videos of their folder and are read as manifests, in this order where there are several.
METADATA = (
    "metadata.jsonl",
    "metadata.csv",
    "metadata.tsv",
    "metadata.parquet",
    "metaclips.jsonl",  # our own exports
    "metadata.json",  # DiffSynth, finetrainers
    "videos2caption.json",  # FastVideo, Open-Sora-Plan
    "dataset.json",  # LTX-2
    "dataset.jsonl",
    "OpenVid-1M.csv",
    "OpenVidHD.csv",
)
HUGGING_FACE = METADATA[:4]  # of several the first one counts, as they say the same
CAPTIONS = "captions.json"  # diffusion-pipe: captions by the names of the files beside it


def recognise(fs: fsspec.AbstractFileSystem, bare: str, asked: VideoSet) -> Rows | Places | None:
    """What a layout says of its videos; None for a plain folder, a manifest, a video or shards. Raises InputError where
    a folder has several files that say what its videos are, and for what is wrong in the one that it has."""
    if fs.isfile(bare):
        name = posixpath.basename(bare).lower()
        if name in line_files.VIDEOS:
            folder = posixpath.dirname(bare)
            return line_files.read(fs, folder, names_in(fs, folder))
        if not name.endswith(trainer_files.ENDS):
            return None
        if bare in asked.configurations:
            raise InputError(f"{bare}: it leads to itself; name the videos' folder there.")
        return trainer_files.read(fs, bare)
    if not fs.isdir(bare):
        return None
    there = names_in(fs, bare)
    if lerobot.FOLDER in there and lerobot.is_root(fs, bare):
        return lerobot.read(fs, bare, asked)
    if there & set(curators.FOLDERS) and curators.is_root(fs, bare):
        return curators.read(fs, bare, asked)
    configurations = [name for name in trainer_files.NAMES if name in there and not asked.configurations]
    lists = [name for name in METADATA if name in there]
    lines = line_files.pair(there)
    names = [*(lines[1:] if lines else []), *configurations, *_without_copies(lists)]
    if len(names) > 1:
        raise InputError(
            f"{asked.named}: {' and '.join(names)} each say what the folder's videos are, and one of them alone can be "
            f"read. Name it: {asked.key}={join(bare, names[0])}; or take the others away."
        )
    if lines:
        return line_files.read(fs, bare, there)
    return trainer_files.read(fs, join(bare, configurations[0])) if configurations else None


def names_in(fs: fsspec.AbstractFileSystem, folder: str) -> set[str]:
    """The names of what lies in a folder; of one that may not be listed, those of Hugging Face's metadata alone, which
    are asked for."""
    try:
        entries = fs.ls(folder, detail=True)
    except PermissionError:
        return {name for name in HUGGING_FACE if fs.isfile(join(folder, name))}
    except FileNotFoundError:
        return set()
    return {posixpath.basename(str(entry["name"]).rstrip("/")) for entry in entries}


def _without_copies(lists: list[str]) -> list[str]:
    """The names without those of Hugging Face's metadata that another one comes before."""
    own = [name for name in lists if name in HUGGING_FACE]
    return [name for name in lists if name not in own[1:]]


def unread(names: set[str]) -> str | None:
    """Of the names of a folder's files, one that says what its videos are and is read for that folder alone."""
    lines = line_files.pair(names)
    if lines is not None:
        return lines[1]
    return next((name for name in trainer_files.NAMES if name in names), None)
