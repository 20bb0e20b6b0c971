"""Lowering of a result: conversion to the output's dtype, flags, and the fill where one voids."""

from __future__ import annotations

import numpy as np

from gaincal.formulas.program import CLIPPED_BIT, NO_VALUE_BIT, Program
from gaincal.kernels.lowering import Lowering
from gaincal.kernels.vectors import BIT, INT32, INT64, Value, storage_type


class Delivery:
    """Delivers the value and the flags of a program."""

    def __init__(self, lowering: Lowering, program: Program) -> None:
        self.lowering, self.program = lowering, program

    def deliver(self, values: dict[str, Value]) -> tuple[Value, Value]:
        """The value in the program's dtype, and the flags as int32."""
        low, b, program = self.lowering, self.lowering.b, self.program
        value = low.splat(values[program.value])
        convert = self._to_floating if program.limits is None else self._to_integer
        result, empty, clipped = convert(value)
        flags, void = self._flags(values)
        if program.voiding:
            valid = low.negation(void)
            flags = self._raise(flags, b.and_(empty, valid), NO_VALUE_BIT)
            flags = self._raise(flags, b.and_(clipped, valid), CLIPPED_BIT)
            fill = float("nan") if program.fill is None else program.fill
            result = b.select(b.or_(void, empty), low.constant(result.type, fill), result)
        return result, flags

    def _flags(self, values: dict[str, Value]) -> tuple[Value, Value]:
        low = self.lowering
        flags, void = low.constant(low.vector(INT32), 0), low.constant(low.vector(BIT), 0)
        for bit, flag in self.program.flags:
            raised = low.splat(values[flag.when])
            flags = self._raise(flags, raised, bit)
            void = low.b.or_(void, raised) if flag.voids else void
        return flags, void

    def _raise(self, flags: Value, condition: Value, bit: int) -> Value:
        low = self.lowering
        value = np.uint32(1 << bit).astype(np.int32)
        raised = low.b.select(condition, low.constant(flags.type, int(value)), low.constant(flags.type, 0))
        return low.b.or_(flags, raised)

    def _to_floating(self, value: Value) -> tuple[Value, Value, Value]:
        low = self.lowering
        result = low.floating(value, storage_type(np.dtype(self.program.dtype)))
        never = low.constant(low.vector(BIT), 0)
        return result, low.negation(low.finite(result)), never

    def _to_integer(self, value: Value) -> tuple[Value, Value, Value]:
        """Saturate at the ends of the range; where there is no number the result is arbitrary."""
        low, b = self.lowering, self.lowering.b
        assert self.program.limits is not None
        least, most = self.program.limits
        wide = INT32 if least >= -(2**31) and most < 2**31 else INT64
        if low.is_real(value):
            empty = low.negation(low.finite(value))
            real = np.dtype(self.program.compute).type
            inner_least, inner_most = _inward(least, real, np.inf), _inward(most, real, -np.inf)
        else:
            value = low.to_integer(value, INT64)
            empty = low.constant(low.vector(BIT), 0)
            inner_least, inner_most = least, most
        below = low.compare("<", value, low.constant(value.type, inner_least))
        above = low.compare(">", value, low.constant(value.type, inner_most))
        outside = b.or_(b.or_(below, above), empty)
        safe = b.select(outside, low.constant(value.type, 0), value)
        whole = b.fptosi(safe, low.shaped(value, wide)) if low.is_real(value) else low.to_integer(safe, wide)
        whole = b.select(below, low.constant(whole.type, least), whole)
        whole = b.select(above, low.constant(whole.type, most), whole)
        clipped = b.and_(b.or_(below, above), low.negation(empty))
        return low.to_integer(whole, storage_type(np.dtype(self.program.dtype))), empty, clipped


def _inward(bound: int, real: type[np.floating], direction: float) -> float:
    """The outermost number of a floating-point type that does not lie beyond a bound."""
    number = real(bound)
    exact = int(number)
    beyond = exact < bound if direction > 0 else exact > bound
    return float(np.nextafter(number, real(direction)) if beyond else number)
