"""How far the formulas are from the second opinion, in numbers.

``python tests/catalogue/differences.py`` (with ``tests`` on the path) prints the table that ``docs/make_detectors.py``
puts into the pages.
"""

from __future__ import annotations

import sys
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

import cases
from cases import MAKERS, Case, Expected, case

from gaincal.calibration import Calibration
from gaincal.formulas.formula import Formula
from gaincal.kernels import blocks

Array = npt.NDArray[Any]
NO_VALUE = 1 << 29


@lru_cache(maxsize=1)
def second_opinion(name: str) -> Expected:
    """What the second opinion says of a case."""
    one = case(name)
    return one.expected(one)


def computed(one: Case, calibration: Calibration, output: str | None = None) -> tuple[Array, Array]:
    """Value and flags of all words by the kernel, in the shape of the words."""
    program = calibration.program(output)
    count = (one.shape[0], int(np.prod(one.shape[1:])))
    value, flags = np.empty(count, program.dtype), np.empty(count, np.uint32)
    for part, words in one.blocks():
        blocks.evaluate(program, calibration.block(program, words, part), value[part], flags[part])
    return value.reshape(one.shape), flags.reshape(one.shape)


def ulp(a: Array, b: Array) -> int:
    """The largest distance of float64 numbers, in representable numbers."""
    numbers = [x.astype(np.float64).view(np.int64) for x in (a, b)]
    first, second = (np.where(i < 0, np.int64(-(2**63)) - i, i) for i in numbers)
    return int(np.max(np.abs(first - second), initial=0))


@lru_cache(maxsize=1)
def default_in_double(name: str) -> tuple[Array, Array]:
    """Value and flags of a case, computed in float64."""
    return computed(case(name), case(name).bound("float64"))


def default_and_variance(formula: Formula) -> list[str]:
    """Names of outputs: others are made of the same steps, and compiling each takes longer than computing it."""
    variance = formula.variance(formula.output().name)
    return [formula.output().name, *([] if variance is None else [variance.name])]


@cache
def in_double(name: str) -> dict[str, int]:
    """Largest distance in ULP of float64, all words on awkward constants, of the default output and its variance."""
    one, wanted = case(name), second_opinion(name)
    calibration = one.bound("float64")
    formula = calibration.formula
    value, flags = default_in_double(name)
    assert np.isnan(value[flags != 0]).all()
    assert np.isfinite(wanted.value[flags == 0]).all()
    found = {"value": ulp(value[flags == 0], wanted.value[flags == 0])}
    variance = formula.variance(formula.output().name)
    assert (variance is None) == (wanted.variance is None)
    if variance is not None and wanted.variance is not None:
        value, flags = computed(one, calibration, variance.name)
        good = (flags == 0) & np.isfinite(wanted.variance)
        assert good.mean() > 1e-3
        assert not ((flags == 0) & np.isinf(wanted.variance)).any()
        assert not (np.isfinite(wanted.variance) & (flags == NO_VALUE)).any()
        found["variance"] = ulp(value[good], wanted.variance[good])
    return found


def in_single(name: str) -> tuple[float, float]:
    """Largest difference of float32 on usual constants: in units of the output, and of numbers above 10 relatively."""
    ordinary = cases.awkward

    def usual(shape: tuple[int, ...], numbers: Array, seed: int, part: float = 0.0) -> Array:
        return ordinary(shape, numbers, seed, 0.0).astype(np.float32).astype(np.float64)

    with patch.object(cases, "awkward", usual):
        one = MAKERS[name]()
    wanted = one.expected(one).value
    value, flags = computed(one, one.bound("float32"))
    good = flags == 0
    difference, size = np.abs(value[good] - wanted[good]), np.abs(wanted[good])
    return float(difference.max()), float((difference / np.maximum(size, 10))[size >= 10].max())


def main() -> None:
    """Print the table, ready to be pasted."""
    for name in (n for n in MAKERS if "," not in n):
        double, (absolute, relative) = in_double(name), in_single(name)
        row = (double["value"], double.get("variance"), float(f"{absolute:.1e}"), float(f"{relative:.1e}"))
        print(f'    "{name}": {row},')


if __name__ == "__main__":
    main()
