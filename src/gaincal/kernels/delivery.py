"""When a pixel has a value, and lowering of the result: the output's dtype, flags, and the fill where one voids."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gaincal.formulas.checks import literal_value
from gaincal.formulas.formula import Step
from gaincal.formulas.operations import Type
from gaincal.formulas.program import CLIPPED_BIT, NO_VALUE_BIT, Program
from gaincal.kernels.lowering import Lowering
from gaincal.kernels.shortcut import OPPOSITE, compared
from gaincal.kernels.vectors import BIT, INT32, INT64, Value, storage_type

Demands = list[tuple[str, bool]]
"""Conditions that must hold (true), or must not."""
Steps = Mapping[str, Step]
Fact = tuple[str, tuple[str, ...]]
"""A comparison that holds."""


class Delivery:
    """Delivers the value and the flags of a program.

    Conditions are such that a value is there: chains of them cost less than of their opposites.
    """

    def __init__(self, lowering: Lowering, program: Program) -> None:
        self.lowering, self.program = lowering, program

    def value(self, value: Value, valid: Value, finite: bool = False) -> tuple[Value, Value, dict[int, Value]]:
        """The value in the program's dtype, or the fill; where nothing is raised; what is raised, by bit.

        With `finite` it is taken for granted that there is a value wherever it is valid.
        """
        low, b, program = self.lowering, self.lowering.b, self.program
        convert = self._to_floating if program.limits is None else self._to_integer
        result, there, clipped = convert(low.splat(value), finite)
        if not program.voiding:
            return result, low.true(), {}
        valid = low.splat(valid)
        fine = b.and_(valid, there)
        fill = float("nan") if program.fill is None else program.fill
        delivered = b.select(fine, result, low.constant(result.type, fill))
        raised = {NO_VALUE_BIT: b.and_(valid, low.negation(there)), CLIPPED_BIT: b.and_(valid, clipped)}
        return delivered, b.and_(fine, low.negation(clipped)), raised

    def must_be_finite(self, value: Value) -> list[Value]:
        """The number that must be finite for a valid pixel to have a value, if there is one."""
        if self.program.limits is None:
            return [self._to_floating(self.lowering.splat(value), True)[0]]
        return [value] if self.lowering.is_real(value) else []

    def flags(self, values: Mapping[str, Value], raised: Mapping[int, Value]) -> Value:
        """All flags, as int32."""
        flags = self.lowering.constant(self.lowering.vector(INT32), 0)
        for bit, condition in ({bit: values[flag.when] for bit, flag in self.program.flags} | dict(raised)).items():
            flags = self._raise(flags, self.lowering.splat(condition), bit)
        return flags

    def _raise(self, flags: Value, condition: Value, bit: int) -> Value:
        low = self.lowering
        value = np.uint32(1 << bit).astype(np.int32)
        raised = low.b.select(condition, low.constant(flags.type, int(value)), low.constant(flags.type, 0))
        return low.b.or_(flags, raised)

    def _to_floating(self, value: Value, finite: bool) -> tuple[Value, Value, Value]:
        low = self.lowering
        result = low.floating(value, storage_type(np.dtype(self.program.dtype)))
        never = low.constant(low.vector(BIT), 0)
        return result, low.true() if finite else low.finite(result), never

    def _to_integer(self, value: Value, finite: bool) -> tuple[Value, Value, Value]:
        """Saturate at the ends of the range; where there is no number the result is arbitrary."""
        low, b = self.lowering, self.lowering.b
        assert self.program.limits is not None
        least, most = self.program.limits
        wide = INT32 if least >= -(2**31) and most < 2**31 else INT64
        if low.is_real(value):
            there = low.true() if finite else low.finite(value)
            real = np.dtype(self.program.compute).type
            inner_least, inner_most = _inward(least, real, np.inf), _inward(most, real, -np.inf)
        else:
            value = low.to_integer(value, INT64)
            there = low.constant(low.vector(BIT), 1)
            inner_least, inner_most = least, most
        below = low.compare("<", value, low.constant(value.type, inner_least))
        above = low.compare(">", value, low.constant(value.type, inner_most))
        inside = b.and_(low.negation(b.or_(below, above)), there)
        safe = b.select(inside, value, low.constant(value.type, 0))
        whole = b.fptosi(safe, low.shaped(value, wide)) if low.is_real(value) else low.to_integer(safe, wide)
        whole = b.select(below, low.constant(whole.type, least), whole)
        whole = b.select(above, low.constant(whole.type, most), whole)
        clipped = b.and_(b.or_(below, above), there)
        return low.to_integer(whole, storage_type(np.dtype(self.program.dtype))), there, clipped


def _inward(bound: int, real: type[np.floating], direction: float) -> float:
    """The outermost number of a floating-point type that does not lie beyond a bound."""
    number = real(bound)
    exact = int(number)
    beyond = exact < bound if direction > 0 else exact > bound
    return float(np.nextafter(number, real(direction)) if beyond else number)


def demands(program: Program, types: Mapping[str, Type]) -> Demands:
    """What must hold for a pixel to have a value: no flag voids it then.

    Taken apart as far as possible, and without what the types or other demands decide, so that each
    can be computed where it changes.  That a stage is none need not be asked where the constant that
    it chooses must be finite: no stage, no label, and it is NaN.
    """
    steps = {step.name: step for step in program.steps}
    flags = [(flag.when, False) for _, flag in program.flags if flag.voids and program.voiding]
    found = _taken_apart(steps, types, flags, frozenset())
    facts = frozenset(_fact(steps[name], holds) for name, holds in found if _compares_integers(steps[name], types))
    joined = [d for d in found if steps[d[0]].operation in ("and", "or")]
    found = [d for d in found if d not in joined]
    found += [d for d in _taken_apart(steps, types, joined, facts) if d not in found]
    finite = {steps[name].arguments[0] for name, holds in found if holds and steps[name].operation == "finite"}
    chosen = [steps[n] for n in finite & steps.keys() if steps[n].operation == "select"]
    implied = {("greater_equal", (index, "0")) for step in chosen for index in step.arguments[1:]}
    return [(n, holds) for n, holds in found if _fact(steps[n], holds) not in implied]


def finite_numbers(program: Program, asked: Demands) -> dict[str, str]:
    """The numbers that demands want to be finite, by the demands."""
    steps = {step.name: step for step in program.steps}
    conditions = [steps[name] for name, holds in asked if holds and steps[name].operation == "finite"]
    return {step.name: step.arguments[0] for step in conditions if literal_value(step.arguments[0]) is None}


def _taken_apart(steps: Steps, types: Mapping[str, Type], wanted: Demands, facts: frozenset[Fact]) -> Demands:
    """Demands as parts that all must be met, without those that always are."""
    left, found = wanted[::-1], dict[tuple[str, bool], None]()
    while left:
        name, holds = left.pop()
        step, known = steps[name], truth(steps, types, name, facts)
        parts = [a for a in step.arguments if truth(steps, types, a, facts) is None]
        if known is not None:
            found |= {} if known is holds else {(name, holds): None}
        elif step.operation == "not":
            left.append((step.arguments[0], not holds))
        elif step.operation in ("and", "or") and (holds is (step.operation == "and") or len(parts) == 1):
            left += [(part, holds) for part in reversed(parts)]
        else:
            found[name, holds] = None
    return list(found)


def _compares_integers(step: Step, types: Mapping[str, Type]) -> bool:
    """Whether a step is a comparison whose opposite holds where it does not: with a NaN neither does."""
    return step.operation in OPPOSITE and all(
        types[a].kind == "integer" if literal_value(a) is None else isinstance(literal_value(a), int)
        for a in step.arguments
    )


def _fact(step: Step, holds: bool) -> Fact:
    return (step.operation if holds else OPPOSITE.get(step.operation, ""), step.arguments)


def truth(steps: Steps, types: Mapping[str, Type], name: str, facts: frozenset[Fact] = frozenset()) -> bool | None:
    """What a condition is whatever the pixel, if the bounds of integers or known comparisons of them decide it."""
    if name not in steps or types[name].kind != "logical":
        return None
    step = steps[name]
    if step.operation in OPPOSITE:
        if _fact(step, True) in facts or _fact(step, False) in facts:
            return _fact(step, True) in facts
        return compared(types, step.operation, step.arguments)
    known = [truth(steps, types, a, facts) for a in step.arguments]
    if step.operation == "not" and known[0] is not None:
        return not known[0]
    if step.operation in ("and", "or"):
        decides = step.operation == "or"
        return decides if decides in known else None if None in known else not decides
    return None
