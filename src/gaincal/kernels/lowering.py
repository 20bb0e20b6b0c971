"""Checked steps to LLVM IR: what each operation becomes.

No step goes through Python or numba arithmetic, whose promotion rules are not those of the format
(numba makes ``int64 - float32`` a double): each becomes the IR instruction of the declared type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import eq, ge, gt, le, lt, ne

from llvmlite import ir

from gaincal.formulas.checks import literal_value
from gaincal.formulas.formula import Step
from gaincal.formulas.operations import NO_STAGE, Type
from gaincal.formulas.program import Program
from gaincal.kernels import series
from gaincal.kernels.shortcut import compared
from gaincal.kernels.vectors import BIT, INT32, INT64, MAX_COMPARED, Builder, Value, Vectors, integer_type, known_number

_COMPARISONS = {
    "less": "<",
    "less_equal": "<=",
    "greater": ">",
    "greater_equal": ">=",
    "equal": "==",
    "not_equal": "!=",
}
_HOLDS = {"<": lt, "<=": le, ">": gt, ">=": ge, "==": eq, "!=": ne}
_ARITHMETIC = {"add": ("fadd", "add"), "subtract": ("fsub", "sub"), "multiply": ("fmul", "mul")}


class Lowering(Vectors):
    """Lowers the steps of a program for `width` pixels at a time.

    Parameters
    ----------
    builder : llvmlite.ir.IRBuilder
    program : Program
    width : int
        Pixels per vector.
    types : mapping of str to Type, optional
        Types under an assumption; the program's own if None.
    """

    def __init__(self, builder: Builder, program: Program, width: int, types: Mapping[str, Type] | None = None) -> None:
        super().__init__(builder, program.compute, width)
        self.types = dict(program.types) if types is None else dict(types)
        self.tables = {table.name: table.entries for table in program.tables}
        self.looked_up: dict[Value, tuple[Value, tuple[int, ...]]] = {}

    def argument(self, values: Mapping[str, Value], argument: str) -> Value:
        """Value of a name or number."""
        number = literal_value(argument)
        if number is None:
            return values[argument]
        if isinstance(number, int):
            return ir.Constant(INT32 if abs(number) < 2**31 else INT64, number)
        return self.constant(self.real, number)

    def step(self, step: Step, values: Mapping[str, Value]) -> Value:
        """Lower any step but `select`, which needs the constants' addresses."""
        kind = self.types[step.name]
        if kind.kind == "integer" and kind.low == kind.high:
            return self.known(kind)
        if step.operation in _SPECIAL:
            return _SPECIAL[step.operation](self, step, values)
        given = [self.argument(values, a) for a in step.arguments]
        return _PLAIN[step.operation](self, *given)

    # --- operations that need more than values -------------------------------------------

    def _lookup(self, step: Step, values: Mapping[str, Value]) -> Value:
        entries, index = self.tables[step.arguments[0]], self.argument(values, step.arguments[1])
        found = self.lookup(entries, index)
        if literal_value(step.arguments[1]) is None:
            kind = self.types[step.arguments[1]]
            if kind.low >= 0 and kind.high < len(entries):
                self.looked_up[found] = index, entries[: kind.high + 1]
        return found

    def lookup(self, entries: tuple[int, ...], index: Value) -> Value:
        """An entry of a table: compared where small, else fetched from a constant array."""
        if len(entries) > MAX_COMPARED:
            return self.fetch(self.array(entries), INT32, self.bounded(index, len(entries)), NO_STAGE)
        chosen = self.constant(self.shaped(index, INT32), NO_STAGE)
        for place, entry in enumerate(entries):
            here = self.compare("==", index, self.constant(index.type, place))
            chosen = self.b.select(here, self.constant(chosen.type, entry), chosen)
        return chosen

    def compare(self, symbol: str, a: Value, b: Value) -> Value:
        """A comparison; of a looked-up entry with a number, the index itself is asked."""
        number = known_number(b) if a in self.looked_up else None
        if number is None:
            return super().compare(symbol, a, b)
        index, entries = self.looked_up[a]
        holds = [_HOLDS[symbol](entry, number) for entry in entries]
        inside, outside = _runs(holds), _runs([not h for h in holds])
        if min(len(inside), len(outside)) > MAX_COMPARED:
            return super().compare(symbol, a, b)
        if len(outside) < len(inside):
            return self.negation(self._among(index, outside))
        return self._among(index, inside)

    def _among(self, index: Value, runs: list[tuple[int, int]]) -> Value:
        """Whether an index lies in one of some ranges."""
        found = self.constant(self.shaped(index, BIT), 0)
        for first, last in runs:
            moved = self.b.sub(index, self.constant(index.type, first)) if first else index
            limit = self.constant(index.type, last - first)
            found = self.b.or_(found, self.b.icmp_unsigned("<=", moved, limit))
        return found

    def _bits(self, step: Step, values: Mapping[str, Value]) -> Value:
        word, offset, length = values[step.arguments[0]], int(step.arguments[1]), int(step.arguments[2])
        shifted = self.b.lshr(word, self.constant(word.type, offset)) if offset else word
        if self.types[step.arguments[0]].high >> offset < 1 << length:
            return shifted
        return self.b.and_(shifted, self.constant(word.type, (1 << length) - 1))

    def _join(self, step: Step, values: Mapping[str, Value]) -> Value:
        wide = integer_type(self.types[step.name])
        low, high = (self.to_integer(self.argument(values, step.arguments[k]), wide) for k in (0, 2))
        low, high = self.alike(low, high)
        return self.b.or_(low, self.b.shl(high, self.constant(high.type, int(step.arguments[1]))))

    def _arithmetic(self, step: Step, values: Mapping[str, Value]) -> Value:
        a, b = self.numbers(*(self.argument(values, x) for x in step.arguments))
        real, integer = _ARITHMETIC[step.operation]
        if self.is_real(a):
            return getattr(self.b, real)(a, b)
        wide = max(integer_type(self.types[step.name]), self.element(a), key=lambda e: int(e.width))
        return getattr(self.b, integer)(self.to_integer(a, wide), self.to_integer(b, wide))

    def _compare(self, step: Step, values: Mapping[str, Value]) -> Value:
        settled = compared(self.types, step.operation, step.arguments)
        if settled is not None:
            return ir.Constant(BIT, int(settled))
        return self.compare(
            _COMPARISONS[step.operation], *self.numbers(*(self.argument(values, a) for a in step.arguments))
        )

    def _power(self, step: Step, values: Mapping[str, Value]) -> Value:
        x, n = self.to_real(self.argument(values, step.arguments[0])), int(step.arguments[1])
        one = self.constant(x.type, 1)
        if n == 0:
            return one
        result = x
        for _ in range(abs(n) - 1):
            result = self.b.fmul(result, x)
        return result if n > 0 else self.b.fdiv(one, result)

    # --- operations on values ------------------------------------------------------------

    def _divide(self, a: Value, b: Value) -> Value:
        return self.b.fdiv(*self.alike(self.to_real(a), self.to_real(b)))

    def _negate(self, a: Value) -> Value:
        if self.is_real(a):
            return self.b.fneg(a)
        return self.b.neg(self.to_integer(a, INT64))  # the opposite of the lowest int32 needs one more bit

    def _absolute(self, a: Value) -> Value:
        if self.is_real(a):
            return self.intrinsic("llvm.fabs", a)
        wide = self.to_integer(a, INT64)
        return self.b.select(self.compare("<", wide, self.constant(wide.type, 0)), self.b.neg(wide), wide)

    def _minimum(self, a: Value, b: Value) -> Value:
        return self._extreme("<", a, b)

    def _maximum(self, a: Value, b: Value) -> Value:
        return self._extreme(">", a, b)

    def _extreme(self, symbol: str, a: Value, b: Value) -> Value:
        a, b = self.numbers(a, b)
        chosen = self.b.select(self.compare(symbol, b, a), b, a)
        if not self.is_real(a):
            return chosen
        return self.b.select(self.is_nan(a), a, self.b.select(self.is_nan(b), b, chosen))

    def _clip(self, x: Value, low: Value, high: Value) -> Value:
        return self._minimum(self._maximum(x, low), high)

    def _where(self, condition: Value, a: Value, b: Value) -> Value:
        condition, a, b = self.alike(condition, *self.numbers(a, b))
        return self.b.select(condition, a, b)

    def _and(self, a: Value, b: Value) -> Value:
        return self.b.and_(*self.alike(a, b))

    def _or(self, a: Value, b: Value) -> Value:
        return self.b.or_(*self.alike(a, b))

    def _square_root(self, a: Value) -> Value:
        return self.intrinsic("llvm.sqrt", self.to_real(a))

    def _floor(self, a: Value) -> Value:
        return self.intrinsic("llvm.floor", a)

    def _truncate(self, a: Value) -> Value:
        return self.intrinsic("llvm.trunc", a)

    def _round_half_even(self, a: Value) -> Value:
        return self.intrinsic("llvm.rint", a)

    def _round_half_away(self, a: Value) -> Value:
        whole = self._truncate(a)
        part = self.intrinsic("llvm.fabs", self.b.fsub(a, whole))
        away = self.b.fadd(whole, self.intrinsic("llvm.copysign", self.constant(a.type, 1), a))
        return self.b.select(self.compare(">=", part, self.constant(a.type, 0.5)), away, whole)


def _runs(holds: list[bool]) -> list[tuple[int, int]]:
    """First and last place of every run of places that hold."""
    edges = [k for k in range(len(holds)) if holds[k] != (k > 0 and holds[k - 1])] + [len(holds)] * holds[-1]
    return [(first, end - 1) for first, end in zip(edges[::2], edges[1::2], strict=True)]


_SPECIAL: dict[str, Callable[..., Value]] = {
    "lookup": Lowering._lookup,
    "bits": Lowering._bits,
    "join": Lowering._join,
    "power": Lowering._power,
    **dict.fromkeys(_ARITHMETIC, Lowering._arithmetic),
    **dict.fromkeys(_COMPARISONS, Lowering._compare),
}
_PLAIN: dict[str, Callable[..., Value]] = {
    "divide": Lowering._divide,
    "negate": Lowering._negate,
    "abs": Lowering._absolute,
    "min": Lowering._minimum,
    "max": Lowering._maximum,
    "clip": Lowering._clip,
    "sqrt": Lowering._square_root,
    "exp": series.lower_exp,
    "log": series.lower_log,
    "floor": Lowering._floor,
    "trunc": Lowering._truncate,
    "round_half_even": Lowering._round_half_even,
    "round_half_away": Lowering._round_half_away,
    "and": Lowering._and,
    "or": Lowering._or,
    "not": Lowering.negation,
    "finite": Lowering.finite,
    "where": Lowering._where,
}
