"""Searching captions and file names for words, whatever their case."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage.parallel import in_order
from pipeline.workbench.index import STEP, Flags, Index

MOST = 8  # words whose clips are held, a byte a clip
BLOCK = 1 << 20  # bytes of text that are compared at a time: they stay in the processor's cache
SAMPLE = 4096  # texts that say how often a word is
OFTEN = 0.3  # share of texts above which a word is looked for in one text after the other
Bytes = npt.NDArray[np.uint8]


class Search:
    """What a search looks through: caption, where it may be shown, and file name, in lower case. Threads share it."""

    def __init__(self, index: Index) -> None:
        self._count = len(index)
        self._words = OrderedDict[str, Flags]()
        self._lock = threading.Lock()
        captions = index.clips.column("caption") if index.run.report.captions else pa.nulls(len(index), pa.string())
        files = index.clips.column("file")

        def lower(start: int) -> Texts:
            caption = pc.fill_null(captions.slice(start, STEP), "")
            joined = pc.binary_join_element_wise(caption, files.slice(start, STEP), "\n")
            return Texts.of(pc.utf8_lower(joined).combine_chunks())

        self._pieces = list(in_order(lower, range(0, len(index), STEP)))

    def flags(self, text: str) -> Flags | None:
        """Which clips have every word of a text [N]; None for a text without words: all of them."""
        flags = None
        for word in text.lower().split():
            flags = self._word(word) if flags is None else flags & self._word(word)
        return flags

    def _word(self, word: str) -> Flags:
        with self._lock:
            if word in self._words:
                self._words.move_to_end(word)
                return self._words[word]
        often = bool(self._pieces) and self._pieces[0].share(word) > OFTEN
        flags = np.empty(self._count, bool)

        def look(n: int) -> None:
            piece = self._pieces[n]
            flags[n * STEP : (n + 1) * STEP] = piece.one_by_one(word) if often else piece.as_bytes(word)

        for _ in in_order(look, range(len(self._pieces))):
            pass
        with self._lock:
            self._words[word] = flags
            while len(self._words) > MOST:
                self._words.popitem(last=False)
        return flags


@dataclass(frozen=True)
class Texts:
    """Some texts [n]; their bytes, one after the other, and where each begins and the last ends [n + 1]; and how often
    each byte is at their beginning [256]."""

    array: pa.StringArray
    data: Bytes
    starts: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, array: pa.StringArray) -> Texts:
        _, offsets, values = array.buffers()
        starts = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
        data = np.frombuffer(values or b"", np.uint8)[: starts[-1]]
        return cls(array, data, starts, np.bincount(data[starts[0] :][:BLOCK], minlength=256))

    def share(self, word: str) -> float:
        """About which share of the texts has a word."""
        return float(pc.mean(pc.match_substring(self.array[:SAMPLE], word)).as_py() or 0)

    def one_by_one(self, word: str) -> Flags:
        """Which texts have a word [n]. Each is left at the first place, so that a frequent word takes the least."""
        flags: Flags = pc.match_substring(self.array, word).to_numpy(zero_copy_only=False)
        return flags

    def as_bytes(self, word: str) -> Flags:
        """`one_by_one`, in half the time for a word that is not frequent: the word's two rarest bytes are compared in
        all places, and the others where these two are."""
        letters = np.frombuffer(word.encode(), np.uint8)
        first, *others = np.argsort(self.counts[letters], kind="stable").tolist()
        flags = np.zeros(len(self.array), bool)
        for start in range(int(self.starts[0]), len(self.data) - len(letters) + 1, BLOCK):
            block = self.data[start : start + BLOCK + len(letters) - 1]
            places = len(block) - len(letters) + 1
            same = block[first : first + places] == letters[first]
            for at in others[:1]:
                same &= block[at : at + places] == letters[at]
            begins = np.flatnonzero(same)
            for at in others[1:]:
                begins = begins[block[begins + at] == letters[at]]
            begins += start
            texts = np.searchsorted(self.starts, begins, "right") - 1
            flags[texts[begins + len(letters) <= self.starts[texts + 1]]] = True  # a word lies within one text
        return flags
