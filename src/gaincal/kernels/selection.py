"""Lowering of ``select``: a constant along its named axes, by label."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from llvmlite import ir

from gaincal.formulas.checks import FRAME
from gaincal.formulas.operations import NO_STAGE
from gaincal.formulas.program import Program
from gaincal.kernels.lowering import Lowering
from gaincal.kernels.vectors import INT64, MAX_COMPARED, Value, known_number, storage_type

BY_BITS = (2, 4)
"""So many entries of a table are chosen from by the bits of the code: fewer conditions than one for each label."""


class Selection:
    """Chooses planes of constants.

    An index that is the same for all pixels of a frame (a memory cell) moves the address; one that
    varies by pixel (the gain stage) is compared with the labels, every plane being loaded: a
    gather costs more.  An index that is looked up with a code of few bits is not compared: each bit
    chooses.  Only where there are too many planes is each pixel fetched by address.
    """

    def __init__(
        self, program: Program, dtypes: dict[str, np.dtype[Any]], addresses: dict[str, Value], pixels: Value
    ) -> None:
        self.types, self.labels = dict(program.types), dict(program.labels)
        self.dtypes, self.addresses, self.pixels = dtypes, addresses, pixels

    def select(self, lowering: Lowering, name: str, indices: list[Value], pixel: Value | None) -> Value:
        """The chosen value of constant `name` for the pixels from `pixel` on.

        A constant without pixel dims has one value per plane, whatever the pixel.
        """
        pixel = pixel if self.types[name].dims - {FRAME} else None
        labels = self.labels[name]
        strides = [int(np.prod([len(axis) for axis in labels[k + 1 :]])) for k in range(len(labels))]
        moved, lacking = ir.Constant(INT64, 0), ir.Constant(ir.IntType(1), 0)
        choices: list[list[tuple[int, Value]]] = []
        gathered = []
        for axis, index, stride in zip(labels, indices, strides, strict=True):
            known = known_number(index)
            if known is not None and known in axis:
                moved = lowering.b.add(moved, ir.Constant(INT64, axis.index(known) * stride))
            elif isinstance(index.type, ir.VectorType) and known is None:
                gathered.append((axis, index, stride))
                choices.append([(axis.index(v) * stride, (index, v)) for v in axis])
            else:
                position = self._position(lowering, axis, index)
                lacking = lowering.b.or_(lacking, lowering.compare("<", position, ir.Constant(INT64, 0)))
                moved = lowering.b.add(moved, lowering.b.mul(position, ir.Constant(INT64, stride)))
        moved = lowering.b.select(lacking, ir.Constant(INT64, 0), moved)
        if int(np.prod([len(c) for c in choices])) > MAX_COMPARED:
            chosen = self._fetched(lowering, name, moved, gathered, pixel)
        else:
            chosen = self._compared(lowering, name, moved, choices, pixel)
        lacking, chosen = lowering.alike(lacking, chosen)
        return lowering.b.select(lacking, lowering.constant(chosen.type, self._absent(name)), chosen)

    def _absent(self, name: str) -> float:
        return float("nan") if self.types[name].kind == "real" else NO_STAGE

    def _compared(
        self,
        lowering: Lowering,
        name: str,
        moved: Value,
        choices: list[list[tuple[int, Value]]],
        pixel: Value | None,
    ) -> Value:
        """Load every plane that is left to choose from and keep the one whose labels match."""
        index = choices[0][0][1][0] if len(choices) == 1 else None
        code, entries = lowering.looked_up.get(index, (None, ()))
        planes = (
            {label: lowering.b.add(moved, ir.Constant(INT64, k)) for k, (_, label) in choices[0]} if entries else {}
        )
        if len(entries) in BY_BITS and planes.keys() & set(entries):
            return self._by_bits(lowering, name, [planes.get(entry) for entry in entries], code, pixel)
        chosen = None
        for combination in product(*choices):
            plane = lowering.b.add(moved, ir.Constant(INT64, sum(offset for offset, _ in combination)))
            loaded = self._load(lowering, name, plane, pixel)
            for _, (index, label) in combination:
                here, loaded = lowering.alike(
                    lowering.compare("==", index, lowering.constant(index.type, label)), loaded
                )
                absent = lowering.constant(loaded.type, self._absent(name))
                other = absent if chosen is None else chosen
                loaded = lowering.b.select(here, loaded, other)
            chosen = loaded
        return chosen

    def _by_bits(
        self, lowering: Lowering, name: str, planes: list[Value | None], code: Value, pixel: Value | None
    ) -> Value:
        """Load the plane that belongs to every code, None where there is none, and choose by each bit of the code."""
        b = lowering.b
        loaded = [self._load(lowering, name, plane, pixel) for plane in planes if plane is not None]
        absent = lowering.constant(loaded[0].type, self._absent(name))
        rest = iter(loaded)
        left = [absent if plane is None else next(rest) for plane in planes]
        bit = 1
        while len(left) > 1:
            asked = b.and_(code, lowering.constant(code.type, bit))
            asked = lowering.compare("!=", asked, lowering.constant(code.type, 0))
            left = [b.select(*lowering.alike(asked, *pair)) for pair in zip(left[1::2], left[::2], strict=True)]
            bit *= 2
        return left[0]

    def _load(self, lowering: Lowering, name: str, plane: Value, pixel: Value | None) -> Value:
        dtype, address = self.dtypes[name], self.addresses[name]
        place = plane if pixel is None else lowering.b.add(lowering.b.mul(plane, self.pixels), pixel)
        return lowering.given(
            lowering.offset(address, place, dtype.itemsize), dtype, self.types[name], pixel is not None
        )

    def _fetched(
        self,
        lowering: Lowering,
        name: str,
        moved: Value,
        gathered: list[tuple[tuple[int, ...], Value, int]],
        pixel: Value | None,
    ) -> Value:
        """Find the plane of every pixel and load from it."""
        b = lowering.b
        plane = lowering.splat(moved)
        lacking = lowering.constant(lowering.vector(ir.IntType(1)), 0)
        for labels, index, stride in gathered:
            position = self._position(lowering, labels, index)
            lacking = b.or_(lacking, lowering.compare("<", position, lowering.constant(position.type, 0)))
            plane = b.add(plane, b.mul(position, lowering.constant(position.type, stride)))
        if pixel is not None:
            here = b.add(lowering.splat(pixel), lowering.lanes())
            plane = b.add(b.mul(plane, lowering.splat(self.pixels)), here)
        places = b.select(lacking, lowering.constant(plane.type, NO_STAGE), plane)
        loaded = lowering.fetch(self.addresses[name], storage_type(self.dtypes[name]), places, 0)
        wide = lowering.converted(loaded, self.types[name])
        return b.select(lacking, lowering.constant(wide.type, self._absent(name)), wide)

    def _position(self, lowering: Lowering, labels: tuple[int, ...], index: Value) -> Value:
        """Place of a label on an axis, -1 for one it lacks."""
        wide = lowering.to_integer(index, INT64)
        if labels == tuple(range(len(labels))):
            return lowering.bounded(wide, len(labels))
        places = [NO_STAGE] * (max(labels) + 1)
        for place, label in enumerate(labels):
            places[label] = place
        return lowering.to_integer(lowering.lookup(tuple(places), wide), INT64)
