"""How long a video file says that it is. FFmpeg reads a file that was cut off to its end, and flags nothing in some."""

from __future__ import annotations

import os
from typing import BinaryIO

_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067  # the two outermost elements of a Matroska file
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # its File Properties Object
_GIF_TRAILER = b"\x3b"


def missing_bytes(path: str, container: str, size: int) -> int:
    """How many bytes a file of `size` bytes lacks at least of what it claims; 0 where it claims nothing, as a live
    stream does. `container` is FFmpeg's name of its format; mp4 and FLV need no look, their last packet is flagged."""
    measures = {"matroska": _matroska, "avi": _avi, "asf": _asf, "gif": _gif}
    measure = next((measures[name] for name in container.split(",") if name in measures), None)
    if measure is None:
        return 0
    with open(path, "rb") as file:
        return max(0, measure(file, size) - size)


def _matroska(file: BinaryIO, size: int) -> int:
    """The end of the outermost element."""
    head = file.read(4096)
    at = 0
    while at < len(head):
        name, at = _ebml_number(head, at, marked=True)
        length, at = _ebml_number(head, at, marked=False)
        if name == _SEGMENT and length is not None:
            return at + length
        if name != _EBML or length is None:
            return 0
        at += length
    return 0


def _ebml_number(data: bytes, at: int, marked: bool) -> tuple[int | None, int]:
    """The number at a byte and the byte behind it (RFC 8794, section 4): an element's name keeps its marker bit, a
    length does not; a length of ones alone, or what is no number, is None."""
    width = 9 - data[at].bit_length() if at < len(data) and data[at] else 0
    if not width or at + width > len(data):
        return None, len(data)
    value = int.from_bytes(data[at : at + width], "big")
    if marked:
        return value, at + width
    value &= (1 << 7 * width) - 1
    return (None if value == (1 << 7 * width) - 1 else value), at + width


def _avi(file: BinaryIO, size: int) -> int:
    """The end of the last list of pictures; the index behind it may be missing. Files over 1 GiB have several."""
    at, end = 0, 0
    while at + 12 <= size:
        name, length, kind = _chunk(file, at)
        if name == b"RIFF":
            at += 12  # its chunks lie within it
            continue
        if name == b"LIST" and kind == b"movi":
            end = at + 8 + length
        if not length:  # a recording that was not finished claims nothing
            return 0
        at += 8 + length + length % 2
    return end


def _chunk(file: BinaryIO, at: int) -> tuple[bytes, int, bytes]:
    """Name, length and, of a list, kind of the RIFF chunk at a byte."""
    file.seek(at)
    head = file.read(12)
    return head[:4], int.from_bytes(head[4:8], "little"), head[8:]


def _asf(file: BinaryIO, size: int) -> int:
    """The size in the File Properties Object, but for a broadcast (ASF specification, section 3.2)."""
    head = file.read(1 << 16)
    at = head.find(_ASF_FILE)
    if not head.startswith(_ASF_HEADER) or at < 0 or at + 92 > len(head):
        return 0
    broadcast = int.from_bytes(head[at + 88 : at + 92], "little") & 1
    return 0 if broadcast else int.from_bytes(head[at + 40 : at + 48], "little")


def _gif(file: BinaryIO, size: int) -> int:
    """One byte more where the last one, zeros that some writers append aside, is not the trailer."""
    file.seek(max(0, size - 1024), os.SEEK_SET)
    return 0 if file.read().rstrip(b"\0").endswith(_GIF_TRAILER) else size + 1
