"""A program to one fused function: decode, select, compute, flag and store in a single pass.

The loops walk tiles of pixels outside and frames inside, so that the constants of a tile stay in
the cache.  Where a whole group of pixels sits in the first stage, the steps are lowered a second
time with the stage known: lookups, selections and tests on it vanish.  Why the loops look as they
do: docs/decisions/0007.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
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
        frames: Value,
        pixels: Value,
        first: Value,
        last: Value,
    ) -> None:
        self.b, self.program, self.layout = builder, program, layout
        self.frames, self.pixels, self.first, self.last = frames, pixels, first, last
        self.types = dict(program.types)
        self.dtypes = {name: np.dtype(dtype) for name, dtype in layout.arrays}
        self.size = np.dtype(program.dtype).itemsize
        names = [*(name for name, _ in layout.arrays), VALUE, *([FLAGS] if layout.flags else [])]
        table = builder.inttoptr(addresses, INT64.as_pointer())
        self.addresses = {
            name: builder.load(builder.gep(table, [ir.Constant(INT64, k)])) for k, name in enumerate(names)
        }
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
            with self._range(ir.Constant(INT64, 0), self.frames, 1) as frame:
                uniform = self._uniform(frame)
                last = self.b.icmp_signed("==", self.b.add(frame, ir.Constant(INT64, 1)), self.frames)
                ahead = self.b.select(last, ir.Constant(INT64, 0), self.pixels)
                with self._range(low, whole, GROUP) as pixel:
                    self._prefetch(self.b.add(self._place(frame, pixel), ahead))
                    self._group(frame, pixel, low, uniform)
                with self._range(whole, high, 1) as pixel:
                    self._pixels(Lowering(self.b, self.program, 1), frame, pixel, uniform)

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
            values = self._loaded(lowering, [i for i in self.program.given if i.name in still], pixel, pixel)
            self._steps(lowering, [s for s in self.program.steps if s.name in still], values, pixel)
            for name, bits in path.kept.items():
                lowering.store_bits(lowering.splat(values[name]), bits, self.b.sub(pixel, low))

    def _place(self, frame: Value, pixel: Value) -> Value:
        """Number of a pixel, all frames before it counted."""
        return self.b.add(self.b.mul(frame, self.pixels), pixel)

    def _prefetch(self, place: Value) -> None:
        """Fetch what the next frame needs: a tile is too short for the processor to see it coming."""
        lowering = Lowering(self.b, self.program, GROUP)
        for item in self.program.given:
            kind = self.types[item.name]
            if FRAME in kind.dims and _pixelwise(kind):
                size = self.dtypes[item.name].itemsize
                lowering.prefetch(lowering.offset(self.addresses[item.name], place, size), GROUP * size, False)
        if self.layout.streaming:
            return
        lowering.prefetch(lowering.offset(self.addresses[VALUE], place, self.size), GROUP * self.size, True)
        if self.layout.flags:
            lowering.prefetch(lowering.offset(self.addresses[FLAGS], place, FLAGS_SIZE), GROUP * FLAGS_SIZE, True)

    def _group(self, frame: Value, pixel: Value, low: Value, uniform: dict[str, Value]) -> None:
        """A group of pixels: the short way where all of them are as assumed."""
        usual, *short = self.paths
        if not short:
            self._lanes(usual, frame, pixel, low, uniform)
            return
        with self.b.if_else(self._elsewhere(frame, pixel, uniform), likely=False) as (mixed, same):
            with mixed:
                self._mixed(usual, frame, pixel, low, uniform)
            with same:
                self._lanes(short[0], frame, pixel, low, uniform)

    def _mixed(self, usual: _Path, frame: Value, pixel: Value, low: Value, uniform: dict[str, Value]) -> None:
        """A group of several stages: special words are asked for once, not pixel by pixel."""
        if not self.rare:
            self._lanes(usual, frame, pixel, low, uniform)
            return
        with self.b.if_else(self._any_rare(frame, pixel), likely=False) as (special, plain):
            with special:
                self._lanes(usual, frame, pixel, low, uniform)
            with plain:
                self._lanes(replace(usual, never=tuple(self.rare)), frame, pixel, low, uniform)

    def _any_rare(self, frame: Value, pixel: Value) -> Value:
        """Whether any word of a group is one of the special ones."""
        lowering = Lowering(self.b, self.program, GROUP)
        words = [i for i in self.program.inputs if i.name in {word for word, _ in self.rare.values()}]
        values = self._loaded(lowering, words, self._place(frame, pixel), pixel)
        found = lowering.constant(lowering.vector(BIT), 0)
        for word, number in sorted(set(self.rare.values())):
            value = values[word]
            if self.types[word].low <= number <= self.types[word].high:
                found = self.b.or_(found, lowering.compare("==", value, lowering.constant(value.type, number)))
        return lowering.any(found)

    def _lanes(self, path: _Path, frame: Value, first: Value, low: Value, uniform: dict[str, Value]) -> None:
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
            self._pixels(lowering, frame, pixel, uniform, kept)

    def _pixels(
        self,
        lowering: Lowering,
        frame: Value,
        pixel: Value,
        uniform: dict[str, Value],
        kept: Mapping[str, Value] = MappingProxyType({}),
    ) -> None:
        """Everything for the pixels from `pixel` on."""
        here = self._place(frame, pixel)
        values = {**uniform, **self._loaded(lowering, self.program.given, here, pixel), **kept}
        steps = [s for s in self.program.steps if _pixelwise(self.types[s.name]) and s.name not in kept]
        self._steps(lowering, steps, values, pixel)
        result, flags = Delivery(lowering, self.program).deliver(values)
        streaming = self.layout.streaming and lowering.width == LANES
        lowering.store(result, lowering.offset(self.addresses[VALUE], here, self.size), streaming)
        if self.layout.flags:
            lowering.store(flags, lowering.offset(self.addresses[FLAGS], here, FLAGS_SIZE), streaming)

    def _loaded(
        self, lowering: Lowering, items: Iterable[Input | Constant], here: Value, pixel: Value
    ) -> dict[str, Value]:
        """The words and maps of some pixels."""
        values = {}
        for item in items:
            kind = self.types[item.name]
            if not kind.axes and _pixelwise(kind):
                dtype = self.dtypes[item.name]
                place = here if FRAME in kind.dims else pixel
                address = lowering.offset(self.addresses[item.name], place, dtype.itemsize)
                values[item.name] = lowering.given(address, dtype, kind, True)
        return values

    def _elsewhere(self, frame: Value, pixel: Value, uniform: dict[str, Value]) -> Value:
        """Whether any pixel of a group lies outside the bounds of the shortcut."""
        assert self.shortcut is not None
        lowering, name = Lowering(self.b, self.program, GROUP), self.shortcut.name
        here = self._place(frame, pixel)
        values = uniform | self._loaded(lowering, self.program.given, here, pixel)
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
