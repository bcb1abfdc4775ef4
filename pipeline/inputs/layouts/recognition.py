"""Which layout a place has: decided by what lies in it, without a flag."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

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
_KNOWN = (*METADATA, *line_files.CAPTIONS, *line_files.VIDEOS, *trainer_files.NAMES)
AT_ONCE = 16  # requests at a time
CAPTIONS = "captions.json"  # diffusion-pipe: captions by the names of the files beside it


def recognise(fs: fsspec.AbstractFileSystem, bare: str, asked: VideoSet) -> Rows | Places | None:
    """What a layout says of its videos; None for a plain folder, a manifest, a video or shards. Raises InputError where
    a folder has several files that say what its videos are, and for what is wrong in the one that it has."""
    if fs.isfile(bare):
        name = posixpath.basename(bare).lower()
        if name in line_files.VIDEOS:
            folder = posixpath.dirname(bare)
            return line_files.read(fs, folder, present(fs, folder, line_files.CAPTIONS + line_files.VIDEOS))
        return trainer_files.read(fs, bare) if name.endswith(trainer_files.ENDS) else None
    if not fs.isdir(bare):
        return None
    if lerobot.is_root(fs, bare):
        return lerobot.read(fs, bare, asked)
    if curators.is_root(fs, bare):
        return curators.read(fs, bare, asked)
    there = present(fs, bare, _KNOWN)
    configurations = [name for name in trainer_files.NAMES if name in there]
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


def present(fs: fsspec.AbstractFileSystem, folder: str, names: Sequence[str]) -> set[str]:
    """Those of some names that files of a folder have. A store is asked for each, as the folder may be large."""
    if "file" in fs.protocol:
        return {name for name in names if os.path.isfile(join(folder, name))}
    with ThreadPoolExecutor(AT_ONCE) as threads:
        there = threads.map(fs.isfile, [join(folder, name) for name in names])
        return {name for name, is_there in zip(names, there, strict=True) if is_there}


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
