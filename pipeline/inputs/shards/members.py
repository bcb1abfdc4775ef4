"""Videos inside shards: WebDataset tar files, and Parquet files with a column of bytes (or Hugging Face's struct).

A video in a shard has a uri of its own, from which alone a worker fetches it, and not the rest of the shard:

    s3://bucket/train-0001.tar#1536+893943:cats/001.mp4     offset and size in bytes, then the name inside the tar
    s3://bucket/train-0001.parquet#317:video.bytes          row, then the column
    s3://bucket/clips/0001/#16fps                           a folder of pictures, frames a second

Its `relative`, which the clip's id is made of, is the shard's with the name or row behind it. A Parquet value's size is
not known without reading all of them: there it is 0, and the id is that of the row. A video's version is its shard's.
"""

from __future__ import annotations

from typing import Any

import fsspec

from pipeline.errors import ClipError
from pipeline.inputs.refusals import REFERENCE
from pipeline.inputs.shards import image_folders, lance_tables, parquet_files, tar_files
from pipeline.inputs.video_columns import Part
from pipeline.storage.stores import place

EXTENSIONS = (".tar", ".parquet")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4")
UNPACK = tar_files.UNPACK
CAPTION_MEMBERS = ("KEY.txt", "KEY.caption", "KEY.prompt", "KEY.text", "KEY.json")
LARGEST = 2 << 30  # bytes of one video in a shard


def holds_videos(fs: fsspec.AbstractFileSystem, bare: str) -> bool:
    """Whether a Parquet file holds videos and is no manifest of them."""
    return parquet_files.holds_videos(fs, bare)


def listed(fs: fsspec.AbstractFileSystem, bare: str, shard: dict[str, Any]) -> Part | None:
    """The rows of the videos in a shard, `shard` being its own row, and what it says of each; None for a Parquet file
    without a column of videos. What is damaged or cut off is a row with an error."""
    if bare.lower().endswith(COMPRESSED):
        return Part([{**shard, "error": f"refused: it is a compressed tar; {UNPACK}"}], {})
    if bare.lower().endswith(".tar"):
        return tar_files.listed(fs, bare, shard, LARGEST)
    return parquet_files.listed(fs, bare, shard, LARGEST)


def inside(uri: str) -> str | None:
    """The name of a video inside its shard, or of what the pictures of a folder become; None where the uri is that of a
    file."""
    if image_folders.REFERENCE.fullmatch(uri):
        return "pictures.mov"
    match = REFERENCE.fullmatch(uri)
    return match["name"] if match else None


def fetch(uri: str, local: str) -> None:
    """Write a video that lies in a shard, or as pictures in a folder, to a local file. Raises ClipError, or as the
    store does."""
    pictures = image_folders.REFERENCE.fullmatch(uri)
    if pictures is not None:
        image_folders.fetch(*place(pictures["folder"]), float(pictures["fps"]), local, LARGEST)
        return
    match = REFERENCE.fullmatch(uri)
    if match is None:
        raise ValueError(f"{uri!r} is no video inside a shard")
    fs, bare = place(match["shard"])
    with open(local, "wb") as file:
        if bare.lower().endswith(lance_tables.END):
            lance_tables.fetch(match["shard"], int(match["first"]), match["name"], file, LARGEST)
        elif match["size"] is None:
            parquet_files.fetch(fs, bare, int(match["first"]), match["name"], file, LARGEST)
        else:
            first, size = int(match["first"]), int(match["size"])
            if size > LARGEST:
                raise ClipError("refused", f"it has {size} bytes; a video in a shard may have {LARGEST}")
            tar_files.fetch(fs, bare, first, size, file)
