"""Every formula of the catalogue on all its words: the kernel, the reference, and the second opinion agree."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cases import MAKERS, WORDS, Case, case
from differences import computed, default_and_variance, default_in_double, in_double, in_single, second_opinion
from independent import EPIX10KA_RANGES
from kernels.helpers import assert_same_bits, bits

from gaincal.calibration import RawLayout, bind
from gaincal.constants import ConstantMap
from gaincal.formulas import catalog
from gaincal.formulas.formula import Formula

pytestmark = pytest.mark.slow
Array = npt.NDArray[Any]
ROOT = Path(__file__).resolve().parent.parent.parent
FAMILIES = sorted(n for n in catalog.names() if not n.endswith(catalog.MODULES))
WITH_MODULES = sorted(n for n in catalog.names() if n.endswith(catalog.MODULES))
DIVIDING_ULP, MULTIPLYING_ULP = 0, 6
"""Of variances; the second opinion reaches that of a gain that multiplies through the reciprocal."""


def detector_pages() -> ModuleType:
    """The script that writes the pages."""
    spec = importlib.util.spec_from_file_location("make_detectors", ROOT / "docs" / "make_detectors.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- every word ----------------------------------------------------------------------------


@pytest.fixture(scope="module", params=MAKERS)
def name(request: pytest.FixtureRequest) -> str:
    """A case; all that is asked of it is asked in one go, so that only one is held."""
    return str(request.param)


def test_every_formula_has_a_case() -> None:
    assert {name.partition(",")[0] for name in MAKERS} == set(FAMILIES)


def test_all_words_are_there(name: str) -> None:
    words = case(name).words.values()
    assert max(len(np.unique(w)) for w in words) == WORDS or name == "jungfrau_split, all codes"
    assert name != "jungfrau_split, all codes" or len(np.unique(case(name)["gain_code"])) == 256


def last_and_default(formula: Formula) -> list[str]:
    """Outputs but those that another one is made of: its kernel computes them on the way."""
    needs = formula.checked.needs
    inner = {o.name for o in formula.outputs if any(o.name in needs[p.name] for p in formula.outputs if p != o)}
    return [o.name for o in formula.outputs if o.default or o.name not in inner]


@pytest.mark.parametrize("compute", ["float32", "float64"])
def test_kernel_is_reference_bit_for_bit(name: str, compute: str) -> None:
    one = case(name)
    calibration = one.bound(compute)
    pixels = int(np.prod(one.shape[1:]))
    assert calibration.available_outputs() == [o.name for o in calibration.formula.outputs]
    for output in (last_and_default if compute == "float32" else default_and_variance)(calibration.formula):
        for dtype in (None, "int16") if output == "counts" else (None,):
            program = calibration.program(output, dtype)
            for part, words in one.blocks():
                arrays = calibration.block(program, words, part)
                assert_same_bits(program, arrays, (part.stop - part.start, pixels), note=f"{output} {dtype}")


def test_flags_are_those_of_the_second_opinion(name: str) -> None:
    one, wanted = case(name), second_opinion(name)
    calibration = one.bound("float64")
    _, flags = default_in_double(name)
    declared = [flag.name for flag in calibration.formula.flags]
    assert set(wanted.flags) == set(declared) == set(calibration.tested_flags())
    for bit, flag in enumerate(declared):
        found = (flags >> bit & 1).astype(bool)
        wrong = np.argwhere(found != wanted.flags[flag])
        assert not len(wrong), f"{flag}: {len(wrong)} differ, first at {wrong[0]}: {found[tuple(wrong[0])]}"
        assert wanted.flags[flag].any(), flag
        assert not wanted.flags[flag].all(), flag
    assert not (flags >> len(declared)).any()  # no bad pixel without a reason


def test_values_are_those_of_the_second_opinion(name: str) -> None:
    found = in_double(name)
    multiplies = name.partition(",")[0] in ("agipd", "lpd", "mpccd")
    assert found["value"] == 0
    assert found.get("variance", 0) <= (MULTIPLYING_ULP if multiplies else DIVIDING_ULP)


def test_the_pages_state_the_differences_that_were_measured() -> None:
    stated: Mapping[str, tuple[Any, ...]] = detector_pages().MEASURED
    assert set(stated) == set(FAMILIES)
    for name in ("agipd", "jungfrau", "percival"):
        absolute, relative = in_single(name)
        double = in_double(name)
        value, variance, *single = stated[name]
        assert (double["value"], double["variance"]) == (value, variance)
        assert (absolute, relative) == pytest.approx(single, rel=0.06)


# --- what a formula says -------------------------------------------------------------------


def test_every_setting_of_epix10ka_has_the_first_range_that_fits() -> None:
    table = catalog.get("epix10ka").tables[0].entries
    fits = [[k for k, (_, m, wanted) in enumerate(EPIX10KA_RANGES) if code & m == wanted] for code in range(64)]
    assert list(table) == [found[0] if found else -1 for found in fits]
    assert table.count(-1) == 16


@pytest.mark.parametrize("name", FAMILIES)
def test_what_nothing_is_known_of_is_flagged_and_every_flag_voids(name: str) -> None:
    formula = catalog.get(name)
    flags = {flag.name: flag for flag in formula.flags}
    assert all(flag.voids for flag in flags.values())
    assert "no_calibration" in flags
    assert ("masked" in flags) == (formula.checked.pixel_dims[-2:] == ("y", "x"))
    assert ("no_cell" in flags) == any(i.name == "cell" for i in formula.inputs)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_value_has_a_variance_that_defaults_to_the_shot_noise(name: str) -> None:
    formula = catalog.get(name)
    default = formula.output()
    variance = formula.variance(default.name)
    assert (variance is None) == (name == "linear")
    if variance is not None:
        errors = [c for c in formula.constants if c.name.endswith("_error") or c.name == "noise"]
        assert len(errors) == 3
        assert all(c.default == 0 for c in errors)
        assert next(c.default for c in formula.constants if c.name == "one_photon") == 1


def test_without_its_constants_the_variance_is_the_shot_noise() -> None:
    one = case("jungfrau")
    bare = replace(one, constants={n: c for n, c in one.constants.items() if n in ("pedestal", "gain")})
    value, flags = computed(bare, bare.bound("float64"))
    variance, _ = computed(bare, bare.bound("float64"), "energy_variance")
    good = flags == 0
    np.testing.assert_array_equal(variance[good], np.maximum(value[good], 0) * one["photon_energy"])


# --- frames of several modules -------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_MODULES)
def test_with_modules_the_text_differs_in_name_and_dims_only(name: str) -> None:
    own, base = (catalog.source(n).splitlines() for n in (name, name.removesuffix(catalog.MODULES)))
    assert len(own) == len(base)
    for line, other in zip(own, base, strict=True):
        if line != other:
            assert line.startswith(("name ", "dims "))
            assert line.replace('"module", ', "").replace(', "module"', "").replace(catalog.MODULES, "") == other
    formula, alone = catalog.get(name), catalog.get(name.removesuffix(catalog.MODULES))
    assert formula.checked.pixel_dims == ("module", "y", "x")
    for part in ("tables", "steps", "outputs", "flags"):
        assert getattr(formula, part) == getattr(alone, part)


def test_formulas_of_strips_or_modules_have_no_further_one() -> None:
    alone = set(FAMILIES) - {n.removesuffix(catalog.MODULES) for n in WITH_MODULES}
    assert alone == {"agipd", "gotthard2", "gotthard2_split", "lpd"}


def taken(formula: Formula, parts: list[Case], name: str) -> Array:
    """An input or constant of several modules, from those of the single ones."""
    item = next(i for i in (*formula.inputs, *formula.constants) if i.name == name)
    if "module" not in item.dims:
        return parts[0][name]
    return np.stack([part[name] for part in parts], axis=item.dims.index("module"))


@pytest.mark.parametrize("name", ["epix10ka", "jungfrau_cells", "jungfrau_hg0", "jungfrau_split"])
def test_modules_together_are_the_modules_one_by_one(name: str) -> None:
    """The second module has the frames of the first in reverse, so that their cells differ."""
    one = case(name)
    some = slice(0, None, 37)
    frames = {n: a for n, a in {**one.words, **one.inputs}.items() if a.ndim and len(a) == one.shape[0]}
    cut = [{n: a[some][::turn] for n, a in frames.items()} for turn in (1, -1)]
    parts = [
        replace(
            one, words={n: c[n] for n in one.words}, inputs={**one.inputs, **{n: c[n] for n in c if n in one.inputs}}
        )
        for c in cut
    ]
    formula = catalog.get(name + catalog.MODULES)
    given = {n: taken(formula, parts, n) for n in (*one.words, *one.inputs)}
    constants = {n: ConstantMap(taken(formula, parts, n), labels) for n, (_, labels) in one.constants.items()}
    shape = given[next(iter(one.words))].shape
    dtypes = {n: given[n].dtype for n in one.words}
    inputs = {n: given[n] for n in one.inputs}
    whole = bind(formula, RawLayout(shape[0], shape[1:]), dtypes, inputs, constants)
    together = replace(one, words={n: given[n] for n in one.words})
    for output in default_and_variance(formula):
        found = computed(together, whole, output)
        for k, part in enumerate(parts):
            alone = computed(part, part.bound(), output)
            for a, b in zip(found, alone, strict=True):
                np.testing.assert_array_equal(bits(a[:, k]), bits(b))


# --- the pages -----------------------------------------------------------------------------


def test_the_pages_are_up_to_date() -> None:
    pages = detector_pages().pages()
    folder = ROOT / "docs" / "reference" / "detectors"
    assert {p.name for p in folder.iterdir()} == {f"{name}.md" for name in FAMILIES} == set(pages)
    for name, text in pages.items():
        assert (folder / name).read_text("utf-8") == text, f"{name}: run docs/make_detectors.py"
