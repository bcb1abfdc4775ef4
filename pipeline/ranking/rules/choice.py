"""In which order clips are chosen, and which clips a rule bars. One pass from the best to the worst.

A clip is barred where it is harmful; where a clip that is chosen before it is nearly the same; and where as many clips
of its source, licence or another column are chosen as may be. What is not barred is numbered from 0, and the selection
is the first of them: that of a smaller fraction is the beginning of that of a larger one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_array

Array = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

OPEN, HARMFUL, DUPLICATE, CAP = 0, 1, 2, 3  # what bars a clip; CAP + n is the cap of place n
CHUNK = 1 << 18  # clips that are looked at one by one between two looks at arrays


@dataclass(frozen=True)
class Pairs:
    """Clips that are nearly the same: rows `first` < `second`, how alike they are, by their pictures or by their
    features. [P] each."""

    first: Rows
    second: Rows
    similarity: Array
    by_picture: Flags

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class Cap:
    """At most so many clips of each value of a column: `codes` [N] are each clip's place among `values`, -1 of one
    whose value is not known, which no cap bars."""

    column: str
    most: int
    codes: npt.NDArray[np.int32]
    values: pa.StringArray


@dataclass(frozen=True)
class Rules:
    pairs: Pairs | None = None
    caps: tuple[Cap, ...] = ()


@dataclass(frozen=True)
class Choice:
    """By row [N]: the place in the order of choice, -1 where a rule bars it; what bars it; the row of the clip that
    stands for a near-duplicate, -1 for others, and the pair that says so."""

    place: Rows
    barred_by: npt.NDArray[np.int16]
    stands_for: Rows
    pair: Rows


def choose(order: Rows, harmful: Flags, rules: Rules) -> Choice:
    """`order` has the rows from best to worst [N]; `harmful` [N] is by row."""
    count = len(order)
    choice = Choice(
        np.full(count, -1), harmful.astype(np.int16), np.full(count, -1), np.full(count, -1)
    )  # HARMFUL is 1, OPEN 0
    if rules.caps or rules.pairs:
        _walk(order[~harmful[order]], rules, choice)
    chosen = order[choice.barred_by[order] == OPEN]
    choice.place[chosen] = np.arange(len(chosen))
    return choice


def _walk(rows: Rows, rules: Rules, choice: Choice) -> None:
    """Bar clips, from best to worst. Without caps only clips with a near-duplicate are looked at."""
    near = _Neighbors(rules.pairs, len(choice.place))
    if not rules.caps:
        rows = rows[near.count[rows] > 0]
    room = [[*[cap.most] * len(cap.values), len(rows)] for cap in rules.caps]  # the last: of those without a value
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        has_near, codes = (near.count[part] > 0).tolist(), [cap.codes[part].tolist() for cap in rules.caps]
        for n, row in enumerate(part.tolist()):
            if has_near[n] and near.bars(row, choice):
                continue
            full = [k for k, left in enumerate(room) if not left[codes[k][n]]]
            if full:
                choice.barred_by[row] = CAP + full[0]
                continue
            for k, left in enumerate(room):
                left[codes[k][n]] -= 1
            if has_near[n]:
                near.choose(row)


class _Neighbors:
    """Each clip's near-duplicates, and which of them are chosen."""

    def __init__(self, pairs: Pairs | None, count: int) -> None:
        self.chosen: dict[int, int] = {}  # row: how many with near-duplicates were chosen before it
        if pairs is None or not len(pairs):
            self.count = np.zeros(count, np.int64)
            return
        a, b = np.concatenate([pairs.first, pairs.second]), np.concatenate([pairs.second, pairs.first])
        numbers = np.tile(np.arange(len(pairs)), 2)
        by_row = csr_array((numbers, (a, b)), shape=(count, count))
        self.starts, self.others, self.pairs = by_row.indptr, by_row.indices, by_row.data
        self.count = np.diff(self.starts)

    def bars(self, row: int, choice: Choice) -> bool:
        """Bar a clip that has a near-duplicate among the chosen ones; the first of them stands for it."""
        here = slice(int(self.starts[row]), int(self.starts[row + 1]))
        others = self.others[here].tolist()
        known = [(self.chosen[other], n) for n, other in enumerate(others) if other in self.chosen]
        if not known:
            return False
        _, n = min(known)
        choice.barred_by[row], choice.stands_for[row] = DUPLICATE, others[n]
        choice.pair[row] = int(self.pairs[here][n])
        return True

    def choose(self, row: int) -> None:
        self.chosen[row] = len(self.chosen)


# --- in words ---------------------------------------------------------------------------------------------------------


def barred_words(
    choice: Choice, rows: Rows, rules: Rules, clip_ids: pa.Array, why: pa.Array
) -> tuple[pa.Array, pa.Array]:
    """Why each of these rows is decided on as it is: `why`, or what bars it; and the id of the clip that stands for it,
    null but for near-duplicates."""
    barred, stands_for = choice.barred_by[rows], choice.stands_for[rows]
    stand_ins = clip_ids.take(pa.array(stands_for, pa.int64(), mask=stands_for < 0)).cast(pa.string())
    if rules.pairs is not None and (barred == DUPLICATE).any():
        here = barred == DUPLICATE
        why = pc.replace_with_mask(
            why, pa.array(here), _twins(choice.pair[rows[here]], rules.pairs, stand_ins.drop_null())
        )
    for number, cap in enumerate(rules.caps):
        here = barred == CAP + number
        if here.any():
            values = pc.fill_null(cap.values.take(pa.array(cap.codes[rows[here]])), "none")
            words = pc.binary_join_element_wise(
                f"{cap.column} ", values, f" has {cap.most} better {'clip' if cap.most == 1 else 'clips'}", ""
            )
            why = pc.replace_with_mask(why, pa.array(here), words)
    return why, stand_ins


def _twins(pairs: Rows, rules: Pairs, stand_ins: pa.Array) -> pa.Array:
    """``near-duplicate of ID by its features, cosine 0.973``"""
    thousandths = np.minimum(np.rint(rules.similarity[pairs].astype(np.float64) * 1000), 1000).astype(np.int64)
    of = pa.array(np.where(rules.by_picture[pairs], " by its pictures, cosine ", " by its features, cosine ").tolist())
    digits = pc.ascii_lpad(pa.array(thousandths % 1000).cast(pa.string()), 3, "0")
    ones = pa.array(thousandths // 1000).cast(pa.string())
    return pc.binary_join_element_wise("near-duplicate of ", stand_ins, of, ones, ".", digits, "")
