"""The TOML face of a formula: what people write and read."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from gaincal.errors import FileError, FormulaError
from gaincal.formulas.checks import check_name, declare_pixel_dims, declared_types, step_type
from gaincal.formulas.expression import parse, render
from gaincal.formulas.formula import FORMAT_VERSION, Constant, Flag, Formula, Input, Output, Step, Table
from gaincal.formulas.operations import Type

MAX_DOCUMENT = 4 << 20
MAX_DOTS = 15
"""tomllib spends quadratic time on dotted keys; a line of a formula has few dots outside its texts."""
_TEXT_OR_COMMENT = re.compile(r'"""[\s\S]*?"""|' + r"'''[\s\S]*?'''|" + r'"(?:[^"\\\n]|\\.)*"|' + r"'[^'\n]*'|#[^\n]*")
_SECTIONS = ("formula", "inputs", "constants", "tables", "steps", "outputs", "flags")


class _Section:
    """A TOML table whose every key must be asked for, with the type it must have."""

    def __init__(self, content: object, where: str) -> None:
        if not isinstance(content, dict):
            raise FormulaError("must be a table", where=where)
        self.content, self.where = dict(content), where

    def take(self, key: str, kind: type, default: object = ...) -> object:
        where = f"{self.where}.{key}" if self.where else key
        if key not in self.content:
            if default is ...:
                raise FormulaError("is missing", where=where)
            return default
        value = self.content.pop(key)
        if type(value) is not kind:
            raise FormulaError(f"must be a {kind.__name__}, not a {type(value).__name__}", where=where)
        return _bounded(value, where)

    def text(self, key: str, default: object = ...) -> str:
        return str(self.take(key, str, default))

    def integer(self, key: str, default: object = ...) -> int:
        value = self.take(key, int, default)
        assert isinstance(value, int)
        return value

    def number(self, key: str) -> float | None:
        """A real, or an integer meant as one; None where there is none."""
        if key not in self.content:
            return None
        return float(str(self.take(key, int if type(self.content[key]) is int else float)))

    def optional_text(self, key: str) -> str | None:
        return self.text(key) if key in self.content else None

    def truth(self, key: str, default: bool) -> bool:
        return bool(self.take(key, bool, default))

    def texts(self, key: str) -> tuple[str, ...]:
        return tuple(str(v) for v in self._list(key, str))

    def integers(self, key: str) -> tuple[int, ...]:
        return tuple(v for v in self._list(key, int) if isinstance(v, int))

    def _list(self, key: str, kind: type) -> list[object]:
        values = self.take(key, list)
        assert isinstance(values, list)
        if not all(type(v) is kind for v in values):
            raise FormulaError(f"must be a list of {kind.__name__}", where=f"{self.where}.{key}")
        return [_bounded(v, f"{self.where}.{key}") for v in values]

    def section(self, key: str) -> _Section:
        return _Section(self.content.pop(key, {}), f"{self.where}.{key}" if self.where else key)

    def done(self) -> None:
        for key in self.content:
            raise FormulaError("unknown key", where=f"{self.where}.{key}" if self.where else key or "''")


def _bounded(value: object, where: str) -> object:
    """Integers of TOML have 64 bits; Python's would be printed at any length."""
    if type(value) is int and not -(2**63) <= value < 2**63:
        raise FormulaError("an integer beyond 64 bits", where=where)
    return value


def read_file(path: Path) -> Formula:
    """Read a formula from a TOML file of UTF-8 text."""
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_DOCUMENT + 1)
    except OSError as error:
        raise FileError(path, "", f"cannot be opened: {error.strerror}", code="not-found") from None
    if len(content) > MAX_DOCUMENT:
        raise FormulaError(f"longer than {MAX_DOCUMENT} bytes", where=str(path))
    try:
        return read_document(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise FormulaError(f"is not UTF-8 text: {error.reason}", where=str(path)) from None


def read_document(text: str) -> Formula:
    """Turn the TOML face into a checked formula; raises FormulaError with the place."""
    if len(text) > MAX_DOCUMENT:
        raise FormulaError(f"longer than {MAX_DOCUMENT} characters", where="document")
    bare = _TEXT_OR_COMMENT.sub("''", text)
    if any(line.count(".") > MAX_DOTS for line in bare.split("\n")):
        raise FormulaError("a dotted key of more than 16 parts", where="document")
    try:
        document = _Section(tomllib.loads(text), "")
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise FormulaError(f"is not TOML: {error}", where="document") from None
    sections = {name: document.section(name) for name in _SECTIONS}
    document.done()
    formula = _declarations(sections)
    pixel_dims = declare_pixel_dims(formula.inputs)
    types = dict(declared_types(formula, pixel_dims))
    steps = _steps(sections["steps"], types)
    flags, conditions = _flags(sections["flags"], types)
    outputs = tuple(_output(name, sections["outputs"].section(name)) for name in list(sections["outputs"].content))
    return Formula(
        formula.name,
        formula.version,
        formula.title,
        formula.compute,
        formula.inputs,
        formula.constants,
        formula.tables,
        (*steps, *conditions),
        outputs,
        flags,
    )


class _Declarations(Formula):
    """The part of a formula that its steps refer to; not complete, so not checked."""

    def __post_init__(self) -> None:
        pass


def _declarations(sections: Mapping[str, _Section]) -> _Declarations:
    head = sections["formula"]
    form = head.integer("format", FORMAT_VERSION)
    if form != FORMAT_VERSION:
        raise FormulaError(f"{form} is unknown; this gaincal reads {FORMAT_VERSION}", where="formula.format")
    name, version, title = head.text("name"), head.integer("version"), head.text("title")
    compute = head.text("compute", "float32")
    head.done()
    inputs, constants, tables = sections["inputs"], sections["constants"], sections["tables"]
    return _Declarations(
        name,
        version,
        title,
        compute,
        tuple(_input(n, inputs.section(n)) for n in list(inputs.content)),
        tuple(_constant(n, constants.section(n)) for n in list(constants.content)),
        tuple(Table(n, tables.integers(n)) for n in list(tables.content)),
        (),
        (),
        (),
    )


def _input(name: str, section: _Section) -> Input:
    item = Input(name, *_item(section))
    section.done()
    return item


def _constant(name: str, section: _Section) -> Constant:
    item = Constant(name, *_item(section), section.number("default"))
    section.done()
    return item


def _item(section: _Section) -> tuple[tuple[str, ...], str, str | None]:
    return section.texts("dims"), section.text("units"), section.optional_text("dtype")


def _steps(section: _Section, types: dict[str, Type]) -> list[Step]:
    """Parse every step, adding its type to `types`."""
    steps: list[Step] = []
    for name in list(section.content):
        where = f"steps.{name}"
        check_name(name, where, types)
        result, parsed = parse(name, section.text(name), types, where)
        if not parsed:
            raise FormulaError(f"only repeats '{result}': a step computes something", where=where)
        steps += parsed
        _add_types(parsed, types)
    return steps


def _add_types(steps: list[Step], types: dict[str, Type]) -> None:
    for step in steps:
        types[step.name] = step_type(step, types)


def _flags(section: _Section, types: dict[str, Type]) -> tuple[tuple[Flag, ...], list[Step]]:
    """Parse every flag; a condition that is more than a name becomes a step called like the flag."""
    flags, steps = [], []
    for name in list(section.content):
        where = f"flags.{name}"
        check_name(name, where, types)
        entry = section.section(name)
        when, parsed = parse(name, entry.text("when"), types, where)
        steps += parsed
        _add_types(parsed, types)
        bit = entry.integer("pixel_mask_bit") if "pixel_mask_bit" in entry.content else None
        flags.append(Flag(name, when, entry.truth("voids", True), bit))
        entry.done()
    return tuple(flags), steps


def _output(name: str, section: _Section) -> Output:
    units, dtype = section.text("units"), section.text("dtype")
    default = section.truth("default", False)
    fill = section.integer("fill") if "fill" in section.content else None
    variance_of = section.optional_text("variance_of")
    others = section.section("alternatives")
    alternatives = tuple((other, _fill(other, others)) for other in list(others.content))
    section.done()
    return Output(name, units, dtype, fill, default, alternatives, variance_of)


def _fill(dtype: str, section: _Section) -> int | None:
    """The fill of a further dtype; ``nan`` for a floating-point one."""
    value = section.content.get(dtype)
    if isinstance(value, float) and math.isnan(value):
        section.content.pop(dtype)
        return None
    return section.integer(dtype)


def check_text(formula: Formula) -> None:
    """Refuse steps that their own text would not give again, within its limits; raises FormulaError."""
    types = {name: kind for name, kind in formula.checked.types.items() if name not in formula.checked.needs}
    conditions, texts = _conditions(formula), _texts(formula)
    written = [n for n in texts if n not in conditions], [f.name for f in formula.flags if f.name in conditions]
    given: list[Step] = []
    for part, names in zip(("steps", "flags"), written, strict=True):
        for name in names:
            _, steps = parse(name, texts[name], types, f"{part}.{name}")
            given += steps
            types |= {s.name: formula.checked.types[s.name] for s in steps if s.name in formula.checked.types}
    if tuple(given) != formula.steps:
        raise FormulaError("are not in the order that their text gives: those of flags last", where="steps")
    known = set(written[0])
    for flag in formula.flags:
        known |= {flag.name} & conditions
        if flag.when not in known:
            raise FormulaError(f"'{flag.when}' is not defined before this flag", where=f"flags.{flag.name}")


def write_document(formula: Formula) -> str:
    """Write the TOML face of a formula."""
    lines = [
        "[formula]",
        f"format  = {FORMAT_VERSION}",
        f"name    = {_quoted(formula.name)}",
        f"version = {formula.version}",
        f"title   = {_quoted(formula.title)}",
        f"compute = {_quoted(formula.compute)}",
    ]
    for part, items in (("inputs", formula.inputs), ("constants", formula.constants)):
        for item in items:
            lines += ["", f"[{part}.{item.name}]", f"dims  = {_list(item.dims)}", f"units = {_quoted(item.units)}"]
            lines += [f"dtype = {_quoted(item.dtype)}"] if item.dtype else []
            default = item.default if isinstance(item, Constant) else None
            lines += [f"default = {default!r}"] if default is not None else []
    if formula.tables:
        lines += ["", "[tables]", *(f"{t.name} = {list(t.entries)}" for t in formula.tables)]
    lines += ["", "[steps]", *_step_lines(formula)]
    lines += ["", "[outputs]", *(_output_line(o) for o in formula.outputs)]
    if formula.flags:
        lines += ["", "[flags]", *_flag_lines(formula)]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _list(texts: tuple[str, ...]) -> str:
    return "[" + ", ".join(_quoted(t) for t in texts) + "]"


def _texts(formula: Formula) -> dict[str, str]:
    """Infix text of every named step, anonymous ones written in place."""
    inline = {s.name: s for s in formula.steps if "." in s.name}
    words = frozenset(i.name for i in formula.inputs if i.dtype)
    return {s.name: render(s, inline, words) for s in formula.steps if s.name not in inline}


def _conditions(formula: Formula) -> set[str]:
    """Steps that are written as the `when` of the flag they are named after."""
    return {f.name for f in formula.flags if f.when == f.name}


def _step_lines(formula: Formula) -> list[str]:
    conditions = _conditions(formula)
    return [f"{n} = {_quoted(t)}" for n, t in _texts(formula).items() if n not in conditions]


def _output_line(output: Output) -> str:
    parts = [f"units = {_quoted(output.units)}", f"dtype = {_quoted(output.dtype)}"]
    parts += [f"fill = {output.fill}"] if output.fill is not None else []
    if output.alternatives:
        others = (f"{dtype} = {'nan' if fill is None else fill}" for dtype, fill in output.alternatives)
        parts.append(f"alternatives = {{ {', '.join(others)} }}")
    parts += ["default = true"] if output.default else []
    parts += [f"variance_of = {_quoted(output.variance_of)}"] if output.variance_of else []
    return f"{output.name} = {{ {', '.join(parts)} }}"


def _flag_lines(formula: Formula) -> list[str]:
    texts, lines = _texts(formula), []
    for flag in formula.flags:
        parts = [f"when = {_quoted(texts[flag.name] if flag.when == flag.name else flag.when)}"]
        parts += [] if flag.voids else ["voids = false"]
        parts += [f"pixel_mask_bit = {flag.pixel_mask_bit}"] if flag.pixel_mask_bit is not None else []
        lines.append(f"{flag.name} = {{ {', '.join(parts)} }}")
    return lines
