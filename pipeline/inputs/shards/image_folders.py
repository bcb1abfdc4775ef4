"""A folder of pictures as a clip, a picture a frame in the order of their names, numbers by their value.

Its uri is that of the folder with the rate behind it, as pictures have none: `s3://bucket/clips/0001/#16fps`. A worker
puts the pictures as they are into one file, and the decoder's child decodes that.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

import fsspec

from pipeline.errors import ClipError
from pipeline.inputs import refusals

EXTENSIONS = (".png", ".jpg", ".jpeg")
REFERENCE = re.compile(r"(?P<folder>.+)/#(?P<fps>[0-9.]+)fps", re.DOTALL)
FEWEST = 2  # pictures of a clip
_CODECS = {".png": "png", ".jpg": "mjpeg", ".jpeg": "mjpeg"}
_NUMBER = re.compile(r"(\d+)")

Row = dict[str, Any]
Entry = Mapping[str, Any]


def is_picture(path: str) -> bool:
    return path.lower().endswith(EXTENSIONS) and not posixpath.basename(path).startswith(".")


def row_of(
    fs: fsspec.AbstractFileSystem, folder: str, below: str, entries: Iterable[Entry], rate: Any, base: Any
) -> Row:
    """The row of a folder with these files, at `rate` frames a second; it lies at `below` the data root."""
    local = "file" in fs.protocol
    uri = folder if local else str(fs.unstrip_protocol(folder))
    pictures = ordered([entry for entry in entries if is_picture(str(entry["name"]))])
    row = {"uri": f"{uri}/#{float(rate):g}fps", "relative": below, "version": "", "size": 0, "error": None}
    refused = refusals.of_address(uri) or refusals.of_place(f"{uri}/any", base)
    for entry in pictures if base is not None and refused is None else ():
        path = str(entry["name"])
        refused = refused or refusals.of_place(path if local else str(fs.unstrip_protocol(path)), base)
    if refused:
        return {**row, "error": f"refused: {refused}"}
    if len(pictures) < FEWEST:
        return {**row, "error": f"too_short: the folder has {len(pictures)} pictures ({', '.join(EXTENSIONS)})"}
    kinds = {_CODECS[posixpath.splitext(str(entry["name"]).lower())[1]] for entry in pictures}
    if len(kinds) > 1:
        return {**row, "error": "refused: its pictures are PNG and JPEG; a clip is of one kind"}
    version = hashlib.blake2b(digest_size=8)
    for entry in pictures:
        path = str(entry["name"])
        modified = os.stat(path).st_mtime_ns if local else entry.get("ETag") or entry.get("LastModified")
        version.update(f"{posixpath.basename(path)}\0{entry['size']}\0{modified}\0".encode("utf-8", "backslashreplace"))
    size = sum(int(entry["size"]) for entry in pictures)
    return {**row, "version": f"{size}-{version.hexdigest()}", "size": size}


def ordered(entries: list[Entry]) -> list[Entry]:
    """Pictures by their names, in which numbers count by value: frame 9 comes before frame 10."""

    def place(entry: Entry) -> list[tuple[bool, int, str]]:
        pieces = _NUMBER.split(posixpath.basename(str(entry["name"])))
        return [(piece.isdecimal(), int(piece) if piece.isdecimal() else 0, piece) for piece in pieces]

    return sorted(entries, key=place)


def fetch(fs: fsspec.AbstractFileSystem, folder: str, fps: float, local: str, largest: int) -> None:
    """Write the pictures of a folder, as they are, into one QuickTime file. Raises ClipError, or as the store does."""
    import av  # heavy, and the listing needs none of it

    entries = ordered([entry for entry in fs.ls(folder, detail=True) if is_picture(str(entry["name"]))])
    if sum(int(entry["size"]) for entry in entries) > largest:
        raise ClipError("refused", f"its pictures have more than {largest} bytes")
    if len(entries) < FEWEST:
        raise ClipError("too_short", f"the folder has {len(entries)} pictures by now")
    codec = _CODECS[posixpath.splitext(str(entries[0]["name"]).lower())[1]]
    rate = Fraction(fps).limit_denominator(65535)
    with av.open(local, "w", format="mov") as container:
        stream: Any = None
        for number, entry in enumerate(entries):
            data = fs.cat_file(str(entry["name"]))
            if stream is None:
                width, height = _shape(data, codec)
                stream = container.add_mux_stream(codec, rate=rate, width=width, height=height, time_base=1 / rate)
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, 1 / rate
            packet.pts = packet.dts = number
            packet.duration, packet.is_keyframe = 1, True
            container.mux(packet)


def _shape(data: bytes, codec: str) -> tuple[int, int]:
    """Width and height that a picture's header says. Raises ClipError."""
    if codec == "png" and data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 24:
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    at = 2
    while codec == "mjpeg" and data[:2] == b"\xff\xd8" and at + 9 < len(data) and data[at] == 0xFF:
        kind, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # a frame's header (ITU-T T.81, table B.1)
            return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        at += 2 + length
    raise ClipError("decode", "its first picture has no header that says its size")
