"""A program to one fused function: decode, select, compute, flag and store in a single pass.

The loops walk tiles of pixels outside and frames inside, so that the constants of a tile stay in
the cache.  Where a whole group of pixels sits in the first stage, the steps are lowered a second
time with the stage known: lookups, selections and tests on it vanish.  Why the loops look as they
do: docs/decisions/0007.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cfunc, types
from numba.core import cgutils
from numba.extending import intrinsic

from gaincal.formulas.checks import FRAME
from gaincal.formulas.formula import Constant, Input, Step
from gaincal.formulas.operations import Type
from gaincal.formulas.program import Program
from gaincal.kernels.delivery import Delivery
from gaincal.kernels.lowering import Lowering
from gaincal.kernels.selection import Selection
from gaincal.kernels.shortcut import find_shortcut, rare_words
from gaincal.kernels.still import kept_conditions, still_names
from gaincal.kernels.vectors import BIT, INT64, Builder, Value

TILE = 4096
GROUP = 64
LANES = 16
VALUE, FLAGS = "-> value", "-> flags"
FLAGS_SIZE = 4
ADDRESS_SIZE = 8
Rows = dict[str, Value]
"""Where a frame begins, for everything that has a value for each of its pixels."""


class Kernel:
    """A compiled program, callable from Python and, by its address, from compiled code."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled  # owns the code
        self.address = int(compiled.address)
        self._call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 6)(self.address)

    def __call__(self, addresses: int, begin: int, end: int, pixels: int, first: int, last: int) -> None:
        """Compute, without the interpreter's lock; see `compile_program`."""
        self._call(addresses, begin, end, pixels, first, last)


@dataclass(frozen=True)
class Layout:
    """Order of the addresses that a kernel takes, and the storage type behind each.

    Parameters
    ----------
    arrays : tuple of (str, str)
        Name and dtype of every input and constant.
    flags : bool
        Whether flags are stored.
    streaming : bool
        Whether results bypass the cache; all of them must then begin at cache lines, frame by frame.
    """

    arrays: tuple[tuple[str, str], ...]
    flags: bool
    streaming: bool = False


@lru_cache(maxsize=64)
def compile_program(program: Program, layout: Layout) -> Kernel:
    """Compile a program for arrays of the given layout.

    Returns
    -------
    kernel : callable (addresses, begin, end, pixels, first, last) -> None
        ``addresses`` points to int64 addresses: the arrays of the layout, then the output, then
        the flags.  Words, output and flags are each given as an array of addresses, one for the
        first pixel of every frame; per-frame inputs (frames,) and maps (planes, pixels) are
        contiguous.  Pixels ``first`` to ``last`` of frames ``begin`` to ``end`` are computed.
        Runs without the interpreter's lock and checks nothing: see `gaincal.kernels.blocks`.
        Its attribute ``address`` is where compiled code finds it.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def body(_context: Any, _addresses: Any, _begin: Any, _end: Any, _pixels: Any, _first: Any, _last: Any) -> Any:
        def codegen(context: Any, builder: Builder, _signature: Any, arguments: tuple[Value, ...]) -> Value:
            _Emitter(builder, program, layout, *arguments).emit()
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), codegen

    # A C function: callable from Python without the interpreter's lock, and from other compiled code.
    @cfunc(types.void(*[types.int64] * 6), error_model="numpy")  # type: ignore[untyped-decorator]
    def kernel(addresses: int, begin: int, end: int, pixels: int, first: int, last: int) -> None:
        body(addresses, begin, end, pixels, first, last)

    return Kernel(kernel)


@dataclass(frozen=True)
class _Path:
    """The types of everything under what is assumed, where the conditions of a tile are kept, and what never holds."""

    types: dict[str, Type]
    kept: dict[str, Value]
    never: tuple[str, ...] = ()


class _Emitter:
    """Emits the loops of one kernel and, inside them, the steps."""

    def __init__(
        self,
        builder: Builder,
        program: Program,
        layout: Layout,
        addresses: Value,
        begin: Value,
        end: Value,
        pixels: Value,
        first: Value,
        last: Value,
    ) -> None:
        self.b, self.program, self.layout = builder, program, layout
        self.begin, self.end, self.pixels, self.first, self.last = begin, end, pixels, first, last
        self.types = dict(program.types)
        self.dtypes = {name: np.dtype(dtype) for name, dtype in layout.arrays}
        self.size = np.dtype(program.dtype).itemsize
        names = [*(name for name, _ in layout.arrays), VALUE, *([FLAGS] if layout.flags else [])]
        table = builder.inttoptr(addresses, INT64.as_pointer())
        self.addresses = {
            name: builder.load(builder.gep(table, [ir.Constant(INT64, k)])) for k, name in enumerate(names)
        }
        by_frame = [i.name for i in program.given if self.types[i.name].dims > {FRAME}]
        self.by_row = {name: self.dtypes[name].itemsize for name in by_frame} | {VALUE: self.size}
        if layout.flags:
            self.by_row[FLAGS] = FLAGS_SIZE
        self.selection = Selection(program, self.dtypes, self.addresses, pixels)
        self.shortcut = find_shortcut(program)
        self.rare = rare_words(program)
        self.paths = [self._path(dict(program.types))]
        if self.shortcut is not None:
            self.paths.append(self._path(self.shortcut.types))

    def _path(self, types: dict[str, Type]) -> _Path:
        size = ir.ArrayType(ir.IntType(8), TILE // 8)
        return _Path(types, {n: cgutils.alloca_once(self.b, size) for n in kept_conditions(self.program, types)})

    def emit(self) -> None:
        with self._range(self.first, self.last, TILE) as low:
            end = self.b.add(low, ir.Constant(INT64, TILE))
            high = self.b.select(self.b.icmp_signed("<", end, self.last), end, self.last)
            whole = self.b.sub(high, self.b.srem(self.b.sub(high, low), ir.Constant(INT64, GROUP)))
            for path in self.paths:
                self._keep(path, low, whole)
            with self._range(self.begin, self.end, 1) as frame:
                uniform, rows = self._uniform(frame), self._rows(frame)
                following = self.b.add(frame, ir.Constant(INT64, 1))
                last = self.b.icmp_signed("==", following, self.end)
                ahead = self._rows(self.b.select(last, frame, following))
                with self._range(low, whole, GROUP) as pixel:
                    self._prefetch(ahead, pixel)
                    self._group(rows, pixel, low, uniform)
                with self._range(whole, high, 1) as pixel:
                    self._pixels(Lowering(self.b, self.program, 1), rows, pixel, uniform)

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

    def _keep(self, path: _Path, low: Value, whole: Value) -> None:
        """Compute what does not change from frame to frame, for the pixels of a tile."""
        if not path.kept:
            return
        still = still_names(self.program, path.types)
        with self._range(low, whole, LANES) as pixel:
            lowering = Lowering(self.b, self.program, LANES, path.types)
            values = self._loaded(lowering, [i for i in self.program.given if i.name in still], {}, pixel)
            self._steps(lowering, [s for s in self.program.steps if s.name in still], values, pixel)
            for name, bits in path.kept.items():
                lowering.store_bits(lowering.splat(values[name]), bits, self.b.sub(pixel, low))

    def _rows(self, frame: Value) -> Rows:
        """Where the words and the results of a frame begin."""
        place = self.b.mul(frame, ir.Constant(INT64, ADDRESS_SIZE))
        return {
            name: self.b.load(self.b.inttoptr(self.b.add(self.addresses[name], place), INT64.as_pointer()))
            for name in self.by_row
        }

    def _prefetch(self, rows: Rows, pixel: Value) -> None:
        """Fetch what the next frame needs: a tile is too short for the processor to see it coming."""
        lowering = Lowering(self.b, self.program, GROUP)
        for name, size in self.by_row.items():
            written = name in (VALUE, FLAGS)
            if not (written and self.layout.streaming):
                lowering.prefetch(lowering.offset(rows[name], pixel, size), GROUP * size, written)

    def _group(self, rows: Rows, pixel: Value, low: Value, uniform: dict[str, Value]) -> None:
        """A group of pixels: the short way where all of them are as assumed."""
        usual, *short = self.paths
        if not short:
            self._lanes(usual, rows, pixel, low, uniform)
            return
        with self.b.if_else(self._elsewhere(rows, pixel, uniform), likely=False) as (mixed, same):
            with mixed:
                self._mixed(usual, rows, pixel, low, uniform)
            with same:
                self._lanes(short[0], rows, pixel, low, uniform)

    def _mixed(self, usual: _Path, rows: Rows, pixel: Value, low: Value, uniform: dict[str, Value]) -> None:
        """A group of several stages: special words are asked for once, not pixel by pixel."""
        if not self.rare:
            self._lanes(usual, rows, pixel, low, uniform)
            return
        with self.b.if_else(self._any_rare(rows, pixel), likely=False) as (special, plain):
            with special:
                self._lanes(usual, rows, pixel, low, uniform)
            with plain:
                self._lanes(replace(usual, never=tuple(self.rare)), rows, pixel, low, uniform)

    def _any_rare(self, rows: Rows, pixel: Value) -> Value:
        """Whether any word of a group is one of the special ones."""
        lowering = Lowering(self.b, self.program, GROUP)
        words = [i for i in self.program.inputs if i.name in {word for word, _ in self.rare.values()}]
        values = self._loaded(lowering, words, rows, pixel)
        found = lowering.constant(lowering.vector(BIT), 0)
        for word, number in sorted(set(self.rare.values())):
            value = values[word]
            if self.types[word].low <= number <= self.types[word].high:
                found = self.b.or_(found, lowering.compare("==", value, lowering.constant(value.type, number)))
        return lowering.any(found)

    def _lanes(self, path: _Path, rows: Rows, first: Value, low: Value, uniform: dict[str, Value]) -> None:
        """A group, as many pixels at a time as one register takes: wider conditions cost shuffles."""
        with self._range(ir.Constant(INT64, 0), ir.Constant(INT64, GROUP), LANES) as lane:
            pixel = self.b.add(first, lane)
            lowering = Lowering(self.b, self.program, LANES, path.types)
            kept = {
                name: lowering.load_bits(bits, self.b.sub(pixel, low))
                for p in self.paths
                for name, bits in p.kept.items()
                if p.types is path.types or p is self.paths[0]
            }
            kept |= dict.fromkeys(path.never, ir.Constant(BIT, 0))
            self._pixels(lowering, rows, pixel, uniform, kept)

    def _pixels(
        self,
        lowering: Lowering,
        rows: Rows,
        pixel: Value,
        uniform: dict[str, Value],
        kept: Mapping[str, Value] = MappingProxyType({}),
    ) -> None:
        """Everything for the pixels from `pixel` on."""
        values = {**uniform, **self._loaded(lowering, self.program.given, rows, pixel), **kept}
        steps = [s for s in self.program.steps if _pixelwise(self.types[s.name]) and s.name not in kept]
        self._steps(lowering, steps, values, pixel)
        result, flags = Delivery(lowering, self.program).deliver(values)
        streaming = self.layout.streaming and lowering.width == LANES
        lowering.store(result, lowering.offset(rows[VALUE], pixel, self.size), streaming)
        if self.layout.flags:
            lowering.store(flags, lowering.offset(rows[FLAGS], pixel, FLAGS_SIZE), streaming)

    def _loaded(
        self, lowering: Lowering, items: Iterable[Input | Constant], rows: Rows, pixel: Value
    ) -> dict[str, Value]:
        """The words and maps of some pixels."""
        values = {}
        for item in items:
            kind = self.types[item.name]
            if not kind.axes and _pixelwise(kind):
                dtype = self.dtypes[item.name]
                begin = rows[item.name] if item.name in self.by_row else self.addresses[item.name]
                address = lowering.offset(begin, pixel, dtype.itemsize)
                values[item.name] = lowering.given(address, dtype, kind, True)
        return values

    def _elsewhere(self, rows: Rows, pixel: Value, uniform: dict[str, Value]) -> Value:
        """Whether any pixel of a group lies outside the bounds of the shortcut."""
        assert self.shortcut is not None
        lowering, name = Lowering(self.b, self.program, GROUP), self.shortcut.name
        values = uniform | self._loaded(lowering, self.program.given, rows, pixel)
        names = [s.name for s in self.program.steps]
        before = self.program.steps[: names.index(name) + 1] if name in names else ()
        self._steps(lowering, [s for s in before if _pixelwise(self.types[s.name])], values, pixel)
        value, kind = lowering.splat(values[name]), self.types[name]
        outside = lowering.constant(lowering.vector(BIT), 0)
        if self.shortcut.low > kind.low:
            outside = self.b.or_(
                outside, lowering.compare("<", value, lowering.constant(value.type, self.shortcut.low))
            )
        if self.shortcut.high < kind.high:
            outside = self.b.or_(
                outside, lowering.compare(">", value, lowering.constant(value.type, self.shortcut.high))
            )
        return lowering.any(outside)

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
