from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from random import Random

import pytest
from hypothesis import given

from gaincal.errors import FormulaError
from gaincal.formulas.document import write_document
from gaincal.formulas.expression import MAX_NESTING, MAX_TEXT, parse, render
from gaincal.formulas.formula import Formula
from gaincal.formulas.operations import OPERATIONS

from . import strategies as s

FLOOD = 50_000
PARTS = 10
LIMIT_SECONDS = 0.05


def outcome(text: str) -> FormulaError | s.Tree:
    """The tree of an accepted text, or the refusal."""
    try:
        return s.tree_of(s.read_steps(text))
    except FormulaError as error:
        return error


def refusal(text: str) -> FormulaError:
    with pytest.raises(FormulaError) as caught:
        s.read_steps(text)
    return caught.value


def fastest(text: str) -> float:
    """Processor seconds of the best of five, so that a busy machine does not count."""
    times = []
    for _ in range(5):
        start = time.thread_time()
        outcome(text)
        times.append(time.thread_time() - start)
    return min(times)


def flood(seed: int) -> Counter[str]:
    """A part of the flood, in a process of its own: how many texts were accepted and refused."""
    counts: Counter[str] = Counter()
    for number, text in enumerate(s.formula_texts(seed, FLOOD // PARTS)):
        start = time.thread_time()
        found = outcome(text)
        slow = time.thread_time() - start > LIMIT_SECONDS
        assert not slow or fastest(text) <= LIMIT_SECONDS, text[:200]
        counts["refused" if isinstance(found, FormulaError) else "accepted"] += 1
        if isinstance(found, FormulaError):
            check_place(found, text)
        elif number % 4 == 0:
            assert found == s.python_tree(text), text
    return counts


@pytest.mark.slow
def test_a_flood_of_texts_is_accepted_or_refused_with_the_place() -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        counts = sum(pool.map(flood, range(20_240_601, 20_240_601 + PARTS)), Counter())
    assert counts.total() == FLOOD
    assert min(counts["accepted"], counts["refused"]) > FLOOD * 0.3


def check_place(error: FormulaError, text: str) -> None:
    assert error.where == "steps.result"
    assert error.position is not None or len(text) > MAX_TEXT or error.problem.startswith("only repeats"), text
    assert error.position is None or 0 <= error.position <= len(text)
    assert all(line.isprintable() for line in str(error).split("\n"))
    assert str(error).count("\n") == (0 if error.position is None else 2)


def test_accepted_texts_of_the_flood_are_formulas_that_survive_writing() -> None:
    texts = (t for t in s.formula_texts(7, 2500) if len(t) < 400)
    for text in (t for t in texts if not isinstance(outcome(t), FormulaError)):
        formula = s.read_text(text)
        assert Formula.from_toml(formula.to_toml()) == formula


def test_nearly_every_grammatical_text_is_accepted() -> None:
    rng = Random(5)
    texts = [s.grammatical(rng) for _ in range(1000)]
    assert sum(not isinstance(outcome(t), FormulaError) for t in texts) >= 980


def test_the_texts_use_every_operation() -> None:
    rng = Random(6)
    trees = [outcome(s.grammatical(rng)) for _ in range(1000)]
    assert set().union(*(s.operations_in(t) for t in trees if not isinstance(t, FormulaError))) == {*OPERATIONS}


@given(s.trees())
def test_a_text_means_the_tree_that_was_spelled(pair: tuple[s.Tree, str]) -> None:
    tree, text = pair
    assert s.tree_of(s.read_steps(text)) == tree


@given(s.trees())
def test_precedence_and_order_are_those_of_python(pair: tuple[s.Tree, str]) -> None:
    assert s.tree_of(s.read_steps(pair[1])) == s.python_tree(pair[1])


@given(s.trees())
def test_text_steps_text_steps_is_the_identity(pair: tuple[s.Tree, str]) -> None:
    steps = s.read_steps(pair[1])
    text = render(steps[-1], {step.name: step for step in steps[:-1]}, frozenset({"raw", "mask"}))
    assert s.read_steps(text) == steps
    again = s.read_steps(text)
    assert render(again[-1], {step.name: step for step in again[:-1]}, frozenset({"raw", "mask"})) == text


def test_steps_are_named_in_the_order_of_evaluation() -> None:
    steps = s.read_steps("(raw - pedestal[1]) / (scale + 2) * -scale")
    assert [(step.name, step.operation) for step in steps] == [
        ("result.1", "select"),
        ("result.2", "subtract"),
        ("result.3", "add"),
        ("result.4", "divide"),
        ("result.5", "negate"),
        ("result", "multiply"),
    ]


@pytest.mark.parametrize("text", ["raw", "(raw)", "12", "-0.5", "((photon_energy))", "stage_of_code"])
def test_what_computes_nothing_gives_no_steps(text: str) -> None:
    assert parse("result", text, s.TYPES, "here")[1] == []


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        *(("2", "2"), ("2.0", "2.0"), ("0x10", "16"), ("0xFf", "255"), ("-3", "-3"), ("-0", "0"), ("-0.0", "-0.0")),
        *(("1e5", "100000.0"), ("1E+05", "100000.0"), ("5e-1", "0.5"), ("0.10", "0.1"), ("1e-400", "0.0")),
        *(("9007199254740992", "9007199254740992"), ("-9007199254740992", "-9007199254740992")),
        *(("0x20000000000000", "9007199254740992"), ("1e308", "1e+308"), ("0.100000000000000005551115", "0.1")),
    ],
)
def test_numbers_are_stored_in_one_spelling(text: str, stored: str) -> None:
    assert s.read_steps(f"scale + {text}")[0].arguments == ("scale", stored)
    assert s.read_steps(f"scale + {stored}")[0].arguments == ("scale", stored)


@pytest.mark.parametrize(
    "text", ["9007199254740993", "-9007199254740993", "0x20000000000001", "1e309", "-1e999", "9" * 31]
)
def test_numbers_beyond_the_limits_are_refused(text: str) -> None:
    assert refusal(f"scale + {text}").position == 8 + text.startswith("-")


CARETS = [
    ("|", "expected a value, found the end"),
    ("raw +|", "expected a value, found the end"),
    ("raw + |* 2", "expected a value, found '*'"),
    ("raw |& 1", "there is no operator &"),
    ("raw |% 2", "there is no operator %"),
    ("raw *|* 2", "expected a value, found '*'"),
    ("raw /|/ 2", "expected a value, found '/'"),
    ("raw |= 1", "no number, name or operator"),
    ("raw + |0123", "no number, name or operator"),
    ("raw + |1.", "no number, name or operator"),
    ("raw + |1_000", "no number, name or operator"),
    ("raw + |" + "9" * 32, "no number, name or operator"),
    ("raw + |" + "9" * 32 + ".5", "no number, name or operator"),
    ("raw + |0x", "no number, name or operator"),
    ("raw + |9007199254740993", "2^53"),
    ("scale + -|1e999", "finite"),
    ("raw + |unknown * 2", "'unknown' is not defined before this step"),
    ("raw + |result", "'result' is not defined before this step"),
    ("raw + result|.1", "no number, name or operator"),
    ("1 + |sine(scale)", "no operation 'sine'"),
    ("1 + |add(raw, 2)", "no operation 'add'"),
    ("raw + |2raw", "no number, name or operator"),
    ("raw * (2 |+ 3)", "computes on numbers alone"),
    ("raw |photon_energy", "unexpected 'photon_energy'"),
    ("(raw + 1|", "expected ')', found the end"),
    ("raw + 1|)", "unexpected ')'"),
    ("pedestal[1|", "expected ']', found the end"),
    ("0 < raw + 1 |< 5", "comparisons cannot be chained"),
    ("raw |+ photon_energy", "different units: ADU and keV"),
    ("1 - |exp(photon_energy)", "exp of a quantity in keV"),
    ("raw + |bits(raw, 0)", "bits takes 3 argument(s), not 2"),
    ("raw + |bits(raw, 0, 33)", "integer literal from 1 to 32"),
    ("2 * |floor(raw)", "floor needs real, not integer"),
    ("(raw == 1) |+ 1", "needs integer or real, not logical"),
    ("raw == 1 |and scale", "and needs logical, not real"),
    ("|not raw", "not needs logical, not integer"),
    ("raw == |not raw", "expected a value, found 'not'"),
    ("raw |- pedestal", "choose along the constant's axes first"),
    ("raw - |pedestal[1, 2]", "index for each of its axes [stage]"),
    ("1 + |raw[0]", "only a constant with named axes can be indexed"),
    ("raw * |-stage_of_code", "needs integer or real, not table"),
    ("2 * |lookup(raw, 1)", "the name of a table"),
    ("high_word + high_word |* high_word", "2^53"),
    ("raw +\n\t|é", "no number, name or operator"),
    ("raw + |Raw", "no number, name or operator"),
    ("raw + r|Aw", "no number, name or operator"),
    ("raw + min(raw|", "expected ')', found the end"),
    ("min(raw, |)", "expected a value, found ')'"),
    ("max(|)", "expected a value, found ')'"),
]


@pytest.mark.parametrize(("marked", "problem"), CARETS)
def test_the_caret_stands_under_the_mistake(marked: str, problem: str) -> None:
    text = marked.replace("|", "")
    error = refusal(text)
    assert problem in error.problem
    assert (error.where, error.text, error.position) == ("steps.result", text, marked.index("|"))
    head, shown, caret = str(error).split("\n")
    assert head.startswith(f"steps.result at character {marked.index('|') + 1}: ")
    assert caret.index("^") == 4 + marked.index("|")
    assert len(shown) == 4 + len(text)


def test_the_caret_is_right_in_the_middle_of_a_long_text() -> None:
    for at in (0, 1, 7, 8, 100, 700):
        text = "raw+" * at + "?" + "+raw" * 300
        _, shown, caret = str(refusal(text)).split("\n")
        assert shown[caret.index("^")] == "?"
        assert len(shown) <= 64


@pytest.mark.parametrize("name", ["stage", "cell"])
def test_an_index_named_like_another_axis_is_a_mix_up(name: str) -> None:
    index = 'stage = "lookup(stage_of_code, bits(raw, 14, 2))"\ncell = "bits(raw, 0, 2)"'
    for text, good in (("gain[stage, cell]", True), ("gain[cell, stage]", False), (f"gain[{name}, {name}]", False)):
        source = s.document({"chosen": f"1 / {text}"}).replace('base = "raw + 1"', f'base = "raw + 1"\n{index}')
        if good:
            Formula.from_toml(source)
        else:
            with pytest.raises(FormulaError, match="declared order"):
                Formula.from_toml(source)


NESTINGS = [
    ("(", "raw + 1", ")"),
    ("-", "raw", ""),
    ("not ", "raw == 1", ""),
    ("abs(", "raw", ")"),
    ("marks[", "memory_cell", "]"),
    ("1 + (", "raw", ")"),
]


@pytest.mark.parametrize(("opening", "core", "closing"), NESTINGS)
def test_nesting_ends_at_32(opening: str, core: str, closing: str) -> None:
    s.read_steps(opening * MAX_NESTING + core + closing * MAX_NESTING)
    beyond = MAX_NESTING + 1
    error = refusal(opening * beyond + core + closing * beyond)
    assert "nested deeper than 32" in error.problem
    assert error.position == len(opening) * beyond


@pytest.mark.parametrize("opening", ["(", "-", "not ", "abs(", "gain[", "(((-not "])
def test_bottomless_nesting_is_refused_at_once(opening: str) -> None:
    text = (opening * MAX_TEXT)[:MAX_TEXT]
    assert refusal(text).position is not None
    assert fastest(text) < LIMIT_SECONDS


def test_text_ends_at_4096_characters() -> None:
    s.read_steps("raw + 1".ljust(MAX_TEXT))
    assert "4097 characters, at most 4096" in refusal("raw + 1".ljust(MAX_TEXT + 1)).problem


def test_an_expression_ends_at_256_steps() -> None:
    assert len(s.read_steps("raw" + "+1" * 256)) == 256
    error = refusal("raw" + "+1" * 257)
    assert "more than 256 steps" in error.problem
    assert error.position == 3 + 2 * 256


def test_an_expression_of_256_steps_can_be_written_and_read() -> None:
    steps = {"result": "raw" + "+1" * 255}
    formula = Formula.from_toml(s.document(steps))
    assert len(formula.steps) == 256
    assert Formula.from_toml(write_document(formula)) == formula


def test_text_that_grows_beyond_the_limit_when_written_is_refused_at_once() -> None:
    text = "scale" + "+1e15" * 250
    assert len(text) < MAX_TEXT
    with pytest.raises(FormulaError, match="at most 4096") as caught:
        s.read_text(text)
    assert caught.value.where == "steps.result"
    with pytest.raises(FormulaError, match="at most 4096") as caught:
        s.read_text(f"{text} > 0")
    assert caught.value.where == "flags.result"


@pytest.mark.parametrize(("last", "size"), [("1000", 4096), ("10000", 4097), ("a" * 63, 4155)])
def test_the_limit_is_that_of_the_text_as_it_is_written(last: str, size: int) -> None:
    name = "a" * 63
    declared = f'[inputs.{name}]\ndims = []\nunits = "1"\n'
    terms = [name] * 62 + [last]
    assert len(" + ".join(terms)) == size
    assert len("+".join(terms)) < MAX_TEXT
    source = s.document({"result": "+".join(terms)}).replace("[constants]", f"{declared}[constants]")
    if size <= MAX_TEXT:
        formula = Formula.from_toml(source)
        assert Formula.from_toml(formula.to_toml()) == formula
    else:
        with pytest.raises(FormulaError, match=f"{size} characters, at most 4096") as caught:
            Formula.from_toml(source)
        assert caught.value.where == "steps.result"


def test_the_reading_of_a_lookup_does_not_depend_on_the_size_of_the_table() -> None:
    table = f"large = {[0] * 65_526}".replace(" ", "")
    small = Formula.from_toml(s.document({}, extra="large = [0, 0]")).checked.types
    large = Formula.from_toml(s.document({}, extra=table)).checked.types
    text = "+".join(["lookup(large,raw)"] * 120)
    times = []
    for types in (small, large, large, large):
        start = time.thread_time()
        parse("result", text, types, "here")
        times.append(time.thread_time() - start)
    assert min(times[1:]) < LIMIT_SECONDS, times
