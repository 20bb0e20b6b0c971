"""`Calibration`: formula, constants and raw data, bound together and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.constants import SLAB_DIMS, ConstantMap, LargeConstant
from gaincal.errors import BindError
from gaincal.formulas.checks import FRAME, WORD_DTYPES, is_words, words_inputs
from gaincal.formulas.formula import Constant, Formula, Input
from gaincal.formulas.program import (
    RESERVED_FLAGS,
    Labels,
    Program,
    needs,
    program_for_output,
    program_for_step,
    testable_flags,
)
from gaincal.kernels.blocks import Plan
from gaincal.kernels.memory import aligned
from gaincal.kernels.packed import Packed
from gaincal.kernels.prepared import Prepared
from gaincal.kernels.windows import Window, Windows

Array = npt.NDArray[Any]
Chosen = slice | npt.NDArray[np.int_]
"""Frames of a run: a slice with positive step, or their numbers."""
MAX_LABEL = 65_535


@dataclass(frozen=True)
class RawLayout:
    """Shape and dtype of the words.

    Parameters
    ----------
    frames : int
    pixels : tuple of int
        Lengths along the formula's pixel dims.
    """

    frames: int
    pixels: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the words, frames first."""
        return (self.frames, *self.pixels)


@dataclass(frozen=True, eq=False)
class Calibration:
    """A formula bound to its constants, inputs and raw layout; nothing about it can change.

    Make one with `bind`, which is where every complaint ends.

    Parameters
    ----------
    formula : Formula
    layout : RawLayout
    words : tuple of str
        Inputs that must be read for every frame and pixel.
    arrays : mapping of str to ndarray
        Every other input, shape () or (frame,) or pixels, and every constant, in the types in
        which they are computed.
    labels : mapping of str to tuple of tuple of int
    defaulted : frozenset of str
        Constants that are not there and have their declared default in every place.
    large : mapping of str to LargeConstant
        Constants that are read where they are needed: see `gaincal.grouped`.
    counted : frozenset of str, optional
        Flags that void a value, as far as the formula says so; all of them if None.
    """

    formula: Formula
    layout: RawLayout
    words: tuple[str, ...]
    arrays: Mapping[str, Array]
    labels: Mapping[str, Labels] = field(repr=False)
    defaulted: frozenset[str] = frozenset()
    large: Mapping[str, LargeConstant] = field(default_factory=dict)
    counted: frozenset[str] | None = None
    _windows: Windows = field(default_factory=Windows, init=False, repr=False)

    @property
    def given(self) -> frozenset[str]:
        """Names of all inputs and constants that there are."""
        return frozenset(self.words) | frozenset(self.arrays) | frozenset(self.large)

    def available_outputs(self) -> list[str]:
        """Outputs for which everything is there."""
        return [o.name for o in self.formula.outputs if needs(self.formula, o.name) <= self.given]

    def preferred_output(self) -> str | None:
        """The default output if it is available, else the first that is, else None."""
        available = self.available_outputs()
        default = self.formula.output().name
        return default if default in available else next(iter(available), None)

    def tested_flags(self) -> list[str]:
        """Flags for which everything is there."""
        return [flag.name for _, flag in testable_flags(self.formula, self.given)]

    def flag_bits(self) -> dict[str, int]:
        """The bit of every reason that flags can have."""
        return {flag.name: bit for bit, flag in enumerate(self.formula.flags)} | RESERVED_FLAGS

    def program(self, output: str | None = None, dtype: str | None = None, flagged: float | None = None) -> Program:
        """What computes an output; raises RequestError if it is not to be had."""
        program = program_for_output(self.formula, self.labels, self.given, output, dtype, flagged, self.defaulted)
        if self.counted is None:
            return program
        flags = tuple((bit, replace(f, voids=f.voids and f.name in self.counted)) for bit, f in program.flags)
        return replace(program, flags=flags)

    def variance_program(self, output: str) -> Program | None:
        """What computes the variance of an output, if the formula declares it and everything is there."""
        declared = self.formula.variance(output)
        if declared is None or declared.name not in self.available_outputs():
            return None
        return self.program(declared.name)

    def counting(self, flags: frozenset[str], inputs: Mapping[str, Array]) -> Calibration:
        """The same with other flags counted and some maps replaced by maps of the same shape and dtype."""
        return replace(self, counted=flags, arrays=MappingProxyType({**self.arrays, **inputs}))

    def step_program(self, name: str, dtype: str) -> Program:
        """What delivers an integer step or words input as it is."""
        return program_for_step(self.formula, self.labels, name, dtype)

    def stage_step(self) -> str | None:
        """The step (or input) that chooses along the axis ``stage``, if there is exactly one."""
        axes = {c.name: c.dims for c in self.formula.constants}
        chosen = {
            index
            for step in self.formula.steps
            if step.operation == "select"
            for axis, index in zip(axes[step.arguments[0]], step.arguments[1:], strict=False)
            if axis == "stage"
        }
        return chosen.pop() if len(chosen) == 1 else None

    def block(
        self, program: Program, words: Mapping[str, Array | Packed], frames: Chosen, window: tuple[slice, ...] = ()
    ) -> dict[str, Any]:
        """Arrays of a program for some frames and a window of pixels.

        Parameters
        ----------
        program : Program
        words : mapping of str to ndarray (frame, *window) or Packed
            The words of these frames and pixels.
        frames : slice or ndarray of int
            Which frames.
        window : tuple of slice
            Which pixels, one slice per pixel dim; all if empty.

        Returns
        -------
        dict of str to ndarray or Packed
            As `gaincal.kernels.reference.evaluate` takes them, but for packed words.
        """
        other = program.by_frame | self.large.keys()
        maps = {i.name: self._map(program, i, window) for i in program.given if i.name not in other}
        return maps | self.by_frame(program, words, frames, window)

    def by_frame(
        self, program: Program, words: Mapping[str, Array | Packed], frames: Chosen, window: tuple[slice, ...] = ()
    ) -> dict[str, Any]:
        """The part of `block` that is given for each frame."""
        count = len(range(*frames.indices(self.layout.frames)) if isinstance(frames, slice) else frames)
        arrays: dict[str, Any] = {}
        for item in program.given:
            stored = words.get(item.name)
            if isinstance(stored, Packed):
                arrays[item.name] = stored
            elif stored is not None:
                dtype = item.dtype or program.compute
                arrays[item.name] = stored.reshape(count, math.prod(stored.shape[1:])).astype(dtype, copy=False)
            elif item.name in program.by_frame and item.name not in self.large:
                arrays[item.name] = self._by_frame(program, item, frames, count, window)
        return arrays

    def plan(self, program: Program, frames: int, window: tuple[slice, ...] = ()) -> Plan:
        """What computes so many frames of a window, whichever; remembered while its maps take little room."""
        key = (program, tuple((s.start, s.stop, s.step) for s in window))
        return self._windows.plan(key, frames, partial(self._window, program, window))

    def _window(self, program: Program, window: tuple[slice, ...]) -> Window:
        """The maps of a window as the kernel takes them."""
        maps = {i.name: self._map(program, i, window) for i in program.given if i.name not in program.by_frame}
        prepared = Prepared(program, maps, math.prod(self._lengths(window)), math.prod(self.runs(program, window)))
        lying = {id(a): (n, a) for run in prepared.runs for n, a in run.maps.items()}
        return Window(prepared, sum(a.nbytes for n, a in lying.values() if not np.may_share_memory(a, self.arrays[n])))

    def _by_frame(
        self, program: Program, item: Input | Constant, frames: Chosen, count: int, window: tuple[slice, ...]
    ) -> Array:
        """What the evaluators need of something that is given for each frame, but for words."""
        array = self.arrays[item.name]
        if item.name in self.defaulted or not item.dims:
            return array[frames] if array.ndim else np.broadcast_to(array, count)
        part = array[frames] if FRAME in item.dims else array
        part = self._within(item, part, window)
        if item.name in program.partial:
            part = _spread(part, int(FRAME in item.dims), self.runs(program, window))
            return part if FRAME in item.dims else np.broadcast_to(part, (count, part.shape[-1]))
        return part.reshape(count, -1) if part.ndim > 1 else part

    def _map(self, program: Program, item: Input | Constant, window: tuple[slice, ...]) -> Array:
        """What the evaluators need of something that is the same in all frames."""
        array, axes = self.arrays[item.name], len(self.labels.get(item.name, ()))
        part = self._within(item, array, window)
        if item.name in program.partial:
            return _spread(part, axes, self.runs(program, window))
        return part.reshape(*part.shape[:axes], -1)

    def _within(self, item: Input | Constant, array: Array, window: tuple[slice, ...]) -> Array:
        """A window of an array whose last dims are pixel dims, all or the leading ones."""
        first = len(item.dims) - len(set(item.dims) & set(self.formula.checked.pixel_dims))
        chosen = window or (slice(None),) * len(self.layout.pixels)
        return array[(slice(None),) * first + chosen[: array.ndim - first]]

    def runs(self, program: Program, window: tuple[slice, ...] = ()) -> tuple[int, ...]:
        """Lengths of the leading pixel dims that the runs of a program tell apart, in a window."""
        dims = self.formula.checked.pixel_dims
        depth = max((len(set(i.dims) & set(dims)) for i in program.given if i.name in program.partial), default=0)
        depth = max(depth, len(dims) - SLAB_DIMS) if self.large else depth
        return self._lengths(window)[:depth]

    def _lengths(self, window: tuple[slice, ...]) -> tuple[int, ...]:
        """Pixels of a window along each of their dims."""
        whole = self.layout.pixels
        return tuple(len(range(*s.indices(n))) for s, n in zip(window, whole, strict=True)) if window else whole


def _spread(array: Array, first: int, runs: tuple[int, ...]) -> Array:
    """Values along leading pixel dims, repeated to one for every run of pixels."""
    lengths = array.shape[first:]
    wide = array.reshape(*array.shape, *(1,) * (len(runs) - len(lengths)))
    return np.broadcast_to(wide, (*array.shape[:first], *runs)).reshape(*array.shape[:first], -1)


def bind(
    formula: Formula,
    layout: RawLayout,
    words: Mapping[str, np.dtype[Any]],
    inputs: Mapping[str, Array],
    constants: Mapping[str, ConstantMap],
) -> Calibration:
    """Bind a formula to what a file has, or say what does not fit.

    Parameters
    ----------
    formula : Formula
    layout : RawLayout
        Of the words.
    words : mapping of str to dtype
        The inputs that are read frame by frame, with their stored dtypes.
    inputs : mapping of str to ndarray
        The other inputs that there are: (), (frame,) or pixels.
    constants : mapping of str to ConstantMap

    Raises
    ------
    BindError
        If a shape, dtype or label does not fit, or words or constants are missing.
    """
    declared = {i.name: i for i in formula.inputs}
    if len(layout.pixels) != len(formula.checked.pixel_dims):
        dims = ", ".join(formula.checked.pixel_dims)
        raise BindError(f"raw frames are {layout.pixels}, formula '{formula.name}' declares ({dims})")
    for name, dtype in words.items():
        _check_words(declared, formula.checked.pixel_dims, name, dtype)
    pixel_dims = formula.checked.pixel_dims
    lacking = [name for name in words_inputs(formula) if name not in words]
    lacking += [c.name for c in formula.constants if c.name not in constants and c.default is None]
    if lacking:
        raise BindError(f"formula '{formula.name}' needs {', '.join(lacking)}")
    arrays = {n: _bound_input(declared, n, a, formula, layout) for n, a in inputs.items()}
    known = {c.name: c for c in formula.constants}
    large: dict[str, LargeConstant] = {}
    for name, constant in constants.items():
        if name not in known:
            raise BindError(f"formula '{formula.name}' has no constant '{name}'")
        _check_constant(known[name], constant, formula, layout)
        values, item = constant.values, known[name]
        if isinstance(values, np.ndarray):
            arrays[name] = _converted(name, values, item.dtype, formula.compute)
        elif item.dtype is None and values.dtype.kind in "fiu" and item.dims[-SLAB_DIMS:] == pixel_dims[-SLAB_DIMS:]:
            large[name] = LargeConstant(values, constant.labels, formula.compute)
        else:
            raise BindError(f"{name} is too large for a constant that is no map of real numbers")
    defaults = {c.name: c.default for c in formula.constants if c.name not in constants and c.default is not None}
    for name, number in defaults.items():
        integer = known[name].dtype is not None
        arrays[name] = _converted(
            name, np.array(int(number) if integer else number), known[name].dtype, formula.compute
        )
    labels = {n: c.labels for n, c in constants.items() if c.labels}
    return Calibration(
        formula,
        layout,
        tuple(words),
        MappingProxyType(arrays),
        MappingProxyType(labels),
        frozenset(defaults),
        MappingProxyType(large),
    )


def _check_words(declared: Mapping[str, Input], pixel_dims: tuple[str, ...], name: str, dtype: np.dtype[Any]) -> None:
    if name not in declared or not is_words(declared[name], pixel_dims):
        raise BindError(f"the formula has no words input '{name}'")
    wanted = declared[name].dtype
    fits = dtype.kind == "f" if wanted is None else dtype.newbyteorder("=") == np.dtype(wanted)
    if not fits:
        raise BindError(f"{name} is {dtype.name}, the formula declares {wanted or 'a real'}")


def _bound_input(declared: Mapping[str, Input], name: str, array: Array, formula: Formula, layout: RawLayout) -> Array:
    if name not in declared or is_words(declared[name], formula.checked.pixel_dims):
        raise BindError(f"formula '{formula.name}' has no input '{name}'")
    item = declared[name]
    pixels = layout.pixels[: len(item.dims) - (FRAME in item.dims)]
    frames = [layout.frames] if FRAME in item.dims else []
    shapes = [(*frames, *pixels)] if pixels else [(), (layout.frames,)]
    if array.shape not in shapes:
        wanted = " or ".join(str(s) for s in shapes)
        raise BindError(f"{name} has shape {array.shape}, expected {wanted}")
    return _converted(name, array, item.dtype, formula.compute)


def _check_constant(item: Constant, constant: ConstantMap, formula: Formula, layout: RawLayout) -> None:
    axes = [d for d in item.dims if d not in formula.checked.pixel_dims]
    if len(constant.labels) != len(axes) and len(constant.values.shape) < len(item.dims):
        dims = ", ".join(item.dims)
        raise BindError(
            f"{item.name} has shape {constant.values.shape}, raw frames are {layout.pixels}; expected ({dims})"
        )
    if len(constant.labels) != len(axes):
        raise BindError(f"{item.name} has labels for {len(constant.labels)} axes, expected {', '.join(axes) or 'none'}")
    for axis, labels in zip(axes, constant.labels, strict=True):
        if not labels or len(set(labels)) != len(labels) or not all(0 <= v <= MAX_LABEL for v in labels):
            raise BindError(f"{item.name}: labels along {axis} must be one or more different numbers, 0 to {MAX_LABEL}")
    wanted = tuple(len(labels) for labels in constant.labels)
    wanted += layout.pixels[: len(item.dims) - len(axes)]
    if constant.values.shape != wanted:
        dims = ", ".join(item.dims)
        raise BindError(
            f"{item.name} has shape {constant.values.shape}, raw frames are {layout.pixels}; "
            f"expected ({dims}) = {wanted}"
        )


def _converted(name: str, array: Array, dtype: str | None, compute: str) -> Array:
    """To the type in which it is computed; integers never lose a value on the way."""
    if dtype is None:
        if array.dtype.kind not in "fiu":
            raise BindError(f"{name} is {array.dtype}, expected numbers")
        with np.errstate(over="ignore"):
            return _frozen(array, compute)
    if array.dtype.kind not in "iub" or (array.size and (array.min() < 0 or array.max() >= 2 ** WORD_DTYPES[dtype])):
        raise BindError(f"{name} is {array.dtype}, which does not fit the declared {dtype}")
    return _frozen(array, dtype)


def _frozen(array: Array, dtype: str) -> Array:
    copy = aligned(array, dtype)
    copy.flags.writeable = False
    return copy
