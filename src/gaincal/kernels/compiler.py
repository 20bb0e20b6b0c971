"""A program to one fused function: decode, select, compute, flag and store in a single pass.

The loops walk tiles of pixels outside and frames inside, so that the constants of a tile stay in
the cache.  Where a whole vector of pixels sits in the first stage, the steps after the stage are
lowered a second time with the stage known: lookups, selections and tests on it vanish.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from gaincal.formulas.checks import FRAME
from gaincal.formulas.formula import Step
from gaincal.formulas.operations import Type
from gaincal.formulas.program import Program
from gaincal.kernels.delivery import Delivery
from gaincal.kernels.lowering import Lowering
from gaincal.kernels.selection import Selection
from gaincal.kernels.shortcut import Shortcut, find_shortcut
from gaincal.kernels.vectors import BIT, INT64, Builder, Value

TILE = 4096
WIDTH = 64
VALUE, FLAGS = "-> value", "-> flags"
FLAGS_SIZE = 4
Kernel = Callable[[int, int, int, int, int], None]


@dataclass(frozen=True)
class Layout:
    """Order of the addresses that a kernel takes, and the storage type behind each.

    Parameters
    ----------
    arrays : tuple of (str, str)
        Name and dtype of every input and constant.
    flags : bool
        Whether flags are stored.
    """

    arrays: tuple[tuple[str, str], ...]
    flags: bool


@lru_cache(maxsize=64)
def compile_program(program: Program, layout: Layout) -> Kernel:
    """Compile a program for arrays of the given layout.

    Returns
    -------
    kernel : callable (addresses, frames, pixels, first, last) -> None
        ``addresses`` points to int64 addresses: the arrays of the layout, then the output, then
        the flags.  All arrays are contiguous: words and results (frames, pixels), per-frame
        inputs (frames,), maps (planes, pixels).  Pixels ``first`` to ``last`` are computed.
        Runs without the interpreter's lock and checks nothing: see `gaincal.kernels.blocks`.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def body(_context: Any, _addresses: Any, _frames: Any, _pixels: Any, _first: Any, _last: Any) -> Any:
        def codegen(context: Any, builder: Builder, _signature: Any, arguments: tuple[Value, ...]) -> Value:
            _Emitter(builder, program, layout, *arguments).emit()
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), codegen

    # nogil: blocks run in our own threads.  error_model: no Python exceptions from arithmetic.
    @njit("void(int64, int64, int64, int64, int64)", nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
    def kernel(addresses: int, frames: int, pixels: int, first: int, last: int) -> None:
        body(addresses, frames, pixels, first, last)

    return kernel  # type: ignore[no-any-return]


class _Emitter:
    """Emits the loops of one kernel and, inside them, the steps."""

    def __init__(
        self,
        builder: Builder,
        program: Program,
        layout: Layout,
        addresses: Value,
        frames: Value,
        pixels: Value,
        first: Value,
        last: Value,
    ) -> None:
        self.b, self.program, self.layout = builder, program, layout
        self.frames, self.pixels, self.first, self.last = frames, pixels, first, last
        self.types = dict(program.types)
        self.dtypes = {name: np.dtype(dtype) for name, dtype in layout.arrays}
        names = [*(name for name, _ in layout.arrays), VALUE, *([FLAGS] if layout.flags else [])]
        table = builder.inttoptr(addresses, INT64.as_pointer())
        self.addresses = {
            name: builder.load(builder.gep(table, [ir.Constant(INT64, k)])) for k, name in enumerate(names)
        }
        self.selection = Selection(program, self.dtypes, self.addresses, pixels)
        self.shortcut = find_shortcut(program)

    def emit(self) -> None:
        with self._range(self.first, self.last, TILE) as low:
            end = self.b.add(low, ir.Constant(INT64, TILE))
            high = self.b.select(self.b.icmp_signed("<", end, self.last), end, self.last)
            count = self.b.sub(high, low)
            rest = self.b.srem(count, ir.Constant(INT64, WIDTH))
            with self._range(ir.Constant(INT64, 0), self.frames, 1) as frame:
                uniform = self._uniform(frame)
                with self._range(low, self.b.sub(high, rest), WIDTH) as pixel:
                    self._pixels(WIDTH, frame, pixel, uniform)
                with self._range(self.b.sub(high, rest), high, 1) as pixel:
                    self._pixels(1, frame, pixel, uniform)

    @contextmanager
    def _range(self, start: Value, stop: Value, step: int) -> Any:
        with cgutils.for_range_slice(self.b, start, stop, ir.Constant(INT64, step), intp=INT64) as (index, _):
            yield index

    def _uniform(self, frame: Value) -> dict[str, Value]:
        """Inputs and steps that are the same for all pixels of a frame, as scalars."""
        lowering = Lowering(self.b, self.program, 1)
        values: dict[str, Value] = {}
        for item in self.program.given:
            kind = self.types[item.name]
            if not kind.axes and not _pixelwise(kind):
                dtype = self.dtypes[item.name]
                address = lowering.offset(self.addresses[item.name], frame, dtype.itemsize)
                values[item.name] = lowering.given(address, dtype, kind, False)
        for step in self.program.steps:
            if not _pixelwise(self.types[step.name]):
                values[step.name] = self._step(lowering, step, values, None)
        return values

    def _pixels(self, width: int, frame: Value, pixel: Value, uniform: dict[str, Value]) -> None:
        """Everything for `width` pixels from `pixel` on."""
        lowering = Lowering(self.b, self.program, width)
        here = self.b.add(self.b.mul(frame, self.pixels), pixel)
        values = uniform | self._loaded(lowering, here, pixel)
        steps = [s for s in self.program.steps if _pixelwise(self.types[s.name])]
        if self.shortcut is None or width == 1:
            self._finish(lowering, steps, values, pixel, here)
            return
        names = [s.name for s in steps]
        split = names.index(self.shortcut.name) + 1 if self.shortcut.name in names else 0
        self._steps(lowering, steps[:split], values, pixel)
        narrowed = Lowering(self.b, self.program, width, self.shortcut.types)
        with self.b.if_else(self._elsewhere(lowering, self.shortcut, values), likely=False) as (mixed, same):
            with mixed:
                self._finish(lowering, steps[split:], dict(values), pixel, here)
            with same:
                self._finish(narrowed, steps[split:], dict(values), pixel, here)

    def _loaded(self, lowering: Lowering, here: Value, pixel: Value) -> dict[str, Value]:
        """The words and maps of some pixels."""
        values = {}
        for item in self.program.given:
            kind = self.types[item.name]
            if not kind.axes and _pixelwise(kind):
                dtype = self.dtypes[item.name]
                address = lowering.offset(
                    self.addresses[item.name], here if FRAME in kind.dims else pixel, dtype.itemsize
                )
                values[item.name] = lowering.given(address, dtype, kind, True)
        return values

    def _elsewhere(self, lowering: Lowering, shortcut: Shortcut, values: dict[str, Value]) -> Value:
        """Whether any pixel of a vector lies outside the bounds of the shortcut."""
        value, kind = lowering.splat(values[shortcut.name]), self.types[shortcut.name]
        outside = lowering.constant(lowering.vector(BIT), 0)
        if shortcut.low > kind.low:
            outside = self.b.or_(outside, lowering.compare("<", value, lowering.constant(value.type, shortcut.low)))
        if shortcut.high < kind.high:
            outside = self.b.or_(outside, lowering.compare(">", value, lowering.constant(value.type, shortcut.high)))
        name = f"llvm.vector.reduce.or.v{lowering.width}i1"
        signature = ir.FunctionType(BIT, [outside.type])
        return self.b.call(cgutils.get_or_insert_function(self.b.module, signature, name), [outside])

    def _finish(
        self, lowering: Lowering, steps: list[Step], values: dict[str, Value], pixel: Value, here: Value
    ) -> None:
        """The rest of the steps, and the results."""
        self._steps(lowering, steps, values, pixel)
        result, flags = Delivery(lowering, self.program).deliver(values)
        size = np.dtype(self.program.dtype).itemsize
        lowering.store(result, lowering.offset(self.addresses[VALUE], here, size))
        if self.layout.flags:
            lowering.store(flags, lowering.offset(self.addresses[FLAGS], here, FLAGS_SIZE))

    def _steps(self, lowering: Lowering, steps: list[Step], values: dict[str, Value], pixel: Value) -> None:
        for step in steps:
            values[step.name] = self._step(lowering, step, values, pixel)

    def _step(self, lowering: Lowering, step: Step, values: dict[str, Value], pixel: Value | None) -> Value:
        if step.operation != "select":
            return lowering.step(step, values)
        indices = [lowering.argument(values, a) for a in step.arguments[1:]]
        return self.selection.select(lowering, step.arguments[0], indices, pixel)


def _pixelwise(kind: Type) -> bool:
    return bool(kind.dims - {FRAME})
