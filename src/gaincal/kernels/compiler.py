"""A program to one fused function: decode, select, compute, flag and store in a single pass.

The loops walk tiles of pixels outside and frames inside, so that the constants of a tile stay in
the cache.  Where a whole group of pixels sits in the first stage, the steps are lowered a second
time with the stage known: lookups, selections and tests on it vanish.  Why the loops look as they
do: docs/decisions/0007.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, reduce
from typing import Any

from llvmlite import ir
from numba import cfunc, types
from numba.extending import intrinsic

from gaincal.formulas.program import Program
from gaincal.kernels import groups
from gaincal.kernels.groups import FLAGS, MARKS, VALUE, Frame, GroupEmitter, Layout, Path, Rows
from gaincal.kernels.lowering import Lowering
from gaincal.kernels.results import LANES
from gaincal.kernels.shortcut import above
from gaincal.kernels.still import known, pixelwise
from gaincal.kernels.vectors import BIT, INT64, Builder, Room, Value

MANY_MIXED = 2
"""Where more than one group in so many is of several stages, constants of all stages are needed all the time."""
_SIGNATURE = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 6)


class Kernel:
    """A compiled program, callable from Python and, by its address, from compiled code.

    Attributes
    ----------
    known : tuple of int
        What it wants to know of every pixel beforehand, from maps alone: conditions of 1 bit, numbers of 16.
    results : int
        How many addresses of results it takes.
    address : int
        Of the compiled function.
    """

    def __init__(self, compute: Any, prepare: Any, known: tuple[int, ...], results: int) -> None:
        self._owners = compute, prepare
        self.known, self.results, self.address = known, results, int(compute.address)
        self._compute, self._prepare = (f and _SIGNATURE(int(f.address)) for f in self._owners)

    def __call__(self, addresses: int, begin: int, end: int, pixels: int, first: int, last: int) -> None:
        """Compute, without the interpreter's lock; see `compile_program`."""
        self._compute(addresses, begin, end, pixels, first, last)

    def prepare(self, addresses: int, pixels: int, first: int, last: int) -> None:
        """Compute what is known of some pixels beforehand, which no frame changes."""
        self._prepare(addresses, 0, 0, pixels, first, last)


@lru_cache(maxsize=64)
def compile_program(program: Program, layout: Layout) -> Kernel:
    """Compile a program for arrays of the given layout.

    Returns
    -------
    kernel : callable (addresses, begin, end, pixels, first, last) -> None
        ``addresses`` points to int64 numbers: the addresses of the arrays of the layout, of the
        output, the flags and their marks, the pixel with which what is known beforehand begins, and the addresses
        of this, which `Kernel.prepare` computes.
        Words, output and flags are each given as an array of addresses, one for the first pixel of
        every frame; per-frame inputs (frames,) and maps (planes, pixels) are contiguous.
        Pixels ``first`` to ``last`` of frames ``begin`` to ``end`` are computed.
        Runs without the interpreter's lock and checks nothing: see `gaincal.kernels.blocks`.
    """
    known: list[tuple[int, ...]] = []

    def emit(emitter: _Emitter) -> None:
        known.append(tuple(room.width for room in emitter.known))
        emitter.emit()

    compute = _function(program, layout, emit)
    prepare = _function(program, layout, _Emitter.emit_known) if known[0] else None
    return Kernel(compute, prepare, known[0], layout.results)


def _function(program: Program, layout: Layout, emit: Callable[[_Emitter], None]) -> Any:
    """Compile what an emitter emits to a C function, for Python without the interpreter's lock, and for other code."""

    @intrinsic  # type: ignore[untyped-decorator]
    def body(_context: Any, _addresses: Any, _begin: Any, _end: Any, _pixels: Any, _first: Any, _last: Any) -> Any:
        def codegen(context: Any, builder: Builder, _signature: Any, arguments: tuple[Value, ...]) -> Value:
            emit(_Emitter(builder, program, layout, *arguments))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), codegen

    @cfunc(types.void(*[types.int64] * 6), error_model="numpy")  # type: ignore[untyped-decorator]
    def function(addresses: int, begin: int, end: int, pixels: int, first: int, last: int) -> None:
        body(addresses, begin, end, pixels, first, last)

    return function


class _Emitter(GroupEmitter):
    """Emits the loops of one kernel."""

    def emit_known(self) -> None:
        """Everything that can be said of pixels before there is a frame."""
        with self._tiles(self.first, self.last, ir.Constant(INT64, groups.TILE)) as (low, whole, _):
            for path in self.paths:
                self._keep(self._at(path, low), low, whole, True)
            if self.ends is not None:
                self._keep_ends(self.ends, low, whole)

    def emit(self) -> None:
        """The frames, tile by tile."""
        self.b.store(ir.Constant(INT64, 0), self.mixed)
        with self._range(self.first, self.last, groups.TILE) as start:
            stop = self._least(self.b.add(start, ir.Constant(INT64, groups.TILE)), self.last)
            with self._tiles(start, stop, self._tile_length()) as (low, whole, high):
                self.here = [self._at(path, low) for path in self.paths]
                for path in self.here:
                    self._keep(path, low, whole, False)
                with self._range(self.begin, self.end, 1) as number:
                    self._tile(number, low, whole, high)

    def _tile_length(self) -> Value:
        """Half a tile where many groups of the one before were of several stages: their planes fit the first cache."""
        frames, most = self.b.sub(self.end, self.begin), groups.TILE // groups.GROUP // MANY_MIXED
        many = self.b.icmp_signed(">", self.b.load(self.mixed), self.b.mul(frames, ir.Constant(INT64, most)))
        self.b.store(ir.Constant(INT64, 0), self.mixed)
        return self.b.select(many, ir.Constant(INT64, groups.TILE // 2), ir.Constant(INT64, groups.TILE))

    def _tile(self, number: Value, low: Value, whole: Value, high: Value) -> None:
        """A tile of a frame."""
        frame = self._frame(number)
        following = self.b.add(number, ir.Constant(INT64, 1))
        last = self.b.icmp_signed("==", following, self.end)
        # After the last frame comes the next tile of the first.
        ahead = self._rows(self.b.select(last, self.begin, following))
        skip = self.b.select(last, self.b.sub(high, low), ir.Constant(INT64, 0))
        with self._range(low, whole, groups.GROUP) as pixel:
            self._prefetch(ahead, self.b.add(pixel, skip))
            self._group(frame, pixel, low)
        with self._range(whole, high, 1) as pixel:
            usual, one = self.paths[0], Lowering(self.b, self.program, 1)
            self._pixels(one, frame.rows, pixel, frame.uniform[0], usual.still + usual.asked, one.true())

    @contextmanager
    def _tiles(self, first: Value, last: Value, length: Value) -> Iterator[tuple[Value, Value, Value]]:
        """Tiles of pixels: the first, the one behind the last whole group, and the one behind all."""
        with self._range(first, last, length) as low:
            high = self._least(self.b.add(low, length), last)
            yield low, self.b.sub(high, self.b.srem(self.b.sub(high, low), ir.Constant(INT64, groups.GROUP))), high

    def _least(self, a: Value, b: Value) -> Value:
        return self.b.select(self.b.icmp_signed("<", a, b), a, b)

    def _frame(self, number: Value) -> Frame:
        """What a frame gives before its pixels are looked at."""
        lowering, given = Lowering(self.b, self.program, 1), {}
        for item in self.program.given:
            kind = self.types[item.name]
            if not kind.axes and not pixelwise(kind):
                dtype = self.dtypes[item.name]
                address = lowering.offset(self.addresses[item.name], number, dtype.itemsize)
                given[item.name] = lowering.given(address, dtype, kind, False)
        uniform: list[dict[str, Value]] = []
        for path in self.paths:
            values = {**given, **(uniform[0] if uniform else {})}
            lowering = Lowering(self.b, self.program, 1, path.types)
            for name in [i.name for i in self.program.inputs if i.name not in values]:
                if not pixelwise(path.types[name]):  # a word, known under the assumption
                    values[name] = lowering.known(path.types[name])
            for step in self.program.steps:
                if not pixelwise(path.types[step.name]) and step.name not in values:
                    values[step.name] = self._step(lowering, step, values, None)
            uniform.append(values)
        return Frame(self._rows(number), uniform)

    def _keep(self, path: Path, low: Value, whole: Value, conditions: bool) -> None:
        """Compute what does not change from frame to frame for the pixels of a tile: conditions, or numbers."""
        shared = self.paths[0].kept if path.number else {}
        new = [name for name, room in path.kept.items() if name not in shared and room.conditions is conditions]
        if not new and not (conditions and path.sound):
            return
        with self._range(low, whole, LANES) as pixel:
            lowering, place = Lowering(self.b, self.program, LANES, path.types), self.b.sub(pixel, low)
            values = {n: lowering.known(k) for n, k in path.types.items() if known(k)}
            self._compute(lowering, [*new, *(name for name, _ in path.still if conditions)], {}, pixel, values)
            for name in new:
                lowering.keep(values[name], path.kept[name], place)
            if conditions and path.sound is not None:
                lowering.keep(self._all(lowering, path.still, values, lowering.true()), path.sound, place)

    def _keep_ends(self, room: Room, low: Value, whole: Value) -> None:
        """Note below which word each pixel is in the first stage; too low an end only takes the usual way."""
        shortcut = self.shortcut
        assert shortcut
        assert shortcut.ends
        compared = shortcut.ends.comparisons
        with self._range(low, whole, LANES) as pixel:
            lowering = Lowering(self.b, self.program, LANES)
            values: dict[str, Value] = {}
            self._compute(lowering, [above(step)[1] for step in compared], {}, pixel, values)
            ends = [lowering.end(values[above(s)[1]], s.operation in ("greater", "less")) for s in compared]
            end = reduce(lambda a, b: self.b.select(self.b.icmp_unsigned("<", a, b), a, b), ends)
            values |= dict.fromkeys((step.name for step in compared), ir.Constant(BIT, 0))
            self._compute(lowering, [shortcut.name], {}, pixel, values)
            stage = lowering.splat(values[shortcut.name])
            first = lowering.compare("==", stage, lowering.constant(stage.type, shortcut.low))
            kept = self.b.select(first, end, lowering.constant(end.type, 0))
            lowering.keep(kept, room, self.b.sub(pixel, self.origin))

    def _prefetch(self, rows: Rows, pixel: Value) -> None:
        """Fetch what the next frame needs: a tile is too short for the processor to see it coming."""
        lowering = Lowering(self.b, self.program, groups.GROUP)
        for name, size in self.by_row.items():
            written = name in (VALUE, FLAGS, MARKS)
            rare = self.layout.marks and name in (FLAGS, MARKS)
            if not rare and not (written and self.layout.streaming):
                lowering.prefetch(lowering.offset(rows[name], pixel, size), groups.GROUP * size, written)
