"""`Calibration`: formula, constants and raw data, bound together and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.errors import BindError
from gaincal.formulas.checks import FRAME, WORD_DTYPES
from gaincal.formulas.formula import Constant, Formula, Input
from gaincal.formulas.program import Labels, Program, needs, program_for_output, program_for_step, testable_flags
from gaincal.kernels.memory import aligned

Array = npt.NDArray[Any]
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


@dataclass(frozen=True)
class ConstantMap:
    """A constant as it comes from a file.

    Parameters
    ----------
    values : ndarray (axis, ..., *pixels)
        Along the dims that the formula declares.
    labels : tuple of tuple of int
        Labels along each named axis.
    """

    values: Array
    labels: Labels


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
    """

    formula: Formula
    layout: RawLayout
    words: tuple[str, ...]
    arrays: Mapping[str, Array]
    labels: Mapping[str, Labels] = field(repr=False)

    @property
    def given(self) -> frozenset[str]:
        """Names of all inputs and constants that there are."""
        return frozenset(self.words) | frozenset(self.arrays)

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

    def program(self, output: str | None = None, dtype: str | None = None, flagged: float | None = None) -> Program:
        """What computes an output; raises RequestError if it is not to be had."""
        return program_for_output(self.formula, self.labels, self.given, output, dtype, flagged)

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
        self, program: Program, words: Mapping[str, Array], frames: slice, window: tuple[slice, ...] = ()
    ) -> dict[str, Array]:
        """Arrays of a program for some frames and a window of pixels.

        Parameters
        ----------
        program : Program
        words : mapping of str to ndarray (frame, *window)
            The words of these frames and pixels.
        frames : slice
            Which frames, with positive step.
        window : tuple of slice
            Which pixels, one slice per pixel dim; all if empty.

        Returns
        -------
        dict of str to ndarray
            As `gaincal.kernels.blocks.evaluate` takes them.
        """
        kinds = dict(program.types)
        count = len(range(*frames.indices(self.layout.frames)))
        arrays = {}
        for item in program.given:
            if item.name in words:
                pixels = int(np.prod(words[item.name].shape[1:]))
                arrays[item.name] = (
                    words[item.name].reshape(count, pixels).astype(item.dtype or program.compute, copy=False)
                )
                continue
            array, dims = self.arrays[item.name], kinds[item.name].dims
            if dims - {FRAME}:
                axes = array.ndim - len(self.layout.pixels)
                part = array[(slice(None),) * axes + (window or ())]
                arrays[item.name] = part.reshape(*array.shape[:axes], -1)
            elif item.name in self.labels:
                arrays[item.name] = array[..., None]
            else:
                arrays[item.name] = array[frames] if array.ndim else np.broadcast_to(array, count)
        return arrays


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
        _check_words(declared, name, dtype)
    lacking = [i.name for i in formula.inputs if _is_word(i) and i.name not in words]
    lacking += [c.name for c in formula.constants if c.name not in constants]
    if lacking:
        raise BindError(f"formula '{formula.name}' needs {', '.join(lacking)}")
    arrays = {n: _bound_input(declared, n, a, formula, layout) for n, a in inputs.items()}
    known = {c.name: c for c in formula.constants}
    for name, constant in constants.items():
        if name not in known:
            raise BindError(f"formula '{formula.name}' has no constant '{name}'")
        arrays[name] = _bound_constant(known[name], constant, formula, layout)
    labels = {n: c.labels for n, c in constants.items() if c.labels}
    return Calibration(formula, layout, tuple(words), MappingProxyType(arrays), MappingProxyType(labels))


def _is_word(item: Input) -> bool:
    return item.dims[:1] == (FRAME,) and len(item.dims) > 1


def _check_words(declared: Mapping[str, Input], name: str, dtype: np.dtype[Any]) -> None:
    if name not in declared or not _is_word(declared[name]):
        raise BindError(f"the formula has no words input '{name}'")
    wanted = declared[name].dtype
    fits = dtype.kind == "f" if wanted is None else dtype.newbyteorder("=") == np.dtype(wanted)
    if not fits:
        raise BindError(f"{name} is {dtype.name}, the formula declares {wanted or 'a real'}")


def _bound_input(declared: Mapping[str, Input], name: str, array: Array, formula: Formula, layout: RawLayout) -> Array:
    if name not in declared or _is_word(declared[name]):
        raise BindError(f"formula '{formula.name}' has no input '{name}'")
    item = declared[name]
    pixelwise = len(item.dims) > 0 and item.dims != (FRAME,)
    shapes = [layout.pixels] if pixelwise else [(), (layout.frames,)]
    if array.shape not in shapes:
        wanted = " or ".join(str(s) for s in shapes)
        raise BindError(f"{name} has shape {array.shape}, expected {wanted}")
    return _converted(name, array, item.dtype, formula.compute)


def _bound_constant(item: Constant, constant: ConstantMap, formula: Formula, layout: RawLayout) -> Array:
    axes = [d for d in item.dims if d not in formula.checked.pixel_dims]
    if len(constant.labels) != len(axes) and constant.values.ndim < len(item.dims):
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
    wanted += layout.pixels if len(item.dims) > len(axes) else ()
    if constant.values.shape != wanted:
        dims = ", ".join(item.dims)
        raise BindError(
            f"{item.name} has shape {constant.values.shape}, raw frames are {layout.pixels}; "
            f"expected ({dims}) = {wanted}"
        )
    return _converted(item.name, constant.values, item.dtype, formula.compute)


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
