"""AGIPD: constants for every memory cell, which fit no cache; frames of 1 or more trains of all cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from gaincal.calibration import RawLayout, bind
from gaincal.constants import ConstantMap
from gaincal.formulas import catalog
from gaincal.grouped import GroupedProgram
from gaincal.kernels.memory import aligned, empty_aligned

Array = npt.NDArray[Any]
MODULE = (512, 128)
CELLS = 64
"""Of 352: 134 MB of constants are as far from any cache."""
SWITCHED = 0.02


@njit(nogil=True)  # type: ignore[untyped-decorator]
def copy(analog: Array, digital: Array, out: Array) -> None:
    """The yardstick: read u2 and u2, write f4, with normal stores."""
    for k in range(analog.size):
        out[k] = np.float32(analog[k]) + np.float32(digital[k])


@dataclass(frozen=True)
class InMemory:
    """A constant that is asked for slab by slab, as one in a file is."""

    values: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    def slab(self, place: tuple[int, ...], out: Array | None = None) -> Array:  # noqa: ARG002
        return np.asarray(self.values[place])


def tasks(trains: int) -> dict[str, Callable[[], object]]:
    """The copy, and the kernel on the same words, cell by cell in every train."""
    rng = np.random.default_rng(8)
    frames, cells = trains * CELLS, np.arange(CELLS, dtype=np.uint16)
    digital = rng.normal(5000, 20, (frames, 1, *MODULE))
    digital[rng.random(digital.shape) < SWITCHED / 36] += 5000
    words = {
        "analog": aligned(rng.normal(4000, 30, (frames, 1, *MODULE)), np.uint16),
        "digital": aligned(digital, np.uint16),
    }
    labels = {"threshold": (0, 1), "stage": (0, 1, 2), "cell": tuple(range(CELLS))}
    levels = {"thresholds": (8000.0, 12000.0), "offset": (4000.0, 3500.0, 3000.0), "relative_gain": (1.0, 30.0, 100.0)}
    formula = catalog.get("agipd")
    constants = {}
    for item in formula.constants:
        if item.name not in levels:
            continue
        axes = tuple(labels[a] for a in item.dims if a in labels)
        level = np.array(levels[item.name]).reshape(-1, *(1,) * (len(item.dims) - 1))
        shape = (*(len(a) for a in axes), 1, *MODULE)
        constants[item.name] = ConstantMap(InMemory(np.float32(level * rng.uniform(0.98, 1.02, shape))), axes)
    inputs = {
        "cell": np.tile(cells, trains).reshape(-1, 1),
        "adu_per_kev": np.array(7.0),
        "photon_energy": np.array(9.3),
        "pixel_mask": np.zeros((1, *MODULE), np.uint32),
    }
    dtypes = {name: array.dtype for name, array in words.items()}
    calibration = bind(formula, RawLayout(frames, (1, *MODULE)), dtypes, inputs, constants)
    grouped = GroupedProgram(calibration, calibration.program("signal"))
    window = tuple(slice(0, n) for n in (1, *MODULE))
    out = empty_aligned((frames, MODULE[0] * MODULE[1]), np.float32)
    flat = [words[n].reshape(-1) for n in ("analog", "digital")]
    return {
        "copy": lambda: copy(*flat, out.reshape(-1)),
        "kernel": lambda: grouped.evaluate(words, slice(0, frames), window, out, None, 1),
    }
