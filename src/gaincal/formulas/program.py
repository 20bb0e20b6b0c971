"""A `Program`: the part of a formula that one result needs, ready for an evaluator."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from gaincal.errors import RequestError
from gaincal.formulas.checks import FRAME, INTEGER_OUTPUTS, literal_value
from gaincal.formulas.formula import Constant, Flag, Formula, Input, Step, Table
from gaincal.formulas.operations import NO_STAGE, Type

NO_VALUE_BIT, CLIPPED_BIT, MISSING_BIT = 29, 30, 31
RESERVED_FLAGS = {"no_value": NO_VALUE_BIT, "clipped": CLIPPED_BIT, "missing": MISSING_BIT}
LARGEST = {"float32": 3.4028234663852886e38, "float64": sys.float_info.max}
Labels = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Program:
    """What an evaluator computes: one value and the flags, for every pixel of every frame.

    Parameters
    ----------
    compute : {'float32', 'float64'}
        Type of all arithmetic with reals.
    inputs, constants, tables, steps
        Those that the value and the flags need, steps in order of evaluation.
    types : tuple of (str, Type)
        Type of every name.
    labels : tuple of (str, tuple of tuple of int)
        For every constant with named axes: the labels along each of them.
    value : str
        The step (or words input) that is delivered.
    dtype : str
        What it is delivered in.
    fill : int or float or None
        Stands where a flag voids the value; None is NaN.
    limits : (int, int) or None
        Ends of the range of an integer result; the declared fill lies outside.
    flags : tuple of (int, Flag)
        Bit and flag, for every flag that can be tested.
    voiding : bool
        Whether flags void the value; raw words and stages are delivered as they are.
    partial : frozenset of str
        Inputs and constants that vary along leading pixel dims only, such as a memory cell per
        module.  Evaluators take the pixels in runs along which these are the same, as if they
        had no pixel dims; so `types` have none for them.
    """

    compute: str
    inputs: tuple[Input, ...]
    constants: tuple[Constant, ...]
    tables: tuple[Table, ...]
    steps: tuple[Step, ...]
    types: tuple[tuple[str, Type], ...]
    labels: tuple[tuple[str, Labels], ...]
    value: str
    dtype: str
    fill: int | float | None
    limits: tuple[int, int] | None
    flags: tuple[tuple[int, Flag], ...]
    voiding: bool
    partial: frozenset[str] = frozenset()

    def __hash__(self) -> int:
        return self._hash

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}  # hashes differ from process to process

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, f.name) for f in fields(self)))

    @cached_property
    def labelled(self) -> frozenset[str]:
        """Constants with named axes."""
        return frozenset(name for name, _ in self.labels)

    @cached_property
    def given(self) -> tuple[Input | Constant, ...]:
        """All inputs and constants, in the order in which evaluators take them."""
        return (*self.inputs, *self.constants)

    @cached_property
    def stored(self) -> dict[str, str]:
        """Type of every input and constant in memory."""
        return {i.name: i.dtype or self.compute for i in self.given}

    @cached_property
    def by_row(self) -> frozenset[str]:
        """Inputs and constants with values for each pixel of each frame."""
        types = dict(self.types)
        return frozenset(i.name for i in self.given if types[i.name].dims > {FRAME})

    @cached_property
    def by_frame(self) -> frozenset[str]:
        """Inputs and constants that are given for each frame: by pixel or not, and single numbers."""
        types = dict(self.types)
        single = {i.name for i in self.given if not types[i.name].dims and i.name not in self.labelled}
        return frozenset(i.name for i in self.given if FRAME in types[i.name].dims) | single


def needs(formula: Formula, name: str) -> frozenset[str]:
    """The inputs and constants that a step (or an input itself) depends on."""
    given = {i.name for i in formula.inputs} | {c.name for c in formula.constants}
    return formula.checked.needs.get(name, frozenset({name})) & given


def testable_flags(formula: Formula, given: frozenset[str]) -> list[tuple[int, Flag]]:
    """Bit and flag of every flag whose inputs and constants are all given."""
    return [(bit, f) for bit, f in enumerate(formula.flags) if needs(formula, f.when) <= given]


def program_for_output(
    formula: Formula,
    labels: Mapping[str, Labels],
    given: frozenset[str],
    name: str | None = None,
    dtype: str | None = None,
    flagged: float | None = None,
    defaulted: frozenset[str] = frozenset(),
) -> Program:
    """Program of a declared output.

    Parameters
    ----------
    formula : Formula
    labels : mapping of str to tuple of tuple of int
        Labels along the named axes of the constants.
    given : frozenset of str
        Names of the inputs and constants that there are.
    name : str, optional
        The output; the default output if None.
    dtype : str, optional
        One that the output declares; its first if None.
    flagged : float, optional
        Replaces the declared fill.
    defaulted : frozenset of str
        Constants that the file lacks, whose declared default stands in every place.

    Raises
    ------
    RequestError
        If there is no such output, dtype or fill, or an input that it needs is not given.
    """
    output = formula.output(name)
    lacking = sorted(needs(formula, output.name) - given)
    if lacking:
        there = ", ".join(o.name for o in formula.outputs if needs(formula, o.name) <= given) or "none"
        problem = f"output '{output.name}' needs {', '.join(lacking)}, which the file does not have"
        raise RequestError(f"{problem}; to be had: {there}")
    choices = dict(((output.dtype, output.fill), *output.alternatives))
    chosen = dtype or output.dtype
    if chosen not in choices:
        raise RequestError(f"output '{output.name}' is declared as {', '.join(choices)}, not {chosen}")
    fill = choices[chosen]
    limits = _limits(chosen, fill)
    flags = testable_flags(formula, given)
    value = _checked_fill(flagged, chosen, output.name) if flagged is not None else fill
    return _program(formula, labels, output.name, chosen, value, limits, flags, True, defaulted)


def program_for_step(
    formula: Formula, labels: Mapping[str, Labels], name: str, dtype: str, given: frozenset[str] | None = None
) -> Program:
    """Program that delivers an integer step or a words input as it is, in `dtype`.

    There are no flags, or those that can be tested with what is `given`; they void nothing.

    Where words are missing a signed result is -1 ('no stage'), an unsigned one 0.
    """
    if formula.checked.types[name].kind != "integer":
        raise ValueError(f"{name} is no integer")
    low, high = INTEGER_OUTPUTS[dtype]
    flags = [] if given is None else testable_flags(formula, given)
    return _program(formula, labels, name, dtype, NO_STAGE if low < 0 else 0, (low, high), flags, False)


def _limits(dtype: str, fill: int | None) -> tuple[int, int] | None:
    if dtype not in INTEGER_OUTPUTS:
        return None
    low, high = INTEGER_OUTPUTS[dtype]
    return (low + 1, high) if fill == low else (low, high - 1)


def _checked_fill(flagged: float, dtype: str, name: str) -> int | float | None:
    try:
        number = float(flagged) + 0.0  # never -0.0, which equals 0.0 where programs are told apart
    except OverflowError:
        number = math.inf
    if math.isnan(number):
        if dtype in INTEGER_OUTPUTS:
            raise RequestError(f"output '{name}' is {dtype} and cannot hold NaN for flagged pixels: give a number")
        return None
    if dtype in INTEGER_OUTPUTS:
        low, high = INTEGER_OUTPUTS[dtype]
        fits = number.is_integer() and low <= number <= high
    else:
        fits = abs(number) <= LARGEST[dtype]
    if not fits:
        raise RequestError(f"output '{name}' is {dtype} and cannot hold {number} for flagged pixels")
    return int(number) if dtype in INTEGER_OUTPUTS else number


def _program(
    formula: Formula,
    labels: Mapping[str, Labels],
    value: str,
    dtype: str,
    fill: int | float | None,
    limits: tuple[int, int] | None,
    flags: list[tuple[int, Flag]],
    voiding: bool,
    defaulted: frozenset[str] = frozenset(),
) -> Program:
    checked = formula.checked
    used = frozenset({value}).union(*(checked.needs.get(n, frozenset({n})) for n in (value, *_whens(flags))))
    steps, replaced = _without_defaulted([s for s in formula.steps if s.name in used], defaulted)
    tables = {a for s in steps for a in s.arguments if literal_value(a) is None}
    constants = tuple(c for c in formula.constants if c.name in used)
    inputs = tuple(i for i in formula.inputs if i.name in used)
    kinds = {name: kind for name, kind in checked.types.items() if name in used and name not in replaced}
    return Program(
        formula.compute,
        inputs,
        constants,
        tuple(t for t in formula.tables if t.name in tables),
        steps,
        tuple((name, _within_run(kind, name in defaulted, checked.pixel_dims)) for name, kind in kinds.items()),
        tuple((c.name, labels[c.name]) for c in constants if checked.types[c.name].axes and c.name not in defaulted),
        replaced.get(value, value),
        dtype,
        fill,
        limits,
        tuple(flags),
        voiding,
        _partial((*inputs, *constants), checked.pixel_dims) - defaulted,
    )


def fix_axes(program: Program, names: frozenset[str]) -> tuple[Program, dict[str, dict[int, str]]]:
    """The same program for frames that have one label, with constants that lack the axis of that label.

    Parameters
    ----------
    program : Program
    names : frozenset of str
        Constants whose axes are taken away where an input per frame chooses along them.

    Returns
    -------
    program : Program
        Its constants among the names are those of one label.
    fixed : dict of str to dict of int to str
        For each of these constants: the input that chooses, by the number of the axis.
    """
    per_frame = {i.name for i in program.inputs if dict(program.types)[i.name].dims <= {FRAME}}
    fixed = {c.name: dict[int, str]() for c in program.constants if c.name in names}
    seen: set[str] = set()
    for step in program.steps:
        name = step.arguments[0]
        if step.operation == "select" and name in fixed:
            own = {k: a for k, a in enumerate(step.arguments[1:]) if a in per_frame}
            fixed[name] = {k: a for k, a in own.items() if fixed[name].get(k) == a or name not in seen}
            seen.add(name)
    steps, types, replaced = [], dict(program.types), dict[str, str]()
    for step in program.steps:
        arguments = tuple(replaced.get(a, a) for a in step.arguments)
        if step.operation == "select" and step.arguments[0] in fixed:
            name = step.arguments[0]
            arguments = (name, *(a for k, a in enumerate(arguments[1:]) if k not in fixed[name]))
            if len(arguments) == 1:
                replaced[step.name] = name
                continue
        steps.append(replace(step, arguments=arguments))
    labels = []
    for name, axes in program.labels:
        left = tuple(axis for k, axis in enumerate(axes) if k not in fixed.get(name, {}))
        axis_names = tuple(a for k, a in enumerate(types[name].axes) if k not in fixed.get(name, {}))
        types[name] = replace(types[name], axes=axis_names)
        labels += [(name, left)] if left else []
    kept = tuple((n, k) for n, k in types.items() if n not in replaced)
    value = replaced.get(program.value, program.value)
    return replace(program, steps=tuple(steps), types=kept, labels=tuple(labels), value=value), fixed


def _partial(items: tuple[Input | Constant, ...], pixel_dims: tuple[str, ...]) -> frozenset[str]:
    """Inputs and constants that vary along some leading pixel dims but not along all."""
    return frozenset(i.name for i in items if 0 < len(set(i.dims) & set(pixel_dims)) < len(pixel_dims))


def _without_defaulted(steps: list[Step], defaulted: frozenset[str]) -> tuple[tuple[Step, ...], dict[str, str]]:
    """The steps without the selections of a constant that is one number, which then stands for them."""
    replaced: dict[str, str] = {}
    kept = []
    for step in steps:
        if step.operation == "select" and step.arguments[0] in defaulted:
            replaced[step.name] = step.arguments[0]
        else:
            kept.append(replace(step, arguments=tuple(replaced.get(a, a) for a in step.arguments)))
    return tuple(kept), replaced


def _within_run(kind: Type, defaulted: bool, pixel_dims: tuple[str, ...]) -> Type:
    """The type of a value for pixels that differ at least in the last dim."""
    if defaulted:
        return replace(kind, dims=frozenset(), axes=())
    return kind if pixel_dims[-1] in kind.dims else replace(kind, dims=kind.dims - set(pixel_dims))


def _whens(flags: list[tuple[int, Flag]]) -> list[str]:
    return [flag.when for _, flag in flags]
