"""The oracle against oracles of its own: decimals, whole numbers, and the words of the specification."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from helpers import SPECIALS, Array, bits, declare, expression, oracle, program_of

from gaincal.formulas.program import program_for_step
from gaincal.kernels import reference

NAN, INF = float("nan"), float("inf")


def ulps(result: Array, exact: list[Decimal], dtype: str) -> float:
    """Largest error in units of the last place of the exact value."""
    worst = 0.0
    for got, want in zip(result, exact, strict=True):
        nearest = np.dtype(dtype).type(float(want))
        unit = Decimal(float(np.spacing(abs(nearest))))
        worst = max(worst, float(abs(Decimal(float(got)) - want) / unit))
    return worst


def decimal(function: Callable[[Decimal], Decimal], x: Array) -> list[Decimal]:
    with localcontext() as context:
        context.prec, context.Emin, context.Emax = 60, -99999, 99999
        return [function(Decimal(float(v))) for v in x]


def exponents(dtype: str) -> Array:
    least, most = (-103.0, 88.7) if dtype == "float32" else (-744.0, 709.7)
    rng = np.random.default_rng(2)
    parts = [rng.uniform(least, most, 600), rng.normal(0, 1, 300), rng.normal(0, 1e-9, 100)]
    return np.concatenate(parts).astype(dtype)


def positives(dtype: str) -> Array:
    rng = np.random.default_rng(3)
    least, most = (-44.0, 38.0) if dtype == "float32" else (-322.0, 308.0)
    wide = 10.0 ** rng.uniform(least, most, 600)
    return np.concatenate([wide, rng.normal(1, 1e-4, 300), rng.uniform(0.5, 2, 100)]).astype(dtype)


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1.0), ("float64", 2.0)])
def test_exp_is_accurate(dtype: str, most: float) -> None:
    x = exponents(dtype)
    assert ulps(expression("exp(x)", x, dtype), decimal(Decimal.exp, x), dtype) <= most


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1.0), ("float64", 2.0)])
def test_log_is_accurate(dtype: str, most: float) -> None:
    x = positives(dtype)
    assert ulps(expression("log(x)", x, dtype), decimal(Decimal.ln, x), dtype) <= most


def test_log_of_subnormals_is_that_of_numpy() -> None:
    x = np.array([5e-324, 1e-310, 2.2250738585072014e-308, 1.5e-323])
    np.testing.assert_allclose(expression("log(x)", x), np.log(x), rtol=4e-16)


@pytest.mark.parametrize(
    ("text", "x", "wanted"),
    [
        ("exp(x)", 0.0, 1.0),
        ("exp(x)", -746.0, 0.0),
        ("exp(x)", -INF, 0.0),
        ("exp(x)", -745.1, 5e-324),
        ("log(x)", 1.0, 0.0),
        ("1 / exp(x)", INF, 0.0),
        ("1 / exp(x)", 710.0, 0.0),
        ("1 / log(x)", 0.0, -0.0),
        ("1 / log(x)", -0.0, -0.0),
        ("1 / log(x)", INF, 0.0),
        ("where(finite(exp(x)), 1, 0)", 709.7, 1.0),
        ("where(finite(exp(x)), 1, 0)", 709.8, 0.0),
        ("where(log(x) == log(x), 1, 0)", -1e-300, 0.0),
        ("where(exp(x) != exp(x), 1, 0)", NAN, 1.0),
    ],
)
def test_exp_and_log_at_their_ends(text: str, x: float, wanted: float) -> None:
    result = expression(text, np.array([x]))
    np.testing.assert_array_equal(bits(result), bits(np.array([wanted])))


def halves() -> Array:
    edges = [0.5, 1.5, 2.5, 0.49999999999999994, 4503599627370495.5, 4503599627370496.5, 9007199254740993.0, 1e300]
    values = np.concatenate([np.arange(-8, 8, 0.25), edges, np.negative(edges), [0.0, -0.0]])
    return values.astype(np.float64)


@pytest.mark.parametrize(
    ("operation", "whole"),
    [
        ("floor", math.floor),
        ("trunc", math.trunc),
        ("round_half_even", round),
        ("round_half_away", lambda v: int(math.copysign(math.floor(abs(Fraction(v)) + Fraction(1, 2)), v))),
    ],
)
def test_rounding_is_that_of_whole_numbers(operation: str, whole: Callable[[float], int]) -> None:
    x = halves()
    wanted = np.array([float(whole(float(v))) for v in x])
    np.testing.assert_array_equal(expression(f"{operation}(x)", x), wanted)


@pytest.mark.parametrize("operation", ["floor", "trunc", "round_half_even", "round_half_away"])
def test_rounding_keeps_the_sign_of_zero(operation: str) -> None:
    result = expression(f"{operation}(x)", np.array([-0.0, 0.0]))
    assert np.signbit(result).tolist() == [True, False]


def test_single_halves_round_in_single() -> None:
    x = np.array([0.5, 0.49999997, 8388607.5, -8388607.5, 16777215.0], np.float32)
    away = expression("round_half_away(x)", x, "float32")
    assert away.tolist() == [1.0, 0.0, 8388608.0, -8388608.0, 16777215.0]


def scalar_minimum(a: float, b: float) -> float:
    if math.isnan(a):
        return a
    if math.isnan(b):
        return b
    return b if b < a else a


def scalar_maximum(a: float, b: float) -> float:
    if math.isnan(a):
        return a
    if math.isnan(b):
        return b
    return b if b > a else a


@pytest.mark.parametrize(("operation", "scalar"), [("min", scalar_minimum), ("max", scalar_maximum)])
def test_extremes_prefer_nan_then_the_first_of_equals(operation: str, scalar: Callable[[float, float], float]) -> None:
    a, b = (m.ravel() for m in np.meshgrid(SPECIALS, SPECIALS))
    wanted = np.array([scalar(float(p), float(q)) for p, q in zip(a, b, strict=True)])
    finite = np.isfinite(wanted)
    result = expression(f"{operation}(x, y)", a, y=b)
    np.testing.assert_array_equal(bits(result)[finite], bits(wanted)[finite])
    nan = expression(f"where({operation}(x, y) != {operation}(x, y), 1, 0)", a, y=b)
    np.testing.assert_array_equal(nan == 1, np.isnan(wanted))


def test_clip_is_the_lower_of_the_higher() -> None:
    x = np.array([-1.0, 0.25, 7.0, -0.0, INF, -INF])
    assert expression("clip(x, 0, 1)", x).tolist() == [0.0, 0.25, 1.0, 0.0, 1.0, 0.0]
    assert expression("clip(x, 1, 0)", x).tolist() == [0.0] * 6
    assert np.signbit(expression("clip(x, 0, 1)", x)).tolist() == [False, False, False, True, False, False]


@pytest.mark.parametrize("n", range(-8, 9))
def test_power_multiplies_one_by_one(n: int) -> None:
    x = np.random.default_rng(4).normal(0, 3, 200).astype(np.float32)
    wanted = []
    for v in x:
        product = np.float32(1)
        for _ in range(abs(n)):
            product = np.float32(product * v)
        wanted.append(np.float32(1) / product if n < 0 else product)
    np.testing.assert_array_equal(expression(f"power(x, {n})", x, "float32"), np.array(wanted, np.float32))


def test_power_zero_of_anything_is_one() -> None:
    assert (expression("power(x, 0)", np.array(SPECIALS)) == 1).all()


def test_sqrt_is_correctly_rounded() -> None:
    x = np.random.default_rng(8).uniform(0, 1e6, 300).astype(np.float32)
    wanted = np.sqrt(x.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(expression("sqrt(x)", x, "float32"), wanted)


def test_division_follows_ieee() -> None:
    a, b = np.array([1.0, -1.0, 1.0, 7.0]), np.array([INF, INF, -INF, 2.0])
    np.testing.assert_array_equal(bits(expression("x / y", a, y=b)), bits(np.array([0.0, -0.0, -0.0, 3.5])))
    zero = np.array([1.0, -1.0, 0.0]), np.zeros(3)
    assert expression("where(x / y > 0, 1, where(x / y < 0, 2, 3))", zero[0], y=zero[1]).tolist() == [1, 2, 3]


def integers(steps: dict[str, str], raw: Array, tables: dict[str, list[int]] | None = None) -> list[int]:
    formula = declare(steps, inputs={"raw": ("frame px", raw.dtype.name)}, tables=tables, dtype="float64")
    value, _ = oracle(program_of(formula), {"raw": raw[None]}, (1, len(raw)))
    return [int(v) for v in value[0]]


@pytest.mark.parametrize("length", [3, 40])
def test_lookup_outside_the_table_is_no_stage(length: int) -> None:
    raw = np.array([0, 1, length - 1, length, 255], np.uint8)
    table = [10 + k for k in range(length)]
    assert integers({"v": "lookup(t, raw)"}, raw, {"t": table}) == [10, 11, 9 + length, -1, -1]
    assert integers({"v": "lookup(t, raw - 1)"}, raw, {"t": table}) == [-1, 10, 8 + length, 9 + length, -1]


def test_bits_and_join_are_inverse() -> None:
    raw = np.random.default_rng(9).integers(0, 2**32, 500, dtype=np.uint32)
    assert integers({"v": "join(bits(raw, 0, 13), 13, bits(raw, 13, 19))"}, raw) == raw.tolist()


def test_bits_are_those_of_python() -> None:
    raw = np.array([0, 1, 0xDEADBEEF, 0xFFFFFFFF, 0x80000000], np.uint32)
    for offset, length in ((0, 1), (0, 32), (31, 1), (4, 7), (16, 16), (1, 31)):
        wanted = [(int(w) >> offset) % 2**length for w in raw]
        assert integers({"v": f"bits(raw, {offset}, {length})"}, raw) == wanted


def test_integers_are_exact_to_the_limit() -> None:
    raw = np.array([0, 1, 2**32 - 1], np.uint32)
    assert integers({"v": "raw * 0x1FFFFF + raw"}, raw) == [int(w) * 2**21 for w in raw]
    assert integers({"v": "where(raw + 0x1F000000000001 > 0x1F000000000001, 1, 0)"}, raw) == [0, 1, 1]


def test_integers_are_compared_exactly_and_with_reals_as_reals() -> None:
    raw = np.array([16777216, 16777217], np.uint32)
    steps = {"v": "where(raw == 16777216, 1, 0) + 2 * where(raw == 16777216.0, 1, 0)"}
    assert integers(steps, raw) == [3, 2]


@pytest.mark.parametrize(("dtype", "absent"), [(None, NAN), ("uint16", -1.0)])
def test_a_label_that_does_not_exist_gives_nothing(dtype: str | None, absent: float) -> None:
    formula = declare({"v": "c[raw, 9] + 0"}, constants={"c": ("a b px", dtype)}, dtype="float64", compute="float64")
    raw = np.array([[0, 4, 2, 65535, 3]], np.uint16)
    values = np.arange(30).reshape(3, 2, 5).astype(dtype or "float64")
    value, flags = reference.evaluate(program_of(formula, {"c": ((2, 65535, 4), (1, 9))}), {"raw": raw, "c": values})
    np.testing.assert_array_equal(value[0], [absent, 26.0, 7.0, 18.0, absent])
    assert (flags[0] != 0).tolist() == ([True, False, False, False, True] if dtype is None else [False] * 5)


@pytest.mark.parametrize(
    ("dtype", "fill"),
    [(d, f) for d in ("int8", "uint8", "int16", "uint16", "int32", "uint32") for f in ("low", "high")],
)
@pytest.mark.parametrize("compute", ["float32", "float64"])
def test_an_integer_result_is_limited_to_what_is_not_the_fill(dtype: str, fill: str, compute: str) -> None:
    least, most = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    end = least if fill == "low" else most
    inner = (least + 1, most) if fill == "low" else (least, most - 1)
    formula = declare({"v": "trunc(x)"}, inputs={"x": ("frame px", None)}, dtype=dtype, fill=end, compute=compute)
    ends = np.array([least - 1, least, least + 1, most - 1, most, most + 1], np.float64)
    with np.errstate(over="ignore"):
        x = np.concatenate([SPECIALS, ends]).astype(compute)
    value, flags = reference.evaluate(program_of(formula), {"x": x[None]})
    for v, got, flag in zip(x, value[0], flags[0], strict=True):
        if not np.isfinite(v):
            assert (int(got), int(flag)) == (end, 1 << 29)
            continue
        exact = math.trunc(float(v))
        limited = min(max(exact, inner[0]), inner[1])
        assert (int(got), int(flag)) == (limited, (1 << 30) * (limited != exact))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_fill_is_the_quiet_nan_without_sign(dtype: str) -> None:
    formula = declare({"v": "-(x / x)"}, inputs={"x": ("frame px", None)}, dtype=dtype, compute=dtype)
    value, _ = reference.evaluate(program_of(formula), {"x": np.zeros((1, 4), dtype)})
    assert (bits(value) == (0x7FC00000 if dtype == "float32" else 0x7FF8000000000000)).all()


def test_a_double_beyond_single_has_no_value_in_single() -> None:
    formula = declare({"v": "x * 2"}, inputs={"x": ("frame px", None)}, compute="float64")
    value, flags = reference.evaluate(program_of(formula), {"x": np.array([[1e300, 1.7e38, 1e30]])})
    assert np.isnan(value[0]).tolist() == [True, False, False]
    assert flags[0].tolist() == [1 << 29, 0, 0]


def test_a_voided_pixel_is_neither_clipped_nor_without_value() -> None:
    formula = declare({"v": "floor(log(raw - 2))"}, flags={"bad": "raw < 3"}, dtype="int8", fill=-128)
    value, flags = reference.evaluate(program_of(formula), {"raw": np.array([[1, 2, 3, 4]], np.uint16)})
    assert value[0].tolist() == [-128, -128, 0, 0]
    assert flags[0].tolist() == [1, 1, 0, 0]


def test_a_step_delivered_as_it_is_has_no_flags() -> None:
    formula = declare({"v": "raw * 1.0"})
    program = program_for_step(formula, {}, "raw", "uint8")
    _, flags = reference.evaluate(program, {"raw": np.array([[1, 255, 256, 65535]], np.uint16)})
    assert not flags.any()
