"""The kernel beside the machine's own copy bandwidth and NumPy, in one run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import families
import numpy as np
import numpy.typing as npt
import pytest
import switched
from measure import best_ratio
from numba import njit

from gaincal.formulas import catalog
from gaincal.kernels.memory import aligned, empty_aligned

Array = npt.NDArray[Any]
FRAMES = 100
AT_LEAST = 0.5


@njit(nogil=True)  # type: ignore[untyped-decorator]
def copy(words: Array, out: Array) -> None:
    """The yardstick: read u2, write f4."""
    for k in range(words.size):
        out[k] = words[k]


def tasks(case: str, frames: int) -> dict[str, Callable[[], object]]:
    """The copy and the kernel on the same words and the same output."""
    calibration = switched.calibration(frames)
    words = aligned(switched.words(case, frames), np.uint16)
    program = calibration.program("energy")
    plan = calibration.plan(program, frames)
    arrays = calibration.by_frame(program, {"raw": words}, slice(None))
    out = empty_aligned((frames, words[0].size), np.float32)
    flags = empty_aligned(out.shape, np.uint32)
    flat, flat_out = words.reshape(-1), out.reshape(-1)
    return {
        "copy": lambda: copy(flat, flat_out),
        "kernel": lambda: plan.evaluate(arrays, out),
        "kernel and flags": lambda: plan.evaluate(arrays, out, flags),
    }


def one_by_one(case: str, frames: int) -> dict[str, Callable[[], object]]:
    """The copy of all frames, and the kernel called for each of them with the same room for its results."""
    calibration = switched.calibration(frames)
    words = aligned(switched.words(case, frames), np.uint16)
    program = calibration.program("energy")
    plan = calibration.plan(program, 1)
    out = empty_aligned((frames, words[0].size), np.float32)
    flat, flat_out = words.reshape(-1), out.reshape(-1)

    def kernel() -> None:
        for k in range(frames):
            one = slice(k, k + 1)
            plan.evaluate(calibration.by_frame(program, {"raw": words[one]}, one), out[:1])

    return {"copy": lambda: copy(flat, flat_out), "kernel": kernel}


def numpy_select(case: str, frames: int) -> Callable[[], object]:
    """What a careful user of NumPy writes."""
    calibration = switched.calibration(frames)
    pedestal, gain = calibration.arrays["pedestal"], calibration.arrays["gain"]
    words = switched.words(case, frames)

    def select() -> Array:
        code, adc = words >> 14, (words & np.uint16(0x3FFF)).astype(np.float32)
        conditions = [code == 0, code == 1, code == 3]
        chosen = [np.select(conditions, list(maps), np.float32(np.nan)) for maps in (pedestal, gain)]
        return np.asarray((adc - chosen[0]) / chosen[1])

    return select


def peers(case: str, frames: int) -> dict[str, Callable[[], object]]:
    """Other programs on the same words, as far as they are installed: they return new arrays."""
    try:
        from aare import apply_calibration
    except ImportError:
        return {}
    calibration, words = switched.calibration(frames), switched.words(case, frames)
    maps = {"pd": np.array(calibration.arrays["pedestal"]), "cal": calibration.arrays["gain"] * np.float32(12.4)}
    return {"aare": lambda: apply_calibration(words, **maps, n_threads=1)}


@pytest.mark.parametrize("case", ["0 %", "2 % clustered"])
def test_the_kernel_reaches_half_of_the_copy_bandwidth(case: str) -> None:
    found = tasks(case, FRAMES)
    assert best_ratio(found, "kernel", "copy", AT_LEAST) >= AT_LEAST


@pytest.mark.parametrize("case", list(switched.SWITCHED))
def test_kernel(benchmark: Any, case: str) -> None:
    benchmark.group = f"kernel, {case} switched"
    benchmark(tasks(case, 16)["kernel"])


@pytest.mark.parametrize("case", ["0 %", "10 % random"])
def test_copy(benchmark: Any, case: str) -> None:
    benchmark.group = f"kernel, {case} switched"
    benchmark(tasks(case, 16)["copy"])


def test_numpy(benchmark: Any) -> None:
    benchmark.group = "kernel, 2 % clustered switched"
    benchmark(numpy_select("2 % clustered", 4))


def family_tasks(name: str, frames: int) -> dict[str, Callable[[], object]]:
    """The kernel of a formula of the catalogue, and copying as many words."""
    calibration, words = families.block(name, families.frames_of(name, frames))
    program = calibration.program()
    words = {n: aligned(w, w.dtype) for n, w in words.items()}
    first = next(iter(words.values()))
    plan = calibration.plan(program, len(first))
    arrays = calibration.by_frame(program, words, slice(None))
    out = empty_aligned((len(first), first[0].size), np.dtype(program.dtype))
    return {
        "copy": lambda: copy(first.reshape(-1), out.reshape(-1)),
        "kernel": lambda: plan.evaluate(arrays, out),
    }


@pytest.mark.parametrize("name", catalog.names())
def test_family(benchmark: Any, name: str) -> None:
    benchmark.group = "kernel of every formula of the catalogue"
    tasks_of_family = family_tasks(name, 4)
    tasks_of_family["kernel"]()
    benchmark(tasks_of_family["kernel"])
