"""Sixteen row blocks of one coordinate at a time in a CPU's vector registers: Philox, then sixteen quantiles.

numba's own vectoriser gives up here, as it cannot know that the table and the result do not overlap, so these inner
steps are written in LLVM's vector instructions. They are portable: AVX-512 runs them as they stand, AVX2 and NEON in
parts. With AVX-512 the quantiles are computed in registers, to the bit those of the table that others look up: sixteen
look-ups take longer than four permutes and three multiplications.
"""

from __future__ import annotations

import platform
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

from pipeline.projection.philox import FIRST, MASK, MULTIPLIERS, ROUNDS, WEYL, by_cubics, cubics, quantiles

LANES = 16
_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_WORDS, _INDICES = ir.VectorType(_I64, LANES), ir.VectorType(_I32, LANES)
_FLOATS, _POINTERS = ir.VectorType(_F32, LANES), ir.VectorType(ir.PointerType(_F32), LANES)
_ALL = ir.VectorType(ir.IntType(1), LANES)


@cache
def has_permutes() -> bool:
    """Whether numba compiles for AVX-512, whose permutes stand for a table of 32 entries: on an x86 that has it, unless
    numba was told of another processor."""
    if platform.machine().lower() not in ("x86_64", "amd64") or config.CPU_NAME or config.CPU_FEATURES:
        return False
    return bool(get_host_cpu_features().get("avx512f")) and np.array_equal(by_cubics(), quantiles())


def _same(value: int, kind: Any = _WORDS) -> Any:
    return ir.Constant(kind, [value] * LANES)


def _int(value: int) -> Any:
    return ir.Constant(_I64, value)


def _broadcast(build: Any, scalar: Any, kind: Any) -> Any:
    """One scalar in every lane."""
    one = build.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(_I32, 0))
    return build.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(_INDICES, [0] * LANES))


def _spread(build: Any, word: Any) -> Any:
    return _broadcast(build, word, _WORDS)


def _place(build: Any, array: Any, index: Any) -> Any:
    """The sixteen floats from an index on."""
    return build.bitcast(build.gep(array, [index], source_etype=_F32), ir.PointerType(_FLOATS))


def _declared(build: Any, name: str, kind: Any) -> Any:
    return build.module.globals.get(name) or ir.Function(build.module, kind, name)


def _philox(build: Any, counter: list[Any], k0: Any, k1: Any) -> list[Any]:
    """The four words, in the low halves of 64-bit lanes; what is above is not cleared."""
    c0, c1, c2, c3 = counter
    half = _same(32)
    for _ in range(ROUNDS):
        low = build.mul(build.and_(c0, _same(MASK)), _same(MULTIPLIERS[0]))
        high = build.mul(build.and_(c2, _same(MASK)), _same(MULTIPLIERS[1]))
        c0 = build.xor(build.xor(build.lshr(high, half), c1), _spread(build, k0))
        c2 = build.xor(build.xor(build.lshr(low, half), c3), _spread(build, k1))
        c1, c3 = high, low
        k0 = build.and_(build.add(k0, _int(WEYL[0])), _int(MASK))
        k1 = build.and_(build.add(k1, _int(WEYL[1])), _int(MASK))
    return [c0, c1, c2, c3]


def _fused(build: Any, a: Any, b: Any, c: Any) -> Any:
    fma = _declared(build, f"llvm.fma.v{LANES}f32", ir.FunctionType(_FLOATS, [_FLOATS] * 3))
    return build.call(fma, [a, b, c])


def _of_thirty_two(build: Any, entries: Any, indices: Any) -> Any:
    """Entries of a row of 32 by the low five bits of the indices, out of two registers."""
    lower, upper = (ir.Constant(_FLOATS, [float(v) for v in part]) for part in (entries[:LANES], entries[LANES:]))
    kind = ir.FunctionType(_FLOATS, [_FLOATS, _INDICES, _FLOATS])
    permute = _declared(build, f"llvm.x86.avx512.vpermi2var.ps.{32 * LANES}", kind)
    return build.call(permute, [lower, indices, upper])


def _computed(build: Any, words: Any) -> Any:
    """The quantiles of the low twelve bits of words, by `philox.cubics`: no memory is looked at."""
    upper_half = build.ashr(build.shl(words, _same(20, _INDICES)), _same(31, _INDICES))  # all ones, or none
    place = build.and_(build.xor(words, upper_half), _same(0x7FF, _INDICES))
    t = build.sitofp(build.add(place, _same(FIRST, _INDICES)), _FLOATS)
    segment = build.lshr(build.bitcast(t, _INDICES), _same(21, _INDICES))
    value, *rest = (_of_thirty_two(build, row, segment) for row in cubics()[::-1])
    for coefficient in rest:
        value = _fused(build, value, t, coefficient)
    rounded = build.and_(
        build.add(build.bitcast(value, _INDICES), _same(0x8000, _INDICES)), _same(0xFFFF0000, _INDICES)
    )
    mirrored = build.xor(rounded, build.and_(upper_half, _same(1 << 31, _INDICES)))
    return build.bitcast(mirrored, _FLOATS)


def _look_up(build: Any, table: Any, indices: Any) -> Any:
    name = f"llvm.masked.gather.v{LANES}f32.v{LANES}p0"
    gather = _declared(build, name, ir.FunctionType(_FLOATS, [_POINTERS, _I32, _ALL, _FLOATS]))
    places = build.gep(table, [indices], source_etype=_F32)
    places.type = _POINTERS  # llvmlite takes no notice of the vector of indices
    every = ir.Constant(_ALL, [1] * LANES)
    return build.call(gather, [places, ir.Constant(_I32, 4), every, ir.Constant(_FLOATS, [0.0] * LANES)])


@intrinsic
def gaussian_lanes(_typing, table, out, row, k0, k1, coordinate, block, tag):  # type: ignore[no-untyped-def]
    """``out[row, 16 e + lane]`` = entry e of row block ``block + lane``: out [rows, 128] float32, C-contiguous.

    The row is an int64, what follows uint64. Arrays come whole with their index because a slice costs numba an atomic
    count of references, which would double the time.
    """
    word = types.uint64
    signature = types.void(table, out, types.int64, word, word, word, word, word)

    def generate(context, build, signature, arguments):  # type: ignore[no-untyped-def]
        table, out, row, k0, k1, coordinate, block, tag = arguments
        entries = context.make_array(signature.args[0])(context, build, table).data
        target = context.make_array(signature.args[1])(context, build, out).data
        start = build.mul(row, _int(8 * LANES))
        counter = [
            _spread(build, build.and_(coordinate, _int(MASK))),
            _spread(build, build.lshr(coordinate, _int(32))),
            build.add(_spread(build, block), ir.Constant(_WORDS, list(range(LANES)))),
            _spread(build, tag),
        ]
        drawn = [build.trunc(c, _INDICES) for c in _philox(build, counter, k0, k1)]
        for e in range(8):
            shifted = build.lshr(drawn[e // 2], _same(12, _INDICES)) if e % 2 else drawn[e // 2]
            if has_permutes():
                values = _computed(build, shifted)
            else:
                values = _look_up(build, entries, build.and_(shifted, _same(0xFFF, _INDICES)))
            build.store(values, _place(build, target, build.add(start, _int(e * LANES))), align=4)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def sign_lanes(_typing, words, out, row):  # type: ignore[no-untyped-def]
    """``out[row, 32 w + bit]`` = -1 where that bit of word w is set, else 1: four uint64, out [rows, 128] float32."""
    signature = types.void(words, out, types.int64)

    def generate(context, build, signature, arguments):  # type: ignore[no-untyped-def]
        words, out, row = arguments
        target = context.make_array(signature.args[1])(context, build, out).data
        start = build.mul(row, _int(128))
        for w, word in enumerate(cgutils.unpack_tuple(build, words, 4)):
            lanes = build.trunc(_spread(build, word), _INDICES)
            for first in (0, LANES):
                bits = build.lshr(lanes, ir.Constant(_INDICES, list(range(first, first + LANES))))
                values = build.or_(build.shl(bits, _same(31, _INDICES)), _same(0x3F800000, _INDICES))  # 1.0 and a sign
                place = _place(build, target, build.add(start, _int(32 * w + first)))
                build.store(build.bitcast(values, _FLOATS), place, align=4)
        return context.get_dummy_value()

    return signature, generate


def _products(vectors: int, chunks: int) -> Any:
    """Registers hold `vectors` x `chunks` sums of 16 rows while the coordinates of a tile go by."""

    @intrinsic
    def add_products(_typing, values, row, column, tile, count, total):  # type: ignore[no-untyped-def]
        """``total[r, i] += sum over m < count of values[r, column + m] * tile[m, i]``, in order of m, for rows from
        `row` on: values [B, n], tile [count, 128] and total [B, 128] float32, C-contiguous; the rest int64."""
        signature = types.void(values, types.int64, types.int64, tile, types.int64, total)

        def generate(context, build, signature, arguments):  # type: ignore[no-untyped-def]
            _, row, column, _, count, _ = arguments
            gradients, entries, sums = (
                context.make_array(signature.args[i])(context, build, arguments[i]) for i in (0, 3, 5)
            )
            stride = cgutils.unpack_tuple(build, gradients.shape, 2)[1]
            multiply_add = _declared(build, f"llvm.fmuladd.v{LANES}f32", ir.FunctionType(_FLOATS, [_FLOATS] * 3))
            for first in range(0, 8, chunks):
                accumulators = [[cgutils.alloca_once(build, _FLOATS) for _ in range(chunks)] for _ in range(vectors)]
                places = [
                    [
                        _place(
                            build, sums.data, build.add(build.mul(build.add(row, _int(v)), _int(8 * LANES)), _int(at))
                        )
                        for at in range(first * LANES, (first + chunks) * LANES, LANES)
                    ]
                    for v in range(vectors)
                ]
                for v, c in product(range(vectors), range(chunks)):
                    build.store(build.load(places[v][c], align=4, typ=_FLOATS), accumulators[v][c])
                with cgutils.for_range(build, count) as loop:
                    tiled = build.add(build.mul(loop.index, _int(8 * LANES)), _int(first * LANES))
                    p = [
                        build.load(_place(build, entries.data, build.add(tiled, _int(c * LANES))), align=4, typ=_FLOATS)
                        for c in range(chunks)
                    ]
                    for v in range(vectors):
                        place = build.add(build.mul(build.add(row, _int(v)), stride), build.add(column, loop.index))
                        scalar = build.load(build.gep(gradients.data, [place], source_etype=_F32), typ=_F32)
                        value = _broadcast(build, scalar, _FLOATS)
                        for c in range(chunks):
                            running = build.load(accumulators[v][c], typ=_FLOATS)
                            build.store(build.call(multiply_add, [value, p[c], running]), accumulators[v][c])
                for v, c in product(range(vectors), range(chunks)):
                    build.store(build.load(accumulators[v][c], typ=_FLOATS), places[v][c], align=4)
            return context.get_dummy_value()

        return signature, generate

    return add_products


add_products = _products(1, 8)
add_products_of_four = _products(4, 4)


@intrinsic
def sketch_lanes(_typing, words, values, start, total, base, low):  # type: ignore[no-untyped-def]
    """``total[base + (i ^ low)] += values[start + i]``, or minus it where bit i is set, for i < 128.

    words four uint64, values and total float32 vectors, start, base and low int64, base a multiple of 128.
    """
    number = types.int64
    signature = types.void(words, values, number, total, number, number)

    def generate(context, build, signature, arguments):  # type: ignore[no-untyped-def]
        words, values, start, total, base, low = arguments
        gradient, buckets = (
            context.make_array(k)(context, build, a).data
            for k, a in ((signature.args[1], values), (signature.args[3], total))
        )
        swaps = [build.icmp_signed("!=", build.and_(low, _int(1 << k)), _int(0)) for k in range(4)]
        for w, word in enumerate(cgutils.unpack_tuple(build, words, 4)):
            lanes = build.trunc(_spread(build, word), _INDICES)
            for first in (0, LANES):
                at = 32 * w + first
                read = build.load(_place(build, gradient, build.add(start, _int(at))), align=4, typ=_FLOATS)
                bits = build.lshr(lanes, ir.Constant(_INDICES, list(range(first, first + LANES))))
                flips = build.shl(bits, _same(31, _INDICES))
                signed = build.bitcast(build.xor(build.bitcast(read, _INDICES), flips), _FLOATS)
                for k, swap in enumerate(swaps):
                    order = ir.Constant(_INDICES, [i ^ (1 << k) for i in range(LANES)])
                    swapped = build.shuffle_vector(signed, ir.Constant(_FLOATS, ir.Undefined), order)
                    signed = build.select(swap, swapped, signed)
                chunk = build.and_(build.xor(low, _int(at)), _int(127 & ~(LANES - 1)))
                place = _place(build, buckets, build.add(base, chunk))
                build.store(build.fadd(build.load(place, align=4, typ=_FLOATS), signed), place, align=4)
        return context.get_dummy_value()

    return signature, generate
