"""Searching against a plain look into each text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.workbench import index, search
from pipeline.workbench.search import Search, Texts
from tests.support.workbenches import run_of


@pytest.mark.parametrize("offset", [0, 3])
def test_both_ways_find_what_lies_within_one_text(offset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "BLOCK", 7)  # so that words lie across the blocks
    rng = np.random.default_rng(0)
    texts = [
        "",
        "aa",
        "",
        "ab",
        "ba",
        "grün über äh",
        "日本",
        *("".join(rng.choice(list("abc"), 9)) for _ in range(200)),
        "",
    ]
    one = Texts.of(pa.array(texts, pa.string())[offset:])
    for word in ("a", "ab", "abc", "aab", "cccc", "bacab", "ü", "grün", "本", "z", "aaba" * 9):
        plain = [word in text for text in texts[offset:]]
        assert one.one_by_one(word).tolist() == plain
        assert one.as_bytes(word).tolist() == plain, f"{word!r} is missed, or found across two texts"


def test_frequent_and_rare_words_are_found_in_all_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "STEP", 5)
    clip_index = index.read(run_of(tmp_path / "run"))
    captions = [f"{row['caption']}\n{row['file']}".lower() for row in clip_index.clips.to_pylist()]
    one = Search(clip_index)
    for text in ("ball", "BLUE", "2.mp4", "blue 1.mp4", "nothing", *map(str, range(12))):
        plain = [all(word in caption for word in text.lower().split()) for caption in captions]
        for _ in range(2):  # computed, then held
            flags = one.flags(text)
            assert flags is not None
            assert flags.tolist() == plain
    assert one.flags(" ") is None
