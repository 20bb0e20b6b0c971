"""The oracle: a program's steps in plain NumPy, one after the other.  Slow, obvious, normative."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.formulas.checks import FRAME, literal_value
from gaincal.formulas.operations import NO_STAGE, Type
from gaincal.formulas.program import CLIPPED_BIT, NO_VALUE_BIT, Program
from gaincal.kernels import transcendental as t
from gaincal.kernels.runs import split_runs

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]


def evaluate(program: Program, arrays: Arrays) -> tuple[Array, npt.NDArray[np.uint32]]:
    """Compute a program's value and flags for a block.

    Parameters
    ----------
    program : Program
    arrays : mapping of str to ndarray
        Inputs and constants by name: words (frame, pixel), per-frame inputs (frame,), per-pixel
        inputs and constants (pixel,), constants with named axes (axis, ..., pixel); those of
        `Program.partial` have a run of pixels in place of the pixel.

    Returns
    -------
    value : ndarray (frame, pixel) of the program's dtype
    flags : ndarray (frame, pixel) of uint32
        One bit per flag, with those of `gaincal.formulas.program.RESERVED_FLAGS`.  Both are of
        length 1 along a dim on which nothing depends.
    """
    with np.errstate(all="ignore"):
        if not program.partial:
            return _Evaluation(program, arrays).run()
        parts = [_Evaluation(program, own).run() for own in _runs(program, arrays)]
    shape = np.broadcast_shapes(*(value.shape for value, _ in parts))
    return (
        np.concatenate([np.broadcast_to(value, shape) for value, _ in parts], axis=1),
        np.concatenate([np.broadcast_to(flags, shape) for _, flags in parts], axis=1),
    )


def _runs(program: Program, arrays: Arrays) -> Iterator[Arrays]:
    """The arrays of every run, cut down to its pixels."""
    types = dict(program.types)
    spread = [n for n, a in arrays.items() if types[n].dims - {FRAME}]
    pixels = max(arrays[n].shape[-1] for n in spread)
    for first, last, own in split_runs(program, arrays, pixels):
        yield {n: a[..., first:last] if n in spread else a for n, a in own.items()}


class _Evaluation:
    def __init__(self, program: Program, arrays: Arrays) -> None:
        self.program, self.arrays = program, arrays
        self.real = np.dtype(program.compute)
        self.types = dict(program.types)
        self.labels = dict(program.labels)
        self.tables = {table.name: np.array(table.entries, np.int64) for table in program.tables}
        self.values: dict[str, Array] = {}

    def run(self) -> tuple[Array, npt.NDArray[np.uint32]]:
        for item in self.program.given:
            if not self.types[item.name].axes:
                self.values[item.name] = self._given(item.name)
        for step in self.program.steps:
            self.values[step.name] = self._step(step.operation, step.arguments)
        shape = np.broadcast_shapes(*(a.shape for a in self.values.values()))
        flags, void = np.zeros(shape, np.uint32), np.zeros(shape, bool)
        for bit, flag in self.program.flags:
            raised = np.broadcast_to(self.values[flag.when], shape)
            flags |= raised.astype(np.uint32) << np.uint32(bit)
            void |= raised & flag.voids
        return self._deliver(np.broadcast_to(self.values[self.program.value], shape), flags, void), flags

    def _given(self, name: str) -> Array:
        """An input or a plain constant, broadcast to (frame, pixel)."""
        kind = self.types[name]
        array = self.arrays[name].astype(np.int64 if kind.kind == "integer" else self.real)
        return array[:, None] if kind.dims == {FRAME} or not kind.dims else np.atleast_2d(array)

    def _argument(self, argument: str) -> tuple[Array, Type]:
        value = literal_value(argument)
        if value is None:
            return self.values[argument], self.types[argument]
        if isinstance(value, int):
            return np.full((1, 1), value, np.int64), Type("integer")
        return np.full((1, 1), value, self.real), Type("real")

    def _step(self, operation: str, arguments: tuple[str, ...]) -> Array:
        if operation == "select":
            return self._select(arguments[0], [self._argument(a)[0] for a in arguments[1:]])
        if operation == "lookup":
            return _lookup(self.tables[arguments[0]], self._argument(arguments[1])[0])
        pairs = [self._argument(a) for a in arguments]
        values = [v for v, _ in pairs]
        kinds = {k.kind for _, k in pairs}
        if operation == "power":
            return _power(values[0].astype(self.real), int(arguments[1]))
        if operation in _ON_REALS or (operation not in _ON_WORDS and "real" in kinds):
            values = [v.astype(self.real) if v.dtype == np.int64 else v for v in values]
        return _FUNCTIONS[operation](*values)

    def _select(self, name: str, indices: list[Array]) -> Array:
        constant = self.arrays[name]
        integer = self.types[name].kind == "integer"
        constant = constant.astype(np.int64 if integer else self.real)
        positions = [_position(labels, i) for labels, i in zip(self.labels[name], indices, strict=True)]
        pixels = np.arange(constant.shape[-1])[None, :]
        chosen = constant[(*(np.maximum(p, 0) for p in positions), pixels)]
        lacking = np.logical_or.reduce(np.broadcast_arrays(*(p < 0 for p in positions)))
        absent = np.int64(NO_STAGE) if integer else self.real.type(np.nan)
        return np.where(lacking, absent, chosen)

    def _deliver(self, value: Array, flags: npt.NDArray[np.uint32], void: npt.NDArray[np.bool_]) -> Array:
        """Convert to the program's dtype; note in `flags` what had no value or was clipped."""
        dtype = np.dtype(self.program.dtype)
        limits = self.program.limits
        result = value.astype(dtype) if limits is None else value
        empty = np.zeros(value.shape, bool) if result.dtype == np.int64 else ~np.isfinite(result)
        if limits is not None:
            low, high = limits
            exact = value if value.dtype == np.int64 else np.where(empty, 0, value).astype(np.float64)
            clipped = ~empty & ~void & ((exact < low) | (exact > high)) & self.program.voiding
            flags |= clipped.astype(np.uint32) << np.uint32(CLIPPED_BIT)
            result = np.clip(exact, low, high).astype(np.int64).astype(dtype)
        if not self.program.voiding:
            return result
        flags |= (empty & ~void).astype(np.uint32) << np.uint32(NO_VALUE_BIT)
        fill = dtype.type(np.nan if self.program.fill is None else self.program.fill)
        return np.where(void | empty, fill, result)


def _position(labels: tuple[int, ...], index: Array) -> Array:
    """Where each label stands on the axis; -1 for one that does not."""
    position = np.full(index.shape, NO_STAGE, np.int64)
    for place, label in enumerate(labels):
        position[index == label] = place
    return position


def _lookup(entries: Array, index: Array) -> Array:
    inside = (index >= 0) & (index < len(entries))
    return np.where(inside, entries[np.where(inside, index, 0)], NO_STAGE)


def _minimum(a: Array, b: Array) -> Array:
    return np.where(np.isnan(a), a, np.where(np.isnan(b), b, np.where(b < a, b, a)))


def _maximum(a: Array, b: Array) -> Array:
    return np.where(np.isnan(a), a, np.where(np.isnan(b), b, np.where(b > a, b, a)))


def _round_half_away(x: Array) -> Array:
    whole = np.trunc(x)
    away = whole + np.copysign(x.dtype.type(1), x)
    return np.where(np.abs(x - whole) >= 0.5, away, whole)


def _power(x: Array, n: int) -> Array:
    if n == 0:
        return np.ones_like(x)
    result = x
    for _ in range(abs(n) - 1):
        result = result * x
    return result if n > 0 else x.dtype.type(1) / result


def _exp(x: Array) -> Array:
    """The sequence of IEEE double operations that the specification fixes for exp."""
    wide = x.astype(np.float64)
    inside = (wide > t.EXP_UNDERFLOW) & (wide < t.EXP_OVERFLOW)
    safe = np.where(inside, wide, 0.0)
    k = np.rint(safe * t.LOG2_E)
    r = (safe - k * t.LN2_HIGH) - k * t.LN2_LOW
    p = np.full_like(r, t.EXP_SERIES[-1])
    for coefficient in t.EXP_SERIES[-2::-1]:
        p = p * r + coefficient
    half = np.floor(k * 0.5)
    result = (p * np.ldexp(1.0, half.astype(np.int64))) * np.ldexp(1.0, (k - half).astype(np.int64))
    outside = np.where(wide >= t.EXP_OVERFLOW, np.inf, np.where(wide <= t.EXP_UNDERFLOW, 0.0, np.nan))
    return np.where(inside, result, outside).astype(x.dtype)


def _log(x: Array) -> Array:
    """The sequence of IEEE double operations that the specification fixes for log."""
    wide = x.astype(np.float64)
    inside = (wide > 0) & (wide < np.inf)
    safe = np.where(inside, wide, 1.0)
    tiny = safe < 2.0**-1022
    half, e = np.frexp(np.where(tiny, safe * 2.0**t.SUBNORMAL_SCALE, safe))
    m, e = half * 2.0, e - 1
    large = m > t.SQRT_2
    m, e = np.where(large, m * 0.5, m), e + large
    exponent = (e - np.where(tiny, t.SUBNORMAL_SCALE, 0)).astype(np.float64)
    f = m - 1.0
    s = f / (2.0 + f)
    z = s * s
    half_square = (0.5 * f) * f
    p = np.full_like(z, t.LOG_SERIES[-1])
    for coefficient in t.LOG_SERIES[-2::-1]:
        p = p * z + coefficient
    rest = (z + z) * p
    result = exponent * t.LN2_HIGH - ((half_square - (s * (half_square + rest) + exponent * t.LN2_LOW)) - f)
    outside = np.where(wide == 0, -np.inf, np.where(wide == np.inf, np.inf, np.nan))
    return np.where(inside, result, outside).astype(x.dtype)


_ON_REALS = frozenset({"divide", "sqrt", "exp", "log"})
_ON_WORDS = frozenset({"bits", "join"})
_FUNCTIONS: dict[str, Callable[..., Array]] = {
    "bits": lambda x, offset, length: (x >> offset) & ((1 << length) - 1),
    "join": lambda low, length, high: low | (high << length),
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "negate": np.negative,
    "abs": np.abs,
    "min": _minimum,
    "max": _maximum,
    "clip": lambda x, low, high: _minimum(_maximum(x, low), high),
    "sqrt": np.sqrt,
    "exp": _exp,
    "log": _log,
    "floor": np.floor,
    "trunc": np.trunc,
    "round_half_even": np.rint,
    "round_half_away": _round_half_away,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "finite": np.isfinite,
    "where": np.where,
}
