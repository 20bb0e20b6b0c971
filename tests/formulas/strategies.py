"""Random formulas and random texts: one generator, shrunk by hypothesis or driven by a seed.

`formula_texts` floods a reader with expressions, `read_text` turns one into a formula to evaluate,
`formulas` draws whole formulas for hypothesis.  What they refer to is declared in `DECLARATIONS`.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TypeAlias

from hypothesis import reject
from hypothesis import strategies as st

from gaincal.errors import FormulaError
from gaincal.formulas.checks import step_type
from gaincal.formulas.expression import parse
from gaincal.formulas.formula import Formula, Step
from gaincal.formulas.operations import OPERATIONS, Type

Tree: TypeAlias = "str | tuple[Tree, ...]"

DECLARATIONS = """
[formula]
format  = 1
name    = "sample"
version = 1
title   = "A bit of everything"

[inputs]
raw           = { dims = ["frame", "y", "x"], units = "ADU", dtype = "uint16" }
high_word     = { dims = ["frame", "y", "x"], units = "1", dtype = "uint32" }
memory_cell   = { dims = ["frame"], units = "1", dtype = "uint8" }
photon_energy = { dims = [], units = "keV" }
mask          = { dims = ["y", "x"], units = "1", dtype = "uint32" }

[constants]
pedestal  = { dims = ["stage", "y", "x"], units = "ADU" }
gain      = { dims = ["stage", "cell", "y", "x"], units = "ADU/keV" }
window    = { dims = ["stage", "cell", "row"], units = "keV" }
marks     = { dims = ["stage", "y", "x"], units = "1", dtype = "uint8" }
noise     = { dims = ["y", "x"], units = "ADU" }
scale     = { dims = [], units = "1" }

[tables]
stage_of_code = [0, 1, -1, 2]
ramp          = [-2147483648, -5, 0, 7, 1000, 2147483647]
"""


@dataclass(frozen=True)
class Name:
    """Something an expression can refer to; `axes` counts the indices that it needs."""

    text: str
    kind: str
    unit: str
    axes: int = 0
    word: bool = False


NAMES = (
    Name("raw", "integer", "ADU", word=True),
    Name("high_word", "integer", "1", word=True),
    Name("memory_cell", "integer", "1", word=True),
    Name("mask", "integer", "1", word=True),
    Name("photon_energy", "real", "keV"),
    Name("pedestal", "real", "ADU", axes=1),
    Name("gain", "real", "ADU/keV", axes=2),
    Name("window", "real", "keV", axes=3),
    Name("marks", "integer", "1", axes=1),
    Name("noise", "real", "ADU"),
    Name("scale", "real", "1"),
)
TABLES = ("stage_of_code", "ramp")
ROUNDINGS = ("floor", "trunc", "round_half_even", "round_half_away")
COMPARISONS = {"less": "<", "less_equal": "<=", "greater": ">", "greater_equal": ">=", "equal": "==", "not_equal": "!="}
SYMBOLS = COMPARISONS | {"add": "+", "subtract": "-", "multiply": "*", "divide": "/", "and": "and", "or": "or"}
LEVELS = dict.fromkeys(COMPARISONS, 4) | {"or": 1, "and": 2, "add": 5, "subtract": 5, "multiply": 6, "divide": 6}
REALS = ("0.5", "2.0", "-1.25", "1e-05", "3.0", "-0.0", "1e+22", "0.1")


@dataclass
class Grammar:
    """Draws expressions that obey the types, as trees."""

    rng: Random
    names: Sequence[Name] = NAMES

    def expression(self, kind: str, unit: str, depth: int) -> Tree:
        """An expression that is at least one operation."""
        while isinstance(tree := self.draw(kind, unit, depth), str):
            depth = max(depth, 1)
        return tree

    def draw(self, kind: str, unit: str, depth: int) -> Tree:
        if kind == "logical":
            return self.logical(depth)
        return self.integer(unit, depth) if kind == "integer" else self.real(unit, depth)

    def leaf(self, kind: str, unit: str) -> Tree:
        found = [n for n in self.names if (n.kind, n.unit) == (kind, unit)]
        if not found:
            return ("multiply", self.leaf("integer", unit), "0.5")
        name = self.rng.choice(found)
        if not name.axes:
            return name.text
        return ("select", name.text, *(self.index() for _ in range(name.axes)))

    def index(self) -> Tree:
        if self.rng.random() < 0.3:
            return str(self.rng.randrange(4))
        return ("lookup", "stage_of_code", ("bits", self.word(), "14", "2"))

    def word(self) -> Tree:
        return self.rng.choice([n.text for n in self.names if n.word])

    def real(self, unit: str, depth: int) -> Tree:
        if depth <= 0:
            return self.leaf("real", unit)
        d, pick = depth - 1, self.rng.choice
        options: tuple[Callable[[], Tree], ...] = (
            lambda: (pick(("add", "subtract", "min", "max")), self.real(unit, d), self.real(unit, d)),
            lambda: (pick(("add", "subtract")), self.leaf_integer(unit), self.real(unit, d)),
            lambda: ("multiply", pick(REALS), self.real(unit, d)),
            lambda: (pick(("multiply", "divide")), self.real(unit, d), self.real("1", d)),
            lambda: (pick(("negate", "abs", *ROUNDINGS)), self.real(unit, d)),
            lambda: ("clip", self.real(unit, d), pick(REALS), self.real(unit, d)),
            lambda: ("where", self.logical(d), self.real(unit, d), pick(("0", "1.5", "-2"))),
            lambda: ("where", self.logical(d), self.real(unit, d), self.real(unit, d)),
            lambda: ("divide", self.draw_number(unit, d), self.real("1", d)),
            lambda: ("sqrt", ("multiply", self.real(unit, d), self.real(unit, d))),
            lambda: self.conversion(unit, d),
            lambda: self.conversion(unit, d),
            lambda: self.leaf("real", unit),
        )
        return pick(options)()

    def draw_number(self, unit: str, depth: int) -> Tree:
        return self.draw(self.rng.choice(("integer", "real")) if unit in ("1", "ADU") else "real", unit, depth)

    def leaf_integer(self, unit: str) -> Tree:
        return self.leaf("integer", unit) if unit in ("1", "ADU") else self.rng.choice(("3", "-7", "0"))

    def conversion(self, unit: str, d: int) -> Tree:
        if unit == "keV":
            return ("divide", self.draw_number("ADU", d), self.leaf("real", "ADU/keV"))
        if unit == "ADU":
            return ("multiply", self.real("keV", d), self.leaf("real", "ADU/keV"))
        match self.rng.randrange(3):
            case 0:
                return ("divide", self.real("keV", d), self.real("keV", d))
            case 1:
                return (self.rng.choice(("exp", "log")), self.draw_number("1", d))
            case _:
                return ("power", self.draw_number("1", d), str(self.rng.randrange(-8, 9)))

    def integer(self, unit: str, depth: int) -> Tree:
        if depth <= 0:
            return self.leaf("integer", unit)
        d, pick, whole = depth - 1, self.rng.choice, self.rng.randrange
        options: tuple[Callable[[], Tree], ...] = (
            lambda: (pick(("add", "subtract", "min", "max")), self.integer(unit, d), self.integer(unit, d)),
            lambda: ("multiply", self.integer(unit, d), str(whole(-20, 20))),
            lambda: (pick(("add", "subtract")), str(whole(100)), self.integer(unit, d)),
            lambda: (pick(("negate", "abs")), self.integer(unit, d)),
            lambda: ("clip", self.integer(unit, d), "-3", str(whole(1, 5000))),
            lambda: ("where", self.logical(d), self.integer(unit, d), self.integer(unit, d)),
            lambda: self.from_words(unit, d),
            lambda: self.from_words(unit, d),
            lambda: self.leaf("integer", unit),
        )
        return pick(options)()

    def from_words(self, unit: str, d: int) -> Tree:
        length = self.rng.randrange(1, 15)
        word = "raw" if unit == "ADU" else self.rng.choice(("high_word", "mask"))
        low = ("bits", word, str(self.rng.randrange(0, 18)), str(length))
        match self.rng.randrange(3 if unit == "1" else 2):
            case 0:
                return low
            case 1:
                return ("join", low, str(length + self.rng.randrange(2)), ("bits", self.word(), "0", "8"))
            case _:
                return ("lookup", self.rng.choice(TABLES), self.integer("1", d))

    def logical(self, depth: int) -> Tree:
        d = depth - 1
        unit = self.rng.choice(("1", "ADU", "keV"))
        named = [n.text for n in self.names if n.kind == "logical"]
        match self.rng.randrange(6) if depth > 0 else 5:
            case 0:
                return (self.rng.choice(("and", "or")), self.logical(d), self.logical(d))
            case 1:
                return ("not", self.logical(d))
            case 2:
                return ("finite", self.real(unit, d))
            case 3:
                return (self.rng.choice(tuple(COMPARISONS)), self.draw_number(unit, d), self.real(unit, d))
            case 4 if named:
                return self.rng.choice(named)
            case _:
                return (self.rng.choice(tuple(COMPARISONS)), "raw", str(self.rng.randrange(65536)))


@dataclass
class Writer:
    """Writes a tree as text: fewest parentheses plus some needless ones, odd spacing, numbers spelled at whim."""

    rng: Random
    needless: float = 0.06

    def write(self, tree: Tree) -> str:
        return self._write(tree)[0]

    def _write(self, tree: Tree) -> tuple[str, int]:
        text, level = self._leaf(tree) if isinstance(tree, str) else self._node(str(tree[0]), tree[1:])
        if self.rng.random() < self.needless:
            return f"({self._gap()}{text}{self._gap()})", 8
        return text, level

    def _leaf(self, leaf: str) -> tuple[str, int]:
        level = 7 if leaf.startswith("-") else 8
        if leaf.isdigit() and self.rng.random() < 0.3:
            return self.rng.choice((f"0x{int(leaf):x}", f"0x{int(leaf):04X}")), level
        if leaf == "0.5" and self.rng.random() < 0.5:
            return self.rng.choice(("5e-1", "0.500", "5E-01")), level
        return leaf, level

    def _node(self, operation: str, arguments: Sequence[Tree]) -> tuple[str, int]:
        if operation == "select":
            return f"{arguments[0]}{self._gap()}[{self._list(arguments[1:])}]", 8
        if operation in ("not", "negate"):
            level = 3 if operation == "not" else 7
            return ("not " if operation == "not" else "-") + self._at_least(arguments[0], level), level
        if operation not in SYMBOLS:
            return f"{operation}{self._gap()}({self._list(arguments)})", 8
        level = LEVELS[operation]
        left = self._at_least(arguments[0], level + (operation in COMPARISONS))
        right = self._at_least(arguments[1], level + 1)
        gap = " " if operation in ("and", "or") else ""
        return f"{left}{gap or self._gap()}{SYMBOLS[operation]}{gap or self._gap()}{right}", level

    def _at_least(self, tree: Tree, level: int) -> str:
        text, binds = self._write(tree)
        return text if binds >= level else f"({text})"

    def _list(self, trees: Sequence[Tree]) -> str:
        return f",{self._gap()}".join(self.write(t) for t in trees)

    def _gap(self) -> str:
        return self.rng.choice(("", " ", " ", "  ", "\t", "\n "))


def tree_of(steps: Sequence[Step]) -> Tree:
    """What the steps of one expression compute."""
    trees: dict[str, Tree] = {}
    for step in steps:
        trees[step.name] = (step.operation, *(trees.get(a, a) for a in step.arguments))
    return trees[steps[-1].name]


def operations_in(tree: Tree) -> set[str]:
    """The operations that a tree uses."""
    return set() if isinstance(tree, str) else {str(tree[0])}.union(*(operations_in(t) for t in tree[1:]))


def python_tree(text: str) -> Tree:
    """What Python's own parser reads in an expression: an oracle for precedence and order."""
    return _from_python(ast.parse(f"(\n{text}\n)", mode="eval").body)


_PYTHON = {ast.Add: "add", ast.Sub: "subtract", ast.Mult: "multiply", ast.Div: "divide", ast.And: "and", ast.Or: "or"}
_PYTHON_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
}


def _from_python(node: ast.expr) -> Tree:  # noqa: PLR0911
    match node:
        case ast.Constant(value=value):
            return repr(value)
        case ast.Name(id=name):
            return name
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return repr(-value)
        case ast.UnaryOp(op=op, operand=operand):
            return ("not" if isinstance(op, ast.Not) else "negate", _from_python(operand))
        case ast.BinOp(left=left, op=operator, right=right):
            return (_PYTHON[type(operator)], _from_python(left), _from_python(right))
        case ast.BoolOp(op=connective, values=[first, *others]):
            tree = _from_python(first)
            for other in others:
                tree = (_PYTHON[type(connective)], tree, _from_python(other))
            return tree
        case ast.Compare(left=left, ops=[comparison], comparators=[right]):
            return (_PYTHON_COMPARISONS[type(comparison)], _from_python(left), _from_python(right))
        case ast.Subscript(value=value, slice=ast.Tuple(elts=indices)):
            return ("select", _from_python(value), *(_from_python(i) for i in indices))
        case ast.Subscript(value=value, slice=index):
            return ("select", _from_python(value), _from_python(index))
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return (name, *(_from_python(a) for a in arguments))
    raise AssertionError(f"no part of a formula: {ast.dump(node)}")


def document(
    steps: dict[str, str],
    outputs: str = 'base = { units = "ADU", dtype = "float32", default = true }',
    flags: str = "",
    extra: str = "",
) -> str:
    """A whole TOML document with the declarations above; there is always a step ``base``."""
    lines = [DECLARATIONS, extra, "[steps]", 'base = "raw + 1"']
    lines += [f"{name} = {json.dumps(text)}" for name, text in steps.items()]
    return "\n".join([*lines, "[outputs]", outputs, "[flags]", flags]) + "\n"


TYPES = {name: kind for name, kind in Formula.from_toml(document({})).checked.types.items() if name != "base"}


def read_steps(text: str) -> list[Step]:
    """Steps of the text as the expression of a step ``result``; FormulaError if it is refused."""
    result, steps = parse("result", text, TYPES, "steps.result")
    if not steps:
        raise FormulaError(f"only repeats '{result}'", where="steps.result")
    return steps


def type_of(steps: Sequence[Step]) -> Type:
    """Type of the last of the steps."""
    types = dict(TYPES)
    for step in steps:
        types[step.name] = step_type(step, types)
    return types[steps[-1].name]


def read_text(text: str) -> Formula:
    """A formula with the text as its default output ``result``, or as its flag if it is a condition.

    Raises
    ------
    FormulaError
        If the text is refused.
    """
    kind = type_of(read_steps(text))
    if kind.kind == "logical":
        return Formula.from_toml(document({}, flags=f"result = {{ when = {json.dumps(text)} }}"))
    output = f'result = {{ units = "{kind.unit or 1}", dtype = "float32", default = true }}'
    return Formula.from_toml(document({"result": text}, outputs=output))


def grammatical(rng: Random) -> str:
    """An expression that is nearly always accepted."""
    kind, unit = rng.choice((("real", "1"), ("real", "ADU"), ("real", "keV"), ("integer", "1"), ("logical", "1")))
    return Writer(rng).write(Grammar(rng).expression(kind, unit, rng.randrange(1, 5)))


_COMMON = "+ - * / < <= > >= == != ( ) ( ) [ ] , , 0 1 2 14 -1 1.0 0.5 1e5 0x1F"
_FOREIGN = "= ! . ** // % & | ^ ~ : ; { } @ # ' \" \\ if else None lambda unknown energy.1"
_NUMBERS = "1e999 0x 01 1. .5 1_0 9007199254740992 9007199254740993 2raw"
_SOUP = (
    *[n.text for n in NAMES] * 3,
    *TABLES,
    *OPERATIONS,
    *_COMMON.split() * 3,
    *_FOREIGN.split(),
    *_NUMBERS.split(),
)


def soup(rng: Random) -> str:
    """Tokens in no order."""
    return rng.choice(("", " ")).join(rng.choices(_SOUP, k=rng.randrange(1, 12)))


_CHARACTERS = "abcxyzRAW0123456789.eE+-*/<>=!()[],_ \t\n\r\0\x1b\x7f\"'\\#&|%^~$@`;:?{}"
_ODD = (
    "\u00a0\u00b2\u0660\u0661\uff11\u00e9\u03b1\u0430\u2212\u00d7"
    "\u200b\u202e\ufeff\ud800\udfff\U0001f600\u2028\x85\ufb01"
)


def mutated(rng: Random, characters: str = _CHARACTERS) -> str:
    """A grammatical text with a few characters lost, doubled, swapped or replaced."""
    text = grammatical(rng)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(text) + 1)
        size = rng.randrange(1, 6)
        match rng.randrange(5):
            case 0:
                text = text[:at] + text[at + size :]
            case 1:
                text = text[:at] + rng.choice(characters) + text[at:]
            case 2:
                text = text[:at] + rng.choice(characters) + text[at + 1 :]
            case 3:
                text = text[: at + size] + text[at:]
            case _:
                text = text[:at] + text[at + 1 : at + 1 + size] + text[at : at + 1] + text[at + 1 + size :]
    return text


def unprintable(rng: Random) -> str:
    """A grammatical text with characters from all over Unicode."""
    if rng.random() < 0.5:
        return mutated(rng, _ODD)
    return "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randrange(1, 20)))


def long_text(rng: Random) -> str:
    """Around and far beyond the limits of text and steps."""
    size = rng.choice((200, 255, 256, 257, 600, 4095, 4096, 4097, 20_000))
    match rng.randrange(6):
        case 0:
            return "raw" + rng.choice((" + 1", "+raw", "*1", " - scale")) * size
        case 1:
            return "raw + 1" + " " * max(size - 7, 0)
        case 2:
            return rng.choice("a1(-[,.x_") * size
        case 3:
            return "min(" + "raw, " * size + "raw)"
        case 4:
            return " or ".join(["raw == 0xFFFF"] * (size // 16 + 1))
        case _:
            return "".join(rng.choices(_CHARACTERS, k=size))


def deep_text(rng: Random) -> str:
    """Nested around and far beyond the limit, in every way there is to nest."""
    depth = rng.choice((5, 30, 31, 32, 33, 34, 100, 500))
    opening, core, closing = rng.choice(
        (
            ("(", "raw + 1", ")"),
            ("-", "raw", ""),
            ("not ", "raw == 1", ""),
            ("abs(", "scale", ")"),
            ("marks[", "memory_cell", "]"),
            ("(1 + ", "scale", ")"),
            ("(not ", "finite(scale)", ")"),
            ("where(raw == 1, 2, ", "raw", ")"),
            ("-(", "scale", ")"),
            ("window[1, 2, lookup(ramp, ", "raw", ")]"),
        )
    )
    return opening * depth + core + closing * (depth - rng.choice((0, 0, 0, 1)))


_MAKERS = (grammatical, soup, mutated, unprintable, long_text, deep_text)


def formula_texts(seed: int, count: int) -> Iterator[str]:
    """Texts of all kinds, the same for the same seed; about half of them are accepted."""
    rng = Random(seed)
    for maker in rng.choices(_MAKERS, weights=(48, 15, 28, 7, 1, 1), k=count):
        yield maker(rng)


@dataclass
class _Documents:
    rng: Random
    names: list[Name] = field(default_factory=lambda: list(NAMES))
    steps: dict[str, str] = field(default_factory=dict)

    def draw(self) -> str:
        rng = self.rng
        outputs = ['base = { units = "ADU", dtype = "int32", fill = -2147483648, default = true }']
        for k in range(rng.randrange(5)):
            outputs += self._step(f"step_{k}")
        tables = "".join(f"extra_{k} = {[rng.randrange(-(2**31), 2**31)]}\n" for k in range(rng.randrange(3)))
        return document(self.steps, "\n".join(outputs), self._flags(), tables)

    def _step(self, name: str) -> list[str]:
        """Add a step; an output line if it is a number."""
        kind = self.rng.choice(("real", "real", "integer", "logical"))
        unit = "1" if kind == "logical" else self.rng.choice(("1", "ADU") if kind == "integer" else ("1", "ADU", "keV"))
        tree = Grammar(self.rng, self.names).expression(kind, unit, self.rng.randrange(1, 4))
        self.steps[name] = Writer(self.rng).write(tree)
        self.names.append(Name(name, kind, unit))
        if kind == "logical" or self.rng.random() < 0.3:
            return []
        if kind == "integer" or tree[0] in ROUNDINGS:
            others = self.rng.choice(("", ", alternatives = { int16 = 32767, uint8 = 0 }"))
            return [f'{name} = {{ units = "{unit}", dtype = "uint32", fill = 4294967295{others} }}']
        return [f'{name} = {{ units = "{unit}", dtype = "{self.rng.choice(("float32", "float64"))}" }}']

    def _flags(self) -> str:
        lines = []
        for k in range(self.rng.randrange(4)):
            when = Grammar(self.rng, self.names).logical(2)
            more = self.rng.choice(("", ", voids = false", ", pixel_mask_bit = 31"))
            lines.append(f"flag_{k} = {{ when = {json.dumps(Writer(self.rng).write(when))}{more} }}")
        return "\n".join(lines)


def random_document(rng: Random) -> str:
    """A TOML document that is nearly always a valid formula."""
    return _Documents(rng).draw()


@st.composite
def formulas(draw: st.DrawFn) -> Formula:
    """Valid formulas of several steps, outputs and flags."""
    rng = draw(st.randoms(use_true_random=False))
    try:
        return Formula.from_toml(random_document(rng))
    except FormulaError:
        reject()


@st.composite
def trees(draw: st.DrawFn) -> tuple[Tree, str]:
    """A tree and a text that spells it."""
    rng = draw(st.randoms(use_true_random=False))
    kind = rng.choice(("real", "integer", "logical"))
    tree = Grammar(rng).expression(kind, rng.choice(("1", "ADU")), rng.randrange(1, 5))
    return tree, Writer(rng).write(tree)
