from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, fields, replace

import pytest
from hypothesis import given

from gaincal.errors import FormulaError, RequestError
from gaincal.formulas import catalog
from gaincal.formulas.formula import Formula, Step

from . import strategies as s


def formula_of(text: str) -> Formula:
    return Formula.from_toml(s.document({"energy": text}))


@pytest.mark.parametrize("name", [f.name for f in fields(Formula)])
def test_a_formula_is_frozen(name: str) -> None:
    formula = formula_of("raw + 2")
    with pytest.raises(FrozenInstanceError):
        setattr(formula, name, None)


@pytest.mark.parametrize("part", ["inputs", "constants", "tables", "steps", "outputs", "flags"])
def test_every_part_is_frozen_and_hashable(part: str) -> None:
    for item in getattr(catalog.get("jungfrau"), part):
        hash(item)
        with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
            item.name = "other"
        with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
            item.surplus = "other"


@given(s.formulas())
def test_equal_formulas_hash_alike(formula: Formula) -> None:
    twin = Formula.from_toml(formula.to_toml())
    assert (twin == formula, hash(twin) == hash(formula), len({twin, formula})) == (True, True, 1)


@given(s.formulas())
def test_a_formula_survives_pickle_and_copy(formula: Formula) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(formula, protocol))
        assert (again, again.digest, hash(again)) == (formula, formula.digest, hash(formula))
        assert again.checked.types == formula.checked.types
    assert copy.deepcopy(formula) == copy.copy(formula) == formula


def test_a_digest_is_stable_and_names_its_algorithm() -> None:
    formula = formula_of("raw * 2")
    assert formula.digest == formula_of("raw*2").digest == formula_of(" ( raw * 0x2 ) ").digest
    kind, _, digits = formula.digest.partition(":")
    assert (kind, len(digits), int(digits, 16) > 0) == ("sha256", 64, True)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("raw * 2", "raw * 2.0"),
        ("raw * 0.0", "raw * -0.0"),
        ("raw * 1", "raw * 3"),
        ("raw * 2", "2 * raw"),
        ("raw - 2", "raw + -2"),
        ("scale + scale * 2", "scale * 2 + scale"),
        ("scale + (scale + 1)", "scale + scale + 1"),
        ("min(scale, 1.0)", "max(scale, 1.0)"),
    ],
)
def test_what_computes_differently_has_another_digest(one: str, other: str) -> None:
    assert formula_of(one) != formula_of(other)
    assert formula_of(one).digest != formula_of(other).digest


def test_every_part_changes_the_digest() -> None:
    formula = catalog.get("jungfrau")
    others = [
        replace(formula, name="other"),
        replace(formula, version=2),
        replace(formula, title="other"),
        formula.with_compute("float64"),
        replace(formula, flags=()),
        replace(formula, flags=(replace(formula.flags[0], voids=False), *formula.flags[1:])),
        replace(formula, flags=(replace(formula.flags[0], pixel_mask_bit=None), *formula.flags[1:])),
        replace(formula, outputs=formula.outputs[:-1]),
        replace(formula, outputs=(replace(formula.outputs[0], dtype="float64"), *formula.outputs[1:])),
        replace(formula, tables=(replace(formula.tables[0], entries=(0, 1, -1, 2, 3)),)),
        replace(formula, constants=(*formula.constants, replace(formula.constants[0], name="spare"))),
        replace(formula, inputs=(*formula.inputs, replace(formula.inputs[1], name="spare"))),
    ]
    assert len({formula.digest, *(f.digest for f in others)}) == 1 + len(others)


def test_with_compute_changes_the_type_of_reals_alone() -> None:
    formula = catalog.get("jungfrau")
    assert formula.with_compute("float32") == formula
    assert formula.with_compute("float64").compute == "float64"
    assert formula.with_compute("float64").steps == formula.steps
    with pytest.raises(FormulaError) as caught:
        formula.with_compute("float16")
    assert caught.value.where == "formula.compute"


def test_outputs_are_found_by_name_and_refused_by_name() -> None:
    formula = catalog.get("jungfrau")
    assert formula.output() == formula.output("energy")
    assert formula.output("counts").dtype == "int32"
    with pytest.raises(RequestError, match=r"no output 'adc'.*energy, photons, counts"):
        formula.output("adc")


def test_every_constructor_checks() -> None:
    formula = catalog.get("jungfrau")
    with pytest.raises(FormulaError, match="not defined before"):
        replace(formula, steps=formula.steps[1:])
    with pytest.raises(FormulaError, match="unknown operation"):
        replace(formula, steps=(*formula.steps, Step("more", "shift", ("raw",))))


def test_errors_survive_pickle() -> None:
    with pytest.raises(FormulaError) as caught:
        formula_of("raw + ?")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.where, again.position) == (str(caught.value), "steps.energy", 6)
