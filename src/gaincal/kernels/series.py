"""Lowering of exp and log: the sequences of IEEE double operations that the specification fixes."""

from __future__ import annotations

from gaincal.kernels import transcendental as t
from gaincal.kernels.vectors import DOUBLE, INT64, Value, Vectors

MANTISSA_BITS, EXPONENT_BIAS = 52, 1023
SMALLEST_NORMAL = 2.0**-1022


def lower_exp(v: Vectors, a: Value) -> Value:
    """e^a, computed in double and rounded to the compute type."""
    x = v.floating(v.to_real(a), DOUBLE)

    def number(value: float) -> Value:
        return v.constant(x.type, value)

    high, low = v.compare(">=", x, number(t.EXP_OVERFLOW)), v.compare("<=", x, number(t.EXP_UNDERFLOW))
    outside = v.b.or_(v.b.or_(high, low), v.is_nan(x))
    safe = v.b.select(outside, number(0.0), x)
    k = v.intrinsic("llvm.rint", v.b.fmul(safe, number(t.LOG2_E)))
    r = v.b.fsub(safe, v.b.fmul(k, number(t.LN2_HIGH)))
    r = v.b.fsub(r, v.b.fmul(k, number(t.LN2_LOW)))
    half = v.intrinsic("llvm.floor", v.b.fmul(k, number(0.5)))
    scaled = v.b.fmul(_polynomial(v, r, t.EXP_SERIES), _power_of_two(v, half))
    result = v.b.fmul(scaled, _power_of_two(v, v.b.fsub(k, half)))
    result = v.b.select(high, number(float("inf")), v.b.select(low, number(0.0), result))
    return v.floating(v.b.select(v.is_nan(x), x, result), v.real)


def lower_log(v: Vectors, a: Value) -> Value:
    """The natural logarithm, computed in double and rounded to the compute type."""
    x = v.floating(v.to_real(a), DOUBLE)

    def number(value: float) -> Value:
        return v.constant(x.type, value)

    inside = v.b.and_(v.compare(">", x, number(0.0)), v.compare("<", x, number(float("inf"))))
    m, exponent = _split(v, v.b.select(inside, x, number(1.0)))
    f = v.b.fsub(m, number(1.0))
    s = v.b.fdiv(f, v.b.fadd(number(2.0), f))
    z = v.b.fmul(s, s)
    half_square = v.b.fmul(v.b.fmul(number(0.5), f), f)
    rest = v.b.fmul(v.b.fadd(z, z), _polynomial(v, z, t.LOG_SERIES))
    small = v.b.fadd(v.b.fmul(s, v.b.fadd(half_square, rest)), v.b.fmul(exponent, number(t.LN2_LOW)))
    rest = v.b.fsub(v.b.fsub(half_square, small), f)
    result = v.b.fsub(v.b.fmul(exponent, number(t.LN2_HIGH)), rest)
    zero, infinite = v.compare("==", x, number(0.0)), v.compare("==", x, number(float("inf")))
    outside = v.b.select(infinite, x, number(float("nan")))
    outside = v.b.select(zero, number(float("-inf")), outside)
    return v.floating(v.b.select(inside, result, outside), v.real)


def _polynomial(v: Vectors, x: Value, coefficients: tuple[float, ...]) -> Value:
    p = v.constant(x.type, coefficients[-1])
    for c in coefficients[-2::-1]:
        p = v.b.fadd(v.b.fmul(p, x), v.constant(x.type, c))
    return p


def _power_of_two(v: Vectors, exponent: Value) -> Value:
    """2^n for whole n within the normal range, built from its bits."""
    n = v.b.fptosi(exponent, v.shaped(exponent, INT64))
    biased = v.b.add(n, v.constant(n.type, EXPONENT_BIAS))
    return v.b.bitcast(v.b.shl(biased, v.constant(n.type, MANTISSA_BITS)), exponent.type)


def _split(v: Vectors, x: Value) -> tuple[Value, Value]:
    """Mantissa around 1 and exponent of a positive finite number."""
    tiny = v.compare("<", x, v.constant(x.type, SMALLEST_NORMAL))
    scaled = v.b.fmul(x, v.constant(x.type, 2.0**t.SUBNORMAL_SCALE))
    bits = v.b.bitcast(v.b.select(tiny, scaled, x), v.shaped(x, INT64))

    def integer(value: int) -> Value:
        return v.constant(bits.type, value)

    e = v.b.sub(v.b.lshr(bits, integer(MANTISSA_BITS)), integer(EXPONENT_BIAS))
    e = v.b.sub(e, v.b.select(tiny, integer(t.SUBNORMAL_SCALE), integer(0)))
    mantissa = v.b.or_(v.b.and_(bits, integer(2**MANTISSA_BITS - 1)), integer(EXPONENT_BIAS << MANTISSA_BITS))
    m = v.b.bitcast(mantissa, x.type)
    large = v.compare(">", m, v.constant(x.type, t.SQRT_2))
    m = v.b.select(large, v.b.fmul(m, v.constant(x.type, 0.5)), m)
    return m, v.b.sitofp(v.b.add(e, v.b.zext(large, bits.type)), x.type)
