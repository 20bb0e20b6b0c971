"""A group of pixels of a frame: the ways through it, each with every step computed as rarely as its types allow."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from gaincal.formulas.checks import FRAME
from gaincal.formulas.formula import Step
from gaincal.formulas.operations import Type
from gaincal.formulas.program import Program
from gaincal.kernels.delivery import Delivery, Demands, demands, finite_numbers
from gaincal.kernels.lowering import Lowering
from gaincal.kernels.results import LANES
from gaincal.kernels.selection import Selection
from gaincal.kernels.shortcut import find_shortcut, rare_words
from gaincal.kernels.still import kept_names, needed, pixelwise, still_names
from gaincal.kernels.vectors import BIT, INT8, INT16, INT32, INT64, Builder, Room, Value, storage_type

TILE = 2048
GROUP = 64
VALUE, FLAGS, MARKS = "-> value", "-> flags", "-> marks"
FLAGS_SIZE = 4
ADDRESS_SIZE = 8
Rows = dict[str, Value]
"""Where a frame begins, for everything that has a value for each of its pixels."""


@dataclass(frozen=True)
class Layout:
    """Order of the addresses that a kernel takes, and the storage type behind each.

    Parameters
    ----------
    arrays : tuple of (str, str)
        Name and dtype of every input and constant.
    flags : bool
        Whether flags are stored.
    marks : bool
        Whether flags are stored only where one of `LANES` pixels has some, with a byte of 1 as the mark of it.
    streaming : bool
        Whether results bypass the cache; all of them must then begin at cache lines, frame by frame.
    """

    arrays: tuple[tuple[str, str], ...]
    flags: bool
    marks: bool = False
    streaming: bool = False

    @property
    def results(self) -> int:
        """How many addresses of results there are: of values, flags, and marks."""
        return 1 + self.flags + self.marks


@dataclass(frozen=True)
class Path:
    """A way through a group.

    Parameters
    ----------
    number : int
        Its place among the paths.
    types : dict of str to Type
        Types of everything under what is assumed.
    still, asked : list of (str, bool)
        What must hold for a pixel to have a value: the same in every frame, and to be asked for each word.
    sound : Room or None
        Where `still` is given, if anything is demanded.
    kept : dict of str to Room
        Where other things are that are the same in every frame: conditions are given, numbers kept by tile.
    never : tuple of str
        Conditions that do not hold.
    trusted : tuple of str, optional
        Numbers that are taken to be finite, as the result is then; None if each is asked.
    """

    number: int
    types: dict[str, Type]
    still: Demands
    asked: Demands
    sound: Room | None
    kept: dict[str, Room]
    never: tuple[str, ...] = ()
    trusted: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Frame:
    """Where a frame begins, and what is the same for all of its pixels on each path."""

    rows: Rows
    uniform: list[dict[str, Value]]


class GroupEmitter:
    """Emits what is done with a group of pixels of a frame."""

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
        results = (VALUE, FLAGS, MARKS)[: layout.results]
        names = [*(name for name, _ in layout.arrays), *results]
        self.table, self.known = addresses, list[Room]()
        self.addresses = {name: self._entry(k) for k, name in enumerate(names)}
        self.origin, self.entries = self._entry(len(names)), len(names) + 1
        by_frame = [i.name for i in program.given if self.types[i.name].dims > {FRAME}]
        sizes = zip(results, (self.size, FLAGS_SIZE, 1), strict=False)
        self.by_row = {name: self.dtypes[name].itemsize for name in by_frame} | dict(sizes)
        self.shortcut = find_shortcut(program)
        self.rare = rare_words(program)
        self.whens = [flag.when for _, flag in program.flags] if layout.flags else []
        self.quiet = program.voiding and all(flag.voids for _, flag in program.flags)
        self.paths = [self._path(0, dict(program.types), {})]
        if self.shortcut is not None:
            self.paths.append(self._path(1, self.shortcut.types, self.paths[0].kept))
        self.ends = self._given(INT16) if self.shortcut is not None and self.shortcut.ends is not None else None
        self.here = self.paths
        self.again, self.mixed = (cgutils.alloca_once(builder, kind) for kind in (BIT, INT64))
        self.sums = list[Value]()

    def _path(self, number: int, types: dict[str, Type], kept: dict[str, Room]) -> Path:
        still, lowering = still_names(self.program, types), Lowering(self.b, self.program, LANES, types)
        conditions = demands(self.program, types)
        asked = [d for d in conditions if d[0] not in still]
        kept = {name: room for name, room in kept.items() if pixelwise(types[name])}
        for name in kept_names(self.program, types, [*self._results(asked), *self.whens]):
            if name not in kept:
                logical = types[name].kind == "logical"
                kept[name] = self._given(INT8) if logical else lowering.room(types[name], TILE)
        demanded = [d for d in conditions if d[0] in still]
        sound = self._given(INT8) if demanded else None
        return Path(number, types, demanded, asked, sound, kept)

    def _entry(self, number: int) -> Value:
        """A number of the table that the kernel is given."""
        table = self.b.inttoptr(self.table, INT64.as_pointer())
        return self.b.load(self.b.gep(table, [ir.Constant(INT64, number)]))

    def _given(self, element: Value) -> Room:
        """Where something is given that was computed beforehand: conditions, one bit a pixel, or numbers."""
        self.known.append(Room(self._entry(self.entries + len(self.known)), element))
        return self.known[-1]

    def _at(self, path: Path, low: Value) -> Path:
        """A path whose conditions begin with the first pixel of a tile."""
        skip = self.b.lshr(self.b.sub(low, self.origin), ir.Constant(INT64, 3))
        moved = {n: replace(r, start=self.b.add(r.start, skip)) if r.conditions else r for n, r in path.kept.items()}
        sound = path.sound and replace(path.sound, start=self.b.add(path.sound.start, skip))
        return replace(path, sound=sound, kept=moved)

    def _results(self, asked: Demands) -> list[str]:
        """What must be known of every pixel of every frame."""
        return [self.program.value, *(name for name, _ in asked)]

    @contextmanager
    def _range(self, start: Value, stop: Value, step: int | Value) -> Any:
        step = ir.Constant(INT64, step) if isinstance(step, int) else step
        with cgutils.for_range_slice(self.b, start, stop, step, intp=INT64) as (index, _):
            yield index

    @staticmethod
    def _all(lowering: Lowering, conditions: Demands, values: dict[str, Value], together: Value) -> Value:
        """Whether all of some conditions are as they must be."""
        for name, holds in conditions:
            condition = values[name] if holds else lowering.negation(values[name])
            together = lowering.b.and_(*lowering.alike(together, condition))
        return together

    def _rows(self, frame: Value) -> Rows:
        """Where the words and the results of a frame begin."""
        place = self.b.mul(frame, ir.Constant(INT64, ADDRESS_SIZE))
        return {
            name: self.b.load(self.b.inttoptr(self.b.add(self.addresses[name], place), INT64.as_pointer()))
            for name in self.by_row
        }

    def _group(self, frame: Frame, pixel: Value, low: Value) -> None:
        """A group of pixels: the short way where all are as assumed, and the usual one where that was wrong."""
        usual, *short = self.here
        if short:
            with self.b.if_else(self._elsewhere(frame, pixel), likely=False) as (mixed, same):
                with mixed:
                    self.b.store(self.b.add(self.b.load(self.mixed), ir.Constant(INT64, 1)), self.mixed)
                    self._mixed(usual, frame, pixel, low)
                with same:
                    self._trusting(short[0], frame, pixel, low)
        else:
            self._mixed(usual, frame, pixel, low)
        with self.b.if_then(self.b.load(self.again), likely=False):
            self._lanes(usual, frame, pixel, low)

    def _mixed(self, usual: Path, frame: Frame, pixel: Value, low: Value) -> None:
        """A group of several stages: special words are asked for once, not pixel by pixel."""
        if not self.rare:
            self._trusting(usual, frame, pixel, low)
            return
        with self.b.if_else(self._any_rare(frame, pixel), likely=False) as (special, plain):
            with special:
                self.b.store(ir.Constant(BIT, 1), self.again)
            with plain:
                self._trusting(replace(usual, never=tuple(self.rare)), frame, pixel, low)

    def _trusting(self, path: Path, frame: Frame, pixel: Value, low: Value) -> None:
        """A group as if all numbers were finite; if one is not, neither is the sum of them times 0."""
        if not self.program.voiding:
            self._lanes(path, frame, pixel, low)
            self.b.store(ir.Constant(BIT, 0), self.again)
            return
        numbers = finite_numbers(self.program, path.asked)
        left = [demand for demand in path.asked if demand[0] not in numbers]
        lowering = Lowering(self.b, self.program, LANES)
        self.sums = [self._sum(lowering) for _ in range(len(numbers) + 1)]
        self._lanes(replace(path, asked=left, trusted=tuple(numbers.values())), frame, pixel, low)
        sums = [lowering.is_nan(self.b.load(room)) for room in self.sums]
        self.b.store(lowering.any(reduce(self.b.or_, sums)), self.again)

    def _sum(self, lowering: Lowering) -> Value:
        """Where numbers of each lane are added up, one chain beside another; 0 to begin with."""
        kind = lowering.vector(lowering.real)
        room = cgutils.alloca_once(self.b, kind)
        self.b.store(lowering.constant(kind, 0), room)
        return room

    def _add_up(self, lowering: Lowering, numbers: Iterable[Value], sound: Value) -> None:
        """Add 0 times each number to its sum, where a pixel can have a value at all."""
        for number, room in zip(dict.fromkeys(numbers), self.sums, strict=False):
            total, real = self.b.load(room), lowering.floating(lowering.splat(number), lowering.real)
            zero = lowering.constant(real.type, 0)
            # Only whether it is a NaN matters here, so that rounding once instead of twice changes nothing.
            added = self.b.fadd(total, self.b.fmul(real, zero, flags=["contract"]), flags=["contract"])
            self.b.store(self.b.select(lowering.splat(sound), added, total), room)

    def _any_rare(self, frame: Frame, pixel: Value) -> Value:
        """Whether any word of a group is one of the special ones, or may be."""
        lowering, found = Lowering(self.b, self.program, GROUP), None
        for word in sorted({word for word, _ in self.rare.values()}):
            numbers = {number for name, number in self.rare.values() if name == word}
            value = lowering.load(
                lowering.offset(frame.rows[word], pixel, self.by_row[word]), storage_type(self.dtypes[word]), True
            )
            special = lowering.among(value, numbers)
            found = special if found is None else self.b.or_(found, special)
        return lowering.any(found)

    def _lanes(self, path: Path, frame: Frame, first: Value, low: Value) -> None:
        """A group, as many pixels at a time as one register takes: wider conditions cost shuffles."""
        with self._range(ir.Constant(INT64, 0), ir.Constant(INT64, GROUP), LANES) as lane:
            pixel = self.b.add(first, lane)
            lowering = Lowering(self.b, self.program, LANES, path.types)
            place = self.b.sub(pixel, low)
            kept = {n: lowering.kept(room, place) for n, room in path.kept.items()}
            values = kept | frame.uniform[path.number] | dict.fromkeys(path.never, ir.Constant(BIT, 0))
            sound = lowering.true() if path.sound is None else lowering.kept(path.sound, place)
            self._pixels(lowering, frame.rows, pixel, values, path.asked, sound, path.trusted)

    def _pixels(
        self,
        lowering: Lowering,
        rows: Rows,
        pixel: Value,
        values: dict[str, Value],
        asked: Demands,
        sound: Value,
        trusted: tuple[str, ...] | None = None,
    ) -> None:
        """Everything for the pixels from `pixel` on."""
        values = dict(values)
        self._compute(lowering, [*self._results(asked), *(trusted or ())], rows, pixel, values)
        delivery, streaming = Delivery(lowering, self.program), self.layout.streaming and lowering.width == LANES
        valid = self._all(lowering, asked, values, sound)
        value = values[self.program.value]
        result, fine, raised = delivery.value(value, valid, trusted is not None)
        if trusted is not None:
            numbers = [values[name] for name in trusted]
            self._add_up(lowering, [*numbers, *delivery.must_be_finite(value)], sound)
        lowering.store(result, lowering.offset(rows[VALUE], pixel, self.size), streaming)
        if self.layout.flags:
            self._store_flags(delivery, rows, pixel, values, fine, raised, streaming)

    def _store_flags(
        self,
        delivery: Delivery,
        rows: Rows,
        pixel: Value,
        values: dict[str, Value],
        fine: Value,
        raised: dict[int, Value],
        streaming: bool,
    ) -> None:
        """Store the flags; where all of them void the value and all pixels have one, none is asked for."""
        lowering, marking = delivery.lowering, self.layout.marks and delivery.lowering.width == LANES
        target = lowering.offset(rows[FLAGS], pixel, FLAGS_SIZE)
        flags, mark = lowering.constant(lowering.vector(INT32), 0), ir.Constant(BIT, 0)
        asked = lowering.any(lowering.negation(fine)) if self.quiet else ir.Constant(BIT, 1)
        before = self.b.block
        with self.b.if_then(asked, likely=not self.quiet):
            self._compute(lowering, self.whens, rows, pixel, values)
            some = delivery.flags(values, raised)
            if marking:
                lowering.store(some, target, False)
            raises = lowering.any(self.b.icmp_unsigned("!=", some, flags))
            inside = self.b.block
        flags = self._merged((flags, before), (some, inside))
        mark = self._merged((mark, before), (raises, inside))
        if not marking:
            lowering.store(flags, target, streaming)
        if self.layout.marks:
            place = self.b.add(rows[MARKS], self.b.udiv(pixel, ir.Constant(INT64, LANES)))
            mark = self.b.zext(mark, INT8) if marking else ir.Constant(INT8, 1)
            self.b.store(mark, self.b.inttoptr(place, INT8.as_pointer()))

    def _merged(self, *ways: tuple[Value, Any]) -> Value:
        """What a value is, depending on the block that was left last."""
        merged = self.b.phi(ways[0][0].type)
        for value, block in ways:
            merged.add_incoming(value, block)
        return merged

    def _compute(
        self, lowering: Lowering, names: Iterable[str], rows: Rows, pixel: Value, values: dict[str, Value]
    ) -> None:
        """Add some names to the values that there are, and everything that leads there."""
        steps, wanted = needed(self.program, names, values)
        values |= self._loaded(lowering, wanted - values.keys(), rows, pixel)
        for step in steps:
            values[step.name] = self._step(lowering, step, values, pixel)

    def _loaded(self, lowering: Lowering, names: set[str], rows: Rows, pixel: Value) -> dict[str, Value]:
        """The words and maps of some pixels."""
        values = {}
        for item in self.program.given:
            kind = self.types[item.name]
            if item.name in names and not kind.axes:
                dtype = self.dtypes[item.name]
                begin = rows[item.name] if item.name in self.by_row else self.addresses[item.name]
                address = lowering.offset(begin, pixel, dtype.itemsize)
                values[item.name] = lowering.given(address, dtype, kind, True)
        return values

    def _elsewhere(self, frame: Frame, pixel: Value) -> Value:
        """Whether any pixel of a group lies outside the bounds of the shortcut."""
        assert self.shortcut is not None
        if self.ends is not None:
            return self._beyond_ends(frame, pixel)
        name, low, most = self.shortcut.name, self.shortcut.low, self.shortcut.high - self.shortcut.low
        if name in self.by_row:
            lowering = Lowering(self.b, self.program, GROUP)
            address = lowering.offset(frame.rows[name], pixel, self.by_row[name])
            words = lowering.load(address, storage_type(self.dtypes[name]), True)
            return lowering.any_above(self.b.sub(words, lowering.constant(words.type, low)), most)
        lowering, outside = Lowering(self.b, self.program, LANES), ir.Constant(BIT, 0)
        for lane in range(0, GROUP, LANES):
            values = dict(frame.uniform[0])
            self._compute(lowering, [name], frame.rows, self.b.add(pixel, ir.Constant(INT64, lane)), values)
            value = lowering.splat(values[name])
            above = self.b.icmp_unsigned(
                ">", self.b.sub(value, lowering.constant(value.type, low)), lowering.constant(value.type, most)
            )
            outside = self.b.or_(*lowering.alike(outside, above))
        return lowering.any(outside)

    def _beyond_ends(self, frame: Frame, pixel: Value) -> Value:
        """Whether any word of a group is at its end, or beyond."""
        assert self.shortcut
        assert self.shortcut.ends
        assert self.ends
        lowering, size = Lowering(self.b, self.program, GROUP), INT16.width // 8
        places = (frame.rows[self.shortcut.ends.word], pixel), (self.ends.start, self.b.sub(pixel, self.origin))
        words, ends = (lowering.load(lowering.offset(*place, size), INT16, True) for place in places)
        return lowering.any(self.b.icmp_unsigned(">=", words, ends))

    def _step(self, lowering: Lowering, step: Step, values: dict[str, Value], pixel: Value | None) -> Value:
        if step.operation != "select":
            return lowering.step(step, values)
        indices = [lowering.argument(values, a) for a in step.arguments[1:]]
        selection = Selection(self.program, self.dtypes, self.addresses, self.pixels)
        return selection.select(lowering, step.arguments[0], indices, pixel)
