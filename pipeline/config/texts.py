"""Text from files that people and tools wrote: decoded where the encoding is certain, refused with a reason elsewhere.

Certain are UTF-8, and UTF-8, UTF-16 and UTF-32 with a byte-order mark. A guess would put wrong letters into captions.
"""

from __future__ import annotations

import codecs
import re

# UTF-32 stands before UTF-16: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8", "UTF-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
)
_REMEDY = "save it as UTF-8"


def decode_text(data: bytes) -> str:
    """The text of a file, without byte-order marks. Nothing else is removed or replaced.

    Raises ValueError, with a sentence about "it" that says what is wrong, where and what to do.
    """
    mark, codec, name = next((m for m in _MARKS if data.startswith(m[0])), (b"", "utf-8", "UTF-8"))
    try:
        text = data[len(mark) :].decode(codec)
    except UnicodeDecodeError as error:
        if mark:
            at = len(mark) + error.start
            raise ValueError(
                f"its byte-order mark says {name}, but at byte {at} it is not ({error.reason}): {_REMEDY}"
            ) from None
        guess = _other_encoding(data, error)
        raise ValueError(
            f"it is not UTF-8 (byte 0x{data[error.start]:02x} at {error.start}{guess}): {_REMEDY}"
        ) from None
    text = text.lstrip("\ufeff")  # a second mark, as tools that join files leave it
    if "\0" in text and not mark and _is_utf16(data):
        raise ValueError(f"it looks like UTF-16 without a byte-order mark: {_REMEDY}")
    flaw = text_flaw(text)
    if flaw:
        raise ValueError(f"{flaw}: remove it")
    return text


def text_flaw(text: str) -> str | None:
    """What makes a decoded text, as from JSON with its escapes, one that no table or tokenizer takes; None: nothing."""
    at = text.find("\0")
    if at >= 0:
        return f"it has a NUL character at {at}"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"it has half a character (the lone surrogate U+{ord(text[error.start]):04X}) at {error.start}"
    return None


def _other_encoding(data: bytes, error: UnicodeDecodeError) -> str:
    """What bytes that are not UTF-8 look like, as the end of a clause; "" where nothing is likely."""
    if _is_utf16(data):
        return "; it looks like UTF-16 without a byte-order mark"
    before = data[: error.start]
    if error.reason == "unexpected end of data" and not before.isascii():
        return "; it ends within a character"
    # Accents and quotes stand alone; Chinese, Japanese and Cyrillic encodings have runs of high bytes.
    runs = re.findall(rb"[\x80-\xff]+", data)
    alone = sum(len(run) == 1 for run in runs)
    return "; it looks like Latin-1 or Windows-1252" if 2 * alone > len(runs) else ""


def _is_utf16(data: bytes) -> bool:
    """Whether most of the even or most of the odd bytes are NUL, as in western text in UTF-16."""
    even, odd = data[0::2].count(0), data[1::2].count(0)
    return len(data) % 2 == 0 and max(even, odd) > len(data) / 4 and min(even, odd) < max(even, odd) / 8
