from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaincal.formulas.operations import MAX_INTEGER, OPERATIONS, OperationError, Type
from gaincal.formulas.units import ONE, Unit

KEV, ADU = Unit.parse("keV"), Unit.parse("ADU")


def integer(low: int = 0, high: int = 3, unit: Unit | None = ONE) -> Type:
    return Type("integer", frozenset({"y"}), unit, low, high)


def real(unit: Unit | None = ONE, whole: bool = False) -> Type:
    return Type("real", frozenset({"frame"}), unit, whole=whole)


def literal(value: float) -> Type:
    if isinstance(value, int):
        return Type("integer", unit=None, low=value, high=value, literal=value)
    return Type("real", unit=None, whole=value.is_integer(), literal=value)


def table(*entries: int) -> Type:
    return Type("table", low=min(entries), high=max(entries), entries=entries)


def result(operation: str, *arguments: Type) -> Type:
    return OPERATIONS[operation].result(arguments)


SAMPLES = {
    "integer": integer(),
    "real": real(),
    "logical": Type("logical"),
    "table": table(0, 1, 2),
    "stack": Type("real", unit=ONE, axes=("stage",)),
    "integer literal": literal(2),
    "real literal": literal(2.5),
}
NUMBER = {"integer", "real", "integer literal", "real literal"}
WHOLE_NUMBER = {"integer", "integer literal"}
REAL = {"real", "real literal"}
LOGICAL = {"logical"}
LITERAL = {"integer literal"}
TWO_NUMBERS = ("add", "subtract", "multiply", "divide", "min", "max")
COMPARISONS = ("less", "less_equal", "greater", "greater_equal", "equal", "not_equal")
ROUNDINGS = ("floor", "trunc", "round_half_even", "round_half_away")
KINDS: dict[str, tuple[set[str], ...]] = {
    "bits": (WHOLE_NUMBER, LITERAL, LITERAL),
    "join": (WHOLE_NUMBER, LITERAL, WHOLE_NUMBER),
    "lookup": ({"table"}, WHOLE_NUMBER),
    "select": ({"stack"}, WHOLE_NUMBER),
    "negate": (NUMBER,),
    "abs": (NUMBER,),
    "clip": (NUMBER, NUMBER, NUMBER),
    "sqrt": (NUMBER,),
    "exp": (NUMBER,),
    "log": (NUMBER,),
    "power": (NUMBER, LITERAL),
    "and": (LOGICAL, LOGICAL),
    "or": (LOGICAL, LOGICAL),
    "not": (LOGICAL,),
    "finite": (REAL,),
    "where": (LOGICAL, NUMBER, NUMBER),
    **dict.fromkeys((*TWO_NUMBERS, *COMPARISONS), (NUMBER, NUMBER)),
    **dict.fromkeys(ROUNDINGS, (REAL,)),
}


def valid_arguments(operation: str) -> list[Type]:
    return [SAMPLES[sorted(kinds)[0]] for kinds in KINDS[operation]]


def test_the_list_is_closed() -> None:
    assert set(OPERATIONS) == set(KINDS)
    assert all(name == operation.name and operation.meaning for name, operation in OPERATIONS.items())


@pytest.mark.parametrize("operation", KINDS)
def test_another_number_of_arguments_is_refused(operation: str) -> None:
    right = valid_arguments(operation)
    result(operation, *right)
    for count in {*range(7)} - {len(right)}:
        with pytest.raises(OperationError):
            result(operation, *(right + [integer()] * 6)[:count])


@pytest.mark.parametrize("operation", KINDS)
def test_every_argument_takes_its_kinds_and_no_other(operation: str) -> None:
    right = valid_arguments(operation)
    for position, (kind, sample) in itertools.product(range(len(right)), SAMPLES.items()):
        arguments = [*right[:position], sample, *right[position + 1 :]]
        if kind in KINDS[operation][position]:
            result(operation, *arguments)
        else:
            with pytest.raises(OperationError):
                result(operation, *arguments)


@pytest.mark.parametrize("operation", sorted({*KINDS} - {"select", "lookup"}))
def test_the_result_varies_along_the_dims_of_all_arguments(operation: str) -> None:
    arguments = valid_arguments(operation)
    marked = [a if a.literal is not None else replace(a, dims=frozenset({f"d{k}"})) for k, a in enumerate(arguments)]
    assert result(operation, *marked).dims == frozenset().union(*(a.dims for a in marked))


@pytest.mark.parametrize("operation", ["add", "subtract", "multiply", "min", "max"])
@pytest.mark.parametrize("kinds", list(itertools.product((integer(), real()), repeat=2)))
def test_integers_stay_integers_among_themselves(operation: str, kinds: tuple[Type, Type]) -> None:
    both = all(k.kind == "integer" for k in kinds)
    assert result(operation, *kinds).kind == ("integer" if both else "real")


@pytest.mark.parametrize("operation", ["divide", "sqrt", "exp", "log", "power"])
def test_always_real(operation: str) -> None:
    arguments = {"divide": (integer(), integer()), "power": (integer(), literal(2))}.get(operation, (integer(),))
    found = result(operation, *arguments)
    assert (found.kind, found.whole, found.low, found.high) == ("real", False, 0, 0)


EQUAL_UNITS: dict[str, Callable[[Type, Type], tuple[Type, ...]]] = {
    **dict.fromkeys(("add", "subtract", "min", "max", *COMPARISONS), lambda a, b: (a, b)),
    "where": lambda a, b: (Type("logical"), a, b),
    "clip": lambda a, b: (a, b, a),
}


@pytest.mark.parametrize("operation", EQUAL_UNITS)
def test_units_must_be_equal_and_a_literal_takes_that_of_its_neighbour(operation: str) -> None:
    arguments = EQUAL_UNITS[operation]
    for number in (real(KEV), integer(unit=KEV)):
        found = result(operation, *arguments(number, real(KEV)))
        assert found.unit == (ONE if found.kind == "logical" else KEV)
        result(operation, *arguments(number, literal(1)))
        result(operation, *arguments(literal(1.5), number))
        for other in (real(ADU), integer(unit=ADU), real(ONE), real(KEV * ADU), real(ONE / KEV)):
            with pytest.raises(OperationError, match="unit"):
                result(operation, *arguments(number, other))


def test_the_third_argument_of_clip_needs_the_same_unit() -> None:
    with pytest.raises(OperationError, match="unit"):
        result("clip", real(KEV), real(KEV), real(ADU))


def test_computed_units() -> None:
    assert result("multiply", real(KEV), integer(unit=ADU)).unit == KEV * ADU
    assert result("multiply", real(KEV), literal(2)).unit == KEV
    assert result("divide", real(KEV), real(ADU)).unit == KEV / ADU
    assert result("divide", literal(1), real(ADU)).unit == ONE / ADU
    assert result("sqrt", real(KEV**4)).unit == KEV**2
    for n in range(-8, 9):
        assert result("power", real(KEV), literal(n)).unit == KEV**n


def test_kept_units() -> None:
    assert result("bits", integer(unit=ADU), literal(0), literal(1)).unit == ADU
    assert result("join", integer(unit=ADU), literal(2), integer(unit=KEV)).unit == ADU
    assert result("lookup", table(1, 2), integer(unit=KEV)).unit == ONE
    assert result("select", Type("real", unit=KEV, axes=("stage",)), integer(unit=ADU)).unit == KEV
    for operation in ("negate", "abs", *ROUNDINGS):
        assert result(operation, real(KEV)).unit == KEV


@pytest.mark.parametrize(("operation", "unit"), [("exp", KEV), ("log", ADU), ("sqrt", KEV), ("sqrt", KEV**3)])
def test_functions_refuse_units_that_they_cannot_carry(operation: str, unit: Unit) -> None:
    with pytest.raises(OperationError):
        result(operation, real(unit))


@pytest.mark.parametrize(
    ("operation", "other"), [("multiply", real(KEV)), ("power", literal(2)), ("divide", real(ONE / KEV))]
)
def test_unit_powers_end_at_64(operation: str, other: Type) -> None:
    start = real(KEV**32) if operation == "power" else real(KEV**63)
    assert result(operation, start, other).unit == KEV**64
    with pytest.raises(OperationError, match="64"):
        result(operation, replace(start, unit=(start.unit or ONE) * KEV), other)


intervals = st.tuples(st.integers(-12, 12), st.integers(0, 5)).map(lambda pair: (pair[0], pair[0] + pair[1]))
Interval = tuple[int, int]


def values(*bounds: Interval) -> itertools.product[tuple[int, ...]]:
    return itertools.product(*(range(low, high + 1) for low, high in bounds))


EXACT: dict[str, Callable[..., int]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "negate": operator.neg,
    "abs": abs,
    "min": min,
    "max": max,
    "clip": lambda x, low, high: min(max(x, low), high),
}


@pytest.mark.parametrize("operation", EXACT)
@given(st.data())
def test_bounds_are_those_of_all_values(operation: str, data: st.DataObject) -> None:
    bounds = [data.draw(intervals) for _ in KINDS[operation]]
    every = [EXACT[operation](*v) for v in values(*bounds)]
    found = result(operation, *(integer(*b) for b in bounds))
    assert (found.low, found.high) == (min(every), max(every))


@given(intervals, intervals)
def test_bounds_of_where_hold_both_branches(a: Interval, b: Interval) -> None:
    found = result("where", Type("logical"), integer(*a), integer(*b))
    assert (found.low, found.high) == (min(a[0], b[0]), max(a[1], b[1]))


@given(st.integers(0, 300), st.integers(0, 40), st.integers(0, 9), st.integers(1, 9))
def test_bounds_of_bits_hold_every_value(low: int, width: int, offset: int, length: int) -> None:
    every = [(x >> offset) % 2**length for x in range(low, low + width + 1)]
    found = result("bits", integer(low, low + width), literal(offset), literal(length))
    assert found.low <= min(every) <= max(every) <= found.high < 2**length


@given(st.integers(0, 7), st.integers(0, 7), intervals, st.integers(3, 8))
def test_bounds_of_join_are_those_of_all_values(a: int, b: int, high: Interval, length: int) -> None:
    low = (min(a, b), max(a, b))
    upper = (high[0] + 12, high[1] + 12)
    every = [x + y * 2**length for x, y in values(low, upper)]
    found = result("join", integer(*low), literal(length), integer(*upper))
    assert (found.low, found.high) == (min(every), max(every))


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=6), intervals)
def test_bounds_of_lookup_are_one_entry_or_those_of_the_whole_table(entries: list[int], index: Interval) -> None:
    reached = [entries[i] if 0 <= i < len(entries) else -1 for (i,) in values(index)]
    outside = [-1] if index[0] < 0 or index[1] >= len(entries) else []
    every = reached if index[0] == index[1] else [*entries, *outside]
    found = result("lookup", table(*entries), integer(*index))
    assert (found.low, found.high) == (min(every), max(every))
    assert found.low <= min(reached) <= max(reached) <= found.high


def test_an_integer_constant_may_lack_a_label() -> None:
    found = result("select", Type("integer", low=2, high=255, axes=("stage",)), integer())
    assert (found.kind, found.low, found.high, found.axes) == ("integer", -1, 255, ())


@pytest.mark.parametrize(
    ("operation", "at_limit"),
    [
        ("add", (integer(0, MAX_INTEGER - 1), integer(0, 1))),
        ("add", (integer(-MAX_INTEGER + 1, 0), integer(-1, 0))),
        ("subtract", (integer(0, MAX_INTEGER - 1), integer(-1, 0))),
        ("subtract", (integer(-MAX_INTEGER + 1, 0), integer(0, 1))),
        ("multiply", (integer(0, 2**26), integer(0, 2**27))),
        ("multiply", (integer(0, 2**26), integer(-(2**27), 0))),
        ("join", (integer(0, 0), literal(31), integer(0, 2**22))),
    ],
)
def test_integers_end_at_2_to_the_53(operation: str, at_limit: tuple[Type, ...]) -> None:
    found = result(operation, *at_limit)
    assert MAX_INTEGER in (-found.low, found.high)
    last = at_limit[-1]
    beyond = replace(last, low=last.low - 1 if last.low < 0 else last.low, high=last.high + 1)
    with pytest.raises(OperationError, match=r"2\^53"):
        result(operation, *at_limit[:-1], beyond)


@pytest.mark.parametrize("operation", ["negate", "abs"])
def test_signs_keep_the_limit(operation: str) -> None:
    assert result(operation, integer(-MAX_INTEGER, 0)).high == MAX_INTEGER


LITERAL_LIMITS: list[tuple[str, Callable[[Type], tuple[Type, ...]], int, int]] = [
    ("power", lambda n: (real(), n), -8, 8),
    ("bits", lambda n: (integer(), n, literal(1)), 0, 31),
    ("bits", lambda n: (integer(), literal(0), n), 1, 32),
    ("bits", lambda n: (integer(), literal(20), n), 1, 12),
    ("bits", lambda n: (integer(), literal(31), n), 1, 1),
    ("join", lambda n: (integer(0, 1), n, integer()), 1, 31),
]


@pytest.mark.parametrize(("operation", "arguments", "least", "most"), LITERAL_LIMITS)
def test_literal_arguments_have_ends(
    operation: str, arguments: Callable[[Type], tuple[Type, ...]], least: int, most: int
) -> None:
    result(operation, *arguments(literal(least)))
    result(operation, *arguments(literal(most)))
    for bad in (literal(least - 1), literal(most + 1), literal(1.0), integer(1, 1)):
        with pytest.raises(OperationError, match="integer literal"):
            result(operation, *arguments(bad))


def test_only_what_cannot_be_negative_has_bits() -> None:
    with pytest.raises(OperationError, match="negative"):
        result("bits", integer(-1, 5), literal(0), literal(1))
    assert result("bits", integer(0, MAX_INTEGER), literal(0), literal(32)).high == 2**32 - 1


@pytest.mark.parametrize(("low", "high"), [((-1, 3), (0, 3)), ((0, 3), (-1, 3)), ((0, 4), (0, 3))])
def test_join_needs_words_that_fit(low: Interval, high: Interval) -> None:
    result("join", integer(0, 3), literal(2), integer(0, 3))
    with pytest.raises(OperationError, match="join needs words"):
        result("join", integer(*low), literal(2), integer(*high))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_an_index_for_each_named_axis(axes: int) -> None:
    stack = Type("real", axes=("stage", "cell", "row")[:axes])
    result("select", stack, *[integer()] * axes)
    for count in {1, 2, 3} - {axes}:
        with pytest.raises(OperationError, match="index for each"):
            result("select", stack, *[integer()] * count)


WHOLES = {
    "integer": integer(),
    "whole": real(whole=True),
    "literal": literal(2.0),
    "fraction": real(),
    "half": literal(0.5),
}


@pytest.mark.parametrize("operation", ["negate", "abs", "min", "max", "clip", "where"])
def test_whole_of_whole_is_whole_and_a_fraction_spoils_it(operation: str) -> None:
    count = {"negate": 1, "abs": 1, "clip": 3}.get(operation, 2)
    first = (Type("logical"),) if operation == "where" else ()
    for names in itertools.product(WHOLES, repeat=count):
        found = result(operation, *first, *(WHOLES[n] for n in names))
        if found.kind == "real":
            assert found.whole == (not {"fraction", "half"} & set(names))


@pytest.mark.parametrize("operation", ["add", "subtract", "multiply", "divide"])
def test_arithmetic_of_reals_is_not_known_to_be_whole(operation: str) -> None:
    assert not result(operation, real(whole=True), real(whole=True)).whole


@pytest.mark.parametrize("operation", ROUNDINGS)
def test_roundings_are_whole(operation: str) -> None:
    assert result(operation, real()).whole
