from __future__ import annotations

from dataclasses import replace

import pytest

from gaincal.errors import FormulaError
from gaincal.formulas.checks import literal_type, literal_value
from gaincal.formulas.formula import Constant, Flag, Formula, Input, Output, Step, Table
from gaincal.formulas.operations import MAX_INTEGER, OPERATIONS, OperationError

RAW = Input("raw", ("frame", "y", "x"), "ADU", "uint16")
BASE = Formula(
    "f",
    1,
    "",
    "float32",
    (RAW, Input("photon_energy", (), "keV")),
    (Constant("pedestal", ("stage", "y", "x"), "ADU"),),
    (Table("stage_of_code", (0, 1, -1, 2)),),
    (
        Step("adc", "bits", ("raw", "0", "14")),
        Step("half", "multiply", ("raw", "0.5")),
        Step("empty", "equal", ("raw", "0")),
    ),
    (Output("half", "ADU", "float32", None, True),),
    (Flag("bad", "empty"),),
)
RESERVED = sorted({*OPERATIONS, "frame", "missing", "clipped", "no_value"})


def refusal(formula: Formula, **changes: object) -> FormulaError:
    with pytest.raises(FormulaError) as caught:
        replace(formula, **changes)  # type: ignore[arg-type]
    return caught.value


def with_inputs(*inputs: Input) -> tuple[Input, ...]:
    return (RAW, *inputs)


def with_steps(*steps: Step) -> tuple[Step, ...]:
    return (*BASE.steps, *steps)


BAD_NAMES = ["", "A", "_a", "1a", "a-b", "a b", "aB", "a.b", "\u00e9", "a\n", "\u0430", "a\0", "x" * 64, "a\u0662"]


@pytest.mark.parametrize("name", ["a", "z9_", "a__", "x" * 63])
def test_good_names(name: str) -> None:
    replace(BASE, name=name)
    replace(BASE, inputs=with_inputs(Input("photon_energy", (), "keV"), Input(name, (), "1")))
    replace(BASE, constants=(Constant(name, (), "1"),))
    replace(BASE, tables=(Table(name, (0,)),))
    replace(BASE, steps=with_steps(Step(name, "add", ("raw", "1"))))
    replace(BASE, flags=(Flag(name, "empty"),), steps=BASE.steps)
    replace(BASE, constants=(Constant("c", (name, "y", "x"), "1"),))


@pytest.mark.parametrize("name", [*BAD_NAMES, *RESERVED])
def test_bad_and_reserved_names_are_refused_with_their_place(name: str) -> None:
    shown = {"a\n": "a\\n", "a\0": "a\\x00"}.get(name, name)
    assert refusal(BASE, name=name).where == "formula.name"
    errors = {
        f"inputs.{shown}": refusal(BASE, inputs=(*BASE.inputs, Input(name, (), "1"))),
        f"constants.{shown}": refusal(BASE, constants=(Constant(name, (), "1"),)),
        f"tables.{shown}": refusal(BASE, tables=(Table(name, (0,)),)),
        f"steps.{shown}": refusal(BASE, steps=with_steps(Step(name, "add", ("raw", "1")))),
        f"flags.{shown}": refusal(BASE, flags=(Flag(name, "empty"),)),
    }
    assert [error.where for error in errors.values()] == [*errors]
    assert all(str(error).isprintable() and str(error).startswith(where) for where, error in errors.items())


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names_of_dims_are_refused(name: str) -> None:
    assert refusal(BASE, constants=(Constant("c", (name, "y", "x"), "1"),)).where == "constants.c"
    assert refusal(BASE, inputs=(Input("raw", ("frame", name), "ADU", "uint16"),)).where == "inputs.raw"


BESIDE = "formula inputs constants tables steps outputs flags integrity given applied description program version date"


@pytest.mark.parametrize("name", [*BESIDE.split(), "fit_formula_description", "_source", "a_source", "raw_source"])
def test_inputs_and_constants_are_not_named_like_what_a_file_keeps_beside_them(name: str) -> None:
    assert refusal(BASE, inputs=(*BASE.inputs, Input(name, (), "1"))).where == f"inputs.{name}"
    assert refusal(BASE, constants=(Constant(name, (), "1"),)).where == f"constants.{name}"


@pytest.mark.parametrize("dims", [("held",), ("held", "y", "x"), ("stage", "held", "y", "x")])
def test_a_constant_is_not_named_like_one_of_its_dims(dims: tuple[str, ...]) -> None:
    assert refusal(BASE, constants=(Constant("held", dims, "1"),)).where == "constants.held"
    replace(BASE, constants=(Constant("other", dims, "1"),))


@pytest.mark.parametrize("taken", ["raw", "photon_energy", "pedestal", "stage_of_code", "adc"])
def test_a_name_is_used_once(taken: str) -> None:
    if taken != "adc":
        assert "used twice" in refusal(BASE, steps=with_steps(Step(taken, "add", ("raw", "1")))).problem
    assert "used twice" in refusal(BASE, flags=(Flag(taken, "empty"),)).problem
    if taken in ("raw", "photon_energy"):
        assert "used twice" in refusal(BASE, constants=(Constant(taken, (), "1"),)).problem
        assert "used twice" in refusal(BASE, inputs=(*BASE.inputs, Input(taken, (), "1"))).problem
        assert "used twice" in refusal(BASE, tables=(Table(taken, (1,)),)).problem


def test_two_flags_of_one_name_are_refused() -> None:
    assert refusal(BASE, flags=(Flag("a", "empty"), Flag("a", "empty"))).where == "flags.a"


def numbered(kind: str, count: int) -> dict[str, object]:
    """Changes that give a formula `count` items of a kind."""
    n = range(count)
    match kind:
        case "inputs":
            return {"inputs": (*BASE.inputs, *(Input(f"i{k}", (), "1") for k in n))[:count]}
        case "constants":
            return {"constants": tuple(Constant(f"c{k}", (), "1") for k in n)}
        case "tables":
            return {"tables": tuple(Table(f"t{k}", (k,)) for k in n)}
        case "steps":
            return {"steps": (*BASE.steps, *(Step(f"s{k}", "add", ("raw", "1")) for k in n))[:count]}
        case "flags":
            return {"flags": tuple(Flag(f"f{k}", "empty") for k in n)}
    steps = tuple(Step(f"s{k}", "add", ("raw", "1")) for k in n)
    return {"steps": steps, "outputs": tuple(Output(f"s{k}", "ADU", "float32", None, k == 0) for k in n), "flags": ()}


@pytest.mark.parametrize(
    ("kind", "limit"),
    [("inputs", 64), ("constants", 64), ("tables", 64), ("outputs", 64), ("steps", 256), ("flags", 24)],
)
def test_counts_end_at_their_limits(kind: str, limit: int) -> None:
    assert len(getattr(replace(BASE, **numbered(kind, limit)), kind)) == limit  # type: ignore[arg-type]
    error = refusal(BASE, **numbered(kind, limit + 1))
    assert (error.where, f"at most {limit}" in error.problem) == (kind, True)


def test_tables_have_1_to_65536_entries_of_int32() -> None:
    many = tuple(range(65_536))
    for entries in ((0,), many, (-(2**31), 2**31 - 1)):
        replace(BASE, tables=(Table("t", entries),))
    for entries in ((), (-(2**31) - 1,), (2**31,)):
        assert refusal(BASE, tables=(Table("t", entries),)).where == "tables.t"
    assert refusal(BASE, tables=(Table("t", (*many, 0)),)).where == "tables"


def test_all_tables_together_have_at_most_65536_entries() -> None:
    most = tuple(Table(f"t{k}", (k,) * 1024) for k in range(64))
    assert sum(len(t.entries) for t in replace(BASE, tables=most).tables) == 65_536
    error = refusal(BASE, tables=(*most[:-1], Table("last", (0,) * 1025)))
    assert (error.where, "65536 entries in all tables" in error.problem) == ("tables", True)


def test_titles_end_at_200_printable_characters() -> None:
    replace(BASE, title="x" * 200)
    for title in ("x" * 201, "a\nb", "\x1b[31m", "a\0", "\u202e", "\ud800"):
        assert refusal(BASE, title=title).where == "formula.title"


@pytest.mark.parametrize(("version", "good"), [(1, True), (2**31 - 1, True), (0, False), (-1, False), (2**31, False)])
def test_versions_are_positive_int32(version: int, good: bool) -> None:
    if good:
        assert replace(BASE, version=version).version == version
    else:
        assert refusal(BASE, version=version).where == "formula.version"


@pytest.mark.parametrize("compute", ["", "float16", "double", "FLOAT32", "float32 "])
def test_other_compute_types_are_refused(compute: str) -> None:
    assert refusal(BASE, compute=compute).where == "formula.compute"


@pytest.mark.parametrize("dims", [(), ("frame",), ("y",), ("frame", "y"), ("y", "x"), ("frame", "y", "x")])
def test_dims_of_inputs(dims: tuple[str, ...]) -> None:
    formula = replace(BASE, inputs=(*BASE.inputs, Input("other", dims, "1")))
    assert formula.checked.pixel_dims == ("y", "x")
    assert formula.checked.types["other"].dims == {*dims}


@pytest.mark.parametrize(
    "dims", [("x",), ("x", "y"), ("frame", "x"), ("stage",), ("y", "x", "frame"), ("frame", "frame")]
)
def test_other_dims_of_inputs_are_refused(dims: tuple[str, ...]) -> None:
    assert refusal(BASE, inputs=(*BASE.inputs, Input("other", dims, "1"))).where.startswith("inputs")


@pytest.mark.parametrize("dims", [(), ("frame",), ("y", "x")])
def test_a_formula_without_words_is_refused(dims: tuple[str, ...]) -> None:
    error = refusal(BASE, inputs=(Input("raw", dims, "ADU", "uint16"), BASE.inputs[1]))
    assert (error.where, "no raw words" in error.problem) == ("inputs", True)


@pytest.mark.parametrize(
    "dims", [("frame", "y", "y"), ("frame", "frame"), ("frame", "frame", "x"), ("frame", "y", "frame")]
)
def test_the_dims_of_the_words_are_distinct_and_frame_comes_once(dims: tuple[str, ...]) -> None:
    error = refusal(BASE, inputs=(Input("raw", dims, "ADU", "uint16"), BASE.inputs[1]), constants=())
    assert (error.where, "each once" in error.problem) == ("inputs", True)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_any_number_of_pixel_dims(count: int) -> None:
    dims = ("frame", *(f"d{k}" for k in range(count)))
    formula = replace(BASE, inputs=(Input("raw", dims, "ADU", "uint16"), BASE.inputs[1]), constants=())
    assert formula.checked.pixel_dims == dims[1:]


@pytest.mark.parametrize(
    ("dims", "axes"),
    [
        ((), ()),
        (("y", "x"), ()),
        (("stage",), ("stage",)),
        (("stage", "y", "x"), ("stage",)),
        (("a", "b", "c"), ("a", "b", "c")),
        (("a", "b", "c", "y", "x"), ("a", "b", "c")),
        (("y",), ()),
        (("stage", "y"), ("stage",)),
    ],
)
def test_dims_of_constants(dims: tuple[str, ...], axes: tuple[str, ...]) -> None:
    kind = replace(BASE, constants=(Constant("held", dims, "1"),)).checked.types["held"]
    assert (kind.axes, kind.dims) == (axes, frozenset(dims) - {*axes})


@pytest.mark.parametrize(
    "dims",
    [
        *(("frame",), ("frame", "y", "x"), ("stage", "frame", "y", "x"), ("x",), ("x", "y"), ("stage", "x")),
        *(("y", "x", "stage"), ("y", "stage", "x"), ("stage", "stage"), ("stage", "x", "y"), ("a", "b", "c", "d")),
        *(("a", "b", "c", "d", "y", "x"), ("y", "x", "y", "x"), ("stage", "y", "x", "x")),
    ],
)
def test_other_dims_of_constants_are_refused(dims: tuple[str, ...]) -> None:
    assert refusal(BASE, constants=(Constant("held", dims, "1"),)).where == "constants.held"


@pytest.mark.parametrize(("dtype", "high"), [("uint8", 255), ("uint16", 65_535), ("uint32", 2**32 - 1)])
def test_a_dtype_gives_the_bounds(dtype: str, high: int) -> None:
    inputs = (*BASE.inputs, Input("n", (), "1", dtype))
    formula = replace(BASE, inputs=inputs, constants=(Constant("c", (), "1", dtype),))
    for name in ("n", "c"):
        kind = formula.checked.types[name]
        assert (kind.kind, kind.low, kind.high) == ("integer", 0, high)


@pytest.mark.parametrize("dtype", ["", "int8", "int16", "uint64", "float32", "bool", ">u2"])
def test_other_dtypes_are_refused(dtype: str) -> None:
    assert refusal(BASE, inputs=(*BASE.inputs, Input("n", (), "1", dtype))).where == "inputs.n"
    assert refusal(BASE, constants=(Constant("c", (), "1", dtype),)).where == "constants.c"


@pytest.mark.parametrize("units", ["", "counts", "ADU ", "kev"])
def test_other_units_are_refused(units: str) -> None:
    assert refusal(BASE, inputs=(*BASE.inputs, Input("n", (), units))).where == "inputs.n"
    assert refusal(BASE, constants=(Constant("c", (), units),)).where == "constants.c"
    assert refusal(BASE, outputs=(Output("half", units, "float32", None, True),)).where == "outputs.half"


@pytest.mark.parametrize("outputs", [(), (Output("half", "ADU", "float32"),)])
def test_a_default_output_is_needed(outputs: tuple[Output, ...]) -> None:
    assert refusal(BASE, outputs=outputs).where == "outputs"


def test_two_defaults_or_one_name_twice_are_refused() -> None:
    half = BASE.outputs[0]
    adc = Output("adc", "ADU", "float32", None, True)
    assert refusal(BASE, outputs=(half, adc)).where == "outputs"
    assert refusal(BASE, outputs=(half, replace(half, default=False))).where == "outputs"


@pytest.mark.parametrize("name", ["raw", "pedestal", "stage_of_code", "nothing", "bad", "empty", ""])
def test_an_output_is_a_numeric_step(name: str) -> None:
    assert refusal(BASE, outputs=(Output(name, "1", "float32", None, True),)).where == f"outputs.{name}"


def test_an_output_is_declared_in_the_unit_of_its_step() -> None:
    assert (
        "declared in keV, but the steps give ADU"
        in refusal(BASE, outputs=(Output("half", "keV", "float32", None, True),)).problem
    )
    replace(BASE, outputs=(Output("half", "ADU*keV/keV", "float32", None, True),))


ENDS = {
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-32_768, 32_767),
    "uint16": (0, 65_535),
    "int32": (-(2**31), 2**31 - 1),
    "uint32": (0, 2**32 - 1),
}


@pytest.mark.parametrize("dtype", ENDS)
def test_the_fill_of_an_integer_output_is_one_end_of_its_range(dtype: str) -> None:
    low, high = ENDS[dtype]
    for fill in (low, high):
        replace(BASE, outputs=(Output("adc", "ADU", dtype, fill, True),))
        replace(BASE, outputs=(Output("adc", "ADU", "float32", None, True, ((dtype, fill),)),))
    for wrong in (low - 1, low + 1, high - 1, high + 1, None):
        assert refusal(BASE, outputs=(Output("adc", "ADU", dtype, wrong, True),)).where == "outputs.adc"
        others = ((dtype, wrong),)
        assert refusal(BASE, outputs=(Output("adc", "ADU", "float32", None, True, others),)).where == "outputs.adc"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_fill_of_a_floating_point_output_is_nan(dtype: str) -> None:
    for name in ("half", "adc"):
        replace(BASE, outputs=(Output(name, "ADU", dtype, None, True),))
        assert refusal(BASE, outputs=(Output(name, "ADU", dtype, 0, True),)).where == f"outputs.{name}"


@pytest.mark.parametrize("dtype", ["", "float16", "int64", "uint64", "bool", "complex64"])
def test_other_dtypes_of_outputs_are_refused(dtype: str) -> None:
    assert refusal(BASE, outputs=(Output("adc", "ADU", dtype, 0, True),)).where == "outputs.adc"


def test_a_dtype_is_offered_once() -> None:
    for others in ((("float32", None),), (("int8", -128), ("int8", 127))):
        error = refusal(BASE, outputs=(Output("adc", "ADU", "float32", None, True, others),))
        assert (error.where, "offered twice" in error.problem) == ("outputs.adc", True)


@pytest.mark.parametrize(
    ("step", "whole"),
    [
        (Step("n", "multiply", ("raw", "0.5")), False),
        (Step("n", "divide", ("raw", "1")), False),
        (Step("n", "power", ("raw", "2")), False),
        (Step("n", "multiply", ("raw", "2")), True),
        (Step("n", "floor", ("half",)), True),
        (Step("n", "trunc", ("half",)), True),
        (Step("n", "round_half_even", ("half",)), True),
        (Step("n", "round_half_away", ("half",)), True),
        (Step("n", "max", ("raw", "2.0")), True),
        (Step("n", "max", ("raw", "2.5")), False),
        (Step("n", "where", ("empty", "raw", "-1.0")), True),
        (Step("n", "where", ("empty", "raw", "half")), False),
    ],
)
def test_an_integer_output_is_an_integer_or_whole(step: Step, whole: bool) -> None:
    units = "ADU^2" if step.operation == "power" else "ADU"
    changes = {"steps": with_steps(step), "outputs": (Output("n", units, "int32", -(2**31), True),)}
    if whole:
        replace(BASE, **changes)  # type: ignore[arg-type]
    else:
        assert "rounding" in refusal(BASE, **changes).problem


@pytest.mark.parametrize("when", ["", "raw", "adc", "half", "nothing", "0", "raw == 0", "stage_of_code"])
def test_a_flag_is_a_logical_step(when: str) -> None:
    assert refusal(BASE, flags=(Flag("bad", when),)).where == "flags.bad"


@pytest.mark.parametrize("bit", range(-2, 34))
def test_pixel_mask_bits_are_those_of_nxmx(bit: int) -> None:
    flags = (Flag("bad", "empty", True, bit),)
    if bit in (0, 1, 2, 3, 4, 6, 8, 31):
        assert replace(BASE, flags=flags).flags == flags
    else:
        assert refusal(BASE, flags=flags).where == "flags.bad"


def test_steps_refer_to_what_is_defined_before() -> None:
    for later in (Step("one", "add", ("two", "1")), Step("one", "add", ("one", "1"))):
        error = refusal(BASE, steps=with_steps(later, Step("two", "add", ("raw", "1"))))
        assert (error.where, "not defined before" in error.problem) == ("steps.one", True)


def test_needs_are_all_that_a_step_depends_on() -> None:
    steps = with_steps(Step("more", "add", ("half", "adc")), Step("most", "subtract", ("more", "2")))
    needs = replace(BASE, steps=steps).checked.needs
    assert needs["most"] == {"most", "more", "half", "adc", "raw"}
    assert needs["empty"] == {"empty", "raw"}


def test_bounds_of_integers_end_at_2_to_the_53_whatever_the_steps() -> None:
    wide = (Step("a", "multiply", ("n", "n2")), Step("b", "multiply", ("a", "32")))
    inputs = (*BASE.inputs, Input("n", (), "1", "uint32"), Input("n2", (), "1", "uint16"))
    formula = replace(BASE, inputs=inputs, steps=with_steps(*wide))
    assert formula.checked.types["b"].high == (2**32 - 1) * (2**16 - 1) * 32 <= MAX_INTEGER
    error = refusal(formula, steps=with_steps(*wide, Step("c", "multiply", ("b", "2"))))
    assert (error.where, "2^53" in error.problem) == ("steps.c", True)


@pytest.mark.parametrize("sign", ["", "-"])
def test_integer_literals_end_at_2_to_the_53(sign: str) -> None:
    replace(BASE, steps=with_steps(Step("n", "max", ("half", f"{sign}{MAX_INTEGER}"))))
    error = refusal(BASE, steps=with_steps(Step("n", "max", ("half", f"{sign}{MAX_INTEGER + 1}"))))
    assert (error.where, "2^53" in error.problem) == ("steps.n", True)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("0", 0), ("-7", -7), ("2.0", 2.0), ("1e5", 1e5), ("-1.5E-3", -0.0015)),
        *(("9" * 31, 10**31 - 1), ("-" + "9" * 31, 1 - 10**31), ("9" * 31 + ".5", 1e31)),
        *(("9" * 32, None), ("-" + "9" * 32, None), ("9" * 32 + ".5", None), ("9" * 32 + "e0", None)),
        *(("x", None), ("01", None), ("", None), ("1.", None), ("+1", None), ("nan", None)),
    ],
)
def test_a_literal_is_an_integer_or_a_real_by_its_spelling(argument: str, value: float | None) -> None:
    assert (literal_value(argument), type(literal_value(argument))) == (value, type(value))


def test_literals_know_their_value() -> None:
    assert (literal_type(3).low, literal_type(3).high, literal_type(3).unit) == (3, 3, None)
    assert (literal_type(2.0).whole, literal_type(2.5).whole) == (True, False)
    for value in (float("inf"), -float("inf"), MAX_INTEGER + 1):
        with pytest.raises(OperationError):
            literal_type(value)


@pytest.mark.parametrize("argument", ["1" * 32, "-" + "9" * 32, "1" * 5000, "-" + "9" * 20_000])
def test_a_literal_of_more_than_31_digits_is_an_undefined_name(argument: str) -> None:
    error = refusal(BASE, steps=with_steps(Step("n", "max", ("half", argument))))
    assert (error.where, "is not defined before" in error.problem) == ("steps.n", True)


ONE_PART = (Step("n.1", "add", ("raw", "1")), Step("n", "multiply", ("n.1", "2")))


def test_an_anonymous_step_is_used_exactly_once() -> None:
    replace(BASE, steps=with_steps(*ONE_PART))
    unused = (ONE_PART[0], Step("n", "multiply", ("raw", "2")))
    shared = (ONE_PART[0], Step("n", "add", ("n.1", "n.1")))
    lent = (*ONE_PART, Step("m", "add", ("n.1", "1")))
    for steps in (unused, shared, lent):
        error = refusal(BASE, steps=with_steps(*steps))
        assert (error.where, "exactly once" in error.problem) == ("steps.n.1", True)


def test_an_output_bears_the_name_of_a_named_step() -> None:
    outputs = (Output("n", "ADU", "float32", None, True),)
    replace(BASE, steps=with_steps(*ONE_PART), outputs=outputs)
    error = refusal(BASE, steps=with_steps(*ONE_PART), outputs=(replace(outputs[0], name="n.1"),))
    assert error.where == "outputs.n.1"


def test_a_flag_is_never_raised_by_an_anonymous_step() -> None:
    steps = with_steps(Step("n.1", "equal", ("raw", "1")), Step("n", "not", ("n.1",)))
    replace(BASE, steps=steps, flags=(Flag("bad", "n"),))
    assert refusal(BASE, steps=steps, flags=(Flag("bad", "n.1"),)).where.startswith(("flags.bad", "steps.n.1"))


def test_the_steps_of_flags_come_last() -> None:
    one, two = Step("one", "equal", ("raw", "1")), Step("two", "equal", ("raw", "2"))
    replace(BASE, steps=with_steps(one, two), flags=(Flag("two", "two"),))
    error = refusal(BASE, steps=with_steps(two, one), flags=(Flag("two", "two"),))
    assert (error.where, "those of flags last" in error.problem) == ("steps", True)


@pytest.mark.parametrize(
    "steps",
    [
        (Step("n", "multiply", ("raw", "0.50")),),
        (Step("n", "multiply", ("raw", "5e-1")),),
        (Step("n", "multiply", ("raw", "-0")),),
        (Step("n.2", "add", ("raw", "1")), Step("n", "multiply", ("n.2", "2"))),
        (Step("m.1", "add", ("raw", "1")), Step("n", "multiply", ("m.1", "2"))),
        (ONE_PART[0], Step("m", "add", ("raw", "3")), ONE_PART[1]),
    ],
)
def test_steps_that_their_text_would_not_give_again_are_refused(steps: tuple[Step, ...]) -> None:
    error = refusal(BASE, steps=with_steps(*steps))
    assert (error.where, "their text gives" in error.problem) == ("steps", True)
