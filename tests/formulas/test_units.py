from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaincal.formulas.units import MAX_POWER, ONE, SYMBOLS, Unit

PRIMES = dict(zip(SYMBOLS, (2, 3, 5, 7, 11, 13, 17, 19, 23), strict=True))


def value_of(text: str) -> Fraction:
    """The oracle: every symbol is a prime, so equal values are equal units."""
    value = Fraction(1)
    over = True
    for factor in text.replace("/", " / ").replace("*", " * ").split():
        if factor in "*/":
            over = factor == "*"
            continue
        symbol, _, power = factor.partition("^")
        number = Fraction(PRIMES.get(symbol, 1)) ** int(power or 1)
        value = value * number if over else value / number
    return value


def value(unit: Unit) -> Fraction:
    return value_of(str(unit))


factors = st.builds(
    lambda symbol, power: symbol if power is None else f"{symbol}^{power}",
    st.sampled_from((*SYMBOLS, "1")),
    st.one_of(st.none(), st.integers(-9, 9)),
)
texts = st.lists(factors, min_size=1, max_size=6).flatmap(
    lambda found: st.lists(st.sampled_from("*/"), min_size=len(found) - 1, max_size=len(found) - 1).map(
        lambda signs: "".join(itertools.chain(*zip(found, [*signs, ""], strict=True)))
    )
)
units = texts.map(Unit.parse)


@given(texts)
def test_text_means_the_product_it_spells(text: str) -> None:
    assert value(Unit.parse(text)) == value_of(text)


@given(units)
def test_writing_and_reading_a_unit_changes_nothing(unit: Unit) -> None:
    assert Unit.parse(str(unit)) == unit


@given(texts, texts)
def test_units_are_equal_where_their_products_are(a: str, b: str) -> None:
    assert (Unit.parse(a) == Unit.parse(b)) == (value_of(a) == value_of(b))


@given(units, units)
def test_product_and_quotient(a: Unit, b: Unit) -> None:
    assert value(a * b) == value(a) * value(b)
    assert value(a / b) == value(a) / value(b)
    assert a / b * b == a


@given(units, st.integers(-1, 1))
def test_power(unit: Unit, exponent: int) -> None:
    assert value(unit**exponent) == value(unit) ** exponent


def test_small_powers_by_brute_force() -> None:
    for p, n in itertools.product(range(-8, 9), repeat=2):
        assert str(Unit.parse(f"keV^{p}") ** n) == str(Unit.parse(f"keV^{p * n}" if abs(p * n) <= MAX_POWER else "1"))


@given(units.filter(lambda unit: all(abs(power) <= MAX_POWER // 2 for _, power in unit.powers)))
def test_root_undoes_a_square(unit: Unit) -> None:
    assert (unit**2).root() == unit


@pytest.mark.parametrize("text", ["keV", "ADU^2/keV", "s^-1", "ADU^3"])
def test_odd_powers_have_no_root(text: str) -> None:
    with pytest.raises(ValueError, match="square root"):
        Unit.parse(text).root()


@pytest.mark.parametrize("text", ["1", "1*1", "1/1", "keV/keV", "keV^0", "ADU*s/s/ADU"])
def test_the_empty_product_is_one(text: str) -> None:
    assert Unit.parse(text) == ONE
    assert str(ONE) == "1"


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "kev", "KEV", "ADU keV", "ADU**2", "ADU^", "ADU^^2", "ADU^2.0", "2", "ADU*", "/keV", "*"),
        *("ADU//keV", "ADU\u00b7keV", "(ADU)", "ADU^+2", "ADU ", "\nADU"),
        *("ADU\n", "ADU^\u0662", "\u00b5m", "mm", "\0", "ADU^100"),
    ],
)
def test_what_is_no_product_of_symbols_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="unit"):
        Unit.parse(text)


def test_powers_end_at_64() -> None:
    assert str(Unit.parse("ADU^64")) == "ADU^64"
    assert str(Unit.parse("ADU^-64")) == "1/ADU^64"
    for text in ("ADU^65", "ADU^-65", "ADU^64*ADU"):
        with pytest.raises(ValueError, match="64"):
            Unit.parse(text)
    with pytest.raises(ValueError, match="64"):
        Unit.parse("ADU^64") * Unit.parse("ADU")
    with pytest.raises(ValueError, match="64"):
        Unit.parse("ADU^9") ** 8


def test_every_unit_within_the_limits_can_be_written_and_read() -> None:
    for sign in ("", "-"):
        unit = ONE
        for symbol in SYMBOLS:
            unit = unit * Unit.parse(f"{symbol}^{sign}64")
        assert Unit.parse(str(unit)) == unit


def test_overlong_text_is_refused() -> None:
    with pytest.raises(ValueError, match="longer"):
        Unit.parse("*".join(["1"] * 33))
