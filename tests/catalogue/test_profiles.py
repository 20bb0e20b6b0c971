"""What other programs make of a JUNGFRAU word: the profiles against each program's rule, stated again in plain NumPy.

The rules are those of the programs' sources, in the dtype and the order of operations of each program; nothing of
gaincal is used for them. All words meet a set of pixels whose constants are usual, odd or missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from kernels.helpers import assert_same_bits, bits

from gaincal.calibration import Calibration, RawLayout, bind
from gaincal.constants import ConstantMap
from gaincal.errors import RequestError
from gaincal.formulas import catalog
from gaincal.formulas.columns import from_columns, to_columns
from gaincal.formulas.formula import Formula
from gaincal.kernels import blocks

pytestmark = pytest.mark.slow
Array = npt.NDArray[Any]
ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "how-to" / "moving-from-another-program.md"
WIDE = "jungfrau_wide"
PROGRAMS = tuple(n for n in catalog.profiles() if n != WIDE)
WORDS = np.arange(65_536, dtype=np.uint16)
BLOCK = 8192
NO_VALUE = 1 << 29
USUAL_GAIN, USUAL_PEDESTAL = (41.0, -1.44, -0.1145), (3000.0, 13_000.0, 13_000.0)
PHOTON_ENERGY, AWKWARD_ENERGY = 12.5, 12.4
"""The first is a number of float32."""


def pixels() -> tuple[Array, Array, Array]:
    """Pedestal and gain (stage, pixel) in float64, and mask: usual ones, zero, NaN, negative, infinite, tiny ..."""
    nan, inf = np.nan, np.inf
    gain: list[tuple[float, ...]] = [USUAL_GAIN] * 5
    mask = [0, 1 << 4, 1 << 31, 1 << 21, 1 << 22]
    for odd in (0.0, -0.0, nan, inf, 1e-36, 1e-40, 1e-310, 5e6):
        gain += [(odd,) * 3, (odd,) * 3, (41.0, odd, -0.1145), (41.0, -1.44, odd)]
        mask += [0, 2, 0, 0]
    gain += [(-41.0, 1.44, 0.1145), (4.1, -0.06, -0.002), (0.3, -0.05, -0.05), (1.0, -0.06, -2048.0)]
    mask += [0, 0, 0, 0]
    pedestal: list[tuple[float, ...]] = [USUAL_PEDESTAL] * len(gain)
    for odd in (nan, inf, -inf, -100.3, 16383.0, 16383.125, 16383.5, 1e308, 0.125):
        pedestal += [(odd,) * 3, (3000.0, odd, 13_000.0)]
        gain += [USUAL_GAIN] * 2
        mask += [0, 4]
    rng = np.random.default_rng(7)
    many = 20
    usual = np.array(USUAL_GAIN) * rng.uniform(0.9, 1.1, (many, 3))
    darks = np.array(USUAL_PEDESTAL) + rng.uniform(-900, 900, (many, 3))
    return (
        np.concatenate([np.array(pedestal), darks]).T,
        np.concatenate([np.array(gain), usual]).T,
        np.concatenate([np.array(mask), rng.choice([0, 0, 0, 8], many)]).astype(np.uint32),
    )


PEDESTAL, GAIN, MASK = pixels()
PIXELS = len(MASK)
LEVELS = (WORDS & 0x3FFF)[:, None]
CODES = (WORDS >> 14)[:, None]


@cache
def bound(name: str, energy: float = PHOTON_ENERGY, with_mask: bool = True) -> Calibration:
    """A profile bound to just what a file made for `jungfrau` has."""
    inputs = {"photon_energy": np.array(energy)}
    if with_mask:
        inputs["pixel_mask"] = MASK[None]
    maps = {"pedestal": PEDESTAL, "gain": GAIN}
    constants = {n: ConstantMap(m[:, None], ((0, 1, 2),)) for n, m in maps.items()}
    layout = RawLayout(len(WORDS), (1, PIXELS))
    return bind(
        catalog.get(name) if name.startswith("jungfrau") and name in catalog.names() else catalog.profile(name),
        layout,
        {"raw": WORDS.dtype},
        inputs,
        constants,
    )


def computed(calibration: Calibration, output: str | None = None) -> tuple[Array, Array]:
    """Value and flags (word, pixel) by the kernel; the reference gives the same bits."""
    program = calibration.program(output)
    values, flags = [], []
    for start in range(0, len(WORDS), BLOCK):
        frames = slice(start, start + BLOCK)
        words = np.broadcast_to(WORDS[frames, None, None], (BLOCK, 1, PIXELS))
        arrays = calibration.block(program, {"raw": np.ascontiguousarray(words)}, frames)
        assert_same_bits(program, arrays, (BLOCK, PIXELS))
        value, flag = np.empty((BLOCK, PIXELS), program.dtype), np.empty((BLOCK, PIXELS), np.uint32)
        blocks.evaluate(program, arrays, value, flag)
        values.append(value)
        flags.append(flag)
    return np.concatenate(values), np.concatenate(flags)


# --- the programs --------------------------------------------------------------------------


@dataclass(frozen=True)
class Constants:
    """What a program is given; `mask` is its NXmx pixel_mask, or None."""

    pedestal: Array = field(default_factory=lambda: PEDESTAL)
    gain: Array = field(default_factory=lambda: GAIN)
    mask: Array | None = field(default_factory=lambda: MASK)
    energy: float = PHOTON_ENERGY


@np.errstate(all="ignore")
def jungfrau_utils(c: Constants, factor: bool = False) -> Array:
    """float32, reciprocal gains; a table of four codes of which the last two are G2; masked pixels are left at 0."""
    pedestal, gain = c.pedestal.astype(np.float32), c.gain.astype(np.float32)
    reciprocal = np.float32(1 / c.energy if factor else 1) / gain
    rows = np.array([0, 1, 2, 2])[CODES]
    column = np.arange(PIXELS)
    product = (LEVELS.astype(np.float32) - pedestal[rows, column]) * reciprocal[rows, column]
    assert product.dtype == np.float32
    if factor:
        inside = (product >= -(2.0**31)) & (product < 2.0**31)
        product = np.where(inside, np.rint(product), 0).astype(np.int32)
    bad = np.zeros(PIXELS, bool) if c.mask is None else (c.mask & ~np.uint32(3 << 21)) != 0
    return np.where(bad, product.dtype.type(0), product)


@np.errstate(all="ignore")
def aare(c: Constants, kind: str = "float64") -> Array:
    """The dtype of the constants; a true division; code 2 counts as G0; there is no mask."""
    pedestal, gain = c.pedestal.astype(kind), c.gain.astype(kind)
    value = (LEVELS.astype(kind) - pedestal[0]) / gain[0]
    value = np.where(CODES == 1, (LEVELS.astype(kind) - pedestal[1]) / gain[1], value)
    value = np.where(CODES == 3, (LEVELS.astype(kind) - pedestal[2]) / gain[2], value)
    assert value.dtype == np.dtype(kind)
    return value


def protected(gain: Array) -> Array:
    """1 / gain in float32, and 0 where the gain is 0."""
    single = gain.astype(np.float32)
    return np.divide(np.float32(1), single, out=np.zeros_like(single), where=single != 0)


@np.errstate(all="ignore")
def psana(c: Constants) -> Array:
    """LCLS-II: for each code a pedestal and a factor that holds the mask; those of code 2 are 0."""
    good = np.ones(PIXELS, np.float32) if c.mask is None else ((c.mask & 0xFFFF) == 0).astype(np.float32)
    dark, factor = np.zeros((4, PIXELS), np.float32), np.zeros((4, PIXELS), np.float32)
    for stage, code in enumerate((0, 1, 3)):
        dark[code] = c.pedestal[stage].astype(np.float32)
        factor[code] = protected(c.gain[stage]) * good
    column = np.arange(PIXELS)
    return (LEVELS.astype(np.float32) - dark[CODES, column]) * factor[CODES, column]


@np.errstate(all="ignore")
def psana1(c: Constants) -> Array:
    """LCLS-I: what belongs to no stage has the factor 1 and the pedestal 0; the mask multiplies at the end."""
    whose = [CODES == 0, CODES == 1, CODES == 3]
    factor = np.select(whose, [g[None] for g in protected(c.gain)], np.float32(1))
    dark = np.select(whose, [p[None] for p in c.pedestal.astype(np.float32)], np.float32(0))
    value = (LEVELS.astype(np.float32) - dark) * factor
    assert value.dtype == np.float32
    return value if c.mask is None else value * ((c.mask & 0xFFFF) == 0).astype(np.float32)


def to_word(number: Fraction | None, if_negative: int) -> int:
    """A number rounded half away from zero into 16 bits; None is what cannot be rounded."""
    if number is None:
        return 0
    size = int(abs(number) + Fraction(1, 2))
    return min(size, 0xFFFF) if number > 0 or size == 0 else if_negative


def ratio(numerator: float, gain: float, power: int) -> Fraction | None:
    """numerator / gain in double, times 2^power; None where that is no number."""
    with np.errstate(all="ignore"):
        scaled = np.float64(numerator) / np.float64(gain) * 2.0**power
    return Fraction(float(scaled)) if np.isfinite(scaled) else None


def dark_word(pedestal: float) -> int:
    """A pedestal in quarters; what is not finite is stored as 0."""
    return to_word(Fraction(pedestal) * 4, 0) if np.isfinite(pedestal) else 0


def wrap(numbers: Array, width: int) -> Array:
    """The low bits of whole numbers, read as a signed number of that width."""
    half = 1 << (width - 1)
    wrapped: Array = ((numbers + half) & ((1 << width) - 1)) - half
    return wrapped


def jungfraujoch(c: Constants) -> Array:
    """The FPGA in whole numbers: the stored constants, the product and its roundings, and what comes before them."""
    numerators, fractions, kept = (32.0, -1.0, -1.0), (14, 12, 10), (19, 12, 10)
    per_energy = to_word_of_energy(c.energy)
    result = np.full((len(WORDS), PIXELS), -32_768, np.int64)
    levels = LEVELS[:, 0].astype(np.int64)
    for pixel in range(PIXELS):
        words = [to_word(ratio(numerators[s], c.gain[s, pixel], fractions[s]), 0xFFFF) for s in range(3)]
        darks = [dark_word(p) for p in c.pedestal[:, pixel]]
        if words[0] == 0:
            continue
        for stage, code in enumerate((0, 1, 3)):
            distance = levels * 4 - darks[stage] if stage == 0 else darks[stage] - levels * 4
            product = distance * words[stage] * per_energy
            assert np.abs(product).max() < 2**53
            shift = 2 + kept[stage] + 20 - 3  # what is left are eighths
            low, rest = product >> shift, product & ((1 << shift) - 1)
            half = 1 << (shift - 1)
            eighths = wrap(low + ((rest > half) | ((rest == half) & (low & 1 == 1))), 21)
            limited = np.minimum(eighths, 32_767 * 8)
            counts = wrap(np.sign(limited) * ((np.abs(limited) + 4) // 8), 16)
            usable = CODES[:, 0] == code
            if darks[stage] > 16_383 * 4:
                usable = np.zeros_like(usable)
            result[usable, pixel] = counts[usable]
        result[0xC000, pixel] = 32_767
        result[[0xFFFF, 0x4000], pixel] = -32_768
    return result.astype(np.int16)


def to_word_of_energy(energy: float) -> int:
    """1 / energy in parts of 2^20."""
    return int(Fraction(2.0**20 / energy) + Fraction(1, 2))


RULES: Mapping[str, tuple[str, Callable[[Constants], Array]]] = {
    "jungfrau_utils": ("energy", jungfrau_utils),
    "jungfrau_utils, counts": ("counts", lambda c: jungfrau_utils(c, factor=True)),
    "aare": ("energy", aare),
    "aare_float32": ("energy", lambda c: aare(c, "float32")),
    "psana": ("energy", psana),
    "psana1": ("energy", psana1),
    "jungfraujoch": ("counts", jungfraujoch),
}


def test_every_profile_has_a_rule() -> None:
    assert {n.partition(",")[0] for n in RULES} == set(PROGRAMS)
    assert set(catalog.profiles()) == {*PROGRAMS}


def assert_as_the_program(found: tuple[Array, Array], wanted: Array) -> None:
    """The same bits; where the program has an infinity or NaN, NaN with the reason `no_value`."""
    value, flags = found
    assert value.dtype == wanted.dtype
    nothing = ~np.isfinite(wanted)
    expected = np.where(nothing, np.array(np.nan).astype(wanted.dtype), wanted) if nothing.any() else wanted
    wrong = np.argwhere(bits(value) != bits(expected))
    if len(wrong):
        word, pixel = wrong[0]
        place = f"0x{word:04X}, pixel {pixel}: {PEDESTAL[:, pixel]} {GAIN[:, pixel]}"
        raise AssertionError(
            f"{len(wrong)} differ, first {place}: {value[word, pixel]}, wanted {expected[word, pixel]}"
        )
    np.testing.assert_array_equal((flags & NO_VALUE) != 0, nothing)


@pytest.mark.parametrize("name", RULES)
def test_all_words_are_as_the_program_gives_them(name: str) -> None:
    output, rule = RULES[name]
    assert_as_the_program(computed(bound(name.partition(",")[0]), output), rule(Constants()))


@pytest.mark.parametrize("name", ["jungfrau_utils", "jungfrau_utils, counts", "psana", "psana1"])
def test_without_a_mask_there_is_an_output_that_does_not_ask_for_it(name: str) -> None:
    output, rule = RULES[name]
    calibration = bound(name.partition(",")[0], with_mask=False)
    assert output not in calibration.available_outputs()
    assert_as_the_program(computed(calibration, f"{output}_unmasked"), rule(Constants(mask=None)))


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_preferred_output_without_a_mask_is_of_the_same_kind(name: str) -> None:
    calibration = bound(name, with_mask=False)
    preferred = calibration.preferred_output()
    assert preferred is not None
    assert preferred.removesuffix("_unmasked") == calibration.formula.output().name


def test_counts_of_jungfrau_utils_at_an_energy_that_float32_does_not_have() -> None:
    """1 / energy is rounded from double there, from float32 here: the last bits, and 1 at a tie."""
    found, _ = computed(bound("jungfrau_utils", AWKWARD_ENERGY), "counts")
    wanted = jungfrau_utils(Constants(energy=AWKWARD_ENERGY), factor=True).astype(np.int64)
    difference = np.abs(found - wanted)
    differ = difference > 0
    assert 0 < differ.mean() < 1e-3
    assert (difference[differ] <= 1 + np.abs(wanted[differ]) * 2.0**-21).all()


@pytest.mark.parametrize("energy", [0.5, 1.0, 6.2, AWKWARD_ENERGY])
def test_jungfraujoch_at_other_energies(energy: float) -> None:
    found = computed(bound("jungfraujoch", energy))
    assert_as_the_program(found, jungfraujoch(Constants(energy=energy)))


def test_all_ways_of_jungfraujoch_are_taken() -> None:
    """The constants reach every flag and, at 1 keV, both wraps: of 18 bits into the upper limit, and of 16."""
    calibration = bound("jungfraujoch", 1.0)
    value, flags = computed(calibration)
    names = [f.name for f in calibration.formula.flags]
    assert {n for k, n in enumerate(names) if (flags >> k & 1).any()} == set(names)
    marks = ((flags >> names.index("above_range")) & 1).astype(bool)
    jumps = np.abs(np.diff(value[0x4001:0x7FFF].astype(np.int64), axis=0))
    assert ((jumps > 30_000) & (jumps < 40_000) & (marks[0x4002:0x7FFF] & ~marks[0x4001:0x7FFE])).any()
    assert (jumps > 65_000).any()


# --- the formulas --------------------------------------------------------------------------


@pytest.mark.parametrize("name", catalog.profiles())
def test_every_profile_is_a_formula_over_what_jungfrau_takes(name: str) -> None:
    formula, base = catalog.profile(name), catalog.get("jungfrau")
    own = {"pixel_area", "largest_area"} if name == WIDE else set()
    assert formula.name == name
    for part in ("inputs", "constants"):
        assert tuple(i for i in getattr(formula, part) if i.name not in own) == getattr(base, part)
    assert Formula.from_toml(formula.to_toml()) == formula == from_columns(to_columns(formula))


@pytest.mark.parametrize("name", catalog.profiles())
def test_every_profile_is_there_for_several_modules(name: str) -> None:
    formula, alone = catalog.profile(name + catalog.MODULES), catalog.profile(name)
    assert formula.name == name + catalog.MODULES
    assert formula.checked.pixel_dims == ("module", "y", "x")
    for part in ("tables", "steps", "outputs", "flags"):
        assert getattr(formula, part) == getattr(alone, part)


@pytest.mark.parametrize("name", PROGRAMS)
def test_flags_of_a_profile_tell_and_leave_the_mask_alone(name: str) -> None:
    flags = catalog.profile(name).flags
    assert {f.name for f in flags} >= {f.name for f in catalog.get("jungfrau").flags}
    assert all(f.pixel_mask_bit is None for f in flags)
    voiding = {f.name for f in flags if f.voids}
    jungfraujoch_marks = {"no_calibration", "error_word", "invalid_gain_code", "below_range"}
    assert voiding == (jungfraujoch_marks if name == "jungfraujoch" else set())


def test_the_two_of_aare_differ_in_the_type_alone() -> None:
    double, single = (catalog.profile(n) for n in ("aare", "aare_float32"))
    assert double.steps == single.steps
    assert double.flags == single.flags
    assert (double.compute, single.compute) == ("float64", "float32")


@pytest.mark.parametrize("name", ["", "jungfrau", "../jungfrau", "aare.toml", "psana_modules_modules", "\0"])
def test_another_profile_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(RequestError, match=r"no profile .*aare.*psana"):
        catalog.profile(name)


# --- how far from jungfrau -----------------------------------------------------------------

FROM_JUNGFRAU = {"jungfrau_utils": 1, "aare_float32": 0, "psana": 1, "psana1": 1}
"""Measured, in units of the last place; the page states these."""


def ordered(numbers: Array) -> Array:
    """float32 numbers as whole numbers that count representable ones."""
    whole = numbers.view(np.int32).astype(np.int64)
    return np.where(whole < 0, -(2**31) - whole, whole)


@pytest.mark.parametrize("name", FROM_JUNGFRAU)
def test_where_jungfrau_has_no_flag_it_gives_the_same_but_for_the_last_bits(name: str) -> None:
    own, flags = computed(bound("jungfrau"))
    theirs, _ = computed(bound(name), "energy")
    usual = np.arange(PIXELS) >= PIXELS - 20
    good = (flags == 0) & usual
    assert good[:, usual].mean() > 0.4
    apart = np.abs(ordered(own[good]) - ordered(theirs[good]))
    assert apart.max() == FROM_JUNGFRAU[name]


def test_where_jungfrau_has_no_flag_jungfraujoch_counts_the_same_but_for_one() -> None:
    own, flags = computed(bound("jungfrau"), "counts")
    theirs, _ = computed(bound("jungfraujoch"))
    usual = np.arange(PIXELS) >= PIXELS - 20
    good = (flags == 0) & usual
    apart = np.abs(own[good] - theirs[good].astype(np.int64))
    assert apart.max() == 1
    assert (apart > 0).mean() < 0.1


# --- wide pixels ---------------------------------------------------------------------------


def module_areas() -> Array:
    """Of a module of 2 x 4 chips of 256 x 256: pixels at borders between chips are twice as wide."""
    rows, columns = np.ones(512, np.uint8), np.ones(1024, np.uint8)
    rows[[255, 256]] = 2
    columns[[255, 256, 511, 512, 767, 768]] = 2
    return rows[:, None] * columns


def test_the_areas_of_a_module_make_its_size_with_gaps() -> None:
    area = module_areas()
    assert {int(v): int((area == v).sum()) for v in (1, 2, 4)} == {1: 510 * 1018, 2: 2 * 1018 + 6 * 510, 4: 12}
    assert area.sum() == 514 * 1030


AREAS = np.resize(np.array([1, 2, 4, 2, 1], np.uint8), PIXELS)


@cache
def wide(largest: int | None) -> Calibration:
    inputs = {"photon_energy": np.array(PHOTON_ENERGY), "pixel_mask": MASK[None], "pixel_area": AREAS[None]}
    constants = {n: ConstantMap(m[:, None], ((0, 1, 2),)) for n, m in (("pedestal", PEDESTAL), ("gain", GAIN))}
    if largest is not None:
        constants["largest_area"] = ConstantMap(np.array(float(largest)), ())
    layout = RawLayout(len(WORDS), (1, PIXELS))
    return bind(catalog.get(WIDE), layout, {"raw": WORDS.dtype}, inputs, constants)


def test_the_formula_of_wide_pixels_is_jungfrau_and_more() -> None:
    formula, base = catalog.get(WIDE), catalog.get("jungfrau")
    conditions = sum(s.name.partition(".")[0] in {f.name for f in base.flags} for s in base.steps)
    steps = len(base.steps) - conditions
    assert formula.steps[:steps] == base.steps[:steps]
    assert formula.outputs[: len(base.outputs)] == base.outputs
    assert formula.flags[:-1] == base.flags
    assert [s for s in formula.steps if s in base.steps] == list(base.steps)


@pytest.mark.parametrize("output", ["energy", "counts"])
def test_wide_pixels_are_kept(output: str) -> None:
    for mine, theirs in zip(computed(wide(None), output), computed(bound("jungfrau"), output), strict=True):
        np.testing.assert_array_equal(bits(mine), bits(theirs))


@pytest.mark.parametrize("largest", [1, 2])
def test_wide_pixels_are_masked(largest: int) -> None:
    value, flags = computed(wide(largest))
    kept, reasons = computed(wide(None))
    named = [f.name for f in catalog.get(WIDE).flags].index("wide")
    np.testing.assert_array_equal(flags >> named & 1, np.broadcast_to(largest < AREAS, flags.shape))
    assert np.isnan(value[:, largest < AREAS]).all()
    np.testing.assert_array_equal(bits(value[:, largest >= AREAS]), bits(kept[:, largest >= AREAS]))
    np.testing.assert_array_equal(flags[:, largest >= AREAS], reasons[:, largest >= AREAS])


def test_wide_pixels_are_split() -> None:
    whole, flags = computed(wide(None))
    share, _ = computed(wide(None), "energy_per_area")
    good = flags == 0
    np.testing.assert_array_equal((share * AREAS)[good], whole[good])
    counts, _ = computed(wide(None), "counts_per_area")
    photons, _ = computed(wide(None), "photons_per_area")
    fits = good & (np.abs(photons) < 2**31 - 1)
    np.testing.assert_array_equal(counts[fits], np.rint(photons[fits]).astype(np.int64))
    spread, _ = computed(wide(None), "energy_per_area_variance")
    whole_spread, _ = computed(wide(None), "energy_variance")
    usual = good & (np.arange(PIXELS) >= PIXELS - 20)
    np.testing.assert_array_equal((spread * np.float32(AREAS) ** 2)[usual], whole_spread[usual])


def test_without_areas_the_formula_is_jungfrau() -> None:
    calibration = bound(WIDE)
    assert "energy_per_area" not in calibration.available_outputs()
    assert "wide" not in calibration.tested_flags()
    np.testing.assert_array_equal(bits(computed(calibration)[0]), bits(computed(bound("jungfrau"))[0]))


# --- the page ------------------------------------------------------------------------------

SPECIAL = (
    ("G0", 0x1234, USUAL_GAIN, 0),
    ("G1", 0x6000, USUAL_GAIN, 0),
    ("G2", 0xE000, USUAL_GAIN, 0),
    ("code 2", 0x8123, USUAL_GAIN, 0),
    ("saturated", 0xC000, USUAL_GAIN, 0),
    ("error word", 0xFFFF, USUAL_GAIN, 0),
    ("error word", 0x4000, USUAL_GAIN, 0),
    ("end of the ADC in G0", 0x3FFF, USUAL_GAIN, 0),
    ("masked pixel", 0x1234, USUAL_GAIN, 1),
    ("gain NaN", 0x1234, (np.nan,) * 3, 0),
    ("gain NaN, G1", 0x6000, (41.0, np.nan, np.nan), 0),
    ("gain 0", 0x1234, (0.0,) * 3, 0),
    ("gain 0, G1", 0x6000, (41.0, 0.0, 0.0), 0),
)
COLUMNS = ("jungfrau", "jungfrau_utils", "aare", "psana", "psana1", "jungfraujoch")


def cell(name: str, word: int, gain: tuple[float, ...], mask: int) -> str:
    formula = catalog.get(name) if name == "jungfrau" else catalog.profile(name)
    maps = {"pedestal": np.array(USUAL_PEDESTAL), "gain": np.array(gain)}
    constants = {n: ConstantMap(m.reshape(3, 1, 1), ((0, 1, 2),)) for n, m in maps.items()}
    inputs = {"photon_energy": np.array(AWKWARD_ENERGY), "pixel_mask": np.full((1, 1), mask, np.uint32)}
    calibration = bind(formula, RawLayout(1, (1, 1)), {"raw": WORDS.dtype}, inputs, constants)
    program = calibration.program()
    arrays = calibration.block(program, {"raw": np.full((1, 1, 1), word, np.uint16)}, slice(0, 1))
    value, flags = np.empty((1, 1), program.dtype), np.empty((1, 1), np.uint32)
    blocks.evaluate(program, arrays, value, flags)
    return str(value[0, 0]) if value.dtype.kind == "i" else f"{value[0, 0] + 0.0:.2f}".replace("nan", "NaN")


def table() -> str:
    rows = ["| case | word | " + " | ".join(f"`{n}`" for n in COLUMNS) + " |", "|---|---|" + "---:|" * len(COLUMNS)]
    for what, word, gain, mask in SPECIAL:
        cells = " | ".join(cell(n, word, gain, mask) for n in COLUMNS)
        rows.append(f"| {what} | `0x{word:04X}` | {cells} |")
    return "\n".join(rows) + "\n"


def test_the_page_has_the_table_of_the_formulas() -> None:
    assert table() in PAGE.read_text("utf-8"), f"the table is now\n{table()}"


def test_the_page_states_the_differences_that_were_measured() -> None:
    text = PAGE.read_text("utf-8")
    for name, most in FROM_JUNGFRAU.items():
        assert f"| `{name}` | {most} ULP |" in text
    assert all(f"`{n}`" in text for n in PROGRAMS)
