"""Every rule of the format that does not depend on the data: names, limits, types, units, outputs."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gaincal.errors import FormulaError
from gaincal.formulas.formula import Constant, Flag, Formula, Input, Output, Step
from gaincal.formulas.operations import MAX_INTEGER, OPERATIONS, OperationError, Type
from gaincal.formulas.units import Unit

MAX_STEPS = 256
MAX_NAMES = 64
MAX_FLAGS = 24
MAX_TABLE = 65_536
MAX_NAME = 63
MAX_TITLE = 200
MAX_SELECTED_AXES = 3
MAX_DIMS = 8
FRAME = "frame"
NAME = re.compile(r"[a-z][a-z0-9_]*")
STEP_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[1-9][0-9]{0,2})?")
NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,30})(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?")
RESERVED = frozenset({"and", "or", "not", FRAME, "missing", "clipped", "no_value", *OPERATIONS})
STORED_BESIDE = frozenset(
    [
        "formula",
        "inputs",
        "constants",
        "tables",
        "steps",
        "outputs",
        "flags",
        "integrity",
        "given",
        "applied",
        "description",
        "program",
        "version",
        "date",
        "fit_formula_description",
    ]
)
SOURCE_SUFFIX = "_source"
"""An input or constant must not be called like what else a file stores beside it."""
WORD_DTYPES = MappingProxyType({"uint8": 8, "uint16": 16, "uint32": 32})
COMPUTE_DTYPES = ("float32", "float64")
INTEGER_OUTPUTS = MappingProxyType(
    {
        "int8": (-(2**7), 2**7 - 1),
        "uint8": (0, 2**8 - 1),
        "int16": (-(2**15), 2**15 - 1),
        "uint16": (0, 2**16 - 1),
        "int32": (-(2**31), 2**31 - 1),
        "uint32": (0, 2**32 - 1),
    }
)
PIXEL_MASK_BITS = (0, 1, 2, 3, 4, 6, 8, 31)


@dataclass(frozen=True)
class CheckedFormula:
    """A formula with the type of every named value.

    Parameters
    ----------
    pixel_dims : tuple of str
        Dims of the words after ``frame``.
    types : mapping of str to Type
        Inputs, constants, tables and steps by name.
    needs : mapping of str to frozenset of str
        For every step: the inputs, constants, tables and steps it depends on, itself included.
    """

    pixel_dims: tuple[str, ...]
    types: MappingProxyType[str, Type]
    needs: MappingProxyType[str, frozenset[str]]


def literal_value(argument: str) -> int | float | None:
    """The number an argument stands for, or None if it is a name."""
    match = NUMBER.fullmatch(argument)
    if match is None:
        return None
    return int(argument) if match[1] is None and match[2] is None else float(argument)


def literal_type(value: int | float) -> Type:
    """Type of a number written in a formula; raises OperationError beyond the limits."""
    if isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise OperationError("an integer literal must stay within 2^53")
        return Type("integer", unit=None, low=value, high=value, literal=value)
    if value in (float("inf"), float("-inf")):
        raise OperationError("a literal must be finite")
    return Type("real", unit=None, whole=value.is_integer(), literal=value)


def check(formula: Formula) -> CheckedFormula:
    """Check a formula against every rule that needs no data; raises FormulaError."""
    _check_head(formula)
    _check_counts(formula)
    pixel_dims = declare_pixel_dims(formula.inputs)
    types: dict[str, Type] = {}
    for name, kind in declared_types(formula, pixel_dims):
        types[name] = kind
    needs: dict[str, frozenset[str]] = {}
    for step in formula.steps:
        types[step.name], needs[step.name] = _check_step(step, types, needs)
    _check_anonymous(formula)
    _check_outputs(formula, types)
    _check_flags(formula, types)
    return CheckedFormula(pixel_dims, MappingProxyType(types), MappingProxyType(needs))


def check_name(name: str, where: str, taken: Iterable[str] = (), pattern: re.Pattern[str] = NAME) -> None:
    """Refuse a name that is malformed, reserved or taken."""
    if len(name.partition(".")[0]) > MAX_NAME or not pattern.fullmatch(name):
        rule = f"a lower-case letter, then letters, digits and _, at most {MAX_NAME} characters"
        raise FormulaError(f"'{name[: MAX_NAME + 1]}' is not a name: {rule}", where=where)
    if name in RESERVED:
        raise FormulaError(f"the name '{name}' is reserved", where=where)
    if name in taken:
        raise FormulaError(f"the name '{name}' is used twice", where=where)


def _check_head(formula: Formula) -> None:
    check_name(formula.name, "formula.name")
    if type(formula.version) is not int or not 1 <= formula.version < 2**31:
        raise FormulaError("version must be a positive integer", where="formula.version")
    if len(formula.title) > MAX_TITLE or not (formula.title.isprintable() and formula.title.isascii()):
        raise FormulaError(f"title must be printable ASCII, at most {MAX_TITLE} characters", where="formula.title")
    if formula.compute not in COMPUTE_DTYPES:
        raise FormulaError(f"compute must be one of {', '.join(COMPUTE_DTYPES)}", where="formula.compute")


def _check_counts(formula: Formula) -> None:
    limits = (
        ("inputs", len(formula.inputs), MAX_NAMES),
        ("constants", len(formula.constants), MAX_NAMES),
        ("tables", len(formula.tables), MAX_NAMES),
        ("steps", len(formula.steps), MAX_STEPS),
        ("outputs", len(formula.outputs), MAX_NAMES),
        ("flags", len(formula.flags), MAX_FLAGS),
    )
    for part, count, limit in limits:
        if count > limit:
            raise FormulaError(f"{count} {part}, at most {limit} are allowed", where=part)


def declare_pixel_dims(inputs: tuple[Input, ...]) -> tuple[str, ...]:
    """The pixel dims, from the inputs that have a frame dim and the most others: the words."""
    layouts = [i.dims for i in inputs if i.dims[:1] == (FRAME,) and len(i.dims) > 1]
    if not layouts:
        raise FormulaError("no input has dims (frame, ...): no raw words", where="inputs")
    dims = max(layouts, key=len)
    if any(d != dims[: len(d)] for d in layouts):
        raise FormulaError("all words must have the same dims", where="inputs")
    if len(set(dims)) != len(dims) or len(dims) > MAX_DIMS:
        raise FormulaError(f"the words must have at most {MAX_DIMS} dims, each once", where="inputs")
    return dims[1:]


def is_words(item: Input, pixel_dims: tuple[str, ...]) -> bool:
    """Whether an input has a value for every pixel of every frame."""
    return item.dims == (FRAME, *pixel_dims)


def words_inputs(formula: Formula) -> list[str]:
    """The inputs that have a value for every pixel of every frame."""
    return [i.name for i in formula.inputs if is_words(i, formula.checked.pixel_dims)]


def declared_types(formula: Formula, pixel_dims: tuple[str, ...]) -> Iterable[tuple[str, Type]]:
    """Yield name and type of every input, constant and table, each checked."""
    taken: set[str] = set()
    for part, items in (("inputs", formula.inputs), ("constants", formula.constants)):
        for item in items:
            where = f"{part}.{item.name}"
            check_name(item.name, where, taken)
            if item.name in STORED_BESIDE or item.name.endswith(SOURCE_SUFFIX) or item.name in item.dims:
                raise FormulaError(f"the name '{item.name}' is taken by something else in a file", where=where)
            taken.add(item.name)
            rule = _input_axes if isinstance(item, Input) else _constant_axes
            if isinstance(item, Constant):
                _check_default(item, where)
            yield item.name, _declared(item, rule(item.dims, pixel_dims, where), where)
    if sum(len(t.entries) for t in formula.tables) > MAX_TABLE:
        raise FormulaError(f"more than {MAX_TABLE} entries in all tables", where="tables")
    for table in formula.tables:
        where = f"tables.{table.name}"
        check_name(table.name, where, taken)
        taken.add(table.name)
        if not 1 <= len(table.entries) <= MAX_TABLE:
            raise FormulaError(f"a table has 1 to {MAX_TABLE} entries", where=where)
        if not all(-(2**31) <= e < 2**31 for e in table.entries):
            raise FormulaError("an entry does not fit int32", where=where)
        yield table.name, Type("table", low=min(table.entries), high=max(table.entries), entries=table.entries)


def _input_axes(dims: tuple[str, ...], pixel_dims: tuple[str, ...], where: str) -> tuple[str, ...]:
    rest = dims[1:] if dims[:1] == (FRAME,) else dims
    if rest != pixel_dims[: len(rest)]:
        raise FormulaError(f"dims must be frame or not, then leading ones of [{_listed(pixel_dims)}]", where=where)
    return ()


def _listed(dims: tuple[str, ...]) -> str:
    return ", ".join(dims)


def _constant_axes(dims: tuple[str, ...], pixel_dims: tuple[str, ...], where: str) -> tuple[str, ...]:
    axes = tuple(d for d in dims if d not in pixel_dims)
    pixels = dims[len(axes) :]
    if dims[: len(axes)] != axes or FRAME in axes or len(set(dims)) != len(dims):
        raise FormulaError("dims must be named axes, then pixel dims, each once and never frame", where=where)
    if pixels != pixel_dims[: len(pixels)]:
        raise FormulaError(f"after its named axes only leading dims of [{_listed(pixel_dims)}]", where=where)
    if len(axes) > MAX_SELECTED_AXES:
        raise FormulaError(f"at most {MAX_SELECTED_AXES} named axes", where=where)
    return axes


def _check_default(item: Constant, where: str) -> None:
    if item.default is None:
        return
    if not math.isfinite(item.default):
        raise FormulaError("default must be a finite number", where=where)
    most = 2 ** WORD_DTYPES.get(item.dtype or "", 0)
    if item.dtype is not None and not (float(item.default).is_integer() and 0 <= item.default < most):
        raise FormulaError(f"default does not fit {item.dtype}", where=where)


def _declared(item: Input | Constant, axes: tuple[str, ...], where: str) -> Type:
    for dim in item.dims:
        if len(dim) > MAX_NAME or not NAME.fullmatch(dim):
            raise FormulaError(f"'{dim[: MAX_NAME + 1]}' is not the name of a dim", where=where)
    try:
        unit = Unit.parse(item.units)
    except ValueError as error:
        raise FormulaError(str(error), where=where) from None
    dims = frozenset(item.dims) - set(axes)
    if item.dtype is None:
        return Type("real", dims, unit, axes=axes)
    if item.dtype not in WORD_DTYPES:
        raise FormulaError(f"dtype must be one of {', '.join(WORD_DTYPES)}, or absent for a real", where=where)
    return Type("integer", dims, unit, 0, 2 ** WORD_DTYPES[item.dtype] - 1, axes=axes)


def _check_step(step: Step, types: dict[str, Type], needs: dict[str, frozenset[str]]) -> tuple[Type, frozenset[str]]:
    check_name(step.name, f"steps.{step.name}", types, STEP_NAME)
    kind = step_type(step, types)
    names = [a for a in step.arguments if literal_value(a) is None]
    return kind, frozenset({step.name}).union(*(needs.get(n, frozenset({n})) for n in names))


def _check_anonymous(formula: Formula) -> None:
    """An anonymous step is part of one expression: written out twice, text would grow without bounds."""
    uses = Counter(argument for step in formula.steps for argument in step.arguments if "." in argument)
    for step in formula.steps:
        if "." in step.name and uses[step.name] != 1:
            raise FormulaError("an anonymous step must be used exactly once", where=f"steps.{step.name}")


def step_type(step: Step, types: Mapping[str, Type]) -> Type:
    """Type of a step's value, from the types of everything before it; raises FormulaError."""
    where = f"steps.{step.name}"
    if step.operation not in OPERATIONS:
        raise FormulaError(f"unknown operation '{step.operation[:MAX_NAME]}'", where=where)
    if all(literal_value(a) is not None for a in step.arguments):
        raise FormulaError("a step needs an argument that is a name", where=where)
    try:
        return OPERATIONS[step.operation].result(tuple(_argument_type(a, types) for a in step.arguments))
    except OperationError as error:
        raise FormulaError(str(error), where=where) from None


def _argument_type(argument: str, types: Mapping[str, Type]) -> Type:
    value = literal_value(argument)
    if value is not None:
        return literal_type(value)
    if argument not in types:
        raise OperationError(f"'{argument[:MAX_NAME]}' is not defined before this step")
    return types[argument]


def _check_outputs(formula: Formula, types: dict[str, Type]) -> None:
    if sum(o.default for o in formula.outputs) != 1:
        raise FormulaError("exactly one output must have default = true", where="outputs")
    steps = {s.name for s in formula.steps}
    if len({o.name for o in formula.outputs}) != len(formula.outputs):
        raise FormulaError("an output is named twice", where="outputs")
    for output in formula.outputs:
        where = f"outputs.{output.name}"
        if output.name not in steps or "." in output.name:
            raise FormulaError("an output is the name of a step", where=where)
        _check_output(output, types[output.name], where)
    for output in formula.outputs:
        _check_variance(output, formula.outputs, f"outputs.{output.name}")


def _check_variance(output: Output, outputs: Iterable[Output], where: str) -> None:
    """A variance belongs to one floating-point or integer output, in its units squared."""
    if output.variance_of is None:
        return
    of = [o for o in outputs if o.name == output.variance_of and o.variance_of is None]
    if not of or sum(o.variance_of == output.variance_of for o in outputs) > 1:
        raise FormulaError("variance_of must name another output, once, and no variance", where=where)
    if any(d not in COMPUTE_DTYPES for d in (output.dtype, *dict(output.alternatives))) or output.default:
        raise FormulaError("a variance is a floating-point output and not the default", where=where)
    if Unit.parse(output.units) != Unit.parse(of[0].units) ** 2:
        raise FormulaError(f"a variance of {of[0].units} is in its square, not in {output.units}", where=where)


def _check_output(output: Output, kind: Type, where: str) -> None:
    if kind.kind == "logical":
        raise FormulaError("an output is a number; a condition belongs into flags", where=where)
    try:
        unit = Unit.parse(output.units)
    except ValueError as error:
        raise FormulaError(str(error), where=where) from None
    if kind.unit is not None and unit != kind.unit:
        raise FormulaError(f"declared in {unit}, but the steps give {kind.unit}", where=where)
    choices = ((output.dtype, output.fill), *output.alternatives)
    if len({dtype for dtype, _ in choices}) != len(choices):
        raise FormulaError("a dtype is offered twice", where=where)
    for dtype, fill in choices:
        _check_fill(dtype, fill, kind, where)


def _check_fill(dtype: str, fill: int | None, kind: Type, where: str) -> None:
    if dtype in COMPUTE_DTYPES:
        if fill is not None:
            raise FormulaError("the fill of a floating-point output is NaN", where=where)
        return
    if dtype not in INTEGER_OUTPUTS:
        known = ", ".join((*COMPUTE_DTYPES, *INTEGER_OUTPUTS))
        raise FormulaError(f"dtype must be one of {known}", where=where)
    if fill not in INTEGER_OUTPUTS[dtype]:
        ends = " or ".join(str(e) for e in INTEGER_OUTPUTS[dtype])
        raise FormulaError(f"the fill of {dtype} must be {ends}", where=where)
    if kind.kind == "real" and not kind.whole:
        raise FormulaError("an integer output needs a declared rounding: round_half_even, floor ...", where=where)


def _check_flags(formula: Formula, types: dict[str, Type]) -> None:
    steps = {s.name for s in formula.steps}
    names = set(types) - steps
    for flag in formula.flags:
        where = f"flags.{flag.name}"
        check_name(flag.name, where, names)
        names.add(flag.name)
        _check_flag(flag, steps, types, where)


def _check_flag(flag: Flag, steps: set[str], types: dict[str, Type], where: str) -> None:
    if flag.when not in steps or "." in flag.when or types[flag.when].kind != "logical":
        raise FormulaError("when must be a condition", where=where)
    if flag.name in steps and flag.when != flag.name:
        raise FormulaError(f"the name '{flag.name}' is used twice", where=where)
    if flag.pixel_mask_bit is not None and flag.pixel_mask_bit not in PIXEL_MASK_BITS:
        bits = ", ".join(str(b) for b in PIXEL_MASK_BITS)
        raise FormulaError(f"pixel_mask_bit must be one that NXmx defines: {bits}", where=where)
