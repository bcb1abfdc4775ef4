"""The projection on CPUs: entries in a few KiB of cache, sums in float32 over 512 coordinates and float64 over those.

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

from pipeline.kernels.philox import BUCKETS_LOG, MASK, MULTIPLIERS, ROUNDS, WEYL, Tag, quantiles
from pipeline.kernels.vectors import LANES, add_products, gaussian_lanes, sign_lanes

GROUP = 8 * LANES  # rows of P that one task computes
SEGMENT = 1 << 17  # coordinates that are held in float32 at once
_TILE = 8  # coordinates whose entries are in the cache at once
_CLOSE = 512  # coordinates to a float32 sum
_WORTH = 1 << 14  # values below which threads cost more than they save
_LOW, _HALF = np.uint64(MASK), np.uint64(32)
_M0, _M1 = np.uint64(MULTIPLIERS[0]), np.uint64(MULTIPLIERS[1])
_W0, _W1 = np.uint64(WEYL[0]), np.uint64(WEYL[1])
_RADEMACHER = int(Tag.RADEMACHER)

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


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
def _dense(values, table, k0, k1, offset, group, tag, total):  # type: ignore[no-untyped-def]
    """Add 128 rows of P times values [B, n] to total [B, 128]. Each sum runs over the coordinates in order."""
    rows, n = values.shape
    tile = np.empty((_TILE, GROUP), np.float32)
    part = np.empty((rows, GROUP), np.float32)
    for start in range(0, n, _CLOSE):
        part[:] = 0
        stop = min(start + _CLOSE, n)
        for j in range(start, stop, _TILE):
            count = min(_TILE, stop - j)
            for i in range(count):
                c = np.uint64(offset + j + i)
                if tag == _RADEMACHER:
                    sign_lanes(philox(c & _LOW, c >> _HALF, np.uint64(group), np.uint64(tag), k0, k1), tile, i)
                else:
                    gaussian_lanes(table, tile, i, k0, k1, c, np.uint64(group * LANES), np.uint64(tag))
            for r in range(rows):
                if count == _TILE:
                    add_products(values, r, j, tile, part)
                else:
                    for m in range(count):
                        for i in range(GROUP):
                            part[r, i] += values[r, j + m] * tile[m, i]
        for r in range(rows):
            for i in range(GROUP):
                total[r, i] += part[r, i]


def dense(values: Tensor, seed: int, offset: int, tag: Tag, total: Tensor) -> None:
    """Add the unscaled share of [B, n] values to total [B, dim] float64, under Gaussian entries or random signs."""
    batch, dim = total.shape
    groups = -(-dim // GROUP)
    found = np.zeros((groups, batch, GROUP))
    for start, held in segments(values):
        tasks = [
            partial(_dense, held, quantiles(), *keys(seed), offset + start, group, int(tag), found[group])
            for group in range(groups)
        ]
        run(tasks, held.size)
    if tag != Tag.RADEMACHER:  # within a group the eight entries of a call lie apart
        found = found.reshape(groups, batch, 8, LANES).swapaxes(2, 3).reshape(found.shape)
    total += torch.from_numpy(found.swapaxes(0, 1).reshape(batch, -1)[:, :dim])


@numba.njit(cache=True, nogil=True)
def _sketch(values, k0, k1, offset, sign_tag, shift_tag, total):  # type: ignore[no-untyped-def]
    """Add one vector [n] to its buckets [2**18]."""
    n = len(values)
    inside = np.int64((1 << BUCKETS_LOG) - 1)
    zero = np.uint64(0)
    signs = np.empty((1, 128), np.float32)
    signed = np.empty(128, np.float32)
    row, shift, done = np.int64(-1), np.int64(0), np.int64(0)
    while done < n:
        c = np.int64(offset) + done
        if c >> BUCKETS_LOG != row:
            row = c >> BUCKETS_LOG
            r = np.uint64(row)
            shift = np.int64(philox(r & _LOW, r >> _HALF, zero, np.uint64(shift_tag), k0, k1)[0]) & inside
        call = np.uint64(c >> 7)
        sign_lanes(philox(call & _LOW, call >> _HALF, zero, np.uint64(sign_tag), k0, k1), signs, 0)
        lane = c & 127
        count = 128 - lane if done + 128 - lane < n else n - done
        for i in range(count):
            signed[i] = values[done + i] * signs[0, lane + i]
        base, low = ((c & inside) ^ shift) & ~np.int64(127), shift & 127
        for i in range(count):
            total[np.uint64(base + ((lane + i) ^ low))] += signed[i]
        done += count


def sketch(values: Tensor, seed: int, offset: int, total: Tensor) -> None:
    """Add the CountSketch of [B, n] values to total [B, 2**18] float32; see `philox.buckets`."""
    buckets = total.numpy()
    tags = int(Tag.SKETCH_SIGN), int(Tag.SKETCH_SHIFT)
    for start, held in segments(values):
        run(
            [partial(_sketch, v, *keys(seed), offset + start, *tags, t) for v, t in zip(held, buckets, strict=True)],
            held.size,
        )


def segments(values: Tensor) -> Iterator[tuple[int, Floats]]:
    """Where each stretch of coordinates starts, and its values in float32: a copy only of what is not."""
    for start in range(0, values.shape[1], SEGMENT):
        yield start, values[:, start : start + SEGMENT].detach().float().contiguous().numpy()


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
