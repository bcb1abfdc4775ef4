"""The projection on CPUs: entries in a few KiB of cache, sums in float32 over 512 coordinates and float64 over those.
Entries come out of `vectors`.

Every function adds the share of [B, n] float32 values to a running sum. What a row of it becomes depends on that row
and its coordinates alone: not on B, nor on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.projection.philox import BUCKETS_LOG, MASK, MULTIPLIERS, ROUNDS, WEYL, Tag, quantiles
from pipeline.projection.vectors import (
    LANES,
    add_products,
    add_products_of_four,
    gaussian_lanes,
    sign_lanes,
    sketch_lanes,
)

GROUP = 8 * LANES  # rows of P that one task computes
SEGMENT = 1 << 17  # coordinates of other types that are held in float32 at once
_TILE = 32  # coordinates whose entries are in the cache at once
_CLOSE = 512  # coordinates to a float32 sum
_WORTH = 1 << 14  # values below which threads cost more than they save
_LOW, _HALF = np.uint64(MASK), np.uint64(32)
_M0, _M1 = np.uint64(MULTIPLIERS[0]), np.uint64(MULTIPLIERS[1])
_W0, _W1 = np.uint64(WEYL[0]), np.uint64(WEYL[1])
_RADEMACHER = int(Tag.RADEMACHER)

Floats = npt.NDArray[np.float32]


def keys(seed: int) -> tuple[np.uint64, np.uint64]:
    return np.uint64(seed & MASK), np.uint64((seed >> 32) & MASK)


@numba.njit(cache=True, nogil=True)
def philox(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]
    """The four words for uint64 scalars that hold 32 bits."""
    for _ in range(ROUNDS):
        low, high = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (high >> _HALF) ^ c1 ^ k0, high & _LOW, (low >> _HALF) ^ c3 ^ k1, low & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


@numba.njit(cache=True, nogil=True)
def _dense(values, first, n, table, k0, k1, offset, group, tag, total):  # type: ignore[no-untyped-def]
    """Add 128 rows of P times n columns of values [B, ...] to total [B, 128], coordinate by coordinate."""
    rows = len(values)
    tile = np.empty((_TILE, GROUP), np.float32)
    near = np.empty((rows, _CLOSE + LANES), np.float32)  # a width that keeps rows out of each other's cache sets
    part = np.empty((rows, GROUP), np.float32)
    for start in range(0, n, _CLOSE):
        part[:] = 0
        width = min(_CLOSE, n - start)
        for r in range(rows):
            for i in range(width):
                near[r, i] = values[r, first + start + i]
        for j in range(0, width, _TILE):
            count = min(_TILE, width - j)
            for i in range(count):
                c = np.uint64(offset + start + j + i)
                if tag == _RADEMACHER:
                    sign_lanes(philox(c & _LOW, c >> _HALF, np.uint64(group), np.uint64(tag), k0, k1), tile, i)
                else:
                    gaussian_lanes(table, tile, i, k0, k1, c, np.uint64(group * LANES), np.uint64(tag))
            for r in range(0, rows - 3, 4):
                add_products_of_four(near, r, j, tile, count, part)
            for r in range(rows & ~3, rows):
                add_products(near, r, j, tile, count, part)
        for r in range(rows):
            for i in range(GROUP):
                total[r, i] += part[r, i]


def dense(values: Tensor, seed: int, offset: int, tag: Tag, total: Tensor) -> None:
    """Add the unscaled share of [B, n] values to total [B, dim] float64, under Gaussian entries or random signs."""
    batch, dim = total.shape
    groups = -(-dim // GROUP)
    sums = np.zeros((groups, batch, GROUP))
    for start, first, count, array in segments(values):
        tasks = [
            partial(_dense, array, first, count, quantiles(), *keys(seed), offset + start, group, int(tag), sums[group])
            for group in range(groups)
        ]
        run(tasks, count * batch)
    if tag != Tag.RADEMACHER:  # within a group the eight entries of a call lie apart
        sums = sums.reshape(groups, batch, 8, LANES).swapaxes(2, 3).reshape(sums.shape)
    total += torch.from_numpy(sums.swapaxes(0, 1).reshape(batch, groups * GROUP)[:, :dim])


@numba.njit(cache=True, nogil=True)
def _sketch(values, k0, k1, offset, sign_tag, shift_tag, total):  # type: ignore[no-untyped-def]
    """Add one vector [n] to its buckets [2**18]."""
    n = len(values)
    inside = np.int64((1 << BUCKETS_LOG) - 1)
    zero = np.uint64(0)
    signs = np.empty((1, 128), np.float32)
    row, shift, done = np.int64(-1), np.int64(0), np.int64(0)
    while done < n:
        c = np.int64(offset) + done
        if c >> BUCKETS_LOG != row:
            row = c >> BUCKETS_LOG
            r = np.uint64(row)
            shift = np.int64(philox(r & _LOW, r >> _HALF, zero, np.uint64(shift_tag), k0, k1)[0]) & inside
        call = np.uint64(c >> 7)
        words = philox(call & _LOW, call >> _HALF, zero, np.uint64(sign_tag), k0, k1)
        base, low, lane = ((c & inside) ^ shift) & ~np.int64(127), shift & 127, c & 127
        count = 128 - lane if done + 128 - lane < n else n - done
        if count == 128:
            sketch_lanes(words, values, done, total, base, low)
        else:
            sign_lanes(words, signs, 0)
            for i in range(count):
                total[np.uint64(base + ((lane + i) ^ low))] += values[done + i] * signs[0, lane + i]
        done += count


def sketch(values: Tensor, seed: int, offset: int, total: Tensor) -> None:
    """Add the CountSketch of [B, n] values to total [B, 2**18] float32; see `philox.buckets`."""
    buckets = total.numpy()
    tags = int(Tag.SKETCH_SIGN), int(Tag.SKETCH_SHIFT)
    for start, first, count, array in segments(values):
        rows = zip(array[:, first : first + count], buckets, strict=True)
        run([partial(_sketch, v, *keys(seed), offset + start, *tags, t) for v, t in rows], count * len(array))


def segments(values: Tensor) -> Iterator[tuple[int, int, int, Floats]]:
    """Stretches of the coordinates: where one starts, where in the array and how many, and the array, in float32.

    Only what is not float32 yet is copied, stretch by stretch.
    """
    values, n = values.detach(), values.shape[1]
    if values.dtype == torch.float32 and values.is_contiguous():
        yield 0, 0, n, values.numpy()
        return
    for start in range(0, n, SEGMENT):
        segment = values[:, start : start + SEGMENT].float().contiguous().numpy()
        yield start, 0, segment.shape[1], segment


def run(tasks: Sequence[Callable[[], None]], size: int) -> None:
    """Do tasks that write to places of their own, on as many threads as torch has where `size` values are worth it."""
    threads = min(torch.get_num_threads(), len(tasks))
    if threads == 1 or size < _WORTH:
        for task in tasks:
            task()
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(task) for task in tasks]:
            done.result()
