from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given

from gaincal.errors import FormulaError
from gaincal.formulas import catalog
from gaincal.formulas.columns import LAYOUT, from_columns, required_operations, to_columns
from gaincal.formulas.formula import Constant, Formula, Table
from gaincal.formulas.operations import OPERATIONS

from . import strategies as s

JUNGFRAU = catalog.get("jungfrau")
Stored = dict[str, dict[str, list[Any]]]

COLUMNS = [(group, column) for group, layout in LAYOUT.items() for column in layout]
ROWS = [(group, column) for group, column in COLUMNS if column != "required_operations"]
WRONG: dict[str, list[Any]] = {
    "text": [1, 1.0, None, b"raw", True, ("raw",)],
    "integer": ["1", 1.0, None, True, math.nan],
    "real": ["nan", 1, None, True],
}


def stored(formula: Formula | None = None) -> Stored:
    columns = to_columns(formula or JUNGFRAU)
    return {group: {name: list(cells) for name, cells in found.items()} for group, found in columns.items()}


def refusal(columns: Stored) -> FormulaError:
    with pytest.raises(FormulaError) as caught:
        from_columns(columns)
    return caught.value


def outcome(columns: Stored) -> FormulaError | Formula:
    try:
        return from_columns(columns)
    except FormulaError as error:
        return error


def changed(formula: Formula, **changes: Any) -> FormulaError | Formula:
    try:
        return replace(formula, **changes)
    except FormulaError as error:
        return error


def row(columns: Stored, group: str, name: str) -> int:
    return columns[group]["name"].index(name)


def formula_of(*steps: tuple[str, ...]) -> Stored:
    """Columns with a word ``raw``, a real ``x`` and these steps; the last one is the output."""
    formula = Formula.from_toml(
        '[formula]\nname = "f"\nversion = 1\ntitle = ""\n[inputs]\n'
        'raw = { dims = ["frame", "x_dim"], units = "1", dtype = "uint16" }\nx = { dims = [], units = "1" }\n'
        '[steps]\ny = "x + 1"\n[outputs]\ny = { units = "1", dtype = "float32", default = true }\n'
    )
    columns = stored(formula)
    columns["steps"]["name"] = [name for name, *_ in steps]
    columns["steps"]["operation"] = [operation for _, operation, *_ in steps]
    for k in range(4):
        columns["steps"][f"argument_{k + 1}"] = [step[k + 2] if k + 2 < len(step) else "" for step in steps]
    columns["outputs"]["name"] = [steps[-1][0]]
    used = {operation for _, operation, *_ in steps}
    columns["formula"]["required_operations"] = [o for o in OPERATIONS if o in used]
    return columns


@given(s.formulas())
def test_columns_formula_columns_is_the_identity(formula: Formula) -> None:
    columns = to_columns(formula)
    again = from_columns(columns)
    assert (again, again.digest) == (formula, formula.digest)
    assert repr(to_columns(again)) == repr(columns)


@given(s.formulas())
def test_columns_have_the_layout(formula: Formula) -> None:
    columns = to_columns(formula)
    assert {*columns} == {*LAYOUT, "tables"}
    kinds = {"text": str, "integer": int, "real": float}
    for group, layout in LAYOUT.items():
        assert list(columns[group]) == list(layout)
        assert len({len(columns[group][c]) for c in layout if c != "required_operations"}) == 1
        assert all(type(cell) is kinds[kind] for c, kind in layout.items() for cell in columns[group][c])


def test_any_sequence_will_do() -> None:
    columns: dict[str, dict[str, Sequence[Any]]] = {
        group: {name: tuple(cells) for name, cells in found.items()} for group, found in stored().items()
    }
    assert from_columns(columns) == catalog.get("jungfrau")


@pytest.mark.parametrize(("group", "column"), COLUMNS)
def test_a_missing_column_is_named(group: str, column: str) -> None:
    columns = stored()
    del columns[group][column]
    assert refusal(columns).where == f"{group}.{column}"


@pytest.mark.parametrize("group", LAYOUT)
def test_a_missing_group_is_named(group: str) -> None:
    columns = stored()
    del columns[group]
    assert refusal(columns).where.startswith(group)


def test_nothing_at_all_is_refused() -> None:
    assert refusal({}).where == "formula.format_version"


def test_tables_may_be_missing_where_none_is_used() -> None:
    columns = formula_of(("y", "add", "x", "1"))
    del columns["tables"]
    assert from_columns(columns).tables == ()


@pytest.mark.parametrize("group", LAYOUT)
@pytest.mark.parametrize("name", ["more", "", "NAME", "name\n"])
def test_an_unknown_column_is_named(group: str, name: str) -> None:
    columns = stored()
    columns[group][name] = [""] * len(columns[group]["name"])
    error = refusal(columns)
    shown = name.replace("\n", "\\n")
    assert error.where == f"{group}.{shown}"
    assert str(error).isprintable()


@pytest.mark.parametrize(("group", "column"), COLUMNS)
def test_a_cell_of_another_type_is_named(group: str, column: str) -> None:
    for wrong in WRONG[LAYOUT[group][column]]:
        for at in (0, -1):
            columns = stored()
            columns[group][column][at] = wrong
            assert refusal(columns).where == f"{group}.{column}", wrong


@pytest.mark.parametrize(("group", "column"), ROWS)
@pytest.mark.parametrize("change", [-1, 1])
def test_a_column_of_another_length_is_refused_with_its_group(group: str, column: str, change: int) -> None:
    columns = stored()
    cells = columns[group][column]
    columns[group][column] = cells[:-1] if change < 0 else [*cells, cells[-1]]
    assert refusal(columns).where.startswith(group)


def test_the_head_has_one_row() -> None:
    for count in (0, 2):
        columns = stored()
        for name in {*LAYOUT["formula"]} - {"required_operations"}:
            columns["formula"][name] *= count
        assert refusal(columns).where.startswith("formula")


@pytest.mark.parametrize("version", [0, 2, -1, 2**31 - 1, "1", 1.0, None, True])
def test_another_format_version_is_refused_before_anything_else(version: object) -> None:
    error = refusal({"formula": {"format_version": [version]}, "steps": {"odd": ["?"]}})
    assert error.where == "formula.format_version" or version in (1, True)
    columns = stored()
    columns["formula"]["format_version"] = [version]
    assert refusal(columns).where == "formula.format_version"


def test_an_unknown_required_operation_is_named_before_the_steps_are_read() -> None:
    columns = stored()
    columns["formula"]["required_operations"].append("convolve")
    columns["steps"]["name"][0] = "?"
    error = refusal(columns)
    assert error.where.startswith("formula")
    assert "'convolve'" in error.problem


def test_an_unknown_operation_in_a_step_is_named() -> None:
    columns = stored()
    columns["steps"]["operation"][0] = "convolve"
    error = refusal(columns)
    assert (error.where, "'convolve'" in error.problem) == ("steps.adc", True)


@pytest.mark.parametrize("change", ["missing", "surplus", "doubled", "reordered"])
def test_required_operations_are_exactly_those_of_the_steps(change: str) -> None:
    columns = stored()
    names = columns["formula"]["required_operations"]
    assert names == required_operations(catalog.get("jungfrau"))
    columns["formula"]["required_operations"] = {
        "missing": names[1:],
        "surplus": [*names, "exp"],
        "doubled": [*names, names[-1]],
        "reordered": names[::-1],
    }[change]
    assert refusal(columns).where == "formula.required_operations"


def test_steps_in_another_order_are_refused() -> None:
    columns = formula_of(("a", "add", "x", "1"), ("b", "add", "x", "2"), ("y", "add", "x", "3"))
    assert from_columns(columns).steps[0].name == "a"
    columns = formula_of(("y.1", "add", "x", "1"), ("a", "add", "x", "2"), ("y", "add", "y.1", "3"))
    assert refusal(columns).where == "steps"
    columns = formula_of(("b", "add", "a", "1"), ("a", "add", "x", "2"))
    assert refusal(columns).where == "steps.b"


@pytest.mark.parametrize(
    "steps",
    [
        (("y.2", "add", "x", "1"), ("y", "add", "y.2", "3")),
        (("z.1", "add", "x", "1"), ("y", "add", "z.1", "3")),
        (("y.1", "add", "x", "1"), ("y", "add", "x", "3")),
        (("y.1", "add", "x", "1"), ("y", "add", "y.1", "y.1")),
        (("y.1", "add", "x", "1"), ("y.2", "add", "x", "2"), ("y", "add", "y.2", "y.1")),
        (("y.1", "add", "x", "1"), ("y.2", "add", "y.1", "2"), ("y", "add", "y.1", "y.2")),
        (("a.1", "add", "x", "1"), ("a", "add", "a.1", "2"), ("y", "add", "a.1", "a")),
        (("y", "add", "x", "1"), ("y.1", "add", "y", "2")),
    ],
)
def test_anonymous_steps_that_no_text_gives_are_refused(steps: tuple[tuple[str, ...], ...]) -> None:
    assert refusal(formula_of(*steps)).where


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        (("y", "add"), "argument that is a name"),
        (("y", "add", "1", "2"), "argument that is a name"),
        (("y", "add", "x"), "takes 2"),
        (("y", "add", "x", "1", "2"), "takes 2"),
        (("y", "add", "x", "1", "2", "3"), "takes 2"),
        (("y", "add", "x", "", "1"), "''"),
        (("y", "add", "", "x"), "''"),
        (("y", "add", "x", "y"), "'y' is not defined"),
        (("y", "add", "x", "z"), "'z' is not defined"),
        (("y", "add", "x", "x + 1"), "not defined"),
        (("y", "add", "x", "0x10"), "not defined"),
        (("y", "add", "x", "+1"), "not defined"),
        (("y", "add", "x", "01"), "not defined"),
        (("y", "add", "x", "1."), "not defined"),
        (("y", "add", "x", ".5"), "not defined"),
        (("y", "add", "x", "1e"), "not defined"),
        (("y", "add", "x", "1_0"), "not defined"),
        (("y", "add", "x", " 1"), "not defined"),
        (("y", "add", "x", "nan"), "not defined"),
        (("y", "add", "x", "-inf"), "not defined"),
        (("y", "add", "x", "\u0661"), "not defined"),
        (("y", "add", "x", "1e999"), "finite"),
        (("y", "add", "x", "9007199254740993"), "2^53"),
        (("y", "add", "x", "-9007199254740993"), "2^53"),
        (("y", "add", "x", "9" * 31), "2^53"),
        (("y", "add", "x", "9" * 32), "not defined"),
        (("y", "add", "x", "-" + "9" * 32), "not defined"),
        (("y", "add", "x", "9" * 250), "not defined"),
        (("y", "add", "x", "9" * 1025), "longer"),
        (("y", "bits", "raw", "0", "raw"), "integer literal"),
        (("y", "select", "x", "1"), "named axes"),
        (("y", "lookup", "x", "raw"), "table"),
        (("Y", "add", "x", "1"), "not a name"),
        (("", "add", "x", "1"), "not a name"),
        (("y.0", "add", "x", "1"), "not a name"),
        (("y.1000", "add", "x", "1"), "not a name"),
        (("y.1.1", "add", "x", "1"), "not a name"),
        (("y\n", "add", "x", "1"), "not a name"),
        (("x", "add", "x", "1"), "used twice"),
        (("exp", "add", "x", "1"), "reserved"),
    ],
)
def test_a_step_that_breaks_a_rule_is_refused_with_its_name(step: tuple[str, ...], problem: str) -> None:
    error = refusal(formula_of(step))
    assert error.where.startswith("steps")
    assert problem in error.problem
    assert str(error).isprintable()


@pytest.mark.parametrize(
    ("cell", "kept"), [("2", "2"), ("2.0", "2.0"), ("-0", "0"), ("1e5", "100000.0"), ("5e-1", "0.5")]
)
def test_numbers_are_read_in_any_spelling_and_kept_in_one(cell: str, kept: str) -> None:
    assert from_columns(formula_of(("y", "multiply", "x", cell))).steps[0].arguments == ("x", kept)


def test_shared_anonymous_steps_are_refused_before_they_are_written_out() -> None:
    doubling = [(f"y.{k}", "add", *[f"y.{k - 1}" if k > 1 else "x"] * 2) for k in range(1, 17)]
    columns = formula_of(*doubling, ("y", "add", "y.16", "y.16"))
    start = time.thread_time()
    assert refusal(columns).where
    assert time.thread_time() - start < 0.1


def test_a_deep_chain_of_anonymous_steps_is_refused() -> None:
    chain = [(f"y.{k}", "negate", f"y.{k - 1}" if k > 1 else "x") for k in range(1, 256)]
    assert refusal(formula_of(*chain, ("y", "negate", "y.255"))).where


@pytest.mark.parametrize(
    ("group", "column", "cell", "where"),
    [
        ("formula", "name", "Jungfrau", "formula.name"),
        ("formula", "version", 0, "formula.version"),
        ("formula", "version", 2**31, "formula.version"),
        ("formula", "title", "a\x1b[31m", "formula.title"),
        ("formula", "compute_dtype", "float128", "formula.compute"),
        ("formula", "title", "x" * 257, "formula.title"),
        ("inputs", "name", "RAW", "inputs.RAW"),
        ("inputs", "dims", "frame", "inputs"),
        ("inputs", "dims", "frame  y x", "inputs.raw"),
        ("inputs", "units", "counts", "inputs.raw"),
        ("inputs", "dtype", "int16", "inputs.raw"),
        ("constants", "dims", "frame y x", "constants.pedestal"),
        ("constants", "dims", "stage x", "constants.pedestal"),
        ("constants", "units", "", "constants.pedestal"),
        ("constants", "name", "raw", "constants.raw"),
        ("outputs", "name", "adcs", "outputs.adcs"),
        ("outputs", "units", "ADU", "outputs.energy"),
        ("outputs", "dtype", "float16", "outputs.energy"),
        ("outputs", "fill", 0.0, "outputs.energy"),
        ("outputs", "fill", 0.5, "outputs.energy"),
        ("outputs", "fill", math.inf, "outputs.energy"),
        ("outputs", "fill", -math.inf, "outputs.energy"),
        ("outputs", "default", 0, "outputs"),
        ("outputs", "default", 2, "outputs.energy"),
        ("outputs", "default", -1, "outputs.energy"),
        ("flags", "name", "clipped", "flags.clipped"),
        ("flags", "when", "raw", "flags.invalid_gain_code"),
        ("flags", "when", "", "flags.invalid_gain_code"),
        ("flags", "when", "raw == 0", "flags.invalid_gain_code"),
        ("flags", "voids", 2, "flags.invalid_gain_code"),
        ("flags", "pixel_mask_bit", 5, "flags.invalid_gain_code"),
        ("flags", "pixel_mask_bit", -2, "flags.invalid_gain_code"),
        ("flags", "pixel_mask_bit", 2**63, "flags.invalid_gain_code"),
    ],
)
def test_a_bad_cell_is_refused_with_its_place(group: str, column: str, cell: object, where: str) -> None:
    columns = stored()
    columns[group][column][0] = cell
    error = refusal(columns)
    assert error.where == where
    assert str(error).isprintable()


def test_rows_of_one_output_agree_in_units_and_default() -> None:
    at = row(stored(), "outputs", "counts")
    for column, cell in (("units", "keV"), ("default", 1)):
        columns = stored()
        assert columns["outputs"]["name"][at : at + 2] == ["counts", "counts"]
        columns["outputs"][column][at + 1] = cell
        assert refusal(columns).where == "outputs.counts"


def test_rows_of_one_output_stand_together() -> None:
    columns = stored()
    for cells in columns["outputs"].values():
        cells.append(cells.pop(row(stored(), "outputs", "energy")))
    assert len(from_columns(columns).outputs) == 4
    for cells in columns["outputs"].values():
        cells.insert(0, cells[row(stored(), "outputs", "counts") - 1])
    assert refusal(columns).where == "outputs"


@pytest.mark.parametrize(
    "entries", [[], [0.0], ["0"], [True], [None], [2**31], [-(2**31) - 1], [0] * 65_537, [0, 1, -1, math.nan]]
)
def test_a_bad_table_is_named(entries: list[Any]) -> None:
    columns = stored()
    columns["tables"]["stage_of_code"] = entries
    assert refusal(columns).where == "tables.stage_of_code"


@pytest.mark.parametrize("name", ["", "Table", "raw", "a.b", "x" * 64, "lookup", "\0"])
def test_a_table_with_a_bad_name_is_named(name: str) -> None:
    columns = stored()
    columns["tables"][name] = [0]
    assert refusal(columns).where.startswith(("tables.", "steps"))


def test_a_table_of_65536_entries_can_be_stored_and_read() -> None:
    table = Table("large", tuple(range(-(2**31), -(2**31) + 65_536)))
    large = replace(Formula.from_toml(s.document({})), tables=(table,))
    assert from_columns(to_columns(large)) == large


def test_every_dtype_may_be_offered_for_every_output() -> None:
    fills = {"int8": -128, "uint8": 0, "int16": -32768, "uint16": 0, "int32": -(2**31), "uint32": 0}
    others = ", ".join(f"{dtype} = {fill}" for dtype, fill in fills.items())
    steps = {f"step_{k}": f"raw + {k}" for k in range(64)}
    outputs = "\n".join(
        f'{name} = {{ units = "ADU", dtype = "float32", alternatives = {{ {others} }} }}' for name in steps
    ).replace("} }", "}, default = true }", 1)
    formula = Formula.from_toml(s.document(steps, outputs))
    assert from_columns(to_columns(formula)) == formula


def test_a_second_floating_point_dtype_may_be_offered() -> None:
    columns = stored()
    at = row(columns, "outputs", "energy")
    for name, cells in columns["outputs"].items():
        cells.insert(at + 1, "float64" if name == "dtype" else cells[at])
    assert from_columns(columns).output("energy").alternatives == (("float64", None),)


def test_whatever_is_accepted_can_be_stored_and_read() -> None:
    for text in ("scale" + "+1e15" * 190, "+".join(["photon_energy"] * 200)):
        formula = s.read_text(text)
        assert from_columns(to_columns(formula)) == formula
        assert Formula.from_toml(formula.to_toml()) == formula


def test_steps_whose_text_would_be_too_long_are_refused() -> None:
    for count, good in ((190, True), (250, False)):
        chain = [(f"y.{k}", "add", f"y.{k - 1}" if k > 1 else "x", "1e15") for k in range(1, count)]
        columns = formula_of(*chain, ("y", "add", f"y.{count - 1}", "1e15"))
        if good:
            assert len(from_columns(columns).steps) == count
        else:
            error = refusal(columns)
            assert (error.where, "at most 4096" in error.problem) == ("steps.y", True)


@pytest.mark.parametrize("count", [1, 3, 4, 8])
def test_dims_of_any_length_can_be_stored_or_are_refused(count: int) -> None:
    dims = tuple(chr(ord("a") + k) * 63 for k in range(count))
    formula = Formula.from_toml(s.document({}))
    words = tuple(replace(i, dims=("frame", *dims)) for i in formula.inputs if len(i.dims) == 3)
    wide = changed(formula, inputs=words, constants=())
    if isinstance(wide, FormulaError):
        assert wide.where.startswith("inputs")
    else:
        assert from_columns(to_columns(wide)) == wide


def test_text_that_a_file_cannot_hold_is_no_part_of_a_formula() -> None:
    columns = stored()
    columns["formula"]["title"] = ["J\u00dcNGFRAU"]
    assert refusal(columns).where == "formula.title"


def test_random_damage_is_accepted_or_refused_with_the_place() -> None:
    rng = Random(3)
    texts: list[Any] = ["", "raw", "x" * 300, "\0", "\ud800", "1", "-1e5"]
    cells = [*texts, 0, 1, -1, 2**31, 2**63, 0.0, math.nan, math.inf, None]
    for _ in range(1000):
        columns = stored()
        for _ in range(rng.randrange(1, 4)):
            group, column = rng.choice(COLUMNS)
            found = columns[group][column]
            match rng.randrange(4):
                case 0 if found:
                    found[rng.randrange(len(found))] = rng.choice(cells)
                case 1 if found:
                    found[rng.randrange(len(found))] = rng.choice(found)
                case 2:
                    found.insert(rng.randrange(len(found) + 1), rng.choice(cells))
                case _:
                    rng.shuffle(found)
        found_back = outcome(columns)
        if isinstance(found_back, FormulaError):
            assert found_back.where
            assert str(found_back).split("\n")[0].isprintable()
        else:
            assert from_columns(to_columns(found_back)) == found_back


def test_parts_without_rows_have_empty_columns() -> None:
    columns = to_columns(replace(Formula.from_toml(s.document({})), constants=(), tables=()))
    assert all(cells == [] for group in ("constants", "flags") for cells in columns[group].values())
    assert (columns["tables"], from_columns(columns).constants) == ({}, ())


def test_a_constant_keeps_its_dims() -> None:
    formula = from_columns(stored())
    assert formula.constants[0] == Constant("pedestal", ("stage", "y", "x"), "ADU")
