"""Random formulas in float32 stay as near to float64 as the error bounds of their operations promise."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import pytest
from formulas.strategies import formula_texts, read_text
from helpers import Array, items, oracle, program_of

from gaincal.errors import FormulaError
from gaincal.formulas.checks import literal_value
from gaincal.formulas.formula import Formula
from gaincal.formulas.operations import OPERATIONS

Floats = npt.NDArray[np.float64]

FLOOD = 100_000
SEEDS = range(20_240_601, 20_240_611)
STRIDE = 12
MOST = 1500
SHAPE = FRAMES, PIXELS = 2, 12
UNIT = 2.0**-24 * (1 + 2.0**-20)
"""Relative error of one rounding to float32, with room for those of the float64 evaluation."""
SMALLEST = 1.5e-45
LARGEST = float(np.finfo(np.float32).max)

LABELS = {
    "pedestal": ((2, 0, 1),),
    "gain": ((1, 2, 0), (0, 3, 1, 2)),
    "window": ((0, 1, 2), (3, 2, 1, 0), (1, 0, 2)),
    "marks": ((0, 2, 1),),
}
WHOLE = ("raw", "high_word", "memory_cell", "mask", "marks")
TABLES = {"stage_of_code": (0, 1, -1, 2), "ramp": (-2147483648, -5, 0, 7, 1000, 2147483647)}


def given_arrays() -> dict[str, Array]:
    """Moderate values, some halfway between whole numbers, and a few zero, saturated, subnormal or not finite."""
    rng = np.random.default_rng(3)

    def real(low: float, high: float, *shape: int) -> Array:
        return rng.uniform(low, high, shape).astype(np.float32)

    def word(dtype: str, top: int) -> Array:
        code = rng.choice((0, 1, 3), SHAPE)
        return (rng.integers(0, top, SHAPE) << 16 | code << 14 | rng.integers(0, 2**14, SHAPE)).astype(dtype)

    arrays = {
        "raw": word("uint16", 1),
        "high_word": word("uint32", 2**16),
        "memory_cell": np.array([3, 0], np.uint8),
        "photon_energy": np.array([8.5], np.float32),
        "mask": word("uint32", 2**16)[0],
        "pedestal": real(50, 5000, 3, PIXELS),
        "gain": real(-40, 40, 3, 4, PIXELS),
        "window": real(-3, 30, 3, 4, 3, 1),
        "marks": rng.integers(0, 4, (3, PIXELS)).astype(np.uint8),
        "noise": real(0.5, 20, PIXELS),
        "scale": np.array([1.1], np.float32),
    }
    arrays["raw"][:, -3:] = [[0, 65535, 0x8000], [65535, 1, 0]]
    arrays["high_word"][:, -1] = [0, 2**32 - 1]
    arrays["gain"][:, :, -2] = [[0.0], [1e-40], [-1e30]]
    arrays["pedestal"][:, -1] = [np.nan, 3e38, 0.0]
    arrays["noise"][-3:] = [1e-39, np.inf, -0.0]
    arrays["noise"][:2] = [2.5, 0.5]
    return arrays


@dataclass(frozen=True)
class Approximate:
    """Float64 or exact integer or logical values, and how far float32 may be from them; infinite if unknown."""

    value: Array
    bound: Floats

    @property
    def ends(self) -> tuple[Floats, Floats]:
        """Outer ends of where the float32 values lie."""
        low, high = self.value - self.bound, self.value + self.bound
        exact = self.bound == 0
        return np.where(exact, low, np.nextafter(low, -np.inf)), np.where(exact, high, np.nextafter(high, np.inf))


Operation = Callable[..., Approximate]


def settled(value: Array, bound: Array) -> Approximate:
    """A real whose bound is infinite wherever it may not be a finite float32."""
    known = np.isfinite(value) & (np.abs(value) + bound <= LARGEST)
    return Approximate(value, np.where(known, bound, np.inf))


def rounded(value: Array, inherited: Array) -> Approximate:
    """A real that differs by what its operands brought in and by one rounding."""
    return settled(value, inherited + UNIT * (np.abs(value) + inherited) + SMALLEST)


def certain(value: Array, sure: Array) -> Approximate:
    """Exact where sure, else unknown."""
    return Approximate(value, np.where(sure, 0.0, np.inf))


def sure(*operands: Approximate) -> Array:
    known: Array = np.logical_and.reduce([np.isfinite(x.bound) for x in operands])
    return known


def to_real(x: Approximate) -> Approximate:
    if x.value.dtype != np.int64:
        return x
    wide = x.value.astype(np.float64)
    return settled(wide, x.bound + np.abs(x.value.astype(np.float32).astype(np.float64) - wide))


def add(a: Approximate, b: Approximate) -> Approximate:
    return rounded(a.value + b.value, a.bound + b.bound)


def subtract(a: Approximate, b: Approximate) -> Approximate:
    return rounded(a.value - b.value, a.bound + b.bound)


def multiply(a: Approximate, b: Approximate) -> Approximate:
    inherited = np.abs(a.value) * b.bound + np.abs(b.value) * a.bound + a.bound * b.bound
    return rounded(a.value * b.value, inherited)


def divide(a: Approximate, b: Approximate) -> Approximate:
    value = a.value / b.value
    distance = np.abs(b.value) - b.bound
    return rounded(value, np.where(distance > 0, (a.bound + np.abs(value) * b.bound) / distance, np.inf))


def power(x: Approximate, n: int) -> Approximate:
    one = Approximate(np.ones(SHAPE), np.zeros(SHAPE))
    if n == 0:
        return one
    result = x
    for _ in range(abs(n) - 1):
        result = multiply(result, x)
    return result if n > 0 else divide(one, result)


def monotone(function: Callable[[Array], Array]) -> Operation:
    """A rising function with one rounding, from its values at the ends; unknown where they leave its domain."""

    def operation(x: Approximate) -> Approximate:
        value = function(x.value)
        low, high = (function(end) for end in x.ends)
        return rounded(value, np.maximum(high - value, value - low))

    return operation


def whole(function: Callable[[Array], Array]) -> Operation:
    """A rising function to whole numbers: exact where both ends give the same."""

    def operation(x: Approximate) -> Approximate:
        low, high = (function(end) for end in x.ends)
        return settled(function(x.value), np.where(low == high, 0.0, np.inf))

    return operation


def half_away(x: Array) -> Array:
    nearest: Array = np.copysign(np.floor((np.floor(2 * np.abs(x)) + 1) / 2), x)
    return nearest


def comparison(function: Callable[[Array, Array], Array]) -> Operation:
    def operation(a: Approximate, b: Approximate) -> Approximate:
        (low_a, high_a), (low_b, high_b) = a.ends, b.ends
        exact = (a.bound == 0) & (b.bound == 0)
        return certain(function(a.value, b.value), exact | (high_a < low_b) | (low_a > high_b))

    return operation


def extreme(function: Callable[[Array, Array], Array]) -> Operation:
    return lambda a, b: Approximate(function(a.value, b.value), np.maximum(a.bound, b.bound))


def clip(x: Approximate, low: Approximate, high: Approximate) -> Approximate:
    return extreme(np.minimum)(extreme(np.maximum)(x, low), high)


def conjunction(a: Approximate, b: Approximate) -> Approximate:
    decided = (sure(a) & ~a.value) | (sure(b) & ~b.value)
    return certain(a.value & b.value & ~decided, sure(a, b) | decided)


def negation(a: Approximate) -> Approximate:
    return Approximate(~a.value, a.bound)


def where(condition: Approximate, a: Approximate, b: Approximate) -> Approximate:
    bound = np.where(condition.value, a.bound, b.bound)
    return Approximate(np.where(condition.value, a.value, b.value), np.where(sure(condition), bound, np.inf))


def on_integers(function: Callable[..., Array]) -> Operation:
    return lambda *operands: certain(function(*(x.value for x in operands)), sure(*operands))


ON_INTEGERS = {
    "add": on_integers(operator.add),
    "subtract": on_integers(operator.sub),
    "multiply": on_integers(operator.mul),
    "bits": on_integers(lambda x, offset, length: x // 2**offset % 2**length),
    "join": on_integers(lambda low, length, high: low + high * 2**length),
}
ON_REALS: dict[str, Operation] = {
    "add": add,
    "subtract": subtract,
    "multiply": multiply,
    "divide": divide,
    "sqrt": monotone(np.sqrt),
    "exp": monotone(np.exp),
    "log": monotone(np.log),
    "floor": whole(np.floor),
    "trunc": whole(np.trunc),
    "round_half_even": whole(np.rint),
    "round_half_away": whole(half_away),
    "finite": lambda x: certain(np.ones(SHAPE, bool), sure(x)),
}
ON_BOTH: dict[str, Operation] = {
    "negate": lambda x: Approximate(-x.value, x.bound),
    "abs": lambda x: Approximate(np.abs(x.value), x.bound),
    "min": extreme(np.minimum),
    "max": extreme(np.maximum),
    "clip": clip,
    "where": where,
    "less": comparison(operator.lt),
    "less_equal": comparison(operator.le),
    "greater": comparison(operator.gt),
    "greater_equal": comparison(operator.ge),
    "equal": comparison(operator.eq),
    "not_equal": comparison(operator.ne),
    "and": conjunction,
    "or": lambda a, b: negation(conjunction(negation(a), negation(b))),
    "not": negation,
}
ALWAYS_REAL = ("divide", "sqrt", "exp", "log")


def spread(name: str, array: Array) -> Approximate:
    """An input or plain constant for every pixel of every frame."""
    wide = array.astype(np.int64 if name in WHOLE else np.float64)
    full = np.broadcast_to(wide[:, None] if name == "memory_cell" else wide, SHAPE)
    return certain(full, np.isfinite(full))


def literal(value: int | float) -> Approximate:
    if isinstance(value, int):
        return Approximate(np.full(SHAPE, value, np.int64), np.zeros(SHAPE))
    return settled(np.full(SHAPE, value), np.full(SHAPE, abs(float(np.float32(value)) - value)))


def looked_up(entries: tuple[int, ...], index: Approximate) -> Approximate:
    found = [entries[i] if 0 <= i < len(entries) else -1 for i in index.value.ravel().tolist()]
    return certain(np.array(found, np.int64).reshape(SHAPE), sure(index))


def selected(name: str, constant: Array, indices: list[Approximate]) -> Approximate:
    wide = constant.astype(np.int64 if name in WHOLE else np.float64)
    chosen = np.full(SHAPE, -1 if name in WHOLE else np.nan, wide.dtype)
    for frame, pixel in np.ndindex(SHAPE):
        labels = [int(i.value[frame, pixel]) for i in indices]
        if all(label in axis for label, axis in zip(labels, LABELS[name], strict=True)):
            place = [axis.index(label) for label, axis in zip(labels, LABELS[name], strict=True)]
            chosen[frame, pixel] = wide[(*place, min(pixel, wide.shape[-1] - 1))]
    return certain(chosen, np.isfinite(chosen) & sure(*indices))


def bounded(formula: Formula, arrays: dict[str, Array]) -> Approximate:
    """The result in float64 with its bound, one step after the other."""
    values = {name: spread(name, array) for name, array in arrays.items() if name not in LABELS}

    def argument(text: str) -> Approximate:
        number = literal_value(text)
        return values[text] if number is None else literal(number)

    for step in formula.steps:
        first = step.arguments[0]
        if step.operation == "lookup":
            result = looked_up(TABLES[first], argument(step.arguments[1]))
        elif step.operation == "select":
            result = selected(first, arrays[first], [argument(a) for a in step.arguments[1:]])
        elif step.operation == "power":
            result = power(to_real(argument(first)), int(step.arguments[1]))
        else:
            result = computed(step.operation, [argument(a) for a in step.arguments])
        values[step.name] = Approximate(result.value, np.where(np.isnan(result.bound), np.inf, result.bound))
    return to_real(values["result"])


def computed(operation: str, operands: list[Approximate]) -> Approximate:
    if operation in ALWAYS_REAL or any(x.value.dtype == np.float64 for x in operands):
        operands = [to_real(x) for x in operands]
        return (ON_REALS | ON_BOTH)[operation](*operands)
    return (ON_INTEGERS | ON_BOTH)[operation](*operands)


def accepted() -> Iterator[tuple[str, Formula]]:
    """Some of the flood of texts: those accepted as a number, every meaning once."""
    known = set()
    texts = (text for seed in SEEDS for text in formula_texts(seed, FLOOD // len(SEEDS)))
    for text in islice(texts, 0, None, STRIDE):
        try:
            formula = read_text(text)
        except FormulaError:
            continue
        if formula.output().name == "result" and formula.steps not in known:
            known.add(formula.steps)
            yield text, formula


@pytest.mark.slow
def test_accepted_formulas_agree_with_float64_within_the_bounds_of_their_operations() -> None:
    arrays = given_arrays()
    used: set[str] = set()
    formulas = compared = finite = 0
    for text, formula in islice(accepted(), MOST):
        program = program_of(formula, LABELS)
        needed = {item.name: arrays[item.name] for item in items(program)}
        value, _ = oracle(program, needed, SHAPE)
        with np.errstate(all="ignore"):
            wanted = bounded(formula, arrays)
            known = np.isfinite(wanted.bound)
            beyond = known & ~(np.abs(value.astype(np.float64) - wanted.value) <= wanted.bound)
        for place in np.argwhere(beyond)[:1]:
            at = tuple(place)
            raise AssertionError(f"{value[at]} is not {wanted.value[at]} within {wanted.bound[at]} at {at}: {text}")
        formulas += 1
        compared += known.size
        finite += int(known.sum())
        if known.any():
            used |= {step.operation for step in program.steps}
    assert formulas > MOST * 0.8
    assert finite >= compared / 2
    assert used == {*OPERATIONS}
