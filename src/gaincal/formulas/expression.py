"""Infix text to steps and back, with a parser of our own: no text is ever evaluated.

Precedence, loosest first: ``or``; ``and``; ``not``; one comparison; ``+ -``; ``* /``; unary ``-``.
Sub-expressions become anonymous steps ``energy.1``, ``energy.2`` ... in the order of evaluation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from gaincal.errors import FormulaError
from gaincal.formulas.checks import MAX_STEPS, literal_type, literal_value
from gaincal.formulas.formula import Step
from gaincal.formulas.operations import OPERATIONS, OperationError, Type

MAX_TEXT = 4096
MAX_NESTING = 32
_TOKEN = re.compile(
    r"(?P<space>[ \t\n]+)"
    r"|(?P<number>0x[0-9A-Fa-f]{1,16}(?![0-9A-Za-z_.])"
    r"|(?:0|[1-9][0-9]{0,30})(?:\.[0-9]{1,40})?(?:[eE][+-]?[0-9]{1,3})?(?![0-9A-Za-z_.]))"
    r"|(?P<name>[a-z][a-z0-9_]*)"
    r"|(?P<symbol><=|>=|==|!=|[-+*/<>()\[\],])"
)
_BIT_OPERATORS = "&|^~%"
_COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")
_SUMS, _PRODUCTS = ("+", "-"), ("*", "/")
_OPERATION_OF = {o.symbol: o.name for o in OPERATIONS.values() if o.symbol and o.arity == (2, 2)}
_FUNCTIONS = frozenset(o.name for o in OPERATIONS.values() if not o.symbol)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    position: int


def _tokens(text: str, where: str) -> list[_Token]:
    if len(text) > MAX_TEXT:
        raise FormulaError(f"expression of {len(text)} characters, at most {MAX_TEXT}", where=where)
    tokens, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            problem = "no number, name or operator here"
            if text[position] in _BIT_OPERATORS:
                problem = f"there is no operator {text[position]}: bits(x, offset, length) takes bits out of a word"
            raise FormulaError(problem, where=where, text=text, position=position)
        if match.lastgroup != "space":
            tokens.append(_Token(str(match.lastgroup), match[0], position))
        position = match.end()
    return [*tokens, _Token("end", "", len(text))]


class _Parser:
    """One expression; emits typed steps while it reads, so that a fault is known by its character."""

    def __init__(self, name: str, text: str, types: Mapping[str, Type], where: str) -> None:
        self.name, self.text, self.where = name, text, where
        self.tokens, self.index, self.depth = _tokens(text, where), 0, 0
        self.types = dict(types)
        self.steps: list[Step] = []

    @property
    def token(self) -> _Token:
        return self.tokens[self.index]

    def fail(self, problem: str, position: int) -> NoReturn:
        raise FormulaError(problem, where=self.where, text=self.text, position=position)

    def accept(self, *texts: str) -> _Token | None:
        token = self.token
        if token.kind in ("symbol", "name") and token.text in texts:
            self.index += 1
            return token
        return None

    def expect(self, text: str) -> None:
        if not self.accept(text):
            found = f"'{self.token.text}'" if self.token.text else "the end"
            self.fail(f"expected '{text}', found {found}", self.token.position)

    def emit(self, operation: str, arguments: list[str], position: int) -> str:
        if all(literal_value(a) is not None for a in arguments):
            self.fail("computes on numbers alone: write the result", position)
        kinds = []
        for argument in arguments:
            value = literal_value(argument)
            kinds.append(self.types[argument] if value is None else literal_type(value))
        try:
            kind = OPERATIONS[operation].result(tuple(kinds))
        except OperationError as error:
            self.fail(str(error), position)
        if len(self.steps) >= MAX_STEPS:
            self.fail(f"more than {MAX_STEPS} steps", position)
        name = f"{self.name}.{len(self.steps) + 1}"
        self.types[name] = kind
        self.steps.append(Step(name, operation, tuple(arguments)))
        return name

    def nested(self, rule: Callable[[], str]) -> str:
        self.depth += 1
        if self.depth > MAX_NESTING:
            self.fail(f"nested deeper than {MAX_NESTING}", self.token.position)
        result = rule()
        self.depth -= 1
        return result

    def expression(self) -> str:
        left = self.conjunction()
        while token := self.accept("or"):
            left = self.emit("or", [left, self.conjunction()], token.position)
        return left

    def conjunction(self) -> str:
        left = self.negation()
        while token := self.accept("and"):
            left = self.emit("and", [left, self.negation()], token.position)
        return left

    def negation(self) -> str:
        if token := self.accept("not"):
            return self.emit("not", [self.nested(self.negation)], token.position)
        return self.comparison()

    def comparison(self) -> str:
        left = self.sum()
        if token := self.accept(*_COMPARISONS):
            left = self.emit(_OPERATION_OF[token.text], [left, self.sum()], token.position)
            if self.token.text in _COMPARISONS:
                self.fail("comparisons cannot be chained: join two with 'and'", self.token.position)
        return left

    def sum(self) -> str:
        return self.chain(self.product, _SUMS)

    def product(self) -> str:
        return self.chain(self.unary, _PRODUCTS)

    def chain(self, operand: Callable[[], str], symbols: tuple[str, ...]) -> str:
        left = operand()
        while token := self.accept(*symbols):
            left = self.emit(_OPERATION_OF[token.text], [left, operand()], token.position)
        return left

    def unary(self) -> str:
        minus = self.accept("-")
        if minus is None:
            return self.primary()
        if self.token.kind == "number":
            return self.number(-1)
        return self.emit("negate", [self.nested(self.unary)], minus.position)

    def primary(self) -> str:
        token = self.token
        if token.kind == "number":
            return self.number(1)
        if self.accept("("):
            inner = self.nested(self.expression)
            self.expect(")")
            return inner
        if token.kind != "name" or token.text in ("and", "or", "not"):
            found = f"'{token.text}'" if token.text else "the end"
            self.fail(f"expected a value, found {found}", token.position)
        self.index += 1
        if self.token.text == "(":
            return self.call(token)
        if token.text not in self.types:
            self.fail(f"'{token.text}' is not defined before this step", token.position)
        return self.choose(token) if self.token.text == "[" else token.text

    def number(self, sign: int) -> str:
        token = self.token
        self.index += 1
        try:
            literal = literal_text(token.text, sign)
        except OperationError as error:
            self.fail(str(error), token.position)
        return literal

    def call(self, token: _Token) -> str:
        if token.text not in _FUNCTIONS:
            known = ", ".join(sorted(_FUNCTIONS))
            self.fail(f"no operation '{token.text}'; there are {known}", token.position)
        return self.emit(token.text, self.arguments("(", ")"), token.position)

    def choose(self, token: _Token) -> str:
        """``constant[index, index]``, one for each named axis; one named like another axis is a mix-up."""
        axes = self.types[token.text].axes
        bracket = self.token
        indices = self.arguments("[", "]")
        for axis, index in zip(axes, indices, strict=False):
            if index in axes and index != axis:
                self.fail(f"axes must come in the declared order [{', '.join(axes)}]", bracket.position)
        return self.emit("select", [token.text, *indices], token.position)

    def arguments(self, opening: str, closing: str) -> list[str]:
        self.expect(opening)
        found = [self.nested(self.expression)]
        while self.accept(","):
            found.append(self.nested(self.expression))
        self.expect(closing)
        return found


def literal_text(text: str, sign: int = 1) -> str:
    """The canonical spelling of a number; raises OperationError beyond the limits."""
    value: int | float
    if text.startswith("0x"):
        value = sign * int(text, 16)
    elif text.lstrip("-").isdigit():
        value = sign * int(text)
    else:
        value = sign * float(text)
    literal_type(value)
    return repr(value)


def parse(name: str, text: str, types: Mapping[str, Type], where: str) -> tuple[str, list[Step]]:
    """Turn one expression into steps.

    Parameters
    ----------
    name : str
        Name of the resulting step.
    text : str
        The expression.
    types : mapping of str to Type
        Everything defined before it.
    where : str
        Place in the formula, for errors.

    Returns
    -------
    result : str
        `name`, or the existing name or number that the expression merely repeats.
    steps : list of Step
        In order of evaluation; the last one is called `name`.

    Raises
    ------
    FormulaError
        With the character at fault.
    """
    parser = _Parser(name, text, types, where)
    result = parser.expression()
    if parser.token.kind != "end":
        parser.fail(f"unexpected '{parser.token.text}'", parser.token.position)
    if not parser.steps:
        return result, []
    last = parser.steps[-1]
    return name, [*parser.steps[:-1], Step(name, last.operation, last.arguments)]


_LOOSENESS = {"or": 1, "and": 2, "not": 3} | dict.fromkeys(_COMPARISONS, 4) | dict.fromkeys(_SUMS, 5)
_LOOSENESS |= dict.fromkeys(_PRODUCTS, 6)
_UNARY, _PRIMARY = 7, 8


def render(step: Step, inline: Mapping[str, Step], words: frozenset[str] = frozenset()) -> str:
    """Write a step as infix text with no more parentheses than needed.

    Parameters
    ----------
    step : Step
        The step to write.
    inline : mapping of str to Step
        Anonymous steps, to be written in place.
    words : frozenset of str
        Names whose values are bit patterns: numbers compared with them are written in hexadecimal.
    """
    return _render(step, inline, words)[0]


def _render(step: Step, inline: Mapping[str, Step], words: frozenset[str]) -> tuple[str, int]:
    """Text of a step and how tightly it binds."""
    symbol = OPERATIONS[step.operation].symbol
    parts = [_render(inline[a], inline, words) if a in inline else (a, _binding(a)) for a in step.arguments]
    if symbol in _COMPARISONS and not words.isdisjoint(step.arguments):
        parts = [(_hexadecimal(text), binds) for text, binds in parts]
    texts = [text for text, _ in parts]
    if symbol == "[]":
        return f"{texts[0]}[{', '.join(texts[1:])}]", _PRIMARY
    if not symbol:
        return f"{step.operation}({', '.join(texts)})", _PRIMARY
    if len(parts) == 1:
        level = _LOOSENESS["not"] if symbol == "not" else _UNARY
        return ("not " if symbol == "not" else "-") + _parenthesised(*parts[0], level), level
    level = _LOOSENESS[symbol]
    left = level + 1 if symbol in _COMPARISONS else level
    return f"{_parenthesised(*parts[0], left)} {symbol} {_parenthesised(*parts[1], level + 1)}", level


def _binding(argument: str) -> int:
    return _UNARY if argument.startswith("-") else _PRIMARY


def _hexadecimal(text: str) -> str:
    return f"0x{int(text):04X}" if text.isdigit() else text


def _parenthesised(text: str, binds: int, least: int) -> str:
    return text if binds >= least else f"({text})"
