"""Sets of millions of ids in memory: 128 bits of a hash for each, sorted, whatever the length of the texts.

Ids come by the block and are wanted as one array. To join arrays in a list takes their room twice; a `GrowingArray`
grows where it lies: beyond some megabytes the system moves pages instead of copying, and gives them back when the array
goes.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Texts: TypeAlias = pa.Array | pa.ChunkedArray
Digests = npt.NDArray[np.uint64]  # [n, 2]: 128 bits for each of n texts
Words = npt.NDArray[np.uint64]  # [n]
Flags = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]

_NULL = hashlib.blake2b(b"\xff", digest_size=16).digest()  # no text has this byte


def digests(texts: Texts) -> Digests:
    """128 bits of each text's BLAKE2b: among ten million texts two are alike with a chance of 10^-25."""
    digest = hashlib.blake2b
    values = texts.cast(pa.binary()).to_pylist()
    hashed = [digest(text, digest_size=16).digest() if text is not None else _NULL for text in values]
    return np.frombuffer(b"".join(hashed), "<u8").reshape(-1, 2)


class IdSet:
    """Ids, sorted by their digests, so that others are looked up among them: 16 bytes an id."""

    def __init__(self, first: Words, second: Words) -> None:
        """Both halves of the digests, in the order of the first."""
        self._first, self._second = first, second

    @classmethod
    def of(cls, columns: Iterable[Texts]) -> IdSet:
        """The ids of these columns, which are drawn one after the other: memory never holds all of their texts."""
        ids = IdList()
        for column in columns:
            ids.add(column)
        return ids.to_set()

    def __len__(self) -> int:
        return len(self._first)

    @property
    def digests(self) -> Digests:
        return np.stack([self._first, self._second], axis=1)

    def has(self, ids: Texts) -> Flags:
        """Whether each of the ids is here: [n]."""
        return self.find(ids) >= 0

    def find(self, ids: Texts) -> Places:
        """The place of each of the ids in the order of this set; -1 where it is not here: [n]."""
        return self.find_digests(digests(ids))

    def find_set(self, other: IdSet) -> Places:
        """The place of each id of another set, in that set's order; -1 where it is not here: [len(other)]."""
        return self.find_digests(other.digests)

    def has_set(self, other: IdSet) -> Flags:
        """Whether each id of another set, in that set's order, is here: [len(other)]."""
        return self.find_set(other) >= 0

    def subset(self, flags: Flags) -> IdSet:
        """The ids whose flag is set: [len(self)]."""
        return IdSet(self._first[flags], self._second[flags])

    def has_digests(self, digests: Digests) -> Flags:
        return self.find_digests(digests) >= 0

    def find_digests(self, digests: Digests) -> Places:
        if not len(self):
            return np.full(len(digests), -1, np.int64)
        at = np.minimum(np.searchsorted(self._first, digests[:, 0]), len(self) - 1)
        return np.where((self._first[at] == digests[:, 0]) & (self._second[at] == digests[:, 1]), at, -1)


class IdList:
    """Ids as they come, before they are sorted into a set."""

    def __init__(self) -> None:
        self._first, self._second = GrowingArray(), GrowingArray()

    def add(self, ids: Texts) -> None:
        self.add_digests(digests(ids))

    def add_digests(self, added: Digests) -> None:
        self._first.add(added[:, 0])
        self._second.add(added[:, 1])

    def to_set(self) -> IdSet:
        """All of the ids; none is left here."""
        first = self._first.take()
        order = np.argsort(first)
        first = first[order]  # the unsorted half goes before the other is sorted
        return IdSet(first, self._second.take()[order])


class TextSet:
    """Texts that are only looked up, in this process: 8 bytes a text, by Python's own hash of 64 bits."""

    def __init__(self) -> None:
        self._added = GrowingArray()
        self._hashes: Words | None = None

    def add(self, texts: Texts) -> None:
        """Add texts. No more may be added once one was looked up."""
        self._added.add(_hashes(texts))

    def has(self, texts: Texts) -> Flags:
        """Whether each of the texts is here: [n]."""
        if self._hashes is None:
            self._hashes = self._added.take()
            self._hashes.sort()
        if not len(self._hashes):
            return np.zeros(len(texts), bool)
        hashes = _hashes(texts)
        at = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        here: Flags = self._hashes[at] == hashes
        return here


def _hashes(texts: Texts) -> Words:
    """64 bits of each text, which differ from process to process."""
    return np.fromiter(map(hash, texts.cast(pa.binary()).to_pylist()), np.int64, len(texts)).view(np.uint64)


class GrowingArray:
    """64-bit words, added by the block and taken as one array, in their order."""

    def __init__(self) -> None:
        self._words = array("Q")

    def add(self, words: Words) -> None:
        self._words.frombytes(np.ascontiguousarray(words).view(np.uint8))  # type: ignore[arg-type]

    def take(self) -> Words:
        """All of them; none is left here."""
        words, self._words = self._words, array("Q")
        return np.frombuffer(words, np.uint64)
