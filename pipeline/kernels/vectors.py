"""Sixteen row blocks of one coordinate at a time in a CPU's vector registers: Philox, then sixteen-fold look-ups.

numba's own vectoriser gives up here, as it cannot know that the table and the result do not overlap, so these inner
steps are written in LLVM's vector instructions. They are portable: AVX-512 runs them as they stand, AVX2 and NEON in
parts.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pipeline.kernels.philox import MASK, MULTIPLIERS, ROUNDS, WEYL

LANES = 16
_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_WORDS, _INDICES = ir.VectorType(_I64, LANES), ir.VectorType(_I32, LANES)
_FLOATS, _POINTERS = ir.VectorType(_F32, LANES), ir.VectorType(ir.PointerType(_F32), LANES)
_ALL = ir.VectorType(ir.IntType(1), LANES)


def _same(value: int, kind: Any = _WORDS) -> Any:
    return ir.Constant(kind, [value] * LANES)


def _spread(build: Any, scalar: Any) -> Any:
    """One 64-bit scalar in every lane."""
    one = build.insert_element(ir.Constant(_WORDS, ir.Undefined), scalar, ir.Constant(_I32, 0))
    return build.shuffle_vector(one, ir.Constant(_WORDS, ir.Undefined), ir.Constant(_INDICES, [0] * LANES))


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
        k0 = build.and_(build.add(k0, ir.Constant(_I64, WEYL[0])), ir.Constant(_I64, MASK))
        k1 = build.and_(build.add(k1, ir.Constant(_I64, WEYL[1])), ir.Constant(_I64, MASK))
    return [c0, c1, c2, c3]


def _look_up(build: Any, table: Any, indices: Any) -> Any:
    name = f"llvm.masked.gather.v{LANES}f32.v{LANES}p0"
    gather = build.module.globals.get(name) or ir.Function(
        build.module, ir.FunctionType(_FLOATS, [_POINTERS, _I32, _ALL, _FLOATS]), name
    )
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
        start = build.mul(row, ir.Constant(_I64, 8 * LANES))
        counter = [
            _spread(build, build.and_(coordinate, ir.Constant(_I64, MASK))),
            _spread(build, build.lshr(coordinate, ir.Constant(_I64, 32))),
            build.add(_spread(build, block), ir.Constant(_WORDS, list(range(LANES)))),
            _spread(build, tag),
        ]
        drawn = [build.trunc(c, _INDICES) for c in _philox(build, counter, k0, k1)]
        for e in range(8):
            shifted = build.lshr(drawn[e // 2], _same(12, _INDICES)) if e % 2 else drawn[e // 2]
            found = _look_up(build, entries, build.and_(shifted, _same(0xFFF, _INDICES)))
            place = build.gep(target, [build.add(start, ir.Constant(_I64, e * LANES))], source_etype=_F32)
            build.store(found, build.bitcast(place, ir.PointerType(_FLOATS)), align=4)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def sign_lanes(_typing, words, out, row):  # type: ignore[no-untyped-def]
    """``out[row, 32 w + bit]`` = -1 where that bit of word w is set, else 1: four uint64, out [rows, 128] float32."""
    signature = types.void(words, out, types.int64)

    def generate(context, build, signature, arguments):  # type: ignore[no-untyped-def]
        words, out, row = arguments
        target = context.make_array(signature.args[1])(context, build, out).data
        start = build.mul(row, ir.Constant(_I64, 128))
        for w, word in enumerate(cgutils.unpack_tuple(build, words, 4)):
            lanes = build.trunc(_spread(build, word), _INDICES)
            for first in (0, LANES):
                bits = build.lshr(lanes, ir.Constant(_INDICES, list(range(first, first + LANES))))
                found = build.or_(build.shl(bits, _same(31, _INDICES)), _same(0x3F800000, _INDICES))  # 1.0 and a sign
                place = build.gep(target, [build.add(start, ir.Constant(_I64, 32 * w + first))], source_etype=_F32)
                signs = build.bitcast(found, _FLOATS)
                build.store(signs, build.bitcast(place, ir.PointerType(_FLOATS)), align=4)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def add_products(_typing, values, row, column, tile, total):  # type: ignore[no-untyped-def]
    """``total[row, i] += sum over m < 8 of values[row, column + m] * tile[m, i]``, in order of m.

    values [B, n], tile [8, 128] and total [B, 128] float32, C-contiguous; row and column int64.
    """
    signature = types.void(values, types.int64, types.int64, tile, total)

    def generate(context, build, signature, arguments):  # type: ignore[no-untyped-def]
        kinds, arrays = [signature.args[i] for i in (0, 3, 4)], [arguments[i] for i in (0, 3, 4)]
        held = [context.make_array(k)(context, build, a) for k, a in zip(kinds, arrays, strict=True)]
        row, column = arguments[1], arguments[2]
        vector, undefined = ir.PointerType(_FLOATS), ir.Constant(_FLOATS, ir.Undefined)
        name = f"llvm.fmuladd.v{LANES}f32"
        multiply_add = build.module.globals.get(name) or ir.Function(
            build.module, ir.FunctionType(_FLOATS, [_FLOATS] * 3), name
        )

        def at(array: Any, index: Any) -> Any:
            return build.gep(array.data, [index], source_etype=_F32)

        first = build.add(build.mul(row, cgutils.unpack_tuple(build, held[0].shape, 2)[1]), column)
        broadcast = []
        for m in range(8):
            scalar = build.load(at(held[0], build.add(first, ir.Constant(_I64, m))), typ=_F32)
            one = build.insert_element(undefined, scalar, ir.Constant(_I32, 0))
            broadcast.append(build.shuffle_vector(one, undefined, ir.Constant(_INDICES, [0] * LANES)))
        start = build.mul(row, ir.Constant(_I64, 8 * LANES))
        for i in range(0, 8 * LANES, LANES):
            place = build.bitcast(at(held[2], build.add(start, ir.Constant(_I64, i))), vector)
            found = build.load(place, align=4, typ=_FLOATS)
            for m in range(8):
                entries = build.bitcast(at(held[1], ir.Constant(_I64, m * 8 * LANES + i)), vector)
                found = build.call(multiply_add, [broadcast[m], build.load(entries, align=4, typ=_FLOATS), found])
            build.store(found, place, align=4)
        return context.get_dummy_value()

    return signature, generate
