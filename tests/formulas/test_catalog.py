from __future__ import annotations

import pytest

from gaincal.errors import RequestError
from gaincal.formulas import catalog
from gaincal.formulas.columns import from_columns, to_columns
from gaincal.formulas.formula import Formula

NAMES = catalog.names()


def test_the_catalogue_is_sorted_and_has_jungfrau() -> None:
    assert sorted(NAMES) == NAMES
    assert "jungfrau" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_formula_loads_under_its_name(name: str) -> None:
    formula = catalog.get(name)
    assert formula.name == name
    assert formula == catalog.get(name) == Formula.from_toml(catalog.source(name))
    assert formula.title


@pytest.mark.parametrize("name", NAMES)
def test_every_formula_is_explained_before_it_begins(name: str) -> None:
    head = catalog.source(name).partition("[formula]")[0].splitlines()
    assert len(head) >= 2
    assert all(line.startswith("# ") and len(line) > 20 for line in head)


@pytest.mark.parametrize("name", NAMES)
def test_every_formula_survives_text_and_columns(name: str) -> None:
    formula = catalog.get(name)
    assert Formula.from_toml(formula.to_toml()) == formula
    assert from_columns(to_columns(formula)) == formula
    assert from_columns(to_columns(formula)).digest == formula.digest


@pytest.mark.parametrize("name", NAMES)
def test_every_formula_is_written_in_its_own_words(name: str) -> None:
    written = [line for line in catalog.source(name).splitlines() if "=" in line and not line.startswith("#")]
    assert len(written) >= len(catalog.get(name).outputs) + len(catalog.get(name).flags)


@pytest.mark.parametrize("name", ["", "Jungfrau", "jungfrau.toml", "../jungfrau", "__init__", "/etc/passwd", "\0"])
def test_another_name_is_refused_with_those_there_are(name: str) -> None:
    for function in (catalog.get, catalog.source):
        with pytest.raises(RequestError, match=r"no formula .*jungfrau"):
            function(name)
