"""What the loops over dark frames do with vectors of pixels: LLVM's own operations."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from gaincal.kernels.dark_rules import ABOVE, BELOW, BINS, NARROW, OUTSIDE, PLACES

LANES = 32
_INT8, _INT16, _INT32, _INT64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_BYTES, _WORDS, _WIDE, _LONG = (ir.VectorType(kind, LANES) for kind in (_INT8, _INT16, _INT32, _INT64))


@intrinsic  # type: ignore[untyped-decorator]
def sum_lanes(_context: Any, _rows: Any, _count: Any, _skip: Any, _limits: Any, _sums: Any) -> Any:
    """Sum `LANES` pixels over at most `GROUP` frames, in registers.

    ``rows``: where the addresses of the frames' rows lie; ``skip``: bytes from there to the pixels; ``limits``: address
    of six words (right, undefined and good ones: first, and how many follow); ``sums``: address of the addresses of
    low, width, used, right, undefined, total and squares, of these pixels.
    """

    def codegen(context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        rows, count, skip, limits, sums = arguments
        table = _table(b, sums, 7)
        low, width = (b.load(b.inttoptr(a, _WORDS.as_pointer()), align=2) for a in table[:2])
        ranges = _ranges(b, limits)
        counts = [cgutils.alloca_once_value(b, ir.Constant(_WORDS, [0] * LANES)) for _ in range(3)]
        totals = [cgutils.alloca_once_value(b, ir.Constant(_WIDE, [0] * LANES)) for _ in range(2)]
        with cgutils.for_range(b, count, intp=_INT64) as loop:
            words = _words(b, rows, loop.index, skip)
            distance = b.sub(words, low)
            inside = b.icmp_unsigned("<=", distance, width)
            tests = (inside, *(_within(b, words, limit) for limit in ranges[:2]))
            for place, test in zip(counts, tests, strict=True):
                b.store(b.sub(b.load(place), b.sext(test, _WORDS)), place)
            kept = b.select(inside, distance, ir.Constant(_WORDS, [0] * LANES))
            wide = b.zext(b.and_(kept, ir.Constant(_WORDS, [NARROW] * LANES)), _WIDE)
            b.store(b.add(b.load(totals[0]), wide), totals[0])
            b.store(b.add(b.load(totals[1]), b.mul(wide, wide)), totals[1])
        for address, place in zip(table[2:5], counts, strict=True):
            _add_to(b, address, b.zext(b.load(place), _WIDE))
        for address, place in zip(table[5:], totals, strict=True):
            _add_to(b, address, b.zext(b.load(place), _LONG))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


@intrinsic  # type: ignore[untyped-decorator]
def count_lanes(_context: Any, _rows: Any, _count: Any, _skip: Any, _limits: Any, _state: Any) -> Any:
    """Count the words of `LANES` pixels in their histograms, at most 65,535 frames.

    ``rows``, ``count``, ``skip``, ``limits``: as for `sum_lanes`; ``state``: address of the addresses of base, shift,
    counts, right and undefined, of these pixels.
    """

    def codegen(context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        rows, count, skip, limits, state = arguments
        table = _table(b, state, 5)
        base = b.load(b.inttoptr(table[0], _WIDE.as_pointer()), align=4)
        shift = b.zext(b.load(b.inttoptr(table[1], _BYTES.as_pointer()), align=1), _WIDE)
        ranges = _ranges(b, limits)
        counts = [cgutils.alloca_once_value(b, ir.Constant(_WORDS, [0] * LANES)) for _ in range(2)]
        places = cgutils.alloca_once(b, _WIDE)
        single = b.bitcast(places, _INT32.as_pointer())
        counters = b.inttoptr(table[2], _INT16.as_pointer())
        own = ir.Constant(_WIDE, [PLACES * lane for lane in range(LANES)])
        with cgutils.for_range(b, count, intp=_INT64) as loop:
            words = _words(b, rows, loop.index, skip)
            for place, limit in zip(counts, ranges, strict=False):
                b.store(b.sub(b.load(place), b.sext(_within(b, words, limit), _WORDS)), place)
            number = b.ashr(b.sub(b.zext(words, _WIDE), base), shift)
            number = b.select(b.icmp_signed(">=", number, _wide(BINS)), _wide(ABOVE), number)
            number = b.select(b.icmp_signed("<", number, _wide(0)), _wide(BELOW), number)
            number = b.select(_within(b, words, ranges[2]), number, _wide(OUTSIDE))
            b.store(b.add(number, own), places)
            for lane in range(LANES):  # without a branch: which bin it is cannot be foreseen
                counter = b.gep(counters, [b.load(b.gep(single, [ir.Constant(_INT32, lane)]))])
                b.store(b.add(b.load(counter), ir.Constant(_INT16, 1)), counter)
        for address, place in zip(table[3:], counts, strict=True):
            _add_to(b, address, b.zext(b.load(place), _WIDE))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


@intrinsic  # type: ignore[untyped-decorator]
def count_within(_context: Any, _address: Any, _count: Any, _first: Any, _span: Any) -> Any:
    """How many words from an address on, a multiple of `LANES` below 65,536, are `first` or at most `span` above."""

    def codegen(_context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        address, count, first, span = arguments
        limit = _splat(b, b.trunc(first, _INT16)), _splat(b, b.trunc(span, _INT16))
        found = cgutils.alloca_once_value(b, ir.Constant(_WORDS, [0] * LANES))
        with cgutils.for_range(b, b.udiv(count, ir.Constant(_INT64, LANES)), intp=_INT64) as loop:
            place = b.add(address, b.mul(loop.index, ir.Constant(_INT64, 2 * LANES)))
            words = b.load(b.inttoptr(place, _WORDS.as_pointer()), align=2)
            b.store(b.sub(b.load(found), b.sext(_within(b, words, limit), _WORDS)), found)
        kind = ir.FunctionType(_INT32, [_WIDE])
        total = cgutils.get_or_insert_function(b.module, kind, f"llvm.vector.reduce.add.v{LANES}i32")
        return b.zext(b.call(total, [b.zext(b.load(found), _WIDE)]), _INT64)

    return types.int64(*[types.int64] * 4), codegen


@intrinsic  # type: ignore[untyped-decorator]
def load_dark_word(_context: Any, _address: Any) -> Any:
    """The word at an address."""

    def codegen(_context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        return b.load(b.inttoptr(arguments[0], _INT16.as_pointer()), align=2)

    return types.uint16(types.int64), codegen


def _table(b: Any, address: Any, length: int) -> list[Any]:
    """The addresses at an address."""
    return [b.load(_at(b, address, 8 * k, _INT64)) for k in range(length)]


def _ranges(b: Any, address: Any) -> list[tuple[Any, Any]]:
    """Three ranges of words at an address: the first, and how many follow, in all lanes."""
    ends = [_splat(b, b.load(_at(b, address, 2 * k, _INT16))) for k in range(6)]
    return list(zip(ends[::2], ends[1::2], strict=True))


def _words(b: Any, rows: Any, frame: Any, skip: Any) -> Any:
    """The words of some pixels of a frame."""
    row = b.load(b.inttoptr(b.add(rows, b.mul(frame, ir.Constant(_INT64, 8))), _INT64.as_pointer()))
    return b.load(b.inttoptr(b.add(row, skip), _WORDS.as_pointer()), align=2)


def _within(b: Any, words: Any, limit: tuple[Any, Any]) -> Any:
    return b.icmp_unsigned("<=", b.sub(words, limit[0]), limit[1])


def _wide(number: int) -> Any:
    return ir.Constant(_WIDE, [number] * LANES)


def _at(b: Any, address: Any, skip: int, kind: Any) -> Any:
    return b.inttoptr(b.add(address, ir.Constant(_INT64, skip)), kind.as_pointer())


def _splat(b: Any, value: Any) -> Any:
    single = b.insert_element(ir.Constant(_WORDS, ir.Undefined), value, ir.Constant(_INT32, 0))
    return b.shuffle_vector(single, single, _wide(0))


def _add_to(b: Any, address: Any, value: Any) -> None:
    place = b.inttoptr(address, value.type.as_pointer())
    b.store(b.add(b.load(place, align=4), value), place, align=4)
