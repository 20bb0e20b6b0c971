from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given

from gaincal.errors import FileError, FormulaError
from gaincal.formulas.document import MAX_DOCUMENT
from gaincal.formulas.formula import Flag, Formula, Output, Step, Table

from . import strategies as s


def refusal(text: str) -> FormulaError:
    with pytest.raises(FormulaError) as caught:
        Formula.from_toml(text)
    return caught.value


def outcome(text: str) -> FormulaError | Formula:
    try:
        return Formula.from_toml(text)
    except FormulaError as error:
        return error


def changed(formula: Formula, **changes: Any) -> FormulaError | Formula:
    try:
        return replace(formula, **changes)
    except FormulaError as error:
        return error


def edited(old: str, new: str) -> str:
    """The smallest document with one part replaced."""
    source = s.document({"energy": "photon_energy * 2"}, flags='bad = { when = "raw == 0" }')
    assert source.count(old) == 1, old
    return source.replace(old, new)


@given(s.formulas())
def test_text_steps_text_steps_is_the_identity(formula: Formula) -> None:
    text = formula.to_toml()
    again = Formula.from_toml(text)
    assert again == formula
    assert again.digest == formula.digest
    assert again.to_toml() == text


def test_nearly_every_random_document_is_a_formula() -> None:
    found = [outcome(s.random_document(Random(seed))) for seed in range(200)]
    assert sum(isinstance(f, Formula) for f in found) >= 190


def test_mutated_documents_are_accepted_or_refused_with_the_place() -> None:
    rng = Random(11)
    characters = "\"'=[]{}.,#\n\r\t\0 abz019-_\\é\u2028"
    for _ in range(1500):
        text = s.random_document(rng)
        for _ in range(rng.randrange(1, 4)):
            at, size = rng.randrange(len(text)), rng.randrange(1, 8)
            new = rng.choice((rng.choice(characters), "", text[at : at + size] * 2))
            text = text[:at] + new + text[at + size - 1 :]
        found = outcome(text)
        if isinstance(found, FormulaError):
            assert found.where, text
            assert all(line.isprintable() for line in str(found).split("\n"))
        else:
            assert Formula.from_toml(found.to_toml()) == found


PLACES = [
    ("[formula]", "[formula]\nauthor = 'me'", "formula.author", "unknown key"),
    ("format  = 1", "format = 2", "formula.format", "2 is unknown"),
    ("format  = 1", "format = 0", "formula.format", "0 is unknown"),
    ("format  = 1", "format = '1'", "formula.format", "must be a int"),
    ("format  = 1", "format = 1.0", "formula.format", "must be a int"),
    ("version = 1", "version = true", "formula.version", "must be a int"),
    ("version = 1", "version = 0", "formula.version", "positive"),
    ("version = 1", "version = 2147483648", "formula.version", "positive"),
    ("version = 1", "", "formula.version", "is missing"),
    ('name    = "sample"', "", "formula.name", "is missing"),
    ('name    = "sample"', "name = 7", "formula.name", "must be a str"),
    ('name    = "sample"', "name = 'Sample'", "formula.name", "not a name"),
    ('title   = "A bit of everything"', "", "formula.title", "is missing"),
    ('title   = "A bit of everything"', 'title = "a\\nb"', "formula.title", "printable"),
    ('title   = "A bit of everything"', "title = 2024-01-01", "formula.title", "must be a str"),
    ('title   = "A bit of everything"', "title = 'x'\ncompute = 'float16'", "formula.compute", "float32"),
    ("[formula]", "[[formula]]", "formula", "must be a table"),
    ("[formula]", "[metadata]\n[formula]", "metadata", "unknown key"),
    ("[formula]", "inputs = 3\n[formula]", "document", "TOML"),
    ("[outputs]", "[other]", "other", "unknown key"),
    ("raw           = {", "raw = { unit = 'ADU', ", "inputs.raw.unit", "unknown key"),
    ('raw           = { dims = ["frame", "y", "x"]', "raw = { dims = 'frame y x'", "inputs.raw.dims", "must be a list"),
    ('raw           = { dims = ["frame", "y", "x"]', "raw = { dims = ['frame', 1]", "inputs.raw.dims", "list of str"),
    ('units = "ADU", dtype = "uint16"', 'dtype = "uint16"', "inputs.raw.units", "is missing"),
    ('dtype = "uint16"', "dtype = ''", "inputs.raw", "dtype must be"),
    ('dtype = "uint16"', "dtype = 'uint64'", "inputs.raw", "dtype must be"),
    ('dtype = "uint16"', "dtype = 16", "inputs.raw.dtype", "must be a str"),
    ('scale     = { dims = [], units = "1" }', "scale = 3", "constants.scale", "must be a table"),
    ('scale     = { dims = [], units = "1" }', "scale = { units = '1' }", "constants.scale.dims", "is missing"),
    ('scale     = { dims = [], units = "1" }', "scale = { dims = [], units = 'pixel' }", "constants.scale", "unit"),
    ("[0, 1, -1, 2]", "3", "tables.stage_of_code", "must be a list"),
    ("[0, 1, -1, 2]", "[0, 1.0]", "tables.stage_of_code", "list of int"),
    ("[0, 1, -1, 2]", "[0, true]", "tables.stage_of_code", "list of int"),
    ("[0, 1, -1, 2]", "[]", "tables.stage_of_code", "1 to 65536"),
    ('base = "raw + 1"', "base = 3", "steps.base", "must be a str"),
    ('base = "raw + 1"', "base = { a = 1 }", "steps.base", "must be a str"),
    ('base = "raw + 1"', "base = 'raw'", "steps.base", "only repeats 'raw'"),
    ('base = "raw + 1"', "base = '7'", "steps.base", "only repeats '7'"),
    ('base = "raw + 1"', "base = ''", "steps.base", "expected a value"),
    ('base = "raw + 1"', "base = 'energy + 1'", "steps.base", "not defined before"),
    ('base = "raw + 1"', "base = 'base + 1'", "steps.base", "not defined before"),
    ('base = "raw + 1"', "raw = 'mask + 1'", "steps.raw", "used twice"),
    ('base = "raw + 1"', "'a.1' = 'raw + 1'", "steps.a.1", "not a name"),
    ('dtype = "float32", default = true', "default = true", "outputs.base.dtype", "is missing"),
    ('dtype = "float32", default = true', "dtype = 'float32', default = 1", "outputs.base.default", "must be a bool"),
    ('"float32", default = true', "'int16', fill = nan, default = true", "outputs.base.fill", "must be a int"),
    ('"float32", default = true', "'float32', on = 1, default = true", "outputs.base.on", "unknown key"),
    (
        'dtype = "float32", default = true',
        "dtype = 'float32', alternatives = { int8 = 1.0 }, default = true",
        "outputs.base.alternatives.int8",
        "must be a int",
    ),
    (
        'dtype = "float32", default = true',
        "dtype = 'float32', alternatives = ['int8'], default = true",
        "outputs.base.alternatives",
        "must be a table",
    ),
    ('bad = { when = "raw == 0" }', "bad = 'raw == 0'", "flags.bad", "must be a table"),
    ('bad = { when = "raw == 0" }', "bad = { }", "flags.bad.when", "is missing"),
    ('bad = { when = "raw == 0" }', "bad = { when = 'raw == 0', void = true }", "flags.bad.void", "unknown key"),
    ('bad = { when = "raw == 0" }', "bad = { when = 'raw == 0', voids = 1 }", "flags.bad.voids", "must be a bool"),
    (
        'bad = { when = "raw == 0" }',
        "bad = { when = 'raw == 0', pixel_mask_bit = 1.0 }",
        "flags.bad.pixel_mask_bit",
        "must be a int",
    ),
    ('bad = { when = "raw == 0" }', "bad = { when = 'raw ==' }", "flags.bad", "expected a value"),
    ('bad = { when = "raw == 0" }', "base = { when = 'raw == 0' }", "flags.base", "used twice"),
]


@pytest.mark.parametrize(("old", "new", "where", "problem"), PLACES)
def test_every_mistake_is_named_with_its_place(old: str, new: str, where: str, problem: str) -> None:
    error = refusal(edited(old, new))
    assert (error.where, problem in error.problem) == (where, True), error
    assert str(error).startswith(where)


@pytest.mark.parametrize(
    "text", ["", "\n", "# nothing", "[formula]", "[formula]\nname = 'a'\nversion = 1\ntitle = 't'"]
)
def test_an_incomplete_document_is_refused(text: str) -> None:
    assert refusal(text).where


@pytest.mark.parametrize(
    "text",
    ["=", "\0", "[formula", "a = 1\na = 2", "a = \ud800", "\ufeff[formula]", "x=" + "[" * 5000, "x=" + "{a=" * 5000],
)
def test_what_is_not_toml_is_refused(text: str) -> None:
    assert refusal(text).where == "document"


@pytest.mark.parametrize("key", ["", "\\n", "\\u202e", "a.b"])
def test_an_unknown_key_has_a_place_however_odd(key: str) -> None:
    error = refusal(f'"{key}" = 1\n' + s.document({}))
    assert error.where
    assert str(error).isprintable()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("format  = 1", "format = {}"),
        ("version = 1", "version = {}"),
        ("[0, 1, -1, 2]", "[{}]"),
        ('dtype = "float32", default = true', "dtype = 'int16', fill = {}, default = true"),
        ('bad = { when = "raw == 0" }', "bad = {{ when = 'raw == 0', pixel_mask_bit = {} }}"),
    ],
)
@pytest.mark.parametrize("number", ["9" * 30, "-" + "9" * 4000, "9" * 5000, "0x" + "F" * 5000, "0b" + "1" * 20_000])
def test_integers_of_any_length_are_refused_as_any_other(old: str, new: str, number: str) -> None:
    assert refusal(edited(old, new.format(number))).where


def test_a_document_ends_at_its_limit() -> None:
    assert MAX_DOCUMENT == 4 * 2**20
    source = s.document({})
    padding = "#" * (MAX_DOCUMENT - len(source))
    Formula.from_toml(source + padding)
    assert "longer than" in refusal(source + padding + "#").problem


HOSTILE: dict[str, Callable[[int], str]] = {
    "brackets": lambda n: "[" * n,
    "key": lambda n: "a." * n + "b = 1",
    "quoted key": lambda n: '"!".' * n + "b = 1",
    "literal key": lambda n: "'a b' . " * n + "b = 1",
    "header": lambda n: "[" + '"!".' * n + "b]",
    "inline key": lambda n: "x = {" + '"!".' * n + "b = 1}",
    "tables": lambda n: "\n".join(f"[a{k}.b.c]" for k in range(n // 50)),
    "comment": lambda n: "#" + "a" * n,
    "digits": lambda n: "x = 0b" + "1" * n,
    "text": lambda n: 'x = "' + "a" * n + '"',
    "spaces": lambda n: "a" + " " * n,
    "spaced keys": lambda n: "a .\t" * 15 + "a" + " " * n,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_documents_are_refused_quickly(kind: str) -> None:
    for size in (2000, 4000, 8000, 16_000, 32_000, 64_000, 200_000):  # so that quadratic time fails early
        start = time.thread_time()
        refusal(HOSTILE[kind](size))
        assert time.thread_time() - start < 0.5 + size / 150_000, size


@pytest.mark.parametrize("part", ["a", '"a"', "'a'", '"!"', "'a b'", '""'])
@pytest.mark.parametrize("dot", [".", " . ", "\t."])
def test_dotted_keys_end_at_16_parts(part: str, dot: str) -> None:
    for key, good in ((dot.join([part] * 16), True), (dot.join([part] * 17), False)):
        for text in (
            f"{key} = 1\n{s.document({})}",
            f"{s.document({})}\n[{key}]\n",
            f"{s.document({})}\n[x]\n{key} = 1\n",
        ):
            assert ("dotted key" in refusal(text).problem) == (not good)


def test_what_only_looks_like_a_dotted_key_is_accepted() -> None:
    dotted = ".".join("abcdefghijklmnopqrst")
    odd = replace(Formula.from_toml(s.document({})), title=dotted)
    assert Formula.from_toml(odd.to_toml()) == odd
    assert Formula.from_toml(f"# {dotted}\n{s.document({})}") == Formula.from_toml(s.document({}))


@pytest.mark.parametrize("number", [-(2**63), 2**63 - 1, -(2**63) - 1, 2**63, 10**40])
def test_integers_have_64_bits(number: int) -> None:
    fits = -(2**63) <= number < 2**63
    places = {
        "formula.version": ("version = 1", f"version = {number}"),
        "tables.stage_of_code": ("[0, 1, -1, 2]", f"[0, {number}]"),
        "outputs.base.fill": ('dtype = "float32", default = true', f"dtype = 'int16', fill = {number}, default = true"),
        "flags.bad.pixel_mask_bit": (
            'bad = { when = "raw == 0" }',
            f"bad = {{ when = 'raw == 0', pixel_mask_bit = {number} }}",
        ),
    }
    for where, (old, new) in places.items():
        error = refusal(edited(old, new))
        assert ("64 bits" in error.problem) == (not fits)
        assert error.where == where or (fits and where.startswith(error.where))


def test_load_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "formula.toml"
    source = s.document({"energy": "photon_energy * 2"})
    path.write_text(f"{source}# \u00b5\n", encoding="utf-8")
    assert Formula.load(path) == Formula.load(str(path)) == Formula.from_toml(source)


def test_load_refuses_what_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "formula.toml"
    path.write_bytes(s.document({}).encode() + b"# \xff\n")
    with pytest.raises(FormulaError, match="UTF-8") as caught:
        Formula.load(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("character", ["#", "é", "€", "😀"])
def test_load_never_reads_a_part_of_a_file(tmp_path: Path, character: str) -> None:
    path = tmp_path / "formula.toml"
    for shift in range(len(character.encode())):
        comment = "#" * (1 + shift) + character * (MAX_DOCUMENT // len(character.encode()) + 8)
        path.write_text(f"{s.document({})}{comment}\nlost = 'bad'\n", encoding="utf-8")
        with pytest.raises(FormulaError):
            Formula.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"none\.toml"):
        Formula.load(tmp_path / "none.toml")


@pytest.mark.parametrize("title", ["", 'a "quoted" \\ title', "x" * 200, "~!@#$%^&*()'"])
def test_titles_survive(title: str) -> None:
    odd = replace(Formula.from_toml(s.document({})), title=title)
    assert Formula.from_toml(odd.to_toml()) == odd


def test_words_are_compared_in_hexadecimal() -> None:
    text = Formula.from_toml(s.document({}, flags='bad = { when = "raw == 65535 and memory_cell != 3" }')).to_toml()
    assert "raw == 0xFFFF and memory_cell != 0x0003" in text


def test_flags_keep_their_order_and_their_steps() -> None:
    flags = ['zed = { when = "raw == 1 or raw == 2" }', 'also = { when = "zed" }', 'end = { when = "not zed" }']
    formula = Formula.from_toml(s.document({}, flags="\n".join(flags)))
    assert [f.name for f in formula.flags] == ["zed", "also", "end"]
    assert [f.when for f in formula.flags] == ["zed", "zed", "end"]
    assert [x.name for x in formula.steps] == ["base", "zed.1", "zed.2", "zed", "end"]
    assert Formula.from_toml(formula.to_toml()) == formula


def test_an_output_has_the_name_of_a_named_step() -> None:
    output = '"energy.1" = { units = "keV", dtype = "float32", default = true }'
    error = refusal(s.document({"energy": "photon_energy * 2 + photon_energy"}, outputs=output))
    assert error.where == "outputs.energy.1"


def test_an_output_may_offer_another_floating_point_dtype() -> None:
    output = Output("base", "ADU", "float32", None, True, (("float64", None),))
    offered = replace(Formula.from_toml(s.document({})), outputs=(output,))
    assert Formula.from_toml(offered.to_toml()) == offered


def test_a_step_name_of_63_characters_may_have_any_expression() -> None:
    name = "e" * 63
    formula = Formula.from_toml(s.document({name: "photon_energy * 2 + photon_energy"}))
    assert Formula.from_toml(formula.to_toml()) == formula


def test_a_table_of_65536_entries_can_be_written_and_read() -> None:
    table = Table("large", tuple(range(-(2**31), -(2**31) + 65_536)))
    large = replace(Formula.from_toml(s.document({})), tables=(table,))
    assert Formula.from_toml(large.to_toml()) == large


A, B = Step("a", "equal", ("raw", "0")), Step("b", "equal", ("raw", "1"))


@pytest.mark.parametrize(
    ("steps", "flags"),
    [
        ((A, B), (Flag("a", "a"), Flag("b", "b"))),
        ((A, B), (Flag("b", "b"), Flag("a", "a"))),
        ((A, B), (Flag("other", "b"), Flag("b", "b"), Flag("a", "a"))),
        ((A,), (Flag("other", "a"), Flag("a", "a"))),
        ((A,), (Flag("a", "a"), Flag("other", "a"))),
        ((A,), (Flag("other", "a"), Flag("another", "a"))),
        ((Step("a.1", "equal", ("raw", "0")), Step("a", "not", ("a.1",))), (Flag("other", "a.1"),)),
        ((Step("a.1", "equal", ("raw", "0")), Step("a", "not", ("a.1",))), (Flag("a", "a"), Flag("other", "a.1"))),
    ],
)
def test_flags_in_any_order_can_be_written_and_read_or_are_refused(
    steps: tuple[Step, ...], flags: tuple[Flag, ...]
) -> None:
    base = Formula.from_toml(s.document({}))
    flagged = changed(base, steps=(*base.steps, *steps), flags=flags)
    if isinstance(flagged, FormulaError):
        assert flagged.where.startswith(("flags", "steps"))
    else:
        assert Formula.from_toml(flagged.to_toml()) == flagged
