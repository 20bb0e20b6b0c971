"""What the kernel tests share: small formulas, values rich in trouble, and the comparison bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.formulas.formula import Constant, Formula, Input
from gaincal.formulas.program import Labels, Program, program_for_output
from gaincal.kernels import blocks, reference

Array = npt.NDArray[Any]
Flags = npt.NDArray[np.uint32]

SPECIALS = (
    *(0.0, -0.0, float("nan"), float("inf"), float("-inf"), 1e-40, -1e-40, 5e-324, 1.17549435e-38, 3.4028235e38),
    *(-3.4028235e38, 1e300, -1e300, 0.5, -0.5, 1.5, 2.5, -2.5, 0.49999997, 1.0, -1.0, 127.5, -128.5, 255.5, 32767.0),
    *(-32768.0, 65534.5, 65535.0, 16777216.0, 16777217.0, 2147483520.0, 2147483647.0, 2147483648.0, -2147483647.0),
    *(-2147483648.0, -2147483904.0, 4294967040.0, 4294967294.0, 4294967296.0, 88.7, -103.9, 709.7, -745.2),
)


def bits(array: Array) -> Array:
    """The array as unsigned integers of the same size: what must be equal."""
    unsigned: Array = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
    return unsigned


def items(owner: Formula | Program) -> list[Input | Constant]:
    """Inputs and constants, in order."""
    return [*owner.inputs, *owner.constants]


def shuffled(values: Sequence[float], size: int, dtype: str, seed: int = 0) -> Array:
    """Values drawn at random, each at least once where there is room."""
    rng = np.random.default_rng(seed)
    drawn = np.concatenate([np.arange(len(values))[:size], rng.integers(0, len(values), max(0, size - len(values)))])
    with np.errstate(over="ignore"):
        chosen: Array = np.array(values, np.float64)[rng.permutation(drawn)].astype(dtype)
    return chosen


def declare(
    steps: Mapping[str, str],
    *,
    inputs: Mapping[str, tuple[str, str | None]] | None = None,
    constants: Mapping[str, tuple[str, str | None]] | None = None,
    tables: Mapping[str, Sequence[int]] | None = None,
    flags: Mapping[str, str] | None = None,
    output: str = "v",
    dtype: str = "float32",
    fill: int | None = None,
    compute: str = "float32",
) -> Formula:
    """A formula without units over pixel dim ``px``; inputs and constants as (dims, dtype), uint16 ``raw`` if none."""
    inputs = {"raw": ("frame px", "uint16")} if inputs is None else inputs
    lines = ['[formula]\nname = "test"\nversion = 1\ntitle = "test"', f'compute = "{compute}"']
    for part, items in (("inputs", inputs), ("constants", constants or {})):
        for name, (dims, stored) in items.items():
            lines += [f"[{part}.{name}]", f"dims = {dims.split()}", 'units = "1"']
            lines += [f'dtype = "{stored}"'] if stored else []
    lines += ["[tables]", *(f"{n} = {list(t)}" for n, t in (tables or {}).items())]
    lines += ["[steps]", *(f'{n} = "{text}"' for n, text in steps.items())]
    filled = "" if fill is None else f", fill = {fill}"
    lines += ["[outputs]", f'{output} = {{ units = "1", dtype = "{dtype}"{filled}, default = true }}']
    lines += ["[flags]", *(f'{n} = {{ when = "{text}" }}' for n, text in (flags or {}).items())]
    return Formula.from_toml("\n".join(lines))


def program_of(formula: Formula, labels: Mapping[str, Labels] | None = None, flagged: float | None = None) -> Program:
    """Program of the default output, with everything given."""
    given = frozenset(item.name for item in items(formula))
    return program_for_output(formula, labels or {}, given, flagged=flagged)


def oracle(program: Program, arrays: Mapping[str, Array], shape: tuple[int, int]) -> tuple[Array, Flags]:
    """Value and flags of the reference, for every pixel of the block."""
    value, flags = reference.evaluate(program, arrays)
    return np.broadcast_to(value, shape), np.broadcast_to(flags, shape)


def compiled(
    program: Program, arrays: Mapping[str, Array], shape: tuple[int, int], threads: int = 1
) -> tuple[Array, Flags]:
    """Value and flags of the compiled kernel."""
    value, flags = np.full(shape, 77, program.dtype), np.full(shape, 0xAAAAAAAA, np.uint32)
    blocks.evaluate(program, arrays, value, flags, threads)
    return value, flags


def assert_same_bits(
    program: Program, arrays: Mapping[str, Array], shape: tuple[int, int], threads: int = 1, note: str = ""
) -> None:
    """The kernel gives what the reference gives, to the last bit."""
    wanted, wanted_flags = oracle(program, arrays, shape)
    value, flags = compiled(program, arrays, shape, threads)
    for what, a, b in (("value", wanted, value), ("flags", wanted_flags, flags)):
        wrong = np.argwhere(bits(a) != bits(b))
        if len(wrong):
            place = tuple(wrong[0])
            raise AssertionError(
                f"{len(wrong)} {what} differ, first at {place}: reference {a[place]}, kernel {b[place]}\n{note}"
            )


def expression(text: str, x: Array, compute: str = "float64", **others: Array) -> Array:
    """An expression of reals by the reference, in its compute type; logical as 0 and 1, NaN wherever not finite."""
    inputs: dict[str, tuple[str, str | None]] = {"x": ("frame px", None)}
    inputs |= dict.fromkeys(others, ("frame px", None))
    formula = declare({"v": text}, inputs=inputs, compute=compute, dtype=compute)
    arrays = {name: a.astype(compute)[None] for name, a in {"x": x, **others}.items()}
    value: Array = reference.evaluate(program_of(formula), arrays)[0][0]
    return value
