"""The projection on CUDA: Triton kernels that make P's entries in registers and sum on tensor cores.

Every entry is the one that `philox` defines, to the bit; sums are float32, closed every thousand or so coordinates
because tensor cores round their running sums toward zero. Gradients may be bfloat16, or float32 as three bfloat16
parts, so that tensor cores lose nothing of them.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.projection.philox import BUCKETS_LOG, MASK, ROUNDS, Tag, quantiles

_BLOCK = 64  # coordinates to a tensor-core product
_CLOSE = 16  # products after which a running sum is closed
_BATCH = 16  # gradients that share one generation of P at most: with 32, registers run out
_PROGRAMS = 1056  # to a launch: eight times the multiprocessors of an H200
_TILE = 1024  # buckets of the sketch to a program


@triton.jit
def _philox(c0, c1, c2, c3, k0, k1, ROUNDS: tl.constexpr):  # type: ignore[no-untyped-def]
    for _ in tl.static_range(ROUNDS):
        low = c0.to(tl.uint64) * 0xD2511F53
        high = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (high >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = high.to(tl.uint32)
        c2 = (low >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = low.to(tl.uint32)
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def _joined(upper, lower):  # type: ignore[no-untyped-def]
    return (upper.to(tl.int64) << 30) + lower


@triton.jit
def _add(entry, high, middle, low, total, PARTS: tl.constexpr, OPERAND: tl.constexpr):  # type: ignore[no-untyped-def]
    """total + entry @ gradient, the gradient in one part or three."""
    entry = entry.to(OPERAND)
    total = tl.dot(entry, high.to(OPERAND), total)
    if PARTS == 3:
        total = tl.dot(entry, middle.to(OPERAND), total)
        total = tl.dot(entry, low.to(OPERAND), total)
    return total


@triton.jit
def _gradients(values, place, stop, stride, batch, BATCH: tl.constexpr, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """[BLOCK, BATCH] values in bfloat16, and what rounding took from them, twice, where there are three parts."""
    vector = tl.arange(0, BATCH)
    pointers = values + vector[None, :].to(tl.int64) * stride + place[:, None]
    g = tl.load(pointers, mask=(place < stop)[:, None] & (vector < batch)[None, :], other=0.0)
    high = g.to(tl.bfloat16)
    middle, low = high, high
    if PARTS == 3:
        rest = g - high.to(tl.float32)
        middle = rest.to(tl.bfloat16)
        low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
    return high, middle, low


@triton.jit
def _entry(lookup, index, ROWS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Entries of the table by twelve bits, through shared memory: from global memory they take twice as long."""
    return tl.gather(lookup, (index & 0xFFF).to(tl.int32).reshape(ROWS * BLOCK), 0).reshape(ROWS, BLOCK)


@triton.jit(do_not_specialize=["n", "stride", "upper", "lower", "k0", "k1", "tag", "batch", "chunk"])
def _gaussian(  # type: ignore[no-untyped-def]
    values,
    table,
    out,
    n,
    stride,
    upper,
    lower,
    k0,
    k1,
    tag,
    batch,
    chunk,
    ROUNDS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    CLOSE: tl.constexpr,
    BATCH: tl.constexpr,
    PARTS: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """out[program, e, row block, vector] = sum over this program's coordinates of entry * value."""
    offset = _joined(upper, lower)
    start = tl.program_id(0).to(tl.int64) * chunk
    stop = tl.minimum(start + chunk, n)
    block = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.uint32)[:, None]
    vector = tl.arange(0, BATCH)
    lookup = tl.load(table + tl.arange(0, 4096))
    zero = tl.zeros((ROWS, BATCH), tl.float32)
    t0, t1, t2, t3, t4, t5, t6, t7 = zero, zero, zero, zero, zero, zero, zero, zero
    k0, k1 = k0.to(tl.uint32), k1.to(tl.uint32)
    for outer in range(start, stop, BLOCK * CLOSE):
        a0, a1, a2, a3, a4, a5, a6, a7 = zero, zero, zero, zero, zero, zero, zero, zero
        for inner in range(outer, tl.minimum(outer + BLOCK * CLOSE, stop), BLOCK):
            place = inner + tl.arange(0, BLOCK)
            high, middle, low = _gradients(values, place, stop, stride, batch, BATCH, PARTS)
            coordinate = (place + offset)[None, :]
            c0 = tl.broadcast_to(coordinate.to(tl.uint32), (ROWS, BLOCK))
            c1 = tl.broadcast_to((coordinate >> 32).to(tl.uint32), (ROWS, BLOCK))
            c2 = tl.broadcast_to(block, (ROWS, BLOCK))
            c3 = tl.zeros((ROWS, BLOCK), tl.uint32) + tag.to(tl.uint32)
            w0, w1, w2, w3 = _philox(c0, c1, c2, c3, k0, k1, ROUNDS)
            a0 = _add(_entry(lookup, w0, ROWS, BLOCK), high, middle, low, a0, PARTS, OPERAND)
            a1 = _add(_entry(lookup, w0 >> 12, ROWS, BLOCK), high, middle, low, a1, PARTS, OPERAND)
            a2 = _add(_entry(lookup, w1, ROWS, BLOCK), high, middle, low, a2, PARTS, OPERAND)
            a3 = _add(_entry(lookup, w1 >> 12, ROWS, BLOCK), high, middle, low, a3, PARTS, OPERAND)
            a4 = _add(_entry(lookup, w2, ROWS, BLOCK), high, middle, low, a4, PARTS, OPERAND)
            a5 = _add(_entry(lookup, w2 >> 12, ROWS, BLOCK), high, middle, low, a5, PARTS, OPERAND)
            a6 = _add(_entry(lookup, w3, ROWS, BLOCK), high, middle, low, a6, PARTS, OPERAND)
            a7 = _add(_entry(lookup, w3 >> 12, ROWS, BLOCK), high, middle, low, a7, PARTS, OPERAND)
        t0, t1, t2, t3 = t0 + a0, t1 + a1, t2 + a2, t3 + a3
        t4, t5, t6, t7 = t4 + a4, t5 + a5, t6 + a6, t7 + a7
    program = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)).to(tl.int64)
    rows = tl.arange(0, ROWS)[:, None]
    base = out + program * (8 * ROWS * BATCH) + rows * BATCH + vector[None, :]
    size: tl.constexpr = ROWS * BATCH
    tl.store(base, t0)
    tl.store(base + size, t1)
    tl.store(base + 2 * size, t2)
    tl.store(base + 3 * size, t3)
    tl.store(base + 4 * size, t4)
    tl.store(base + 5 * size, t5)
    tl.store(base + 6 * size, t6)
    tl.store(base + 7 * size, t7)


@triton.jit(do_not_specialize=["n", "stride", "upper", "lower", "k0", "k1", "tag", "batch", "chunk"])
def _rademacher(  # type: ignore[no-untyped-def]
    values,
    out,
    n,
    stride,
    upper,
    lower,
    k0,
    k1,
    tag,
    batch,
    chunk,
    ROUNDS: tl.constexpr,
    CALLS: tl.constexpr,
    BLOCK: tl.constexpr,
    CLOSE: tl.constexpr,
    BATCH: tl.constexpr,
    PARTS: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """out[program, word, call * 32 + bit, vector]: 128 rows to a call of Philox, CALLS calls to a program."""
    offset = _joined(upper, lower)
    start = tl.program_id(0).to(tl.int64) * chunk
    stop = tl.minimum(start + chunk, n)
    ROWS: tl.constexpr = CALLS * 32
    call = (tl.program_id(1) * CALLS + tl.arange(0, CALLS)).to(tl.uint32)[:, None]
    vector = tl.arange(0, BATCH)
    shift = tl.arange(0, 32).to(tl.uint32)[None, :, None]
    zero = tl.zeros((ROWS, BATCH), tl.float32)
    t0, t1, t2, t3 = zero, zero, zero, zero
    k0, k1 = k0.to(tl.uint32), k1.to(tl.uint32)
    for outer in range(start, stop, BLOCK * CLOSE):
        a0, a1, a2, a3 = zero, zero, zero, zero
        for inner in range(outer, tl.minimum(outer + BLOCK * CLOSE, stop), BLOCK):
            place = inner + tl.arange(0, BLOCK)
            high, middle, low = _gradients(values, place, stop, stride, batch, BATCH, PARTS)
            coordinate = (place + offset)[None, :]
            c0 = tl.broadcast_to(coordinate.to(tl.uint32), (CALLS, BLOCK))
            c1 = tl.broadcast_to((coordinate >> 32).to(tl.uint32), (CALLS, BLOCK))
            c2 = tl.broadcast_to(call, (CALLS, BLOCK))
            c3 = tl.zeros((CALLS, BLOCK), tl.uint32) + tag.to(tl.uint32)
            w0, w1, w2, w3 = _philox(c0, c1, c2, c3, k0, k1, ROUNDS)
            a0 = _add(_signs(w0, shift, ROWS, BLOCK), high, middle, low, a0, PARTS, OPERAND)
            a1 = _add(_signs(w1, shift, ROWS, BLOCK), high, middle, low, a1, PARTS, OPERAND)
            a2 = _add(_signs(w2, shift, ROWS, BLOCK), high, middle, low, a2, PARTS, OPERAND)
            a3 = _add(_signs(w3, shift, ROWS, BLOCK), high, middle, low, a3, PARTS, OPERAND)
        t0, t1, t2, t3 = t0 + a0, t1 + a1, t2 + a2, t3 + a3
    program = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)).to(tl.int64)
    size: tl.constexpr = ROWS * BATCH
    base = out + program * (4 * size) + tl.arange(0, ROWS)[:, None] * BATCH + vector[None, :]
    tl.store(base, t0)
    tl.store(base + size, t1)
    tl.store(base + 2 * size, t2)
    tl.store(base + 3 * size, t3)


@triton.jit
def _signs(word, shift, ROWS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The 32 bits of each word as rows of -1 and 1: [CALLS, BLOCK] -> [CALLS * 32, BLOCK]."""
    bit = (word[:, None, :] >> shift) & 1
    return ((bit << 15) | 0x3F80).to(tl.uint16).to(tl.bfloat16, bitcast=True).reshape(ROWS, BLOCK)


@triton.jit(do_not_specialize=["n", "stride", "upper", "lower", "k0", "k1", "sign_tag", "shift_tag", "rows"])
def _sketch(  # type: ignore[no-untyped-def]
    values,
    out,
    n,
    stride,
    upper,
    lower,
    k0,
    k1,
    sign_tag,
    shift_tag,
    rows,
    ROUNDS: tl.constexpr,
    LOG: tl.constexpr,
    TILE: tl.constexpr,
):
    """out[split, vector, bucket] for the buckets of one tile: no two programs write the same place."""
    RUNS: tl.constexpr = TILE // 128
    run = tl.program_id(0) * RUNS + tl.arange(0, RUNS)[:, None]
    lane = tl.arange(0, 128)[None, :]
    offset = _joined(upper, lower)
    first = (offset >> LOG) + tl.program_id(1).to(tl.int64) * rows
    last = tl.minimum(first + rows, ((offset + n - 1) >> LOG) + 1)
    pointer = values + tl.program_id(2).to(tl.int64) * stride
    k0, k1 = k0.to(tl.uint32), k1.to(tl.uint32)
    zero = (run * 0).to(tl.uint32)
    total = tl.zeros((RUNS, 128), tl.float32)
    for row in range(first, last):
        drawn = run.to(tl.int64) * 0 + row  # the same for all
        shift, _, _, _ = _philox(
            drawn.to(tl.uint32), (drawn >> 32).to(tl.uint32), zero, zero + shift_tag.to(tl.uint32), k0, k1, ROUNDS
        )
        shift = (shift & ((1 << LOG) - 1)).to(tl.int32)
        call = (drawn << (LOG - 7)) + (run ^ (shift >> 7))
        w0, w1, w2, w3 = _philox(
            call.to(tl.uint32), (call >> 32).to(tl.uint32), zero, zero + sign_tag.to(tl.uint32), k0, k1, ROUNDS
        )
        inside = lane ^ (shift & 127)
        place = (call << 7) + inside - offset
        value = tl.load(pointer + place, mask=(place >= 0) & (place < n), other=0.0).to(tl.float32)
        word = tl.where((inside & 64) != 0, tl.where((inside & 32) != 0, w3, w2), tl.where((inside & 32) != 0, w1, w0))
        negative = ((word >> (inside & 31).to(tl.uint32)) & 1) != 0
        total += tl.where(negative, -value, value)
    base = (tl.program_id(1).to(tl.int64) * tl.num_programs(2) + tl.program_id(2)) << LOG
    tl.store(out + base + (run << 7) + lane, total)


@cache
def _table(device: torch.device) -> Tensor:
    return torch.tensor(quantiles(), device=device).bfloat16()


def _keys(seed: int) -> tuple[int, int]:
    return seed & MASK, (seed >> 32) & MASK


def _halves(offset: int) -> tuple[int, int]:
    """Two arguments below 2**31, since Triton types a number by its size, and its interpreter some of them wrongly."""
    return offset >> 30, offset & ((1 << 30) - 1)


def dense(values: Tensor, seed: int, offset: int, tag: Tag, total: Tensor) -> None:
    """Add the unscaled share of [B, n] bfloat16 or float32 values to total [B, dim] float64, on their device."""
    values = _readable(values)
    n, dim, step = values.shape[1], total.shape[1], _BLOCK * _CLOSE
    groups = -(-dim // 512)  # of 512 rows
    chunk = -(-n // (min(-(-n // step), max(1, _PROGRAMS // groups)) * step)) * step
    programs = -(-n // chunk)
    for first in range(0, len(values), _BATCH):
        part = values[first : first + _BATCH]
        batch = 8 if len(part) <= 8 else _BATCH
        out = torch.empty((groups, programs, 512 * batch), device=values.device)
        common = (part.shape[1], part.stride(0), *_halves(offset), *_keys(seed), int(tag), len(part), chunk)
        shape = {"ROUNDS": ROUNDS, "BLOCK": _BLOCK, "CLOSE": _CLOSE, "BATCH": batch, **_operands(values)}
        if tag == Tag.RADEMACHER:
            _rademacher[(programs, groups)](part, out, *common, CALLS=4, **shape)
            rows = out.sum(1, dtype=torch.float64).view(groups, 4, 4, 32, batch).permute(4, 0, 2, 1, 3)
        else:
            _gaussian[(programs, groups)](part, _table(values.device), out, *common, ROWS=64, **shape)
            rows = out.sum(1, dtype=torch.float64).view(groups, 8, 64, batch).permute(3, 0, 2, 1)
        total[first : first + len(part)] += rows.reshape(batch, -1)[: len(part), :dim]


def _readable(values: Tensor) -> Tensor:
    """Values as the kernels read them: other float types go through float32, rows are contiguous."""
    values = values.detach()
    values = values if values.dtype in (torch.bfloat16, torch.float32) else values.float()
    return values if values.stride(1) == 1 else values.contiguous()


def _operands(values: Tensor) -> dict[str, object]:
    """In how many bfloat16 parts a gradient goes through the tensor cores; Triton's interpreter has no such type."""
    interpreted = values.device.type == "cpu"
    return {
        "PARTS": 1 if values.dtype == torch.bfloat16 else 3,
        "OPERAND": tl.float32 if interpreted else tl.bfloat16,
    }


def sketch(values: Tensor, seed: int, offset: int, total: Tensor) -> None:
    """Add the CountSketch of [B, n] values to total [B, 2**18] float32, on their device; see `philox.buckets`."""
    values = _readable(values)
    batch, n = values.shape
    rows = ((offset + n - 1) >> BUCKETS_LOG) - (offset >> BUCKETS_LOG) + 1
    each = -(-rows // min(-(-rows // 8), 16))
    splits = -(-rows // each)
    out = torch.empty((splits, batch, 1 << BUCKETS_LOG), device=values.device)
    tags = int(Tag.SKETCH_SIGN), int(Tag.SKETCH_SHIFT)
    _sketch[((1 << BUCKETS_LOG) // _TILE, splits, batch)](
        values,
        out,
        n,
        values.stride(0),
        *_halves(offset),
        *_keys(seed),
        *tags,
        each,
        ROUNDS=ROUNDS,
        LOG=BUCKETS_LOG,
        TILE=_TILE,
    )
    total += out.sum(0)
