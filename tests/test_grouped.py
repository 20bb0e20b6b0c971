"""Constants in memory and constants read label by label give the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from stored import InSlabs

from gaincal import constants
from gaincal.calibration import Calibration, RawLayout, bind
from gaincal.constants import ConstantMap
from gaincal.errors import BindError
from gaincal.formulas.formula import Formula
from gaincal.grouped import GroupedProgram
from gaincal.kernels import blocks, reference
from gaincal.kernels.memory import empty_aligned
from gaincal.kernels.rows import Rows

Array = npt.NDArray[Any]
FRAMES, MODULES, Y, X = 7, 3, 8, 20
CELLS = (4, 0, 9)
TEXT = """
[formula]
name = "cells"
version = 1
title = "two stages, cells per module"
[inputs]
analog = { dims = ["frame", "module", "y", "x"], units = "ADU", dtype = "uint16" }
digital = { dims = ["frame", "module", "y", "x"], units = "ADU", dtype = "uint16" }
cell = { dims = ["frame", "module"], units = "1", dtype = "uint16" }
weight = { dims = ["module"], units = "1" }
[constants]
threshold = { dims = ["cell", "module", "y", "x"], units = "ADU" }
offset = { dims = ["stage", "cell", "module", "y", "x"], units = "ADU" }
slope = { dims = ["stage", "module"], units = "1" }
noise = { dims = ["stage", "cell", "module", "y", "x"], units = "ADU", default = 2.5 }
[steps]
stage = "where(digital > threshold[cell], 1, 0)"
signal = "(analog - offset[stage, cell]) * slope[stage] * weight"
variance = "power(noise[stage, cell] * slope[stage], 2)"
[outputs]
signal = { units = "ADU", dtype = "float32", default = true }
variance = { units = "ADU^2", dtype = "float32", variance_of = "signal" }
[flags]
no_cell = { when = "cell == 65535" }
no_calibration = { when = "not (finite(threshold[cell]) and finite(signal))" }
"""


def bound(large: bool) -> tuple[Calibration, dict[str, Array]]:
    rng = np.random.default_rng(5)
    words = {n: rng.integers(0, 16384, (FRAMES, MODULES, Y, X), dtype=np.uint16) for n in ("analog", "digital")}
    maps = {
        "threshold": rng.normal(8000, 100, (len(CELLS), MODULES, Y, X)),
        "offset": rng.normal(4000, 100, (2, len(CELLS), MODULES, Y, X)),
    }
    maps["offset"][0, 1, 2, 3] = np.nan
    cell = rng.choice(np.array([*CELLS, 7, 65535], np.uint16), (FRAMES, MODULES))
    held = {n: ConstantMap(InSlabs(v) if large else v, ((0, 1), CELLS)[2 - v.ndim + 3 :]) for n, v in maps.items()}
    held["slope"] = ConstantMap(rng.uniform(0.5, 2, (2, MODULES)), ((0, 1),))
    inputs = {"cell": cell, "weight": rng.uniform(0.5, 2, MODULES)}
    layout = RawLayout(FRAMES, (MODULES, Y, X))
    dtypes = {n: w.dtype for n, w in words.items()}
    return bind(Formula.from_toml(TEXT), layout, dtypes, inputs, held), words


WINDOWS = [
    (slice(0, MODULES), slice(0, Y), slice(0, X)),
    (slice(1, 3), slice(2, 7), slice(3, 19)),
    (slice(2, 3), slice(0, Y), slice(5, 6)),
]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("frames", [slice(0, FRAMES), slice(3, 5), slice(6, 7)])
@pytest.mark.parametrize("output", ["signal", "variance"])
def test_the_same_bits_with_constants_in_memory_and_in_slabs(
    window: tuple[slice, ...], frames: slice, output: str
) -> None:
    results = []
    for large in (False, True):
        calibration, words = bound(large)
        program = calibration.program(output)
        read = {n: w[(frames, *window)] for n, w in words.items()}
        count = read["analog"].shape
        value, flags = np.empty(count, np.float32), np.empty(count, np.uint32)
        flat = value.reshape(count[0], -1), flags.reshape(count[0], -1)
        if large:
            GroupedProgram(calibration, program).evaluate(read, frames, window, *flat, threads=2)
        else:
            arrays = calibration.block(program, read, frames, window)
            wanted = reference.evaluate(program, arrays)
            blocks.evaluate(program, arrays, *flat)
            for found, expected in zip(flat, wanted, strict=True):
                assert found.tobytes() == np.ascontiguousarray(np.broadcast_to(expected, found.shape)).tobytes()
        results.append((value, flags))
    for memory, slabs in zip(*results, strict=True):
        assert memory.tobytes() == slabs.tobytes()


def test_every_module_takes_its_own_cell() -> None:
    calibration, words = bound(large=False)
    program = calibration.program("signal")
    value = np.empty((FRAMES, MODULES, Y, X), np.float32)
    blocks.evaluate(program, calibration.block(program, words, slice(0, FRAMES)), value.reshape(FRAMES, -1))
    for frame, module in np.ndindex(FRAMES, MODULES):
        cell = int(calibration.arrays["cell"][frame, module])
        if cell not in CELLS:
            assert np.isnan(value[frame, module]).all()
            continue
        k = CELLS.index(cell)
        above = words["digital"][frame, module] > calibration.arrays["threshold"][k, module]
        offset, slope = calibration.arrays["offset"][:, k, module], calibration.arrays["slope"][:, module]
        signal = (words["analog"][frame, module].astype(np.float32) - np.where(above, offset[1], offset[0])) * np.where(
            above, slope[1], slope[0]
        )
        wanted = signal * calibration.arrays["weight"][module]
        np.testing.assert_array_equal(value[frame, module], wanted)


def test_frames_of_one_cell_read_its_planes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "CACHE", constants.Cache(1 << 30))
    calibration, words = bound(large=True)
    program = calibration.program("signal")
    value = np.empty((FRAMES, MODULES * Y * X), np.float32)
    grouped = GroupedProgram(calibration, program)
    for _ in range(2):
        grouped.evaluate(words, slice(0, FRAMES), WINDOWS[0], value, None, 1)
    used = {(c, m) for m in range(MODULES) for c in calibration.arrays["cell"][:, m].tolist() if c in CELLS}
    held = calibration.large["offset"].values
    assert isinstance(held, InSlabs)
    assert held.reads == 2 * len(used)


@pytest.mark.parametrize("window", [WINDOWS[0], WINDOWS[2]])
def test_what_is_held_of_large_constants_is_bounded(monkeypatch: pytest.MonkeyPatch, window: tuple[slice, ...]) -> None:
    cache = constants.Cache(20 * Y * X * 4)
    monkeypatch.setattr(constants, "CACHE", cache)
    calibration, words = bound(large=True)
    program = calibration.program("signal")
    part = {n: w[(slice(None), *window)] for n, w in words.items()}
    value = np.empty(part["analog"].shape, np.float32).reshape(FRAMES, -1)
    GroupedProgram(calibration, program).evaluate(part, slice(0, FRAMES), window, value, None, 1)
    assert 0 < cache.held <= cache.most
    assert cache.held == sum(found.nbytes for found in cache._found.values())


def test_slabs_in_use_hold_no_pieces_of_those_that_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    slab, labels = Y * X * 4, 40
    monkeypatch.setattr("gaincal.kernels.memory.PIECE_BYTES", 3 * slab)
    cache = constants.Cache(6 * slab)
    monkeypatch.setattr(constants, "CACHE", cache)
    values = InSlabs(np.arange(labels * Y * X, dtype=np.float32).reshape(labels, Y, X))
    constant = constants.LargeConstant(values, (tuple(range(labels)),), "float32")
    for label in range(labels):
        for wanted in (label, *range(0, label, 3)):  # one of each piece is wanted again and again
            found = constant.part({0: wanted}, (), (slice(1, Y), slice(0, X)))
            np.testing.assert_array_equal(found[:], values.slab((wanted,))[1:].ravel())
        held = cache._found.values()
        pieces = {id(piece_of(planes)) for planes in held if isinstance(planes, np.ndarray)}
        assert 0 < len(pieces) * 3 * slab <= cache.most + 2 * 3 * slab


@pytest.mark.parametrize(
    ("said", "memory", "wanted"),
    [("", 64 << 30, 8 << 30), ("", 1 << 30, 512 << 20), ("100", 64 << 30, 100 << 20), ("much", 1 << 30, 512 << 20)],
)
def test_how_much_is_held(said: str, memory: int, wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(constants.CACHE_VARIABLE, said)
    assert constants.cache_bytes(memory) == wanted


def test_frames_go_label_by_label_where_not_all_planes_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    calibration, _ = bound(large=True)
    grouped = GroupedProgram(calibration, calibration.program("signal"))
    cells, frames = calibration.arrays["cell"], np.arange(1, FRAMES)
    label = MODULES * Y * X * (3 * 4 + 4)  # threshold and two planes of the offset, and what is known of them
    for held in (0, label, 2 * label, 3 * label):
        monkeypatch.setattr(constants, "CACHE", constants.Cache(held))
        blocks = grouped.blocks(frames, 2)
        assert sorted(np.concatenate(blocks)) == frames.tolist()
        for block in blocks:
            labels = np.unique(cells[block], axis=0)
            assert len(block) <= 2
            assert len(labels) <= max(1, held // label // 2)
        assert grouped.holds(frames[:1])
        assert not grouped.holds(frames)
    monkeypatch.setattr(constants, "CACHE", constants.Cache(FRAMES * label))
    assert grouped.holds(frames)


def piece_of(array: Array) -> Array:
    """The array whose memory it is."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def test_a_large_constant_is_a_map_of_reals() -> None:
    head, _, rest = TEXT.partition('units = "ADU" }\noffset')
    text = f'{head}units = "ADU", dtype = "uint16" }}\noffset{rest}'
    formula = Formula.from_toml(text.replace("finite(threshold[cell]) and ", ""))
    threshold = ConstantMap(InSlabs(np.zeros((3, MODULES, Y, X), np.uint16)), (CELLS,))
    offset = ConstantMap(np.zeros((2, 3, MODULES, Y, X)), ((0, 1), CELLS))
    slope = ConstantMap(np.zeros((2, MODULES)), ((0, 1),))
    given = {"threshold": threshold, "offset": offset, "slope": slope}
    words = {n: np.dtype("u2") for n in ("analog", "digital")}
    with pytest.raises(BindError, match="too large"):
        bind(formula, RawLayout(1, (MODULES, Y, X)), words, {}, given)


def test_runs_that_begin_between_cache_lines_do_not_bypass_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    calibration, words = bound(large=False)
    program = calibration.program("signal")
    modules = {n: np.ascontiguousarray(w[:, :, :4, :18]) for n, w in words.items()}  # 72 pixels: 4.5 cache lines
    window = (slice(0, 2), slice(0, 4), slice(0, 18))
    modules = {n: w[:, :2] for n, w in modules.items()}
    arrays = calibration.block(program, modules, slice(0, FRAMES), window)
    monkeypatch.setattr(blocks, "STREAMED_BYTES", 0)
    value = empty_aligned((FRAMES, 144), np.float32)
    assert blocks.leaves_cache(Rows.of(value), 0)
    assert not blocks.leaves_cache(Rows.of(value), 72)
    blocks.evaluate(program, arrays, value)
    wanted, _ = reference.evaluate(program, arrays)
    assert value.tobytes() == np.ascontiguousarray(wanted).tobytes()
