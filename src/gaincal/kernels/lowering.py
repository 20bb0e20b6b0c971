"""Checked steps to LLVM IR: what one operation becomes, on one value or on a vector of pixels.

No step goes through Python or numba arithmetic, whose promotion rules are not those of the format
(numba makes ``int64 - float32`` a double): each becomes the IR instruction of the declared type.
No fast-math flag is ever set, so LLVM neither reassociates nor contracts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from gaincal.formulas.checks import literal_type, literal_value
from gaincal.formulas.operations import NO_STAGE, Type
from gaincal.formulas.program import Program
from gaincal.kernels import transcendental as t

BIT, BYTE, INT32, INT64 = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64)
SINGLE, DOUBLE = ir.FloatType(), ir.DoubleType()
Value = Any  # llvmlite ships no types
Builder = Any
MAX_COMPARED = 16
"""Up to this many planes are chosen by comparing; beyond, each pixel's value is fetched by address."""

_COMPARISONS = {"less": "<", "less_equal": "<=", "greater": ">", "greater_equal": ">=", "equal": "==", "not_equal": "!="}
_ARITHMETIC = {"add": ("fadd", "add"), "subtract": ("fsub", "sub"), "multiply": ("fmul", "mul")}
_EXPONENT_BITS = {SINGLE: (INT32, 0x7F800000), DOUBLE: (INT64, 0x7FF0000000000000)}
MANTISSA_BITS, EXPONENT_BIAS = 52, 1023


def integer_type(kind: Type) -> Value:
    """The narrowest type used for an integer whose bounds are known."""
    return INT32 if -(2**31) <= kind.low and kind.high < 2**31 else INT64


def storage_type(dtype: np.dtype[Any]) -> Value:
    """IR type of an element of an array."""
    if dtype.kind == "f":
        return SINGLE if dtype.itemsize == 4 else DOUBLE
    return ir.IntType(8 * dtype.itemsize)


class Lowering:
    """Lowers operations for pixels taken `width` at a time.

    A value is a scalar where it is the same for all pixels of a frame, else a vector of `width`
    (a scalar again for width 1).

    Parameters
    ----------
    builder : llvmlite.ir.IRBuilder
    program : Program
    width : int
        Pixels per vector.
    types : mapping of str to Type, optional
        Types under an assumption; the program's own if None.
    """

    def __init__(
        self, builder: Builder, program: Program, width: int, types: Mapping[str, Type] | None = None
    ) -> None:
        self.b, self.width = builder, width
        self.real = SINGLE if program.compute == "float32" else DOUBLE
        self.types = dict(program.types) if types is None else dict(types)
        self.tables = {table.name: table.entries for table in program.tables}

    # --- types and constants -------------------------------------------------------------

    def vector(self, element: Value) -> Value:
        return ir.VectorType(element, self.width) if self.width > 1 else element

    def constant(self, like: Value, number: int | float) -> Value:
        """A number of the same IR type as `like`."""
        if isinstance(like, ir.VectorType):
            return ir.Constant(like, [self._number(like.element, number)] * like.count)
        return self._number(like, number)

    @staticmethod
    def _number(element: Value, number: int | float) -> Value:
        if element in (SINGLE, DOUBLE):
            exact = float(np.float32(number)) if element == SINGLE else float(number)
            return ir.Constant(element, exact)
        return ir.Constant(element, int(number))

    @staticmethod
    def element(value: Value) -> Value:
        return value.type.element if isinstance(value.type, ir.VectorType) else value.type

    def is_real(self, value: Value) -> bool:
        return self.element(value) in (SINGLE, DOUBLE)

    def shaped(self, value: Value, element: Value) -> Value:
        """The type with the shape of `value` and another element."""
        return ir.VectorType(element, self.width) if isinstance(value.type, ir.VectorType) else element

    def splat(self, value: Value) -> Value:
        """Spread a scalar over a vector."""
        if self.width == 1 or isinstance(value.type, ir.VectorType):
            return value
        if isinstance(value, ir.Constant):
            return ir.Constant(ir.VectorType(value.type, self.width), [value] * self.width)
        whole = ir.VectorType(value.type, self.width)
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
        return value if self.is_real(value) else self.b.sitofp(value, self.shaped(value, self.real))

    def to_integer(self, value: Value, element: Value) -> Value:
        bits = self.element(value).width
        if bits == element.width:
            return value
        convert = self.b.sext if bits < element.width else self.b.trunc
        return convert(value, self.shaped(value, element))

    def floating(self, value: Value, element: Value) -> Value:
        """Convert a number to a floating-point type."""
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
        widest = max((self.element(v) for v in values), key=lambda e: e.width)
        return self.alike(*(self.to_integer(v, widest) for v in values))

    # --- memory --------------------------------------------------------------------------

    def load(self, address: Value, element: Value, vector: bool) -> Value:
        """Load one element or a vector of them from an address, of any alignment."""
        kind = self.vector(element) if vector else element
        return self.b.load(self.b.inttoptr(address, kind.as_pointer()), align=max(1, _bytes(element)))

    def store(self, value: Value, address: Value) -> None:
        self.b.store(value, self.b.inttoptr(address, value.type.as_pointer()), align=_bytes(self.element(value)))

    def offset(self, address: Value, count: Value, size: int) -> Value:
        """Address of the element `count` places on."""
        return self.b.add(address, self.b.mul(count, ir.Constant(INT64, size)))

    def given(self, address: Value, dtype: np.dtype[Any], kind: Type, vector: bool) -> Value:
        """Load an input or constant and convert it to the type it is computed in."""
        return self.converted(self.load(address, storage_type(dtype), vector), kind)

    def converted(self, loaded: Value, kind: Type) -> Value:
        """An element as stored, in the type it is computed in."""
        if kind.kind == "real":
            return loaded
        wide = integer_type(kind)
        same = self.element(loaded).width == wide.width
        return loaded if same else self.b.zext(loaded, self.shaped(loaded, wide))

    # --- steps ---------------------------------------------------------------------------

    def argument(self, values: dict[str, Value], argument: str) -> Value:
        number = literal_value(argument)
        if number is None:
            return values[argument]
        if isinstance(number, int):
            return ir.Constant(INT32 if abs(number) < 2**31 else INT64, number)
        return self.constant(self.real, number)

    def step(self, name: str, operation: str, arguments: tuple[str, ...], values: dict[str, Value]) -> Value:
        """Lower one step that is not `select`."""
        kind = self.types[name]
        if kind.kind == "integer" and kind.low == kind.high:
            return ir.Constant(integer_type(kind), kind.low)
        if operation == "lookup":
            return self.lookup(self.tables[arguments[0]], self.argument(values, arguments[1]))
        given = [self.argument(values, a) for a in arguments]
        if operation == "power":
            return self.power(self.to_real(given[0]), int(arguments[1]))
        if operation == "bits":
            return self.bits(given[0], int(arguments[1]), int(arguments[2]), self.types[arguments[0]].high)
        if operation == "join":
            return self.join(given[0], int(arguments[1]), given[2], name)
        if operation in _ARITHMETIC:
            return self.arithmetic(operation, given, name)
        if operation in _COMPARISONS:
            settled = self._settled(operation, arguments)
            if settled is not None:
                return ir.Constant(BIT, int(settled))
            return self.compare(_COMPARISONS[operation], *self.numbers(*given))
        method: Callable[..., Value] = getattr(self, _METHODS[operation])
        return method(*given)

    def _settled(self, operation: str, arguments: tuple[str, ...]) -> bool | None:
        """What a comparison of integers gives whatever the pixel, if their bounds decide it."""
        values = [literal_value(a) for a in arguments]
        a, b = (self.types[n] if v is None else literal_type(v) for n, v in zip(arguments, values, strict=True))
        if a.kind != "integer" or b.kind != "integer":
            return None
        always = {
            "less": a.high < b.low,
            "less_equal": a.high <= b.low,
            "greater": a.low > b.high,
            "greater_equal": a.low >= b.high,
            "equal": a.low == a.high == b.low == b.high,
            "not_equal": a.high < b.low or a.low > b.high,
        }
        opposite = {
            "less": "greater_equal",
            "less_equal": "greater",
            "greater": "less_equal",
            "greater_equal": "less",
            "equal": "not_equal",
            "not_equal": "equal",
        }
        if always[operation]:
            return True
        return False if always[opposite[operation]] else None

    def bits(self, word: Value, offset: int, length: int, highest: int) -> Value:
        shifted = self.b.lshr(word, self.constant(word.type, offset)) if offset else word
        if highest >> offset < 1 << length:
            return shifted
        return self.b.and_(shifted, self.constant(word.type, (1 << length) - 1))

    def join(self, low: Value, length: int, high: Value, name: str) -> Value:
        wide = integer_type(self.types[name])
        low, high = self.alike(self.to_integer(low, wide), self.to_integer(high, wide))
        return self.b.or_(low, self.b.shl(high, self.constant(high.type, length)))

    def lookup(self, entries: tuple[int, ...], index: Value) -> Value:
        """An entry of a table: compared where small, else fetched from a constant array."""
        if len(entries) <= MAX_COMPARED:
            chosen = self.constant(self.shaped(index, INT32), NO_STAGE)
            for place, entry in enumerate(entries):
                here = self.compare("==", index, self.constant(index.type, place))
                chosen = self.b.select(here, self.constant(chosen.type, entry), chosen)
            return chosen
        address = self.b.ptrtoint(self._array(entries), INT64)
        return self.fetch(address, INT32, self.bounded(index, len(entries)), NO_STAGE)

    def _array(self, entries: tuple[int, ...]) -> Value:
        """A constant int32 array in the module."""
        kind = ir.ArrayType(INT32, len(entries))
        name = self.b.module.get_unique_name("table")
        array = ir.GlobalVariable(self.b.module, kind, name)
        array.linkage, array.global_constant = "internal", True
        array.initializer = ir.Constant(kind, list(entries))
        return array

    def bounded(self, index: Value, count: int) -> Value:
        """The index as int64 where it lies in 0 ... count - 1, else -1."""
        wide = self.to_integer(index, INT64)
        inside = self.b.icmp_unsigned("<", wide, self.constant(wide.type, count))
        return self.b.select(inside, wide, self.constant(wide.type, NO_STAGE))

    def fetch(self, address: Value, element: Value, places: Value, absent: int | float) -> Value:
        """Load from `address + place` for every lane; `absent` where a place is negative."""
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

    def arithmetic(self, operation: str, given: list[Value], name: str) -> Value:
        a, b = self.numbers(*given)
        real, integer = _ARITHMETIC[operation]
        if self.is_real(a):
            return getattr(self.b, real)(a, b)
        wide = integer_type(self.types[name])
        widest = wide if wide.width > self.element(a).width else self.element(a)
        return getattr(self.b, integer)(self.to_integer(a, widest), self.to_integer(b, widest))

    def divide(self, a: Value, b: Value) -> Value:
        return self.b.fdiv(*self.alike(self.to_real(a), self.to_real(b)))

    def negate(self, a: Value) -> Value:
        if self.is_real(a):
            return self.b.fneg(a)
        wide = self.to_integer(a, INT64)  # the opposite of the lowest int32 needs one more bit
        return self.b.neg(wide)

    def absolute(self, a: Value) -> Value:
        if self.is_real(a):
            return self.intrinsic("llvm.fabs", a)
        wide = self.to_integer(a, INT64)
        negative = self.compare("<", wide, self.constant(wide.type, 0))
        return self.b.select(negative, self.b.neg(wide), wide)

    def minimum(self, a: Value, b: Value) -> Value:
        return self._extreme("<", a, b)

    def maximum(self, a: Value, b: Value) -> Value:
        return self._extreme(">", a, b)

    def _extreme(self, symbol: str, a: Value, b: Value) -> Value:
        a, b = self.numbers(a, b)
        chosen = self.b.select(self.compare(symbol, b, a), b, a)
        if not self.is_real(a):
            return chosen
        chosen = self.b.select(self.b.fcmp_unordered("uno", b, b), b, chosen)
        return self.b.select(self.b.fcmp_unordered("uno", a, a), a, chosen)

    def clip(self, x: Value, low: Value, high: Value) -> Value:
        return self.minimum(self.maximum(x, low), high)

    def compare(self, symbol: str, a: Value, b: Value) -> Value:
        a, b = self.alike(a, b)
        if not self.is_real(a):
            return self.b.icmp_signed(symbol, a, b)
        return (self.b.fcmp_unordered if symbol == "!=" else self.b.fcmp_ordered)(symbol, a, b)

    def conjunction(self, a: Value, b: Value) -> Value:
        return self.b.and_(*self.alike(a, b))

    def disjunction(self, a: Value, b: Value) -> Value:
        return self.b.or_(*self.alike(a, b))

    def negation(self, a: Value) -> Value:
        return self.b.xor(a, self.constant(a.type, 1))

    def where(self, condition: Value, a: Value, b: Value) -> Value:
        a, b = self.numbers(a, b)
        condition, a, b = self.alike(condition, a, b)
        return self.b.select(condition, a, b)

    def finite(self, a: Value) -> Value:
        integer, mask = _EXPONENT_BITS[self.element(a)]
        exponent = self.b.and_(self.b.bitcast(a, self.shaped(a, integer)), self.constant(self.shaped(a, integer), mask))
        return self.b.icmp_signed("!=", exponent, self.constant(exponent.type, mask))

    def intrinsic(self, name: str, *arguments: Value) -> Value:
        """Call an LLVM intrinsic on values of one floating-point type."""
        kind = arguments[0].type
        suffix = "f32" if self.element(arguments[0]) == SINGLE else "f64"
        if isinstance(kind, ir.VectorType):
            suffix = f"v{kind.count}{suffix}"
        signature = ir.FunctionType(kind, [kind] * len(arguments))
        function = cgutils.get_or_insert_function(self.b.module, signature, f"{name}.{suffix}")
        return self.b.call(function, arguments)

    def sqrt(self, a: Value) -> Value:
        return self.intrinsic("llvm.sqrt", self.to_real(a))

    def floor(self, a: Value) -> Value:
        return self.intrinsic("llvm.floor", a)

    def truncate(self, a: Value) -> Value:
        return self.intrinsic("llvm.trunc", a)

    def round_half_even(self, a: Value) -> Value:
        return self.intrinsic("llvm.rint", a)

    def round_half_away(self, a: Value) -> Value:
        whole = self.truncate(a)
        part = self.intrinsic("llvm.fabs", self.b.fsub(a, whole))
        away = self.b.fadd(whole, self.intrinsic("llvm.copysign", self.constant(a.type, 1), a))
        return self.b.select(self.compare(">=", part, self.constant(a.type, 0.5)), away, whole)

    def power(self, x: Value, n: int) -> Value:
        one = self.constant(x.type, 1)
        if n == 0:
            return one
        result = x
        for _ in range(abs(n) - 1):
            result = self.b.fmul(result, x)
        return result if n > 0 else self.b.fdiv(one, result)

    # --- exp and log: the sequences of the specification, in double ----------------------

    def widened(self, a: Value) -> Value:
        return a if self.element(a) == DOUBLE else self.b.fpext(a, self.shaped(a, DOUBLE))

    def narrowed(self, a: Value) -> Value:
        return a if self.real == DOUBLE else self.b.fptrunc(a, self.shaped(a, self.real))

    def series(self, x: Value, coefficients: tuple[float, ...]) -> Value:
        p = self.constant(x.type, coefficients[-1])
        for c in coefficients[-2::-1]:
            p = self.b.fadd(self.b.fmul(p, x), self.constant(x.type, c))
        return p

    def power_of_two(self, exponent: Value) -> Value:
        """2^n for whole n within the normal range, built from its bits."""
        n = self.b.fptosi(exponent, self.shaped(exponent, INT64))
        biased = self.b.add(n, self.constant(n.type, EXPONENT_BIAS))
        return self.b.bitcast(self.b.shl(biased, self.constant(n.type, MANTISSA_BITS)), exponent.type)

    def exponential(self, a: Value) -> Value:
        x = self.widened(self.to_real(a))
        number = lambda value: self.constant(x.type, value)  # noqa: E731
        high = self.compare(">=", x, number(t.EXP_OVERFLOW))
        low = self.compare("<=", x, number(t.EXP_UNDERFLOW))
        nan = self.b.fcmp_unordered("uno", x, x)
        safe = self.b.select(self.b.or_(self.b.or_(high, low), nan), number(0.0), x)
        k = self.intrinsic("llvm.rint", self.b.fmul(safe, number(t.LOG2_E)))
        r = self.b.fsub(safe, self.b.fmul(k, number(t.LN2_HIGH)))
        r = self.b.fsub(r, self.b.fmul(k, number(t.LN2_LOW)))
        half = self.intrinsic("llvm.floor", self.b.fmul(k, number(0.5)))
        scaled = self.b.fmul(self.series(r, t.EXP_SERIES), self.power_of_two(half))
        result = self.b.fmul(scaled, self.power_of_two(self.b.fsub(k, half)))
        result = self.b.select(high, number(float("inf")), self.b.select(low, number(0.0), result))
        return self.narrowed(self.b.select(nan, x, result))

    def logarithm(self, a: Value) -> Value:
        x = self.widened(self.to_real(a))
        number = lambda value: self.constant(x.type, value)  # noqa: E731
        inside = self.b.and_(self.compare(">", x, number(0.0)), self.compare("<", x, number(float("inf"))))
        safe = self.b.select(inside, x, number(1.0))
        tiny = self.compare("<", safe, number(2.0**-1022))
        normal = self.b.select(tiny, self.b.fmul(safe, number(2.0**t.SUBNORMAL_SCALE)), safe)
        bits = self.b.bitcast(normal, self.shaped(x, INT64))
        integer = lambda value: self.constant(bits.type, value)  # noqa: E731
        e = self.b.sub(self.b.lshr(bits, integer(MANTISSA_BITS)), integer(EXPONENT_BIAS))
        e = self.b.sub(e, self.b.select(tiny, integer(t.SUBNORMAL_SCALE), integer(0)))
        mantissa = self.b.and_(bits, integer(2**MANTISSA_BITS - 1))
        m = self.b.bitcast(self.b.or_(mantissa, integer(EXPONENT_BIAS << MANTISSA_BITS)), x.type)
        large = self.compare(">", m, number(t.SQRT_2))
        m = self.b.select(large, self.b.fmul(m, number(0.5)), m)
        exponent = self.b.sitofp(self.b.add(e, self.b.zext(large, bits.type)), x.type)
        f = self.b.fsub(m, number(1.0))
        s = self.b.fdiv(f, self.b.fadd(number(2.0), f))
        sum_ = self.b.fmul(self.b.fadd(s, s), self.series(self.b.fmul(s, s), t.LOG_SERIES))
        sum_ = self.b.fadd(sum_, self.b.fmul(exponent, number(t.LN2_LOW)))
        result = self.b.fadd(self.b.fmul(exponent, number(t.LN2_HIGH)), sum_)
        zero = self.compare("==", x, number(0.0))
        infinite = self.compare("==", x, number(float("inf")))
        outside = self.b.select(zero, number(float("-inf")), self.b.select(infinite, x, number(float("nan"))))
        return self.narrowed(self.b.select(inside, result, outside))


_METHODS = {
    "divide": "divide",
    "negate": "negate",
    "abs": "absolute",
    "min": "minimum",
    "max": "maximum",
    "clip": "clip",
    "sqrt": "sqrt",
    "exp": "exponential",
    "log": "logarithm",
    "floor": "floor",
    "trunc": "truncate",
    "round_half_even": "round_half_even",
    "round_half_away": "round_half_away",
    "and": "conjunction",
    "or": "disjunction",
    "not": "negation",
    "finite": "finite",
    "where": "where",
}


def _bytes(element: Value) -> int:
    if element == SINGLE:
        return 4
    return 8 if element == DOUBLE else int(element.width) // 8
