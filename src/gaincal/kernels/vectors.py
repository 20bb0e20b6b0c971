"""LLVM values for some pixels at a time: types, constants, conversions, memory, comparisons.

A value is a scalar where it is the same for all pixels of a frame, else a vector (a scalar again
where pixels are taken one by one).  No fast-math flag is ever set, so LLVM neither reassociates nor
contracts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from gaincal.formulas.operations import NO_STAGE, Type

BIT, INT8, INT16, INT32, INT64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
SINGLE, DOUBLE = ir.FloatType(), ir.DoubleType()
Value = Any  # llvmlite's types differ from version to version
Builder = Any
CACHE_LINE = 64
REGISTER_BITS = 512
SECOND_CACHE = 2
"""How LLVM calls it when something is to be kept there."""
MANY_BITS = 8
"""Words that have as many low bits in common with a special one are rare enough to be taken for one."""
MAX_COMPARED = 16
"""Up to this many entries are chosen by comparing; beyond, each pixel's value is fetched by address."""

_EXPONENT_BITS = {SINGLE: (INT32, 0x7F800000), DOUBLE: (INT64, 0x7FF0000000000000)}


def integer_type(kind: Type) -> Value:
    """The narrowest type used for an integer whose bounds are known."""
    return INT32 if kind.low >= -(2**31) and kind.high < 2**31 else INT64


def storage_type(dtype: np.dtype[Any]) -> Value:
    """IR type of an element of an array."""
    if dtype.kind == "f":
        return SINGLE if dtype.itemsize == 4 else DOUBLE
    return ir.IntType(8 * dtype.itemsize)


def _bytes(element: Value) -> int:
    if element == SINGLE:
        return 4
    return 8 if element == DOUBLE else int(element.width) // 8


def known_number(index: Value) -> int | None:
    """The number that an index is known to be, for all pixels."""
    if not isinstance(index, ir.Constant):
        return None
    constant = index.constant[0].constant if isinstance(index.type, ir.VectorType) else index.constant
    return int(constant)


@dataclass(frozen=True)
class Room:
    """Where a value of every pixel is: numbers of a type, for a tile, or conditions, eight to a byte."""

    start: Value
    element: Value

    @property
    def conditions(self) -> bool:
        """Whether bits are kept: no number is as narrow as a byte."""
        return bool(self.element == INT8)

    @property
    def width(self) -> int:
        """Bits for a pixel."""
        return 1 if self.conditions else 8 * _bytes(self.element)


class Vectors:
    """Builds values for `width` pixels at a time.

    Parameters
    ----------
    builder : llvmlite.ir.IRBuilder
    compute : {'float32', 'float64'}
        Type of reals.
    width : int
        Pixels per vector.
    """

    def __init__(self, builder: Builder, compute: str, width: int) -> None:
        self.b, self.width = builder, width
        self.real = SINGLE if compute == "float32" else DOUBLE

    # --- types and constants -------------------------------------------------------------

    def vector(self, element: Value) -> Value:
        """The type of a value that varies from pixel to pixel."""
        return ir.VectorType(element, self.width) if self.width > 1 else element

    def constant(self, like: Value, number: int | float) -> Value:
        """A number of the same IR type as `like`."""
        if isinstance(like, ir.VectorType):
            return ir.Constant(like, [self._number(like.element, number)] * like.count)
        return self._number(like, number)

    @staticmethod
    def _number(element: Value, number: int | float) -> Value:
        if element == SINGLE:
            with np.errstate(over="ignore"):  # a number beyond float32 is infinite there
                return ir.Constant(element, float(np.float32(number)))
        return ir.Constant(element, float(number) if element == DOUBLE else int(number))

    def true(self) -> Value:
        """A condition that holds for every pixel."""
        return self.constant(self.vector(BIT), 1)

    @staticmethod
    def known(kind: Type) -> Value:
        """An integer that is the same number whatever the pixel."""
        return ir.Constant(integer_type(kind), kind.low)

    @staticmethod
    def element(value: Value) -> Value:
        """Type of one pixel's value."""
        return value.type.element if isinstance(value.type, ir.VectorType) else value.type

    def is_real(self, value: Value) -> bool:
        """Whether a value is a floating-point number."""
        return self.element(value) in (SINGLE, DOUBLE)

    def shaped(self, value: Value, element: Value) -> Value:
        """The type with the shape of `value` and another element."""
        return ir.VectorType(element, self.width) if isinstance(value.type, ir.VectorType) else element

    def splat(self, value: Value) -> Value:
        """Spread a scalar over a vector."""
        if self.width == 1 or isinstance(value.type, ir.VectorType):
            return value
        whole = ir.VectorType(value.type, self.width)
        if isinstance(value, ir.Constant):
            return ir.Constant(whole, [value] * self.width)
        first = self.b.insert_element(ir.Constant(whole, ir.Undefined), value, ir.Constant(INT32, 0))
        zeros = ir.Constant(ir.VectorType(INT32, self.width), [0] * self.width)
        return self.b.shuffle_vector(first, ir.Constant(whole, ir.Undefined), zeros)

    def alike(self, *values: Value) -> tuple[Value, ...]:
        """Spread scalars where one of the values is a vector."""
        if any(isinstance(v.type, ir.VectorType) for v in values):
            return tuple(self.splat(v) for v in values)
        return values

    def lanes(self) -> Value:
        """0, 1, 2 ... as int64."""
        return ir.Constant(ir.VectorType(INT64, self.width), list(range(self.width)))

    # --- conversions ---------------------------------------------------------------------

    def to_real(self, value: Value) -> Value:
        """A number in the compute type."""
        return value if self.is_real(value) else self.b.sitofp(value, self.shaped(value, self.real))

    def to_integer(self, value: Value, element: Value) -> Value:
        """An integer in a wider or narrower type that holds it."""
        bits = self.element(value).width
        if bits == element.width:
            return value
        return (self.b.sext if bits < element.width else self.b.trunc)(value, self.shaped(value, element))

    def floating(self, value: Value, element: Value) -> Value:
        """A number in a floating-point type, rounded to nearest even."""
        kind = self.shaped(value, element)
        if not self.is_real(value):
            return self.b.sitofp(value, kind)
        if self.element(value) == element:
            return value
        return (self.b.fpext if element == DOUBLE else self.b.fptrunc)(value, kind)

    def numbers(self, *values: Value) -> tuple[Value, ...]:
        """Bring numbers to one kind and shape: all real, or all the wider integer."""
        if any(self.is_real(v) for v in values):
            return self.alike(*(self.to_real(v) for v in values))
        widest = max((self.element(v) for v in values), key=lambda e: int(e.width))
        return self.alike(*(self.to_integer(v, widest) for v in values))

    # --- memory --------------------------------------------------------------------------

    def offset(self, address: Value, count: Value, size: int) -> Value:
        """Address of the element `count` places on."""
        return self.b.add(address, self.b.mul(count, ir.Constant(INT64, size)))

    def load(self, address: Value, element: Value, vector: bool) -> Value:
        """Load one element, or one for each pixel, from an address."""
        kind = self.vector(element) if vector else element
        return self.b.load(self.b.inttoptr(address, kind.as_pointer()), align=_bytes(element))

    def store(self, value: Value, address: Value, streaming: bool = False) -> None:
        """Store a value at an address; past the cache if `streaming`, for which the address must suit a register."""
        size = _bytes(self.element(value))
        align = min(size * self.width, CACHE_LINE) if streaming else size
        stored = self.b.store(value, self.b.inttoptr(address, value.type.as_pointer()), align=align)
        if streaming:
            stored.set_metadata("nontemporal", self.b.module.add_metadata([ir.Constant(INT32, 1)]))

    def prefetch(self, address: Value, size: int, write: bool) -> None:
        """Ask the second cache for some bytes before they are needed; any address will do.

        Not the first: requests to memory would take the places of its misses that constants wait for.
        """
        pointer = ir.IntType(8).as_pointer()
        signature = ir.FunctionType(ir.VoidType(), [pointer, INT32, INT32, INT32])
        fetch = self.b.module.declare_intrinsic("llvm.prefetch", [pointer], signature)
        keep, data = ir.Constant(INT32, SECOND_CACHE), ir.Constant(INT32, 1)
        for line in range(0, size, CACHE_LINE):
            where = self.b.inttoptr(self.b.add(address, ir.Constant(INT64, line)), pointer)
            self.b.call(fetch, [where, ir.Constant(INT32, int(write)), keep, data])

    def room(self, kind: Type, pixels: int) -> Room:
        """A place on the stack for numbers of some pixels."""
        element = self.real if kind.kind == "real" else integer_type(kind)
        with self.b.goto_entry_block():
            place = self.b.alloca(ir.ArrayType(element, pixels))
        place.align = CACHE_LINE
        return Room(self.b.ptrtoint(place, INT64), element)

    def keep(self, value: Value, room: Room, pixel: Value) -> None:
        """Keep a value, spread over the pixels from `pixel` on."""
        value = self.splat(value)
        if self.element(value) == BIT:
            value = self.b.bitcast(value, ir.IntType(self.width))
        elif not self.is_real(value):
            value = self.to_integer(value, room.element)
        self.b.store(value, self._kept_at(room, pixel, value.type), align=_bytes(room.element))

    def kept(self, room: Room, pixel: Value) -> Value:
        """A value that was kept for the pixels from `pixel` on."""
        stored = ir.IntType(self.width) if room.conditions else self.vector(room.element)
        value = self.b.load(self._kept_at(room, pixel, stored), align=_bytes(room.element))
        return self.b.bitcast(value, self.vector(BIT)) if room.conditions else value

    def _kept_at(self, room: Room, pixel: Value, stored: Value) -> Value:
        place = self.b.lshr(pixel, ir.Constant(INT64, 3)) if room.conditions else pixel
        return self.b.inttoptr(self.offset(room.start, place, _bytes(room.element)), stored.as_pointer())

    def given(self, address: Value, dtype: np.dtype[Any], kind: Type, vector: bool) -> Value:
        """Load an input or constant and convert it to the type it is computed in."""
        return self.converted(self.load(address, storage_type(dtype), vector), kind)

    def converted(self, loaded: Value, kind: Type) -> Value:
        """An element as stored, in the type it is computed in."""
        if kind.kind == "real":
            return loaded
        wide = integer_type(kind)
        return loaded if self.element(loaded) == wide else self.b.zext(loaded, self.shaped(loaded, wide))

    def array(self, entries: tuple[int, ...]) -> Value:
        """Address of a constant int32 array in the module."""
        kind = ir.ArrayType(INT32, len(entries))
        array = ir.GlobalVariable(self.b.module, kind, self.b.module.get_unique_name("table"))
        array.linkage, array.global_constant = "internal", True
        array.initializer = ir.Constant(kind, list(entries))
        return self.b.ptrtoint(array, INT64)

    def bounded(self, index: Value, count: int) -> Value:
        """The index as int64 where it lies in 0 ... count - 1, else -1."""
        wide = self.to_integer(index, INT64)
        inside = self.b.icmp_unsigned("<", wide, self.constant(wide.type, count))
        return self.b.select(inside, wide, self.constant(wide.type, NO_STAGE))

    def fetch(self, address: Value, element: Value, places: Value, absent: int | float) -> Value:
        """Load from the given place of an array for every pixel; `absent` where the place is negative."""
        empty = self.compare("<", places, self.constant(places.type, 0))
        safe = self.b.select(empty, self.constant(places.type, 0), places)
        size = _bytes(element)
        if not isinstance(places.type, ir.VectorType):
            loaded = self.load(self.offset(address, safe, size), element, False)
        else:
            loaded = ir.Constant(ir.VectorType(element, self.width), ir.Undefined)
            for lane in range(self.width):
                place = self.b.extract_element(safe, ir.Constant(INT32, lane))
                one = self.load(self.offset(address, place, size), element, False)
                loaded = self.b.insert_element(loaded, one, ir.Constant(INT32, lane))
        return self.b.select(empty, self.constant(loaded.type, absent), loaded)

    # --- what several operations are made of ---------------------------------------------

    def compare(self, symbol: str, a: Value, b: Value) -> Value:
        """A comparison of two integers or two reals; with a NaN only != holds."""
        a, b = self.alike(a, b)
        if not self.is_real(a):
            return self.b.icmp_signed(symbol, a, b)
        return (self.b.fcmp_unordered if symbol == "!=" else self.b.fcmp_ordered)(symbol, a, b)

    def any(self, condition: Value) -> Value:
        """Whether a condition holds for any pixel of a vector."""
        if not isinstance(condition.type, ir.VectorType):
            return condition
        signature = ir.FunctionType(BIT, [condition.type])
        name = f"llvm.vector.reduce.or.v{condition.type.count}i1"
        return self.b.call(cgutils.get_or_insert_function(self.b.module, signature, name), [condition])

    def any_above(self, value: Value, most: int) -> Value:
        """Whether any pixel's value, as unsigned, exceeds a number: registers are joined before one comparison."""
        while value.type.count * value.type.element.width > REGISTER_BITS:
            half = value.type.count // 2
            low, high = (
                self.b.shuffle_vector(value, value, ir.Constant(ir.VectorType(INT32, half), list(range(k, k + half))))
                for k in (0, half)
            )
            value = self.b.select(self.b.icmp_unsigned(">", low, high), low, high)
        return self.any(self.b.icmp_unsigned(">", value, self.constant(value.type, most)))

    def among(self, words: Value, numbers: set[int]) -> Value:
        """Whether words may be among some numbers.

        Numbers whose low bits are all 0 or all 1 are recognised by these, at once.
        """
        width = words.type.element.width
        alike = [n for n in range(2, width + 1) if all((k + 1) % (1 << n) < 2 for k in numbers)]
        if alike and alike[-1] >= MANY_BITS:
            mask = (1 << alike[-1]) - 2
            following = self.b.add(words, self.constant(words.type, 1))
            return self.compare(
                "==", self.b.and_(following, self.constant(words.type, mask)), self.constant(words.type, 0)
            )
        found = self.constant(self.shaped(words, BIT), 0)
        for number in sorted(numbers):
            if number < 1 << width:
                found = self.b.or_(found, self.compare("==", words, self.constant(words.type, number)))
        return found

    def is_nan(self, a: Value) -> Value:
        """Whether a real is a NaN."""
        return self.b.fcmp_unordered("uno", a, a)

    def finite(self, a: Value) -> Value:
        """Whether a real is neither NaN nor infinite: not all bits of its exponent are set."""
        integer, mask = _EXPONENT_BITS[self.element(a)]
        kind = self.shaped(a, integer)
        exponent = self.b.and_(self.b.bitcast(a, kind), self.constant(kind, mask))
        return self.b.icmp_signed("!=", exponent, self.constant(kind, mask))

    def end(self, bound: Value, included: bool) -> Value:
        """The first uint16 above a real (or, if not `included`, at it); the last of all where there is none."""
        bound = self.splat(bound)
        whole = self.intrinsic("llvm.floor" if included else "llvm.ceil", bound)
        found = self.b.fadd(whole, self.constant(whole.type, 1)) if included else whole
        most, least = self.constant(whole.type, 0xFFFF), self.constant(whole.type, 0)
        found = self.b.select(self.b.fcmp_unordered(">", found, most), most, found)
        found = self.b.select(self.b.fcmp_ordered("<", found, least), least, found)
        return self.b.trunc(self.b.fptoui(found, self.shaped(found, INT32)), self.shaped(found, INT16))

    def negation(self, a: Value) -> Value:
        """The opposite of a condition."""
        return self.b.xor(a, self.constant(a.type, 1))

    def intrinsic(self, name: str, *arguments: Value) -> Value:
        """Call an LLVM intrinsic on values of one floating-point type."""
        kind = arguments[0].type
        suffix = "f32" if self.element(arguments[0]) == SINGLE else "f64"
        if isinstance(kind, ir.VectorType):
            suffix = f"v{kind.count}{suffix}"
        signature = ir.FunctionType(kind, [kind] * len(arguments))
        function = cgutils.get_or_insert_function(self.b.module, signature, f"{name}.{suffix}")
        return self.b.call(function, arguments)
