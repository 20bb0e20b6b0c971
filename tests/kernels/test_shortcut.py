"""A shortcut is an assumption that the kernel tests: it may never change a result."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import Array, assert_same_bits, declare, items, program_of

from gaincal.formulas.catalog import get
from gaincal.formulas.program import Labels, Program, fix_axes, program_for_output
from gaincal.kernels.delivery import demands
from gaincal.kernels.shortcut import find_shortcut

PIXELS = 320
CONSTANT: dict[str, tuple[str, str | None]] = {"g": ("stage px", None)}


def planes(count: int) -> Array:
    return (np.arange(count)[:, None] * 1000.0 + np.arange(PIXELS)).astype(np.float32)


def words() -> Array:
    """Vectors all in one stage, vectors with a single stray pixel, and mixed ones."""
    rng = np.random.default_rng(1)
    stages = np.repeat(np.arange(4), PIXELS)[:, None].reshape(4, PIXELS) << 14
    stray = stages.copy()
    stray[:, ::67] = (stray[:, ::67] + 0x4000) & 0xC000
    mixed = rng.integers(0, 4, (4, PIXELS)) << 14
    return (np.concatenate([stages, stray, mixed]) | rng.integers(0, 2**14, (12, PIXELS))).astype(np.uint16)


def staged(steps: dict[str, str], labels: tuple[int, ...], tables: dict[str, list[int]] | None = None) -> Program:
    formula = declare(steps, constants=CONSTANT, tables=tables)
    named: dict[str, Labels] = {"g": (labels,)}
    return program_of(formula, named)


def check(program: Program) -> None:
    raw = words()
    planes_ = planes(len(dict(program.labels)["g"][0]))
    assert_same_bits(program, {"raw": raw, "g": planes_}, (len(raw), PIXELS))


def test_jungfrau_assumes_the_word_below_the_first_switch() -> None:
    formula = get("jungfrau")
    given = frozenset(item.name for item in items(formula))
    labels: dict[str, Labels] = {"gain": ((0, 1, 2),), "pedestal": ((0, 1, 2),)}
    shortcut = find_shortcut(program_for_output(formula, labels, given))
    assert shortcut is not None
    assert (shortcut.name, shortcut.low, shortcut.high) == ("raw", 0, 0x3FFE)
    assert shortcut.types["stage"].low == shortcut.types["stage"].high == 0


def test_there_is_no_shortcut_without_a_stage() -> None:
    assert find_shortcut(program_of(declare({"v": "raw * 0.5"}))) is None


@pytest.mark.parametrize("labels", [(0, 1, 2), (2, 0, 1), (1, 2), (2,), (7, 0), (65535, 2)])
def test_the_order_of_the_labels_is_free(labels: tuple[int, ...]) -> None:
    tables = {"t": [0, 1, -1, 2]}
    check(staged({"stage": "lookup(t, bits(raw, 14, 2))", "v": "bits(raw, 0, 14) - g[stage]"}, labels, tables))


@pytest.mark.parametrize(
    "steps",
    [
        {"stage": "bits(raw, 14, 2)", "v": "where(stage == 1, g[stage], raw)"},
        {"stage": "bits(raw, 13, 2)", "v": "g[stage] + raw"},
        {"stage": "where(raw > 1000, 1, 0)", "v": "g[stage] * where(stage < 1, 2, 3)"},
        {"stage": "where(raw > 0xBFFF, 2, 1) + 1", "v": "g[stage] / (stage - 2)"},
        {"stage": "bits(raw, 14, 2) - 1", "v": "g[stage] + raw * stage * stage"},
        {"stage": "-bits(raw, 14, 2)", "v": "g[abs(stage)] + g[stage] * 0.5"},
        {"stage": "min(bits(raw, 14, 2), 1)", "v": "g[stage]"},
    ],
)
@pytest.mark.parametrize("labels", [(0, 1, 2, 3), (3, 1), (1,)])
def test_any_way_to_the_stage_gives_the_same_bits(steps: dict[str, str], labels: tuple[int, ...]) -> None:
    check(staged(steps, labels))


def test_a_table_longer_than_the_word_can_reach_gives_the_same_bits() -> None:
    tables = {"t": [1] * 40_000 + [5]}
    check(staged({"code": "bits(raw, 16, 16)", "stage": "lookup(t, code)", "v": "g[stage]"}, (5, 1), tables))


def test_a_stage_that_is_always_the_same_gives_the_same_bits() -> None:
    check(staged({"stage": "lookup(t, bits(raw, 14, 2))", "v": "g[stage]"}, (0, 1), {"t": [1, 1, 1, 1]}))


def test_a_stage_whose_condition_always_holds_gives_the_same_bits() -> None:
    check(staged({"stage": "where(raw >= 0, 1, 2)", "v": "g[stage]"}, (1, 2)))


def test_a_label_that_the_stage_cannot_have_breaks_no_join() -> None:
    check(staged({"stage": "bits(raw, 0, 2)", "k": "join(stage, 2, raw)", "v": "g[stage] + k"}, (100, 1)))


def test_a_label_that_the_stage_cannot_have_breaks_no_bound() -> None:
    check(staged({"stage": "bits(raw, 0, 2)", "v": "g[stage] + stage * 0x4000000000000"}, (65535, 1)))


def test_a_shortcut_on_a_map_of_the_pixels_gives_the_same_bits() -> None:
    constants: dict[str, tuple[str, str | None]] = {"g": ("stage px", None), "m": ("px", "uint8")}
    formula = declare({"stage": "bits(m, 4, 4)", "v": "g[stage] + raw"}, constants=constants)
    m = np.where(np.arange(PIXELS) < 192, 0x13, np.arange(PIXELS) & 0xFF).astype(np.uint8)
    arrays = {"raw": words(), "g": planes(3), "m": m}
    assert_same_bits(program_of(formula, {"g": ((1, 0, 9),)}), arrays, (12, PIXELS))


def catalogue_program(name: str) -> Program:
    formula = get(name)
    axes = {"stage": (0, 1, 2, 3, 4, 5, 6), "cell": (0, 1), "threshold": (0, 1)}
    labels: dict[str, Labels] = {
        c.name: tuple(axes[a] for a in formula.checked.types[c.name].axes)
        for c in formula.constants
        if formula.checked.types[c.name].axes
    }
    return program_for_output(formula, labels, frozenset(item.name for item in items(formula)))


@pytest.mark.parametrize(
    ("name", "word", "bounds"),
    [
        ("jungfrau_hg0", "raw", (0, 0x3FFE)),
        ("jungfrau_cells", "raw", (0, 0x3FFE)),
        ("jungfrau_split", "gain_code", (0, 0)),
        ("epix10ka", "raw", (0, 0x3FFF)),
        ("percival", "raw", (0, 0x1FFF)),
    ],
)
def test_bounds_of_a_word_make_the_stage_the_same_in_a_frame_or_in_every_frame(
    name: str, word: str, bounds: tuple[int, int]
) -> None:
    shortcut = find_shortcut(catalogue_program(name))
    assert shortcut is not None
    assert (shortcut.name, (shortcut.low, shortcut.high)) == (word, bounds)
    assert not shortcut.types["stage"].dims > {"frame"}


def test_what_must_hold_is_taken_apart_and_asked_for_once() -> None:
    program = catalogue_program("jungfrau")
    shortcut = find_shortcut(program)
    assert shortcut is not None
    steps = {s.name: s for s in program.steps}
    usual = [(steps[n].operation, holds) for n, holds in demands(program, dict(program.types))]
    assert sorted(usual) == [("equal", False)] * 4 + [("finite", True)] * 2 + [("not_equal", False)]
    short = [(steps[n].operation, holds) for n, holds in demands(program, shortcut.types)]
    assert sorted(short) == [("finite", True)] * 2 + [("not_equal", False)]


@pytest.mark.parametrize(
    "flags",
    [
        {"a": "stage < 0", "b": "stage >= 0 and not finite(s)"},
        {"a": "stage < 0", "b": "stage >= 0 and not (finite(s) and finite(v))"},
        {"a": "stage < 0 and m > 3", "b": "not (stage >= 0 or m == 1)"},
        {"a": "x < 0", "b": "x >= 0 and m > 2"},
        {"a": "m > 3 or not finite(s)", "b": "raw > 0xFFFF or (m == 1 and raw == 5)"},
        {"a": "not (raw >= 0)", "b": "raw >= 0 and m > 5"},
        {"a": "raw >= 0"},
    ],
)
def test_conditions_that_void_give_the_same_bits(flags: dict[str, str]) -> None:
    constants: dict[str, tuple[str, str | None]] = {"g": ("stage px", None), "m": ("px", "uint8"), "x": ("px", None)}
    steps = {"stage": "lookup(t, bits(raw, 14, 2))", "s": "g[stage]", "v": "bits(raw, 0, 14) / s"}
    formula = declare(steps, constants=constants, tables={"t": [0, 1, -1, 2]}, flags=flags)
    g = planes(3)
    g[:, ::7], g[1, ::5] = np.nan, np.inf
    x = np.where(np.arange(PIXELS) % 5 == 0, np.nan, np.arange(PIXELS) - 100.0).astype(np.float32)
    arrays = {"raw": words(), "g": g, "m": (np.arange(PIXELS) % 8).astype(np.uint8), "x": x}
    assert_same_bits(program_of(formula, {"g": ((0, 1, 2),)}), arrays, (12, PIXELS))


def test_a_plane_that_a_map_chooses_gives_the_same_bits() -> None:
    constants: dict[str, tuple[str, str | None]] = {"g": ("stage px", None), "m": ("px", "uint8")}
    steps = {"stage": "lookup(t, join(bits(m, 0, 2), 2, bits(raw, 14, 2)))", "v": "g[stage] * raw"}
    formula = declare(steps, constants=constants, tables={"t": [k % 5 - 1 for k in range(16)]})
    m = (np.arange(PIXELS) // 3 % 4).astype(np.uint8)
    program = program_of(formula, {"g": ((0, 1, 2, 3),)})
    assert_same_bits(program, {"raw": words(), "g": planes(4), "m": m}, (12, PIXELS))


@pytest.mark.parametrize("numbers", [(0x3FFF, 0x4000, 0xC000, 0xFFFF), (5, 70000), (0, 0x3FFF), (7,)])
def test_special_words_among_mixed_stages_give_the_same_bits(numbers: tuple[int, ...]) -> None:
    flags = {f"f{n}": f"raw == {n}" for n in numbers}
    formula = declare(
        {"stage": "lookup(t, bits(raw, 14, 2))", "v": "g[stage] + raw"},
        constants=CONSTANT,
        tables={"t": [0, 1, -1, 2]},
        flags=flags,
    )
    raw = words()
    raw[8:, ::61] = np.array(numbers, np.uint32).astype(np.uint16)[np.arange(raw[8:, ::61].shape[1]) % len(numbers)]
    assert_same_bits(program_of(formula, {"g": ((0, 1, 2),)}), {"raw": raw, "g": planes(3)}, (12, PIXELS))


def test_a_question_about_an_entry_outside_the_table_gives_the_same_bits() -> None:
    steps = {"k": "lookup(t, bits(raw, 14, 2) - 1)", "v": "where(k == -1, 7, k) + where(k != 3, 0.5, 0.25)"}
    program = program_of(declare(steps, tables={"t": [3, 4, 5, 6]}))
    assert_same_bits(program, {"raw": words()}, (12, PIXELS))


ENDS = np.array([-np.inf, -3.5, -0.5, -0.0, 0, 0.5, 1, 4999.5, 5000, 5000.25, 65534, 65534.5, 65535, 65535.5, 65536])
ENDS = np.array([*ENDS, 1e9, 3e38, np.inf, np.nan], np.float32)
TWO_ENDS: dict[str, tuple[str, str | None]] = {"g": ("stage px", None), "a": ("px", None), "b": ("px", None)}


def ended(stage: str, dtype: str = "uint16", compute: str = "float32") -> Program:
    steps = {"stage": stage, "v": "g[stage] + raw"}
    inputs = {"raw": ("frame px", dtype)}
    flags = {"none": "stage < 0"}
    formula = declare(steps, inputs=inputs, constants=TWO_ENDS, compute=compute, flags=flags)
    return program_of(formula, {"g": ((0, 1, 2),)})


@pytest.mark.parametrize("compute", ["float32", "float64"])
@pytest.mark.parametrize(
    "stage",
    [
        "where(raw > a, 1, 0) + where(raw > b, 1, 0)",
        "where(raw >= a, 1, 0) + where(b < raw, 1, 0)",
        "where(finite(a) and finite(b), where(a <= raw, 1, 0) + where(raw >= b, 1, 0), -1)",
        "where(raw > a and not (raw > b), 1, where(raw > b, 2, 0))",
        "where(not (raw > a), 0, where(b != b, -1, 1))",
    ],
)
def test_an_end_of_words_never_changes_a_stage(stage: str, compute: str) -> None:
    """Two ends for each group of pixels, and words around each: most groups are below, at or beyond their ends."""
    program = ended(stage, compute=compute)
    shortcut = find_shortcut(program)
    assert shortcut is not None
    assert shortcut.ends is not None
    assert shortcut.ends.word == "raw"
    a, b = (np.repeat(m.ravel(), 64).astype(compute) for m in np.meshgrid(ENDS, ENDS))
    around = {int(w) for e in ENDS[np.abs(ENDS) < 70000] for w in np.floor(e) + np.arange(-1, 3) if 0 <= w < 65536}
    raw = np.repeat(np.array(sorted(around), np.uint16)[:, None], a.size, axis=1)
    raw[1::3, ::50] ^= 1
    g = np.arange(3 * a.size, dtype=compute).reshape(3, -1)
    assert_same_bits(program, {"raw": raw, "g": g, "a": a, "b": b}, raw.shape)


def test_every_word_below_an_end_is_in_the_first_stage() -> None:
    program = ended("where(raw > a, 1, 0) + where(raw > b, 1, 0)")
    raw = np.arange(65536, dtype=np.uint16).reshape(-1, 64)
    raw = np.repeat(raw[:, :, None], 2, axis=2).transpose(0, 2, 1).reshape(1024, 128)
    a, b = np.full(128, 5000.5, np.float32), np.full(128, 60000, np.float32)
    a[64:] = np.arange(64) * 1000
    g = np.arange(3 * 128, dtype=np.float32).reshape(3, -1)
    assert_same_bits(program, {"raw": raw, "g": g, "a": a, "b": b}, raw.shape)


@pytest.mark.parametrize(
    ("stage", "dtype"),
    [
        ("where(raw > a, 1, 0)", "uint32"),  # not every one is a float32
        ("where(raw > a, 1, 0) + bits(raw, 0, 1)", "uint16"),
        ("where(raw > 5000, 1, 0)", "uint16"),
        ("where(raw < a, 1, 0)", "uint16"),
        ("where(raw == a, 1, 0)", "uint16"),
    ],
)
def test_other_stages_have_no_end(stage: str, dtype: str) -> None:
    shortcut = find_shortcut(ended(stage, dtype))
    assert shortcut is None or shortcut.ends is None


def test_agipd_has_ends_where_its_cells_are_taken_one_by_one() -> None:
    program = catalogue_program("agipd")
    assert getattr(find_shortcut(program), "ends", None) is None
    one, _ = fix_axes(program, frozenset(("thresholds", "offset", "relative_gain")))
    shortcut = find_shortcut(one)
    assert shortcut is not None
    assert shortcut.ends is not None
    assert shortcut.ends.word == "digital"
