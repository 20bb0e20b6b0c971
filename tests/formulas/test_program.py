from __future__ import annotations

import math
import pickle
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaincal.errors import RequestError
from gaincal.formulas import catalog
from gaincal.formulas.formula import Formula
from gaincal.formulas.program import (
    RESERVED_FLAGS,
    Program,
    needs,
    program_for_output,
    program_for_step,
)
from gaincal.formulas.program import (
    testable_flags as flags_to_test,
)

from . import strategies as s

JUNGFRAU = catalog.get("jungfrau")
LABELS = {"pedestal": ((0, 1, 2),), "gain": ((0, 1, 2),)}
ALL = frozenset({"raw", "photon_energy", "pixel_mask", "pedestal", "gain"})
NAN = float("nan")
LARGEST = (2 - 2**-23) * 2.0**127
"""The largest float32."""


def program(
    given_names: frozenset[str] = ALL, name: str | None = None, dtype: str | None = None, flagged: float | None = None
) -> Program:
    return program_for_output(JUNGFRAU, LABELS, given_names, name, dtype, flagged)


def names(items: tuple[object, ...]) -> list[str]:
    return [str(getattr(item, "name", "")) for item in items]


def test_needs_are_inputs_and_constants() -> None:
    assert needs(JUNGFRAU, "energy") == {"raw", "pedestal", "gain"}
    assert needs(JUNGFRAU, "counts") == {"raw", "pedestal", "gain", "photon_energy"}
    assert needs(JUNGFRAU, "stage") == needs(JUNGFRAU, "raw") == {"raw"}


def test_the_default_output_is_taken() -> None:
    assert program() == program(name="energy") == program(name="energy", dtype="float32")
    assert (program().value, program().dtype, program().fill, program().limits) == ("energy", "float32", None, None)
    assert (program().compute, program().voiding) == ("float32", True)


def test_only_what_is_needed_is_kept() -> None:
    found = program(ALL - {"photon_energy", "pixel_mask"})
    assert names(found.inputs) == ["raw"]
    assert names(found.constants) == ["pedestal", "gain"]
    assert names(found.tables) == ["stage_of_code"]
    assert "photons" not in names(found.steps)
    assert found.labels == (("pedestal", ((0, 1, 2),)), ("gain", ((0, 1, 2),)))


def test_steps_stay_in_order() -> None:
    order = names(JUNGFRAU.steps)
    found = names(program(name="counts").steps)
    assert found == [name for name in order if name in found]


@pytest.mark.parametrize(
    ("missing", "untested"),
    [
        ("pixel_mask", {"masked"}),
        ("photon_energy", set()),
    ],
)
def test_a_flag_is_tested_if_all_that_it_needs_is_given(missing: str, untested: set[str]) -> None:
    found = program(ALL - {missing})
    assert {f.name for _, f in found.flags} == {f.name for f in JUNGFRAU.flags} - untested


def test_bits_belong_to_the_place_in_the_table_tested_or_not() -> None:
    for absent in ({"pixel_mask"}, {"gain"}, {"pedestal"}, {"raw"}):
        for bit, flag in flags_to_test(JUNGFRAU, ALL - absent):
            assert JUNGFRAU.flags[bit] == flag
    assert [bit for bit, _ in flags_to_test(JUNGFRAU, frozenset({"raw", "pixel_mask"}))] == [0, 1, 2, 3, 5]
    assert flags_to_test(JUNGFRAU, frozenset()) == []


@pytest.mark.parametrize("name", ["energy", "photons", "counts"])
def test_what_is_not_given_is_named(name: str) -> None:
    for missing in needs(JUNGFRAU, name):
        with pytest.raises(RequestError, match=f"output '{name}' needs {missing}, which"):
            program(ALL - {missing}, name)


def test_all_that_is_not_given_is_named() -> None:
    with pytest.raises(RequestError, match="needs gain, pedestal, raw"):
        program(frozenset())


@pytest.mark.parametrize("name", ["adc", "", "raw", "Energy"])
def test_an_unknown_output_is_named_with_those_there_are(name: str) -> None:
    with pytest.raises(RequestError, match=f"no output '{name}'; it has energy, photons, counts"):
        program(name=name)


@pytest.mark.parametrize(
    ("name", "dtype"), [("energy", "float64"), ("energy", "int32"), ("counts", "uint16"), ("counts", "odd")]
)
def test_an_undeclared_dtype_is_named_with_those_there_are(name: str, dtype: str) -> None:
    with pytest.raises(RequestError, match=f"output '{name}' is declared as .*, not {dtype}"):
        program(name=name, dtype=dtype)


@pytest.mark.parametrize(
    ("dtype", "fill", "limits"),
    [
        (None, -(2**31), (-(2**31) + 1, 2**31 - 1)),
        ("int32", -(2**31), (-(2**31) + 1, 2**31 - 1)),
        ("int16", -32_768, (-32_767, 32_767)),
    ],
)
def test_limits_leave_out_the_declared_fill(dtype: str | None, fill: int, limits: tuple[int, int]) -> None:
    found = program(name="counts", dtype=dtype)
    assert (found.fill, found.limits, found.dtype) == (fill, limits, dtype or "int32")


@pytest.mark.parametrize(("dtype", "low", "high"), [("uint8", 0, 255), ("int8", -128, 127), ("uint32", 0, 2**32 - 1)])
def test_the_fill_may_be_either_end(dtype: str, low: int, high: int) -> None:
    for fill, limits in ((low, (low + 1, high)), (high, (low, high - 1))):
        output = f'base = {{ units = "ADU", dtype = "{dtype}", fill = {fill}, default = true }}'
        found = program_for_output(Formula.from_toml(s.document({}, output)), {}, frozenset({"raw"}))
        assert (found.fill, found.limits) == (fill, limits)


@pytest.mark.parametrize("flagged", [-(2**31), 2**31 - 1, 0, -1.0, 65_535])
def test_a_chosen_fill_replaces_the_declared_one_but_not_the_limits(flagged: float) -> None:
    found = program(name="counts", flagged=flagged)
    assert (found.fill, type(found.fill)) == (int(flagged), int)
    assert found.limits == program(name="counts").limits


@pytest.mark.parametrize("flagged", [NAN, 0.5, float("inf"), -float("inf"), 2**31, -(2**31) - 1, 1e300])
def test_a_fill_that_an_integer_cannot_hold_is_refused(flagged: float) -> None:
    with pytest.raises(RequestError, match="output 'counts' is int32 and cannot hold"):
        program(name="counts", flagged=flagged)


@pytest.mark.parametrize("flagged", [10**400, -(10**400)])
def test_a_fill_beyond_all_floats_is_refused(flagged: int) -> None:
    for name in ("counts", "energy", "photons"):
        with pytest.raises(RequestError, match=f"output '{name}' is .* and cannot hold"):
            program(name=name, flagged=flagged)


@pytest.mark.parametrize("flagged", [0, -1, 0.5, 2**31, -1e-300, LARGEST, -LARGEST])
def test_a_floating_point_output_holds_any_finite_number_of_its_range(flagged: float) -> None:
    found = program(flagged=flagged)
    assert (found.fill, type(found.fill)) == (flagged, float)


def test_nan_is_kept_as_none() -> None:
    assert program(flagged=NAN) == program()


@pytest.mark.parametrize("name", ["energy", "counts"])
def test_zeros_of_either_sign_are_one_program_with_the_positive_one(name: str) -> None:
    found = program(name=name, flagged=-0.0)
    assert (found, hash(found)) == (program(name=name, flagged=0.0), hash(program(name=name, flagged=0.0)))
    assert (found.fill, math.copysign(1, found.fill or 0)) == (0, 1)


@pytest.mark.parametrize("flagged", [math.inf, -math.inf, math.nextafter(LARGEST, math.inf), -1e39, 1e300, 2**1023])
def test_an_infinite_fill_or_one_beyond_the_dtype_is_refused(flagged: float) -> None:
    with pytest.raises(RequestError, match="output 'energy' is float32 and cannot hold"):
        program(flagged=flagged)


@pytest.mark.parametrize("flagged", [sys.float_info.max, -sys.float_info.max, 1e300])
def test_a_float64_output_holds_what_a_float32_cannot(flagged: float) -> None:
    output = 'base = { units = "ADU", dtype = "float64", default = true }'
    formula = Formula.from_toml(s.document({}, output))
    assert program_for_output(formula, {}, frozenset({"raw"}), flagged=flagged).fill == flagged
    for infinite in (math.inf, -math.inf, 10**400):
        with pytest.raises(RequestError, match="output 'base' is float64 and cannot hold"):
            program_for_output(formula, {}, frozenset({"raw"}), flagged=infinite)


@pytest.mark.parametrize(
    ("name", "dtype", "fill", "limits"), [("stage", "int8", -1, (-128, 127)), ("raw", "uint16", 0, (0, 65_535))]
)
def test_a_step_or_the_words_are_delivered_as_they_are(
    name: str, dtype: str, fill: int, limits: tuple[int, int]
) -> None:
    found = program_for_step(JUNGFRAU, LABELS, name, dtype)
    assert (found.value, found.dtype, found.fill, found.limits) == (name, dtype, fill, limits)
    assert (found.flags, found.voiding, found.constants, found.labels) == ((), False, (), ())
    assert names(found.inputs) == ["raw"]


def test_reserved_bits_are_above_the_flags() -> None:
    assert RESERVED_FLAGS == {"no_value": 29, "clipped": 30, "missing": 31}


def test_a_program_is_hashable_and_picklable() -> None:
    found = program(name="counts")
    again = pickle.loads(pickle.dumps(found))
    assert (again, hash(again)) == (found, hash(found))


@given(s.formulas(), st.data())
def test_a_program_has_all_that_its_steps_refer_to_and_nothing_else(formula: Formula, data: st.DataObject) -> None:
    output = data.draw(st.sampled_from(formula.outputs))
    labels = {c.name: ((0, 1), (0, 1), (0, 1))[: len(formula.checked.types[c.name].axes)] for c in formula.constants}
    every = sorted({i.name for i in formula.inputs} | {c.name for c in formula.constants})
    present = frozenset(data.draw(st.sets(st.sampled_from(every)))) | needs(formula, output.name)
    found = program_for_output(formula, labels, present, output.name)
    parts = [*names(found.inputs), *names(found.constants), *names(found.tables), *names(found.steps)]
    referred = {a for step in found.steps for a in step.arguments if a[0].isalpha()}
    wanted = {f.when for _, f in found.flags} | {output.name}
    assert referred | wanted == {*parts}
    assert {name for name, _ in found.types} == {*parts}
    assert {*names(found.inputs), *names(found.constants)} <= present
    assert [f for _, f in found.flags] == [f for f in formula.flags if needs(formula, f.when) <= present]
