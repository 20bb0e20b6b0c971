"""The closed list of operations: name, arity, notation and the rule that types them.

Everything else reads this one table: the parser, the checks, the reference evaluator, the
compiler and the documentation.  What each operation computes is fixed in ``docs/formula-spec.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from gaincal.formulas.units import ONE, Unit

MAX_INTEGER = 2**53
MAX_WORD_BITS = 32
NO_STAGE = -1


@dataclass(frozen=True, slots=True)
class Type:
    """What is known of a value before any pixel is read.

    Parameters
    ----------
    kind : {'integer', 'real', 'logical', 'table'}
    dims : frozenset of str
        Dims along which the value varies.
    unit : Unit or None
        None for a literal, which takes the unit of its context.
    low, high : int
        Bounds of an integer; an evaluator may use any width that holds them.
    whole : bool
        The real is known to be NaN, infinite or a whole number.
    literal : int or float or None
        The number itself where the value is a literal.
    axes : tuple of str
        Named axes of a constant that must be chosen along before it is a value.
    entries : tuple of int
        The entries of a table.
    """

    kind: str
    dims: frozenset[str] = frozenset()
    unit: Unit | None = ONE
    low: int = 0
    high: int = 0
    whole: bool = False
    literal: int | float | None = None
    axes: tuple[str, ...] = ()
    entries: tuple[int, ...] = ()


class OperationError(ValueError):
    """Arguments that an operation does not take."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One entry of the closed list.

    Parameters
    ----------
    name : str
        What stands in the stored table.
    arity : tuple of int
        Smallest and largest number of arguments.
    rule : callable
        Types of the arguments -> type of the result; raises OperationError.
    symbol : str
        Infix or prefix notation, empty where the text uses a function call.
    meaning : str
        One line for people.
    """

    name: str
    arity: tuple[int, int]
    rule: Callable[[tuple[Type, ...]], Type]
    symbol: str
    meaning: str

    def result(self, arguments: tuple[Type, ...]) -> Type:
        """Type the operation on its arguments, or raise OperationError."""
        least, most = self.arity
        if not least <= len(arguments) <= most:
            wanted = str(least) if least == most else f"{least} to {most}"
            raise OperationError(f"{self.name} takes {wanted} argument(s), not {len(arguments)}")
        try:
            result = self.rule(arguments)
        except OperationError:
            raise
        except ValueError as error:  # the unit algebra's own limits
            raise OperationError(str(error)) from None
        if result.kind != "integer":
            return replace(result, low=0, high=0)
        if max(abs(result.low), abs(result.high)) > MAX_INTEGER:
            raise OperationError(f"{self.name} can exceed 2^53: an integer must stay within it")
        return result


def _dims(arguments: tuple[Type, ...]) -> frozenset[str]:
    return frozenset().union(*(a.dims for a in arguments))


def _need(arguments: tuple[Type, ...], kinds: tuple[str, ...], name: str) -> None:
    for a in arguments:
        if a.axes:
            chosen = ", ".join(a.axes)
            raise OperationError(f"{name}: choose along the constant's axes first: name[{chosen}]")
        if a.kind not in kinds:
            raise OperationError(f"{name} needs {' or '.join(kinds)}, not {a.kind}")


def _common_unit(arguments: tuple[Type, ...], name: str) -> Unit | None:
    units = {a.unit for a in arguments if a.unit is not None}
    if len(units) > 1:
        shown = " and ".join(sorted(str(u) for u in units))
        raise OperationError(f"{name} of different units: {shown}")
    return units.pop() if units else None


def _number(arguments: tuple[Type, ...], name: str) -> Type:
    """What all arithmetic shares: numbers only, dims merged, integer only if all are."""
    _need(arguments, ("integer", "real"), name)
    integer = all(a.kind == "integer" for a in arguments)
    return Type("integer" if integer else "real", _dims(arguments))


def _whole(arguments: tuple[Type, ...]) -> bool:
    return all(a.kind == "integer" or a.whole for a in arguments)


def _add(a: tuple[Type, ...]) -> Type:
    unit = _common_unit(a, "+")
    return replace(_number(a, "+"), unit=unit, low=a[0].low + a[1].low, high=a[0].high + a[1].high)


def _subtract(a: tuple[Type, ...]) -> Type:
    unit = _common_unit(a, "-")
    return replace(_number(a, "-"), unit=unit, low=a[0].low - a[1].high, high=a[0].high - a[1].low)


def _multiply(a: tuple[Type, ...]) -> Type:
    corners = [x * y for x in (a[0].low, a[0].high) for y in (a[1].low, a[1].high)]
    unit = (a[0].unit or ONE) * (a[1].unit or ONE)
    return replace(_number(a, "*"), unit=unit, low=min(corners), high=max(corners))


def _divide(a: tuple[Type, ...]) -> Type:
    unit = (a[0].unit or ONE) / (a[1].unit or ONE)
    return replace(_number(a, "/"), kind="real", unit=unit)


def _negate(a: tuple[Type, ...]) -> Type:
    return replace(_number(a, "-"), unit=a[0].unit, low=-a[0].high, high=-a[0].low, whole=_whole(a))


def _absolute(a: tuple[Type, ...]) -> Type:
    ends = (abs(a[0].low), abs(a[0].high))
    low = 0 if a[0].low <= 0 <= a[0].high else min(ends)
    return replace(_number(a, "abs"), unit=a[0].unit, low=low, high=max(ends), whole=_whole(a))


def _minimum(a: tuple[Type, ...]) -> Type:
    low, high = min(x.low for x in a), min(x.high for x in a)
    return replace(_number(a, "min"), unit=_common_unit(a, "min"), low=low, high=high, whole=_whole(a))


def _maximum(a: tuple[Type, ...]) -> Type:
    low, high = max(x.low for x in a), max(x.high for x in a)
    return replace(_number(a, "max"), unit=_common_unit(a, "max"), low=low, high=high, whole=_whole(a))


def _clip(a: tuple[Type, ...]) -> Type:
    _number(a, "clip")
    _common_unit(a, "clip")
    return _minimum((_maximum(a[:2]), a[2]))


def _where(a: tuple[Type, ...]) -> Type:
    _need(a[:1], ("logical",), "where, first argument,")
    values = _number(a[1:], "where")
    low, high = min(x.low for x in a[1:]), max(x.high for x in a[1:])
    unit = _common_unit(a[1:], "where")
    return replace(values, dims=_dims(a), unit=unit, low=low, high=high, whole=_whole(a[1:]))


def _square_root(a: tuple[Type, ...]) -> Type:
    return replace(_number(a, "sqrt"), kind="real", unit=(a[0].unit or ONE).root())


def _transcendental(name: str) -> Callable[[tuple[Type, ...]], Type]:
    def rule(a: tuple[Type, ...]) -> Type:
        if a[0].unit not in (None, ONE):
            raise OperationError(f"{name} of a quantity in {a[0].unit}: its argument has no unit")
        return replace(_number(a, name), kind="real")

    return rule


def _literal(a: Type, low: int, high: int, what: str) -> int:
    if not isinstance(a.literal, int) or not low <= a.literal <= high:
        raise OperationError(f"{what} must be an integer literal from {low} to {high}")
    return a.literal


def _power(a: tuple[Type, ...]) -> Type:
    exponent = _literal(a[1], -8, 8, "the exponent of power")
    return replace(_number(a[:1], "power"), kind="real", unit=(a[0].unit or ONE) ** exponent)


def _rounding(name: str) -> Callable[[tuple[Type, ...]], Type]:
    def rule(a: tuple[Type, ...]) -> Type:
        _need(a, ("real",), name)
        return replace(a[0], literal=None, whole=True)

    return rule


def _bits(a: tuple[Type, ...]) -> Type:
    _need(a[:1], ("integer",), "bits")
    if a[0].low < 0:
        raise OperationError("bits of a value that can be negative: only a word has bits")
    offset = _literal(a[1], 0, MAX_WORD_BITS - 1, "the offset of bits")
    length = _literal(a[2], 1, MAX_WORD_BITS - offset, "the length of bits")
    low, high = a[0].low >> offset, a[0].high >> offset
    if high >= 2**length:
        low, high = 0, 2**length - 1
    return replace(a[0], low=low, high=high, literal=None)


def _join(a: tuple[Type, ...]) -> Type:
    _need((a[0], a[2]), ("integer",), "join")
    length = _literal(a[1], 1, MAX_WORD_BITS - 1, "the length of join's low part")
    if a[0].low < 0 or a[2].low < 0 or a[0].high >= 2**length:
        raise OperationError(f"join needs words, the low one within {length} bits")
    low, high = (a[0].low + a[2].low * 2**length, a[0].high + a[2].high * 2**length)
    return Type("integer", _dims((a[0], a[2])), a[0].unit, low, high)


def _lookup(a: tuple[Type, ...]) -> Type:
    if a[0].kind != "table":
        raise OperationError("the first argument of lookup is the name of a table")
    _need(a[1:], ("integer",), "lookup")
    table, index = a
    last = len(table.entries) - 1
    if index.low == index.high:
        low = high = table.entries[index.low] if 0 <= index.low <= last else NO_STAGE
    else:
        outside = (NO_STAGE,) if index.low < 0 or index.high > last else ()
        low, high = min((table.low, *outside)), max((table.high, *outside))
    return Type("integer", index.dims, ONE, low, high)


def _select(a: tuple[Type, ...]) -> Type:
    constant, indices = a[0], a[1:]
    if not constant.axes:
        raise OperationError("only a constant with named axes can be indexed")
    if len(indices) != len(constant.axes):
        axes = ", ".join(constant.axes)
        raise OperationError(f"needs an index for each of its axes [{axes}], not {len(indices)}")
    _need(indices, ("integer",), "an index")
    low = min(constant.low, NO_STAGE)
    return replace(constant, dims=_dims(a), low=low, high=max(constant.high, NO_STAGE), axes=())


def _compare(name: str) -> Callable[[tuple[Type, ...]], Type]:
    def rule(a: tuple[Type, ...]) -> Type:
        _common_unit(a, name)
        return Type("logical", _number(a, name).dims)

    return rule


def _logic(name: str) -> Callable[[tuple[Type, ...]], Type]:
    def rule(a: tuple[Type, ...]) -> Type:
        _need(a, ("logical",), name)
        return Type("logical", _dims(a))

    return rule


def _finite(a: tuple[Type, ...]) -> Type:
    _need(a, ("real",), "finite")
    return Type("logical", a[0].dims)


_LIST = (
    Operation("bits", (3, 3), _bits, "", "the LENGTH bits of a word from bit OFFSET up"),
    Operation("join", (3, 3), _join, "", "low + high * 2^LENGTH"),
    Operation("lookup", (2, 2), _lookup, "", "entry of a table; outside it: -1, no stage"),
    Operation("select", (2, 4), _select, "[]", "a constant along its named axes, by label; no such label: NaN or -1"),
    Operation("add", (2, 2), _add, "+", "sum"),
    Operation("subtract", (2, 2), _subtract, "-", "difference"),
    Operation("multiply", (2, 2), _multiply, "*", "product"),
    Operation("divide", (2, 2), _divide, "/", "quotient, always real, IEEE"),
    Operation("negate", (1, 1), _negate, "-", "opposite sign"),
    Operation("abs", (1, 1), _absolute, "", "magnitude"),
    Operation("min", (2, 2), _minimum, "", "the smaller; NaN if either is NaN; the first of equals"),
    Operation("max", (2, 2), _maximum, "", "the larger; NaN if either is NaN; the first of equals"),
    Operation("clip", (3, 3), _clip, "", "min(max(x, low), high)"),
    Operation("sqrt", (1, 1), _square_root, "", "square root, correctly rounded; NaN below 0"),
    Operation("exp", (1, 1), _transcendental("exp"), "", "e^x by the sequence of operations in the specification"),
    Operation("log", (1, 1), _transcendental("log"), "", "natural logarithm by the sequence in the specification"),
    Operation("power", (2, 2), _power, "", "x to a literal integer from -8 to 8, by repeated multiplication"),
    Operation("floor", (1, 1), _rounding("floor"), "", "the largest whole number not above x"),
    Operation("trunc", (1, 1), _rounding("trunc"), "", "the whole part, towards zero"),
    Operation("round_half_even", (1, 1), _rounding("round_half_even"), "", "nearest whole number, ties to even"),
    Operation("round_half_away", (1, 1), _rounding("round_half_away"), "", "nearest whole number, ties away from zero"),
    Operation("less", (2, 2), _compare("<"), "<", "is smaller; false with a NaN"),
    Operation("less_equal", (2, 2), _compare("<="), "<=", "is smaller or equal; false with a NaN"),
    Operation("greater", (2, 2), _compare(">"), ">", "is larger; false with a NaN"),
    Operation("greater_equal", (2, 2), _compare(">="), ">=", "is larger or equal; false with a NaN"),
    Operation("equal", (2, 2), _compare("=="), "==", "is equal; false with a NaN"),
    Operation("not_equal", (2, 2), _compare("!="), "!=", "differs; true with a NaN"),
    Operation("and", (2, 2), _logic("and"), "and", "both"),
    Operation("or", (2, 2), _logic("or"), "or", "either"),
    Operation("not", (1, 1), _logic("not"), "not", "the opposite"),
    Operation("finite", (1, 1), _finite, "", "neither NaN nor infinite"),
    Operation("where", (3, 3), _where, "", "the second argument where the first holds, else the third"),
)
OPERATIONS = {operation.name: operation for operation in _LIST}
