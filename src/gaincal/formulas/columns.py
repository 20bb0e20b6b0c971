"""The stored face of a formula: columns of equal length, as a file keeps them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from gaincal.errors import FormulaError
from gaincal.formulas.checks import MAX_NAME, MAX_TABLE, NUMBER
from gaincal.formulas.expression import literal_text
from gaincal.formulas.formula import FORMAT_VERSION, Constant, Flag, Formula, Input, Output, Step, Table
from gaincal.formulas.operations import OPERATIONS, OperationError

Column = Sequence[str] | Sequence[int] | Sequence[float]
Columns = Mapping[str, Mapping[str, Column]]
MAX_ARGUMENTS = 4
MAX_CELL = 1024
MAX_ROWS = 512
"""More than the limit of any part: an output has a row for each of its dtypes."""
ARGUMENTS = tuple(f"argument_{k + 1}" for k in range(MAX_ARGUMENTS))

TEXT, INTEGER, REAL = "text", "integer", "real"
LAYOUT: Mapping[str, Mapping[str, str]] = {
    "formula": {
        "format_version": INTEGER,
        "name": TEXT,
        "version": INTEGER,
        "title": TEXT,
        "compute_dtype": TEXT,
        "required_operations": TEXT,
    },
    "inputs": {"name": TEXT, "dims": TEXT, "units": TEXT, "dtype": TEXT},
    "constants": {"name": TEXT, "dims": TEXT, "units": TEXT, "dtype": TEXT, "default": REAL},
    "steps": {"name": TEXT, "operation": TEXT} | dict.fromkeys(ARGUMENTS, TEXT),
    "outputs": {"name": TEXT, "units": TEXT, "dtype": TEXT, "fill": REAL, "default": INTEGER, "variance_of": TEXT},
    "flags": {"name": TEXT, "when": TEXT, "voids": INTEGER, "pixel_mask_bit": INTEGER},
}
TABLES = "tables"


def to_columns(formula: Formula) -> dict[str, dict[str, Column]]:
    """Columns of every group of `LAYOUT`, and one column per table in ``tables``."""
    offers = [(o, *choice) for o in formula.outputs for choice in ((o.dtype, o.fill), *o.alternatives)]
    steps = [(*s.arguments, *[""] * (MAX_ARGUMENTS - len(s.arguments))) for s in formula.steps]
    return {
        "formula": {
            "format_version": [FORMAT_VERSION],
            "name": [formula.name],
            "version": [formula.version],
            "title": [formula.title],
            "compute_dtype": [formula.compute],
            "required_operations": required_operations(formula),
        },
        "inputs": _declared(formula.inputs),
        "constants": _declared(formula.constants)
        | {"default": [math.nan if c.default is None else float(c.default) for c in formula.constants]},
        TABLES: {t.name: list(t.entries) for t in formula.tables},
        "steps": {
            "name": [s.name for s in formula.steps],
            "operation": [s.operation for s in formula.steps],
            **{column: [row[k] for row in steps] for k, column in enumerate(ARGUMENTS)},
        },
        "outputs": {
            "name": [o.name for o, _, _ in offers],
            "units": [o.units for o, _, _ in offers],
            "dtype": [dtype for _, dtype, _ in offers],
            "fill": [math.nan if fill is None else float(fill) for _, _, fill in offers],
            "default": [int(o.default) for o, _, _ in offers],
            "variance_of": [o.variance_of or "" for o, _, _ in offers],
        },
        "flags": {
            "name": [f.name for f in formula.flags],
            "when": [f.when for f in formula.flags],
            "voids": [int(f.voids) for f in formula.flags],
            "pixel_mask_bit": [-1 if f.pixel_mask_bit is None else f.pixel_mask_bit for f in formula.flags],
        },
    }


def required_operations(formula: Formula) -> list[str]:
    """The operations a reader must know, in the order of the specification."""
    used = {s.operation for s in formula.steps}
    return [name for name in OPERATIONS if name in used]


def _declared(items: Sequence[Input | Constant]) -> dict[str, Column]:
    return {
        "name": [i.name for i in items],
        "dims": [" ".join(i.dims) for i in items],
        "units": [i.units for i in items],
        "dtype": [i.dtype or "" for i in items],
    }


def from_columns(columns: Columns) -> Formula:
    """Read a formula from columns that nobody has checked yet.

    Parameters
    ----------
    columns : mapping of str to mapping of str to sequence
        As `to_columns` makes them: text columns of str, others of int or float.

    Raises
    ------
    FormulaError
        If a version or an operation is unknown, a column is missing, odd or too long, or the
        formula breaks a rule.
    """
    _check_version(columns)
    for group, layout in LAYOUT.items():
        _check_group(group, columns.get(group, {}), layout)
    head = columns["formula"]
    _check_required(head["required_operations"])
    formula = Formula(
        str(head["name"][0]),
        int(head["version"][0]),
        str(head["title"][0]),
        str(head["compute_dtype"][0]),
        tuple(Input(*_read_item(row)) for row in _rows(columns["inputs"], LAYOUT["inputs"])),
        tuple(_read_constant(*row) for row in _rows(columns["constants"], LAYOUT["constants"])),
        tuple(_read_table(name, entries) for name, entries in columns.get(TABLES, {}).items()),
        tuple(_read_step(row) for row in _rows(columns["steps"], LAYOUT["steps"])),
        _read_outputs(columns["outputs"]),
        tuple(_read_flag(*row) for row in _rows(columns["flags"], LAYOUT["flags"])),
    )
    if list(head["required_operations"]) != required_operations(formula):
        raise FormulaError("are not those of the steps", where="formula.required_operations")
    return formula


def _check_version(columns: Columns) -> None:
    version = list(columns.get("formula", {}).get("format_version", []))
    if version != [FORMAT_VERSION]:
        shown = str(version[0])[:MAX_NAME] if len(version) == 1 else "missing"
        raise FormulaError(f"is {shown}; this gaincal reads {FORMAT_VERSION}", where="formula.format_version")


def _check_required(names: Column) -> None:
    for name in names:
        if name not in OPERATIONS:
            raise FormulaError(f"operation '{str(name)[:MAX_NAME]}' is unknown to this gaincal", where="formula")


def _check_group(group: str, columns: Mapping[str, Column], layout: Mapping[str, str]) -> None:
    for name in columns:
        if name not in layout:
            raise FormulaError("unknown column", where=f"{group}.{name}")
    lengths = set()
    for name, kind in layout.items():
        where = f"{group}.{name}"
        if name not in columns:
            raise FormulaError("column is missing", where=where)
        allowed = {TEXT: str, INTEGER: int, REAL: float}[kind]
        if not all(type(v) is allowed for v in columns[name]):
            raise FormulaError(f"must be a column of {kind}", where=where)
        if any(len(str(v)) > MAX_CELL for v in columns[name]):
            raise FormulaError(f"a cell is longer than {MAX_CELL} characters", where=where)
        if group != "formula" or name != "required_operations":
            lengths.add(len(columns[name]))
    if len(lengths) != 1 or max(lengths) > MAX_ROWS:
        raise FormulaError(f"columns must have one length, at most {MAX_ROWS}", where=group)
    if group == "formula" and lengths != {1}:
        raise FormulaError("must have one row", where=group)


def _rows(columns: Mapping[str, Column], layout: Mapping[str, str]) -> list[tuple[object, ...]]:
    return list(zip(*(columns[name] for name in layout), strict=True))


def _read_item(row: tuple[object, ...]) -> tuple[str, tuple[str, ...], str, str | None]:
    name, dims, units, dtype = (str(cell) for cell in row)
    return name, tuple(dims.split(" ")) if dims else (), units, dtype or None


def _read_constant(*row: object) -> Constant:
    *item, default = row
    number = float(str(default))
    return Constant(*_read_item(tuple(item)), None if math.isnan(number) else number)


def _read_table(name: str, entries: Column) -> Table:
    if len(entries) > MAX_TABLE or not all(type(e) is int for e in entries):
        raise FormulaError(f"must be at most {MAX_TABLE} integers", where=f"tables.{name}")
    return Table(name, tuple(int(e) for e in entries))


def _read_step(row: tuple[object, ...]) -> Step:
    name, operation, *cells = (str(cell) for cell in row)
    count = len(cells)
    while count and not cells[count - 1]:
        count -= 1
    return Step(name, operation, tuple(_read_argument(cell, name) for cell in cells[:count]))


def _read_argument(cell: str, step: str) -> str:
    if not NUMBER.fullmatch(cell):
        return cell
    try:
        return literal_text(cell)
    except OperationError as error:
        raise FormulaError(str(error), where=f"steps.{step}") from None


def _read_outputs(columns: Mapping[str, Column]) -> tuple[Output, ...]:
    """Rows of one name, one below the other, are one output and its alternatives."""
    outputs: list[Output] = []
    for name, units, dtype, fill, default, of in _rows(columns, LAYOUT["outputs"]):
        offer = (str(dtype), _read_fill(float(str(fill)), str(name)))
        truth = _truth(default, f"outputs.{name}")
        row = Output(str(name), str(units), *offer, truth, variance_of=str(of) or None)
        last = outputs[-1] if outputs else None
        if last is None or last.name != row.name:
            outputs.append(row)
        elif (last.units, last.default, last.variance_of) == (row.units, row.default, row.variance_of):
            outputs[-1] = replace(last, alternatives=(*last.alternatives, offer))
        else:
            raise FormulaError("rows of one output differ in more than dtype and fill", where=f"outputs.{name}")
    return tuple(outputs)


def _read_fill(fill: float, name: str) -> int | None:
    if math.isnan(fill):
        return None
    if not fill.is_integer():
        raise FormulaError("fill must be NaN or a whole number", where=f"outputs.{name}")
    return int(fill)


def _truth(value: object, where: str) -> bool:
    if value not in (0, 1):
        raise FormulaError("must be 0 or 1", where=where)
    return bool(value)


def _read_flag(name: object, when: object, voids: object, bit: object) -> Flag:
    number = int(str(bit))
    where = f"flags.{name}"
    return Flag(str(name), str(when), _truth(voids, where), None if number == -1 else number)
