"""Binding is where every complaint ends: what fits is bound in the declared types, the rest is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gaincal.calibration import Calibration, ConstantMap, RawLayout, bind
from gaincal.errors import BindError, RequestError
from gaincal.formulas.catalog import get
from gaincal.formulas.formula import Formula
from gaincal.kernels import blocks, reference
from gaincal.kernels import windows as kernel_windows

Array = npt.NDArray[Any]
LAYOUT = RawLayout(5, (4, 6))
WORDS: dict[str, np.dtype[Any]] = {"raw": np.dtype("uint16")}
STAGES = ((0, 1, 2),)


def constants(**changed: ConstantMap) -> dict[str, ConstantMap]:
    rng = np.random.default_rng(0)
    pedestal, gain = rng.normal(1000, 10, (3, 4, 6)), rng.normal(40, 1, (3, 4, 6))
    return {"pedestal": ConstantMap(pedestal, STAGES), "gain": ConstantMap(gain, STAGES), **changed}


def jungfrau(
    inputs: dict[str, Array] | None = None,
    words: dict[str, np.dtype[Any]] | None = None,
    layout: RawLayout = LAYOUT,
    **changed: ConstantMap,
) -> Calibration:
    return bind(get("jungfrau"), layout, WORDS if words is None else words, inputs or {}, constants(**changed))


def raw() -> Array:
    return np.random.default_rng(1).integers(0, 2**16, LAYOUT.shape).astype(np.uint16)


EXTRA = """
[formula]
name = "extra"
version = 1
title = "labels, plain values and words of other kinds"
[inputs.raw]
dims = ["frame", "y", "x"]
units = "1"
dtype = "uint32"
[inputs.cell]
dims = ["frame"]
units = "1"
dtype = "uint16"
[constants.scale]
dims = []
units = "1"
[constants.by_cell]
dims = ["cell"]
units = "1"
[constants.count]
dims = ["y", "x"]
units = "1"
dtype = "uint8"
[steps]
v = "raw * by_cell[cell] * scale + count"
[outputs]
v = { units = "1", dtype = "float32", default = true }
"""


def extra(inputs: dict[str, Array] | None = None, **changed: ConstantMap) -> Calibration:
    given = {
        "scale": ConstantMap(np.array(2.0), ()),
        "by_cell": ConstantMap(np.array([1.5, -2.0]), ((9, 4),)),
        "count": ConstantMap(np.arange(24).reshape(4, 6), ()),
    }
    cell: dict[str, Array] = {"cell": np.array([4, 9, 4, 9, 5])} if inputs is None else inputs
    words: dict[str, np.dtype[Any]] = {"raw": np.dtype("uint32")}
    return bind(Formula.from_toml(EXTRA), LAYOUT, words, cell, {**given, **changed})


def refused(match: str, **arguments: Any) -> None:
    with pytest.raises(BindError, match=match):
        jungfrau(**arguments)


# --- what fits ---------------------------------------------------------------------------


def test_what_is_given_is_bound_in_the_type_of_the_computation() -> None:
    bound = jungfrau(inputs={"pixel_mask": np.zeros((4, 6), np.int64)})
    assert bound.arrays["gain"].dtype == np.float32
    assert bound.arrays["pixel_mask"].dtype == np.uint32
    assert bound.words == ("raw",)
    assert bound.labels == {"gain": STAGES, "pedestal": STAGES}


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "=u2"])
def test_words_of_either_byte_order_are_accepted(dtype: str) -> None:
    assert jungfrau(words={"raw": np.dtype(dtype)}).words == ("raw",)


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_words_of_either_byte_order_give_the_same_energy(dtype: str) -> None:
    bound = jungfrau(words={"raw": np.dtype(dtype)})
    wanted = evaluated(bound, {"raw": raw()}, slice(0, 5))
    np.testing.assert_array_equal(evaluated(bound, {"raw": raw().astype(dtype)}, slice(0, 5)), wanted)


@pytest.mark.parametrize("dtype", [">f4", "<f8", "float16", "int32", "uint8"])
def test_real_constants_may_be_any_numbers(dtype: str) -> None:
    values = np.ones((3, 4, 6), dtype)
    bound = jungfrau(gain=ConstantMap(values, STAGES))
    assert bound.arrays["gain"].dtype == np.dtype("float32")
    np.testing.assert_array_equal(bound.arrays["gain"], values)


def test_bad_values_are_not_errors() -> None:
    values = np.full((3, 4, 6), np.nan)
    values[0] = 1e300
    bound = jungfrau(gain=ConstantMap(values, STAGES))
    assert np.isinf(bound.arrays["gain"][0]).all()


def test_outputs_and_flags_need_what_they_depend_on() -> None:
    bare = jungfrau()
    assert bare.available_outputs() == ["energy"]
    assert "masked" not in bare.tested_flags()
    with pytest.raises(RequestError, match="photon_energy"):
        bare.program("photons")
    full = jungfrau(inputs={"photon_energy": np.array(12.4), "pixel_mask": np.zeros((4, 6), np.uint32)})
    assert full.available_outputs() == ["energy", "photons", "counts", "energy_variance"]
    assert full.tested_flags() == [f.name for f in get("jungfrau").flags]


@pytest.mark.parametrize("name", ["volts", ""])
def test_an_output_that_is_not_declared_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match="no output"):
        jungfrau().program(name)


def test_a_dtype_or_fill_that_does_not_fit_is_refused() -> None:
    bound = jungfrau(inputs={"photon_energy": np.array(12.4)})
    with pytest.raises(RequestError, match="declared as int32, int16, not uint8"):
        bound.program("counts", "uint8")
    for flagged in (float("nan"), 40_000.0, 0.5, float("inf")):
        with pytest.raises(RequestError, match="cannot hold"):
            bound.program("counts", "int16", flagged)


def test_the_stage_is_the_step_that_chooses_along_it() -> None:
    assert jungfrau().stage_step() == "stage"
    assert extra().stage_step() is None


# --- blocks ------------------------------------------------------------------------------


def evaluated(bound: Calibration, words: dict[str, Array], frames: slice, output: str | None = None) -> Array:
    program = bound.program(output)
    arrays = bound.block(program, {name: a[frames] for name, a in words.items()}, frames)
    shape = (len(range(*frames.indices(LAYOUT.frames))), 24)
    value = np.empty(shape, program.dtype)
    blocks.evaluate(program, arrays, value)
    np.testing.assert_array_equal(value, np.broadcast_to(reference.evaluate(program, arrays)[0], shape))
    return value.reshape(-1, 4, 6)


FRAMES = [slice(0, 5), slice(0, 1), slice(2, 4), slice(1, 5, 2), slice(4, 5), slice(0, 0)]


@pytest.mark.parametrize("frames", FRAMES)
def test_a_single_value_holds_for_every_frame(frames: slice) -> None:
    bound = jungfrau(inputs={"photon_energy": np.array(12.4)})
    photons = evaluated(bound, {"raw": raw()}, frames, "photons")
    energy = evaluated(bound, {"raw": raw()}, frames, "energy")
    np.testing.assert_array_equal(photons, energy / np.float32(12.4))


@pytest.mark.parametrize("frames", FRAMES)
def test_values_per_frame_go_with_their_frames(frames: slice) -> None:
    energies = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    bound = jungfrau(inputs={"photon_energy": energies})
    photons = evaluated(bound, {"raw": raw()}, frames, "photons")
    energy = evaluated(bound, {"raw": raw()}, frames, "energy")
    np.testing.assert_array_equal(photons, energy / energies[frames, None, None].astype(np.float32))


def test_a_single_value_is_bound_without_dims() -> None:
    assert jungfrau(inputs={"photon_energy": np.array(12.4)}).arrays["photon_energy"].shape == ()
    assert extra().arrays["scale"].shape == ()


@pytest.mark.parametrize("frames", FRAMES)
def test_labels_and_plain_values_go_with_the_frames(frames: slice) -> None:
    words = np.arange(120, dtype=np.uint32).reshape(LAYOUT.shape)
    value = evaluated(extra(), {"raw": words}, frames)
    factor = np.array([-2.0, 1.5, -2.0, 1.5, np.nan])[frames, None, None]
    np.testing.assert_array_equal(value, words[frames] * factor * 2.0 + np.arange(24).reshape(4, 6))


WINDOWS = [(slice(1, 3), slice(2, 6)), (slice(0, 4, 2), slice(5, 6)), (slice(2, 2), slice(0, 6))]


@pytest.mark.parametrize("window", WINDOWS)
def test_a_window_gives_the_pixels_of_the_whole(window: tuple[slice, slice]) -> None:
    bound = jungfrau(inputs={"pixel_mask": np.eye(4, 6, dtype=np.uint32)})
    program = bound.program()
    whole = bound.block(program, {"raw": raw()}, slice(0, 5))
    wanted, _ = reference.evaluate(program, whole)
    part = bound.block(program, {"raw": raw()[(slice(0, 5), *window)]}, slice(0, 5), window)
    value, _ = reference.evaluate(program, part)
    np.testing.assert_array_equal(value, wanted.reshape(5, 4, 6)[(slice(None), *window)].reshape(5, -1))


# --- what does not fit -------------------------------------------------------------------


def test_words_that_lack_are_named() -> None:
    refused("^formula 'jungfrau' needs raw$", words={})


def test_constants_that_lack_are_named() -> None:
    with pytest.raises(BindError, match=r"^formula 'jungfrau' needs raw, pedestal, gain$"):
        bind(get("jungfrau"), LAYOUT, {}, {}, {})


@pytest.mark.parametrize("name", ["adc", "photon_energy", "gain", "pixel_mask"])
def test_words_that_the_formula_does_not_know_are_refused(name: str) -> None:
    refused(f"^the formula has no words input '{name}'$", words={**WORDS, name: np.dtype("uint16")})


@pytest.mark.parametrize("dtype", ["int16", "uint8", "uint32", "float32", "int32", ">i2"])
def test_words_of_another_dtype_are_refused(dtype: str) -> None:
    name = np.dtype(dtype).name
    refused(f"^raw is {name}, the formula declares uint16$", words={"raw": np.dtype(dtype)})


@pytest.mark.parametrize("name", ["exposure", "raw", "gain"])
def test_inputs_that_the_formula_does_not_know_are_refused(name: str) -> None:
    refused(f"^formula 'jungfrau' has no input '{name}'$", inputs={name: np.array(1.0)})


def test_constants_that_the_formula_does_not_know_are_refused() -> None:
    refused("^formula 'jungfrau' has no constant 'dark'$", dark=ConstantMap(np.zeros((3, 4, 6)), STAGES))


@pytest.mark.parametrize("shape", [(4,), (1,), (5, 1), (4, 6)])
def test_a_value_per_frame_has_the_length_of_the_frames(shape: tuple[int, ...]) -> None:
    refused(r"^photon_energy has shape \(.*\), expected \(\) or \(5,\)$", inputs={"photon_energy": np.ones(shape)})


@pytest.mark.parametrize("shape", [(), (24,), (6, 4), (3, 4, 6)])
def test_a_map_of_the_pixels_has_their_shape(shape: tuple[int, ...]) -> None:
    mask = np.zeros(shape, np.uint32)
    refused(r"^pixel_mask has shape \(.*\), expected \(4, 6\)$", inputs={"pixel_mask": mask})


@pytest.mark.parametrize("shape", [(3, 6, 4), (2, 4, 6), (4, 4, 6), (4, 6), (3, 24), (1, 3, 4, 6)])
def test_a_constant_has_the_shape_of_labels_and_pixels(shape: tuple[int, ...]) -> None:
    match = r"^gain has shape \(.*\), raw frames are \(4, 6\); expected \(stage, y, x\) = \(3, 4, 6\)$"
    refused(match, gain=ConstantMap(np.ones(shape), STAGES))


@pytest.mark.parametrize("labels", [((0, 1, 1),), ((0, 1, -1),), ((0, 1, 65536),), ((),)])
def test_labels_are_different_numbers_of_sixteen_bits(labels: tuple[tuple[int, ...], ...]) -> None:
    match = "^gain: labels along stage must be one or more different numbers, 0 to 65535$"
    refused(match, gain=ConstantMap(np.ones((3, 4, 6)), labels))


@pytest.mark.parametrize("labels", [(), ((0, 1, 2), (0,))])
def test_every_axis_has_labels(labels: tuple[tuple[int, ...], ...]) -> None:
    match = f"^gain has labels for {len(labels)} axes, expected stage$"
    refused(match, gain=ConstantMap(np.ones((3, 4, 6)), labels))


def test_a_constant_without_axes_has_no_labels() -> None:
    with pytest.raises(BindError, match=r"^scale has labels for 1 axes, expected none$"):
        extra(scale=ConstantMap(np.ones(1), ((0,),)))


@pytest.mark.parametrize("dtype", ["complex64", "S3", "bool", "O", "M8[s]"])
def test_a_real_constant_is_of_numbers(dtype: str) -> None:
    refused("^gain is .*, expected numbers$", gain=ConstantMap(np.zeros((3, 4, 6), dtype), STAGES))


@pytest.mark.parametrize("dtype", ["float32", "complex64", "S3"])
def test_an_integer_input_is_of_integers(dtype: str) -> None:
    mask = np.zeros((4, 6), dtype)
    refused("^pixel_mask is .*, which does not fit the declared uint32$", inputs={"pixel_mask": mask})


@pytest.mark.parametrize(("value", "dtype"), [(-1, "int8"), (-1, "int64"), (2**32, "int64"), (2**63, "uint64")])
def test_an_integer_that_does_not_fit_is_refused(value: int, dtype: str) -> None:
    mask = np.zeros((4, 6), dtype)
    mask[2, 3] = value
    refused(f"^pixel_mask is {dtype}, which does not fit the declared uint32$", inputs={"pixel_mask": mask})


def test_an_integer_constant_that_does_not_fit_is_refused() -> None:
    with pytest.raises(BindError, match=r"^count is int64, which does not fit the declared uint8$"):
        extra(count=ConstantMap(np.full((4, 6), 256), ()))


@pytest.mark.parametrize("pixels", [(24,), (4, 6, 1), ()])
def test_the_words_have_the_pixel_dims_of_the_formula(pixels: tuple[int, ...]) -> None:
    given = {name: ConstantMap(np.ones((3, *pixels)), STAGES) for name in ("gain", "pedestal")}
    refused("y, x", layout=RawLayout(5, pixels), **given)


def test_words_that_are_reals_are_bound() -> None:
    text = EXTRA.replace('dtype = "uint32"', "", 1)
    given = extra().arrays
    maps = {
        "scale": ConstantMap(np.array(2.0), ()),
        "by_cell": ConstantMap(given["by_cell"], ((9, 4),)),
        "count": ConstantMap(given["count"], ()),
    }
    words: dict[str, np.dtype[Any]] = {"raw": np.dtype("float32")}
    assert bind(Formula.from_toml(text), LAYOUT, words, {}, maps).words == ("raw",)


def test_arrays_of_a_calibration_cannot_be_written() -> None:
    bound = jungfrau(gain=ConstantMap(np.ones((3, 4, 6), np.float32), STAGES))
    with pytest.raises(ValueError, match="read-only"):
        bound.arrays["gain"][0, 0, 0] = 7


def computed(bound: Calibration, window: tuple[slice, ...]) -> Array:
    """Energies of a window, by what is prepared for it."""
    program, own = bound.program(), raw()[(slice(0, 5), *window)]
    plan = bound.plan(program, 5, window)
    value = np.empty((5, plan.pixels), np.float32)
    plan.evaluate(bound.by_frame(program, {"raw": own}, slice(0, 5), window), value)
    return value


@pytest.mark.parametrize("window", [*WINDOWS, ()])
def test_what_is_prepared_of_a_window_gives_its_pixels_again_and_again(window: tuple[slice, ...]) -> None:
    bound = jungfrau(inputs={"pixel_mask": np.eye(4, 6, dtype=np.uint32)})
    program = bound.program()
    wanted, _ = reference.evaluate(program, bound.block(program, {"raw": raw()}, slice(0, 5)))
    for _ in range(3):
        whole = wanted.reshape(5, 4, 6)[(slice(None), *window)]
        np.testing.assert_array_equal(computed(bound, window), whole.reshape(5, -1))
    assert bound.plan(program, 5, window) is bound.plan(program, 5, window)


def test_few_windows_are_remembered() -> None:
    bound = jungfrau()
    program = bound.program()
    windows = [(slice(y, y + 1), slice(0, x)) for y in range(4) for x in range(1, 7)]
    for window in windows:
        bound.plan(program, 5, window)
    assert len(bound._windows._found) <= kernel_windows.MAX_WINDOWS < len(windows)


def test_windows_whose_copies_are_large_are_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_windows, "MAX_COPIED", 100)
    bound = jungfrau()
    program = bound.program()
    assert bound.plan(program, 5) is bound.plan(program, 5)
    inner = (slice(1, 3), slice(1, 5))
    assert bound.plan(program, 5, inner) is not bound.plan(program, 5, inner)
