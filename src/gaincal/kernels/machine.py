"""What numba lacks: calls by address, and exchanging bits between elements and bit planes, 64 elements at a time."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

WIDTH = 64
WEIGHED, LANES = 256, 16
_INT8, _INT32, _INT64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_BITS = ir.VectorType(ir.IntType(1), WIDTH)


@intrinsic  # type: ignore[untyped-decorator]
def call_lz4(_context: Any, _function: Any, _source: Any, _target: Any, _size: Any, _room: Any) -> Any:
    """``int function(source, target, size, room)``, as LZ4 declares its functions."""

    def codegen(_context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        pointer = _INT8.as_pointer()
        kind = ir.FunctionType(_INT32, [pointer, pointer, _INT32, _INT32])
        function, source, target, size, room = arguments
        given = [b.inttoptr(source, pointer), b.inttoptr(target, pointer), b.trunc(size, _INT32), b.trunc(room, _INT32)]
        return b.sext(b.call(b.inttoptr(function, kind.as_pointer()), given), _INT64)

    return types.int64(*[types.int64] * 5), codegen


@intrinsic  # type: ignore[untyped-decorator]
def call_kernel(
    _context: Any, _kernel: Any, _table: Any, _begin: Any, _end: Any, _pixels: Any, _first: Any, _last: Any
) -> Any:
    """Call a compiled program; see `gaincal.kernels.compiler.compile_program`."""

    def codegen(context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_INT64] * 6)
        b.call(b.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), codegen


@intrinsic  # type: ignore[untyped-decorator]
def call_pread(_context: Any, _function: Any, _descriptor: Any, _target: Any, _size: Any, _place: Any) -> Any:
    """``ssize_t function(descriptor, target, size, place)``, as POSIX declares pread."""

    def codegen(_context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_INT64, [_INT32, _INT64, _INT64, _INT64])
        function, descriptor, target, size, place = arguments
        given = [b.trunc(descriptor, _INT32), target, size, place]
        return b.call(b.inttoptr(function, kind.as_pointer()), given)

    return types.int64(*[types.int64] * 5), codegen


@intrinsic  # type: ignore[untyped-decorator]
def call_yield(_context: Any, _function: Any) -> Any:
    """``int function(void)``, as POSIX declares sched_yield."""

    def codegen(context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_INT32, [])
        b.call(b.inttoptr(arguments[0], kind.as_pointer()), [])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def next_number(_context: Any, _counter: Any) -> Any:
    """The 64-bit number at an address, which threads share: each gets another, from 0 on.

    Who sees a number counted sees everything that was stored before.
    """

    def codegen(_context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        address = b.inttoptr(arguments[0], _INT64.as_pointer())
        return b.atomic_rmw("add", address, ir.Constant(_INT64, 1), "acq_rel")

    return types.int64(types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def shared_number(_context: Any, _counter: Any) -> Any:
    """The 64-bit number at an address, as far as threads have counted it with `next_number`."""

    def codegen(_context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        return b.load_atomic(b.inttoptr(arguments[0], _INT64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def load_big_endian(_context: Any, _address: Any) -> Any:
    """The 32-bit number, highest byte first, at an address."""

    def codegen(_context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        loaded = b.load(b.inttoptr(arguments[0], _INT32.as_pointer()), align=1)
        return b.zext(_swapped(b, loaded), _INT64)

    return types.int64(types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def store_big_endian(_context: Any, _address: Any, _number: Any) -> Any:
    """Store a 32-bit number, highest byte first, at an address."""

    def codegen(context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        address, number = arguments
        b.store(_swapped(b, b.trunc(number, _INT32)), b.inttoptr(address, _INT32.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def store_byte(_context: Any, _address: Any, _number: Any) -> Any:
    """Store a byte at an address."""

    def codegen(context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        address, number = arguments
        b.store(b.trunc(number, _INT8), b.inttoptr(address, _INT8.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def store_number(_context: Any, _address: Any, _number: Any) -> Any:
    """Store a 64-bit number at an address."""

    def codegen(context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        address, number = arguments
        b.store(number, b.inttoptr(address, _INT64.as_pointer()), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


def _loader(bits: int) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def load(_context: Any, _address: Any) -> Any:
        def codegen(_context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
            kind = ir.IntType(bits)
            loaded = b.load(b.inttoptr(arguments[0], kind.as_pointer()), align=1)
            return b.zext(loaded, _INT64) if bits < 64 else loaded

        return types.uint64(types.int64), codegen

    return load


load_byte, load_word, load_number = _loader(8), _loader(16), _loader(64)
"""The byte, and the number of 16 and 64 bits, lowest byte first, at an address."""


@intrinsic  # type: ignore[untyped-decorator]
def weigh_words(_context: Any, _address: Any) -> Any:
    """The sum of 256 words at an address in the upper half, and that of each times 256, 255 ... 1 in the lower."""

    def codegen(_context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        narrow, wide = (ir.VectorType(kind, LANES) for kind in (ir.IntType(16), _INT32))
        total = weighted = ir.Constant(wide, [0] * LANES)
        for first in range(0, WEIGHED, LANES):
            address = b.add(arguments[0], ir.Constant(_INT64, 2 * first))
            words = b.zext(b.load(b.inttoptr(address, narrow.as_pointer()), align=1), wide)
            weights = ir.Constant(wide, [WEIGHED - first - lane for lane in range(LANES)])
            total, weighted = b.add(total, words), b.add(weighted, b.mul(words, weights))
        sums = [b.zext(_summed(b, vector), _INT64) for vector in (total, weighted)]
        return b.or_(b.shl(sums[0], ir.Constant(_INT64, 32)), sums[1])

    return types.uint64(types.int64), codegen


def _summed(b: Any, vector: Any) -> Any:
    kind = ir.FunctionType(_INT32, [vector.type])
    function = cgutils.get_or_insert_function(b.module, kind, f"llvm.vector.reduce.add.v{LANES}i32")
    return b.call(function, [vector])


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(_context: Any, _address: Any) -> Any:
    """Ask for the cache line of an address before it is needed; any address will do."""

    def codegen(context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        pointer = _INT8.as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, _INT32, _INT32, _INT32])
        fetch = b.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        b.call(fetch, [b.inttoptr(arguments[0], pointer), *(ir.Constant(_INT32, n) for n in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def copy_bytes(_context: Any, _source: Any, _target: Any, _size: Any) -> Any:
    """Copy bytes from one address to another."""

    def codegen(context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        source, target, size = arguments
        pointer = _INT8.as_pointer()
        cgutils.raw_memcpy(b, b.inttoptr(target, pointer), b.inttoptr(source, pointer), size, 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def equal_neighbours(_context: Any, _address: Any) -> Any:
    """Which of 64 bytes at an address equal the byte before them: a bit for each, the lowest for the first."""

    def codegen(_context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        kind = ir.VectorType(_INT8, WIDTH)
        before = b.sub(arguments[0], ir.Constant(_INT64, 1))
        here, there = (b.load(b.inttoptr(a, kind.as_pointer()), align=1) for a in (arguments[0], before))
        return b.bitcast(b.icmp_unsigned("==", here, there), _INT64)

    return types.uint64(types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def trailing_zeros(_context: Any, _bits: Any) -> Any:
    """The place of the lowest set bit of a 64-bit number that is not 0."""

    def codegen(_context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        return b.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def gather_words(_context: Any, _planes: Any, _stride: Any, _words: Any) -> Any:
    """64 words out of 16 bit planes: ``planes`` is where their bits of the lowest plane lie."""

    def codegen(context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        planes, stride, words = arguments
        low = _gathered_byte(b, planes, stride)
        high = _gathered_byte(b, b.add(planes, b.mul(stride, ir.Constant(_INT64, 8))), stride)
        wide = ir.VectorType(ir.IntType(16), WIDTH)
        eight = ir.Constant(wide, [8] * WIDTH)
        value = b.or_(b.zext(low, wide), b.shl(b.zext(high, wide), eight))
        b.store(value, b.inttoptr(words, wide.as_pointer()), align=WIDTH)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


def spread_elements(size: int) -> Any:
    """Make the function that puts 64 elements of `size` bytes into bit planes."""

    @intrinsic  # type: ignore[untyped-decorator]
    def spread(_context: Any, _elements: Any, _planes: Any, _stride: Any) -> Any:
        def codegen(context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
            elements, planes, stride = arguments
            kind = ir.VectorType(ir.IntType(8 * size), WIDTH)
            value = b.load(b.inttoptr(elements, kind.as_pointer()), align=size)
            for place in range(size):
                shifted = b.lshr(value, ir.Constant(kind, [8 * place] * WIDTH)) if place else value
                narrow = ir.VectorType(_INT8, WIDTH)
                _spread_byte(b, shifted if size == 1 else b.trunc(shifted, narrow), planes, stride, 8 * place)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), codegen

    return spread


def _swapped(b: Any, number: Any) -> Any:
    kind = ir.FunctionType(_INT32, [_INT32])
    return b.call(cgutils.get_or_insert_function(b.module, kind, "llvm.bswap.i32"), [number])


def _gathered_byte(b: Any, planes: Any, stride: Any) -> Any:
    """A byte of each element from eight planes, lowest bit first."""
    kind = ir.VectorType(_INT8, WIDTH)
    found, address = ir.Constant(kind, [0] * WIDTH), planes
    for bit in range(8):
        plane = b.bitcast(b.load(b.inttoptr(address, _INT64.as_pointer()), align=1), _BITS)
        weight = 1 << bit if bit < 7 else -128
        found = b.select(plane, b.add(found, ir.Constant(kind, [weight] * WIDTH)), found)
        address = b.add(address, stride)
    return found


def _spread_byte(b: Any, value: Any, planes: Any, stride: Any, first: int) -> None:
    """A byte of each element to eight planes: its highest bit is its sign, the next one after doubling it."""
    zero = ir.Constant(value.type, [0] * WIDTH)
    for bit in range(7, -1, -1):
        plane = b.bitcast(b.icmp_signed("<", value, zero), _INT64)
        address = b.add(planes, b.mul(stride, ir.Constant(_INT64, first + bit)))
        b.store(plane, b.inttoptr(address, _INT64.as_pointer()), align=1)
        value = b.add(value, value)
