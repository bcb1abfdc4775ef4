"""The text of a manifest in blocks of whole lines, decoded as `texts` does, with the line that is not text."""

from __future__ import annotations

import codecs
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from pipeline.config.texts import decode_text

BYTES = 8 << 20
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)


def text_blocks(file: BinaryIO) -> Iterator[str]:
    """Pieces of a file's text, each of which ends with a newline but the last. UTF-16 and UTF-32 come whole.

    Raises ValueError, naming the line.
    """
    data, line = file.read(BYTES), 1
    if data.startswith(_WIDE):
        yield decode_text(data + file.read())
        return
    rest, first = b"", True
    while data:
        data = rest + data
        end = data.rfind(b"\n") + 1
        if end:
            yield _decoded(data[:end], line, first)
            line, first = line + data.count(b"\n", 0, end), False
        rest = data[end:]
        data = file.read(BYTES)
    if rest:
        yield _decoded(rest, line, first)


def _decoded(data: bytes, line: int, first: bool) -> str:
    """`data` begins in this line; the `first` piece may begin with a byte-order mark."""
    try:
        text = data.decode()
        at = data.find(b"\0")
    except UnicodeDecodeError as error:
        nul = data.find(b"\0", 0, error.start)  # in UTF-16 without a mark, the first line says what the file is
        at = error.start if nul < 0 else nul
    if at >= 0:
        start, end = data.rfind(b"\n", 0, at) + 1, data.find(b"\n", at)
        number = line + data.count(b"\n", 0, start)
        try:
            decode_text(data[start : end if end >= 0 else len(data)])
        except ValueError as reason:
            raise ValueError(f"line {number}: {reason}") from None
    return text.lstrip("\ufeff") if first else text


@contextmanager
def collection_paused() -> Iterator[None]:
    """Without Python's collector of cycles: rows have none, and looking for them takes longer than reading the rows."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
