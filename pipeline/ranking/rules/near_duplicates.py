"""Pairs of rows whose cosine is at least a threshold.

Up to EXACT rows every pair is compared. Of more, pairs that fall together in one of several random tables are
(random-hyperplane hashing, Charikar 2002), and then their cosine is computed. Memory holds 72 bytes a row for this, and
the rows of the pairs lie in a temporary file (TMPDIR).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Blocks = Callable[[], Iterator[tuple[Rows, Array]]]  # places of rows and the unit rows [n, k], all of them each time

EXACT = 20_000  # rows of which every pair is compared
WORDS = 72  # bytes of a row's hash: on which side of 8 times as many random planes it lies
TABLES = 48  # in which rows with the same two or three of these bytes fall together
FEW = 1 << 17  # rows from which on three bytes are compared, so that chance puts few together
NEXT, FIRST = 32, 16  # rows of one place of a table that a row is compared with: the next ones, and the place's first
CHUNK = 1 << 16  # pairs whose cosines are computed at a time


def similar_pairs(blocks: Blocks, order: Rows, threshold: float) -> tuple[Rows, Rows, Array]:
    """The pairs of rows with a cosine of at least `threshold`: the two places and the cosine, each once.

    `order` has every row's place from first to last: where very many rows are alike, they are compared with the first.
    Rows that no block has are in no pair. With more than EXACT rows, a pair of cosine .95 is missed with a chance of
    about two in a hundred, closer ones hardly ever.
    """
    if len(order) <= EXACT:
        return _every_pair(blocks, len(order), threshold)
    first, second = _candidates(blocks, order, threshold)
    return _confirmed(blocks, len(order), first, second, threshold)


def _every_pair(blocks: Blocks, count: int, threshold: float) -> tuple[Rows, Rows, Array]:
    rows: Array | None = None
    for places, values in blocks():
        rows = np.zeros((count, values.shape[1]), np.float32) if rows is None else rows
        rows[places] = values
    pairs, cosines = [np.empty((2, 0), np.int64)], [np.empty(0, np.float32)]
    for start in range(0, count if rows is not None else 0, 1024):
        assert rows is not None
        block = rows[start : start + 1024] @ rows[start:].T
        a, b = np.nonzero(np.triu(block >= threshold, 1))
        pairs.append(np.stack([a, b]) + start)
        cosines.append(block[a, b])
    first, second = np.concatenate(pairs, axis=1)
    return first, second, np.concatenate(cosines)


# --- rows that may be alike -------------------------------------------------------------------------------------------


def _candidates(blocks: Blocks, order: Rows, threshold: float) -> tuple[Rows, Rows]:
    """Pairs of places that share a place in a table and whose hashes are as close as the threshold's."""
    hashes, present = _hashes(blocks, order)
    known = np.flatnonzero(present)  # in the order from first to last
    hashes, most = hashes[known], _most_bits_apart(threshold)
    rng, codes = np.random.default_rng(0), np.empty(0, np.int64)
    for _ in range(TABLES):
        words = rng.choice(WORDS, 2 if len(known) < FEW else 3, replace=False)
        keys = np.zeros(len(known), np.uint32)
        for word in words.tolist():
            keys = keys << np.uint32(8) | hashes[:, word]
        close = [codes]
        for a, b in _together(keys):
            near = _bits_apart(hashes, a, b) <= most
            close.append(np.minimum(a, b)[near] * len(known) + np.maximum(a, b)[near])
        codes = np.unique(np.concatenate(close))
    places = order[known]
    return places[codes // max(1, len(known))], places[codes % max(1, len(known))]


def _hashes(blocks: Blocks, order: Rows) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Each row's hash [N, WORDS], in the order from first to last, and whether there is a row."""
    at = np.empty(len(order), np.int64)
    at[order] = np.arange(len(order))
    hashes, present = np.zeros((len(order), WORDS), np.uint8), np.zeros(len(order), bool)
    planes: Array | None = None
    for places, values in blocks():
        if planes is None:
            planes = np.random.default_rng(1).standard_normal((values.shape[1], 8 * WORDS), np.float32)
        hashes[at[places]] = np.packbits(values @ planes > 0, axis=1)
        present[at[places]] = True
    return hashes, present


def _together(keys: npt.NDArray[np.uint32]) -> Iterator[tuple[Rows, Rows]]:
    """Pairs of rows with the same key, blocks of them; rows are in their order."""
    by = np.argsort(keys, kind="stable")
    values = keys[by]
    alive = np.flatnonzero(values[1:] == values[:-1])
    for step in range(1, NEXT + 1):
        if not len(alive):
            return
        yield by[alive], by[alive + step]
        alive = alive[alive + step + 1 < len(by)]
        alive = alive[values[alive + step + 1] == values[alive]]
    starts = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
    ends = np.append(starts[1:], len(values))
    large = ends - starts > NEXT
    for start, end in zip(starts[large].tolist(), ends[large].tolist(), strict=True):
        for first in range(start, start + FIRST):
            yield np.repeat(by[first], end - first - 1), by[first + 1 : end]


def _bits_apart(hashes: npt.NDArray[np.uint8], a: Rows, b: Rows) -> Rows:
    words = hashes.view(np.uint64)
    apart: Rows = np.bitwise_count(words[a] ^ words[b]).sum(1, dtype=np.int64)
    return apart


def _most_bits_apart(threshold: float) -> int:
    """Of 8 x WORDS random planes, how many part two rows of this cosine: the mean, and four deviations."""
    share = math.acos(threshold) / math.pi
    planes = 8 * WORDS
    return math.ceil(planes * share + 4 * math.sqrt(planes * share * (1 - share)))


# --- rows that are ----------------------------------------------------------------------------------------------------


def _confirmed(blocks: Blocks, count: int, a: Rows, b: Rows, threshold: float) -> tuple[Rows, Rows, Array]:
    needed = np.zeros(count, bool)
    needed[a] = needed[b] = True
    at = np.cumsum(needed) - 1
    cosines = np.empty(len(a), np.float32)
    if len(a):
        with tempfile.TemporaryFile() as file:
            rows = _needed_rows(blocks, needed, at, file)
            for start in range(0, len(a), CHUNK):
                here = slice(start, start + CHUNK)
                cosines[here] = np.vecdot(rows[at[a[here]]], rows[at[b[here]]])
            del rows
    close = cosines >= threshold
    first, second = np.minimum(a, b)[close], np.maximum(a, b)[close]
    return first, second, cosines[close]


def _needed_rows(blocks: Blocks, needed: npt.NDArray[np.bool_], at: Rows, file: object) -> Array:
    """The rows that are needed, in a file."""
    rows: Array | None = None
    for places, values in blocks():
        if rows is None:
            rows = np.memmap(file, np.float32, "w+", shape=(int(needed.sum()), values.shape[1]))  # type: ignore[call-overload]
        mask = needed[places]
        rows[at[places[mask]]] = values[mask]
    assert rows is not None, "its pairs are of rows that it had"
    return rows
