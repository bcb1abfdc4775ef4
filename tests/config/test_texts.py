"""Text is decoded where its encoding is certain; elsewhere a sentence says what the bytes look like and what to do."""

from __future__ import annotations

import codecs

import pytest

from pipeline.config.texts import decode_text, text_flaw

WORDS = "Ein Café 東京 🐈"


@pytest.mark.parametrize(
    "data",
    [
        WORDS.encode(),
        WORDS.encode("utf-8-sig"),
        codecs.BOM_UTF8 + WORDS.encode("utf-8-sig"),
        codecs.BOM_UTF16_LE + WORDS.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + WORDS.encode("utf-16-be"),
        codecs.BOM_UTF32_LE + WORDS.encode("utf-32-le"),
        codecs.BOM_UTF32_BE + WORDS.encode("utf-32-be"),
    ],
    ids=["utf-8", "mark", "two marks", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"],
)
def test_a_certain_encoding_gives_the_text(data: bytes) -> None:
    assert decode_text(data) == WORDS


def test_nothing_but_the_mark_is_removed() -> None:
    assert decode_text(b"") == ""
    assert decode_text(codecs.BOM_UTF8) == ""
    assert decode_text(" a\r\n\tb\x07 ".encode("utf-8-sig")) == " a\r\n\tb\x07 "
    assert decode_text("a\ufeffb".encode()) == "a\ufeffb"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("a café table".encode("latin-1"), ["not UTF-8", "0xe9 at 5", "Windows-1252", "save it as UTF-8"]),
        ("a “quoted” word".encode("cp1252"), ["not UTF-8", "0x93 at 2", "Windows-1252"]),
        ("a cat".encode("utf-16-le"), ["UTF-16 without a byte-order mark", "save it as UTF-8"]),
        ("a café".encode("utf-16-be"), ["UTF-16 without a byte-order mark"]),
        ("Привет, мир".encode("cp1251"), ["not UTF-8", "0xcf at 0"]),
        ("猫が跳ぶ".encode("shift-jis"), ["not UTF-8"]),
        ("é 東京".encode()[:-1], ["not UTF-8", "ends within a character"]),
        ("a cat".encode("utf-16")[:-1], ["UTF-16", "at byte 10"]),
        (codecs.BOM_UTF16_LE + b"\x3d\xd8a\0", ["UTF-16", "at byte 2"]),
        (b"a c\0at", ["NUL character at 3"]),
        (codecs.BOM_UTF16_LE + "a\0b".encode("utf-16-le"), ["NUL character at 1"]),
    ],
)
def test_what_is_wrong_is_said(data: bytes, words: list[str]) -> None:
    with pytest.raises(ValueError, match="it") as caught:
        decode_text(data)
    for word in words:
        assert word in str(caught.value), f"{caught.value} does not say {word!r}"


def test_runs_of_high_bytes_are_not_taken_for_western_text() -> None:
    for words, codec in (("Привет, мир", "cp1251"), ("猫が跳ぶ", "shift-jis"), ("猫在跳", "gbk")):
        with pytest.raises(ValueError, match="not UTF-8") as caught:
            decode_text(words.encode(codec))
        assert "Windows-1252" not in str(caught.value)


def test_flaws_of_decoded_text() -> None:
    assert text_flaw("a 🐈") is None
    assert "U+D83D" in str(text_flaw("half \ud83d"))
    assert "NUL character at 1" in str(text_flaw("a\0"))
