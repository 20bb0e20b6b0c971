"""The kernel and the reference agree to the last bit, on every word and on formulas nobody would write."""

from __future__ import annotations

import random
import time
import warnings
from dataclasses import dataclass, replace

import numpy as np
import pytest
from helpers import (
    SPECIALS,
    Array,
    Flags,
    assert_same_bits,
    bits,
    compiled,
    declare,
    program_of,
    shuffled,
)

from gaincal.errors import FormulaError
from gaincal.formulas.catalog import get
from gaincal.formulas.checks import INTEGER_OUTPUTS, literal_type, literal_value, step_type
from gaincal.formulas.formula import Constant, Flag, Formula, Input, Output, Step, Table
from gaincal.formulas.operations import OPERATIONS, Type
from gaincal.formulas.program import Labels, Program, program_for_output
from gaincal.kernels import compiler

CODES = 1 << 16
WORDS = np.arange(CODES, dtype=np.uint16)
JUNGFRAU_LABELS: dict[str, Labels] = {"gain": ((0, 1, 2),), "pedestal": ((0, 1, 2),)}
PEDESTALS = (0.0, -0.0, np.nan, np.inf, -np.inf, 1e-40, -1e-45, 1234.5, -250.25, 3e38, -3.4e38, 16383.0)
GAINS = (*PEDESTALS[:7], 41.25, -1.4375, 3e38, -0.11, 1e-37)
ENERGIES = (12.4, 0.0, -0.0, np.nan, np.inf, -np.inf, 1e-40, -6.2, 3e38, 1e-4)
MASKS = (0, 1, 0x8000, 0x10000, 0x8001_0000, 0xFFFF_FFFF)


# --- jungfrau: every word, every stage, every pair of constants --------------------------


@dataclass(frozen=True)
class Grid:
    """Every word against every pair of pedestal and gain, in every stage.

    Pixels are the pairs, each once among vectors of a single word and once among mixed words.
    """

    pedestal: Array
    gain: Array
    photon_energy: Array
    pixel_mask: Array

    @classmethod
    def make(cls) -> Grid:
        pairs = np.array([(p, g) for p in PEDESTALS for g in GAINS], np.float32)
        rng = np.random.default_rng(5)
        orders = [np.concatenate([rng.permutation(len(pairs)), rng.permutation(len(pairs))]) for _ in range(3)]
        planes = np.stack([pairs[order] for order in orders])
        return cls(
            np.ascontiguousarray(planes[..., 0]),
            np.ascontiguousarray(planes[..., 1]),
            shuffled(ENERGIES, CODES, "float32"),
            np.array(MASKS, np.uint32)[rng.integers(0, len(MASKS), 2 * len(pairs)) * (rng.random(2 * len(pairs)) < 0.3)],
        )

    def words(self, first: int, last: int) -> Array:
        """Words of some frames: the same for the first pixels, another for each of the others."""
        same = self.gain.shape[1] // 2
        offsets = np.concatenate([np.zeros(same, np.int64), np.random.default_rng(6).integers(0, CODES, same)])
        return ((np.arange(first, last)[:, None] + offsets) % CODES).astype(np.uint16)

    def arrays(self, program: Program, first: int, last: int) -> dict[str, Array]:
        everything = {
            "raw": self.words(first, last),
            "photon_energy": self.photon_energy[first:last],
            "pixel_mask": self.pixel_mask,
            "gain": self.gain,
            "pedestal": self.pedestal,
        }
        return {item.name: everything[item.name] for item in (*program.inputs, *program.constants)}

    def blocks(self) -> list[tuple[int, int]]:
        return [(first, first + 4096) for first in range(0, CODES, 4096)]


@pytest.fixture(scope="module")
def grid() -> Grid:
    return Grid.make()


def jungfrau(output: str, dtype: str, flagged: float | None = None) -> Program:
    formula = get("jungfrau")
    given = frozenset(item.name for item in (*formula.inputs, *formula.constants))
    return program_for_output(formula, JUNGFRAU_LABELS, given, output, dtype, flagged)


@pytest.mark.parametrize(
    ("output", "dtype"),
    [("energy", "float32"), ("photons", "float32"), ("counts", "int32"), ("counts", "int16")],
)
def test_jungfrau_is_the_reference_on_every_word(output: str, dtype: str, grid: Grid) -> None:
    program = jungfrau(output, dtype)
    for first, last in grid.blocks():
        shape = (last - first, grid.gain.shape[1])
        assert_same_bits(program, grid.arrays(program, first, last), shape)


@pytest.mark.parametrize("flagged", [0.0, -1.0, 7.5, float("inf"), float("nan")])
def test_jungfrau_is_the_reference_with_any_fill(flagged: float, grid: Grid) -> None:
    program = jungfrau("energy", "float32", flagged)
    assert_same_bits(program, grid.arrays(program, 0xBF00, 0xC100), (512, grid.gain.shape[1]))


@pytest.mark.parametrize(("output", "dtype"), [("energy", "float32"), ("counts", "int16")])
def test_the_state_that_does_not_exist_never_has_a_value(output: str, dtype: str, grid: Grid) -> None:
    program = jungfrau(output, dtype)
    value, flags = compiled(program, grid.arrays(program, 0x8000, 0xC000), (0x4000, grid.gain.shape[1]))
    absent = grid.words(0x8000, 0xC000) >> 14 == 2
    filled = np.isnan(value) if dtype == "float32" else value == -32768
    assert filled[absent].all()
    assert (flags[absent] & 1 == 1).all()
    assert (flags[~absent] & 1 == 0).all()


def expected_flags(grid: Grid, raw: Array) -> tuple[Array, Flags]:
    """Energy and flags written out by hand: double arithmetic, rounded to single after each operation.

    A double holds the exact sum, and rounds a quotient innocuously: the second rounding gives the single result.
    """
    code = raw >> 14
    stage = np.array([0, 1, -1, 2])[code]
    pixel = np.arange(raw.shape[1])[None, :]
    with np.errstate(all="ignore"):
        pedestal = grid.pedestal.astype(np.float64)[stage, pixel]
        gain = grid.gain.astype(np.float64)[stage, pixel]
        difference = ((raw & 0x3FFF).astype(np.float64) - pedestal).astype(np.float32).astype(np.float64)
        energy = (difference / gain).astype(np.float32)
    missing = ~np.isfinite(gain) | ~np.isfinite(pedestal) | (gain == 0) | ~np.isfinite(energy)
    reasons = [
        code == 2,
        raw == 0xC000,
        (raw == 0xFFFF) | (raw == 0x4000),
        raw == 0x3FFF,
        (code != 2) & missing,
        np.broadcast_to(grid.pixel_mask & 0xFFFF != 0, raw.shape),
    ]
    flags = np.zeros(raw.shape, np.uint32)
    for bit, reason in enumerate(reasons):
        flags |= reason.astype(np.uint32) << np.uint32(bit)
    return energy, flags


def test_jungfrau_flags_are_those_written_by_hand(grid: Grid) -> None:
    program = jungfrau("energy", "float32")
    for first, last in grid.blocks():
        arrays = grid.arrays(program, first, last)
        value, flags = compiled(program, arrays, (last - first, grid.gain.shape[1]))
        energy, wanted = expected_flags(grid, arrays["raw"])
        good = wanted == 0
        np.testing.assert_array_equal(flags, wanted)
        np.testing.assert_array_equal(bits(value)[good], bits(energy)[good])
        assert (bits(value)[~good] == 0x7FC00000).all()


def test_an_infinite_gain_has_no_calibration_although_the_energy_is_finite(grid: Grid) -> None:
    program = jungfrau("energy", "float32")
    arrays: dict[str, Array] = {
        "raw": np.array([[100]], np.uint16),
        "gain": np.full((3, 1), np.inf, np.float32),
        "pedestal": np.zeros((3, 1), np.float32),
        "pixel_mask": np.zeros(1, np.uint32),
    }
    value, flags = compiled(program, arrays, (1, 1))
    assert (flags[0, 0], np.isnan(value[0, 0])) == (1 << 4, True)


def test_photons_without_a_photon_energy_have_no_value(grid: Grid) -> None:
    arrays: dict[str, Array] = {
        "raw": np.full((6, 1), 100, np.uint16),
        "gain": np.full((3, 1), 40, np.float32),
        "pedestal": np.zeros((3, 1), np.float32),
        "pixel_mask": np.zeros(1, np.uint32),
        "photon_energy": np.array([2.5, 0, np.nan, np.inf, -2.5, 1e-40], np.float32),
    }
    value, flags = compiled(jungfrau("counts", "int16"), arrays, (6, 1))
    assert value[:, 0].tolist() == [1, -32768, -32768, 0, -1, -32768]
    assert flags[:, 0].tolist() == [0, 1 << 29, 1 << 29, 0, 0, 1 << 29]


def test_jungfrau_compiles_in_two_seconds() -> None:
    formula = replace(get("jungfrau"), version=2**31 - 1, compute="float64")
    program = replace(jungfrau("counts", "int32"), compute=formula.compute)
    layout = compiler.Layout(
        (
            *(("raw", "uint16"), ("photon_energy", "float64"), ("pixel_mask", "uint32")),
            *(("pedestal", "float64"), ("gain", "float64")),
        ),
        True,
    )
    compiler.compile_program(program_of(declare({"v": "raw * 0.5"})), compiler.Layout((("raw", "uint16"),), True))
    start = time.perf_counter()
    compiler.compile_program(program, layout)
    assert time.perf_counter() - start < 2


# --- random formulas ---------------------------------------------------------------------

INTEGER_LITERALS = ("0", "1", "2", "-1", "3", "7", "16", "255", "-128", "65535", "2147483647", "2147483648")
INTEGER_LITERALS += ("-2147483648", "-2147483649", "4294967295", "9007199254740992", "-9007199254740991", "16777217")
REAL_LITERALS = ("0.0", "-0.0", "1.0", "-1.0", "0.5", "2.0", "0.1", "1e-40", "1e+38", "-3.5", "16777217.0", "4294967295.0")
SIZES = {"a": (0, 1, 2), "b": (5, 2, 0, 11), "c": (1,), "d": tuple(range(20)), "e": (3, 65535)}
PIXELS, FRAMES = 150, 3
FORMULAS, PER_TEST = 400, 25


class Author:
    """Writes a random valid formula by trying steps until the rules accept them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.compute = self.random.choice(("float32", "float64"))
        self.inputs = [
            Input("w8", ("frame", "x"), "1", "uint8"),
            Input("w16", ("frame", "x"), "1", "uint16"),
            Input("w32", ("frame", "x"), "1", "uint32"),
            Input("real_word", ("frame", "x"), "1"),
            Input("cell", ("frame",), "1", "uint16"),
            Input("level", (), "1"),
            Input("count", (), "1", "uint32"),
            Input("mask", ("x",), "1", "uint32"),
            Input("weight", ("x",), "1"),
        ]
        self.constants = [
            Constant("offset", ("x",), "1"),
            Constant("scalar", (), "1"),
            Constant("number", (), "1", "uint32"),
            *(self._map(k) for k in range(5)),
        ]
        self.tables = [Table("short", self._entries(4)), Table("long", self._entries(40))]
        self.types: dict[str, Type] = {}
        bare = replace(declare({"v": "raw * 1.0"}), compute=self.compute)
        for item in (*self.inputs, *self.constants):
            self.types[item.name] = self._declared(item)
        for table in self.tables:
            self.types[table.name] = Type("table", entries=table.entries)
        self.steps: list[Step] = []
        self.bare = bare

    def _map(self, number: int) -> Constant:
        axes = self.random.sample(sorted(SIZES), self.random.choice((1, 1, 2, 3)))
        pixels = ("x",) if self.random.random() < 0.7 else ()
        dtype = self.random.choice((None, None, "uint8", "uint16", "uint32"))
        return Constant(f"map{number}", (*axes, *pixels), "1", dtype)

    def _entries(self, length: int) -> tuple[int, ...]:
        return tuple(self.random.choice((-1, 0, 1, 2, 3, 5, 11, -(2**31), 2**31 - 1)) for _ in range(length))

    def _declared(self, item: Input | Constant) -> Type:
        axes = tuple(d for d in item.dims if d not in ("frame", "x"))
        dims = frozenset(item.dims) - set(axes)
        if item.dtype is None:
            return Type("real", dims, axes=axes)
        return Type("integer", dims, low=0, high=2 ** (8 * np.dtype(item.dtype).itemsize) - 1, axes=axes)

    def _pick(self, *kinds: str) -> str:
        names = [n for n, t in self.types.items() if t.kind in kinds and not t.axes]
        literals = [*(INTEGER_LITERALS if "integer" in kinds else ()), *(REAL_LITERALS if "real" in kinds else ())]
        if literals and self.random.random() < 0.25:
            return self.random.choice(literals)
        recent = [n for n in names if n.startswith("s")][-4:]
        return self.random.choice(recent if recent and self.random.random() < 0.5 else names)

    def _arguments(self, operation: str) -> tuple[str, ...]:
        r = self.random
        number = ("integer", "real")
        if operation == "bits":
            offset = r.choice((0, 0, 1, 4, 8, 14, 31))
            return self._pick("integer"), str(offset), str(r.randint(1, 32 - offset))
        if operation == "join":
            return self._pick("integer"), str(r.randint(1, 31)), self._pick("integer")
        if operation == "lookup":
            return r.choice(("short", "long")), self._pick("integer")
        if operation == "select":
            constant = r.choice([c for c in self.constants if self.types[c.name].axes])
            return constant.name, *(self._index() for _ in self.types[constant.name].axes)
        if operation == "power":
            return self._pick(*number), str(r.randint(-8, 8))
        if operation in ("and", "or", "not"):
            return tuple(self._pick("logical") for _ in range(OPERATIONS[operation].arity[0]))
        if operation == "where":
            return self._pick("logical"), self._pick(*number), self._pick(*number)
        kinds = ("real",) if operation == "finite" or operation in WHOLE else number
        if r.random() < 0.4:
            kinds = (r.choice(kinds),)
        return tuple(self._pick(*kinds) for _ in range(OPERATIONS[operation].arity[0]))

    def _index(self) -> str:
        small = [n for n, t in self.types.items() if t.kind == "integer" and not t.axes and -9 < t.low and t.high < 99]
        return self.random.choice(small) if small and self.random.random() < 0.7 else self._pick("integer")

    def _try(self, operation: str) -> None:
        try:
            step = Step(f"s{len(self.steps)}", operation, self._arguments(operation))
            self.types[step.name] = step_type(step, self.types)
        except (FormulaError, IndexError):
            return
        self.steps.append(step)

    def formula(self) -> Formula:
        for operation in ("bits", "bits", "lookup", "select", "less"):
            self._try(operation)
        names = sorted(OPERATIONS)
        while len(self.steps) < 18:
            self._try(self.random.choice((*names, "select", "clip", "where", *WHOLE)))
        logical = [s.name for s in self.steps if self.types[s.name].kind == "logical"]
        flags = tuple(Flag(f"f_{name}", name, self.random.random() < 0.2) for name in logical[-3:])
        return Formula(
            *("random", 1, "random", self.compute, tuple(self.inputs), tuple(self.constants), tuple(self.tables)),
            *(tuple(self.steps), self._outputs(), flags),
        )

    def _outputs(self) -> tuple[Output, ...]:
        numbers = [s.name for s in self.steps if self.types[s.name].kind in ("integer", "real")]
        return tuple(self._output(name, name == numbers[-1]) for name in numbers)

    def _output(self, name: str, default: bool) -> Output:
        kind = self.types[name]
        choices: list[tuple[str, int | None]] = [("float32", None), ("float64", None)]
        if kind.kind == "integer" or kind.whole:
            integers = self.random.sample(sorted(INTEGER_OUTPUTS), 4)
            choices = [(d, self.random.choice(INTEGER_OUTPUTS[d])) for d in integers] + choices
        return Output(name, "1" if kind.unit is None else str(kind.unit), *choices[0], default, tuple(choices[1:]))


WHOLE = ("floor", "trunc", "round_half_even", "round_half_away")


def labels_of(formula: Formula) -> dict[str, Labels]:
    found: dict[str, Labels] = {}
    for constant in formula.constants:
        axes = formula.checked.types[constant.name].axes
        if axes:
            found[constant.name] = tuple(SIZES[a] for a in axes)
    return found


def data_for(formula: Formula, seed: int) -> dict[str, Array]:
    """Arrays for everything a formula declares, mostly values that make trouble."""
    rng = np.random.default_rng(seed)
    labels = labels_of(formula)
    arrays: dict[str, Array] = {}
    for item in (*formula.inputs, *formula.constants):
        shape = [len(axis) for axis in labels.get(item.name, ())]
        shape += [FRAMES] if "frame" in item.dims or not item.dims else []
        shape += [PIXELS] if "x" in item.dims else [1] if item.name in labels else []
        size = int(np.prod(shape))
        if item.dtype is None:
            values = shuffled(SPECIALS, size, formula.compute, int(rng.integers(1 << 30)))
            usual = rng.normal(0, 30, size).astype(formula.compute)
            arrays[item.name] = np.where(rng.random(size) < 0.5, values, usual).reshape(shape)
            continue
        most = int(np.iinfo(item.dtype).max)
        ends = np.array([0, 1, 2, 3, 5, most, most - 1, most // 2, most // 2 + 1, min(most, 65535)], np.uint64)
        drawn = np.where(rng.random(size) < 0.5, ends[rng.integers(0, len(ends), size)], rng.integers(0, most + 1, size))
        drawn = drawn.reshape(shape).astype(item.dtype)
        if shape[-1] == PIXELS and rng.random() < 0.5:
            drawn[..., :64] = rng.integers(0, 8)
        arrays[item.name] = drawn
    return arrays


def random_program(formula: Formula, seed: int) -> Program:
    """A program of one of the outputs of a random formula, in one of its dtypes."""
    chooser = random.Random(seed)
    output = formula.output() if chooser.random() < 0.5 else chooser.choice(formula.outputs)
    dtype = chooser.choice([output.dtype, *(d for d, _ in output.alternatives)])
    given = frozenset(item.name for item in (*formula.inputs, *formula.constants))
    return program_for_output(formula, labels_of(formula), given, output.name, dtype)


@pytest.mark.parametrize("first", range(0, FORMULAS, PER_TEST))
def test_a_random_formula_is_the_reference(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = []
    for seed in range(first, first + PER_TEST):
        monkeypatch.setattr(compiler, "WIDTH", 64 if seed % 5 == 0 else 4)
        formula = Author(seed).formula()
        program = random_program(formula, seed)
        arrays = data_for(formula, seed)
        try:
            assert_same_bits(program, arrays, (FRAMES, PIXELS))
        except Exception as error:
            failures.append(f"seed {seed}, {program.value} as {program.dtype}: {type(error).__name__} {error}")
    assert not failures, "\n".join(failures)
