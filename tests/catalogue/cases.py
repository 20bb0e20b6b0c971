"""Every formula of the catalogue with all its words, awkward constants, and what the second opinion says of them.

Frames run over all words while each group of pixels meets them with another setting (memory cell, gain mode), so that
every word meets every setting and every set of constants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import independent as second
import numpy as np
import numpy.typing as npt

from gaincal.calibration import Calibration, RawLayout, bind
from gaincal.constants import ConstantMap
from gaincal.formulas import catalog
from gaincal.formulas.formula import Formula

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
WORDS = 65_536
PHOTON_ENERGY, ADU_PER_KEV = 12.4, 7.5
AWKWARD = (0.0, -0.0, np.nan, np.inf, -np.inf, 1e-40, 1e-310, -1e-3, -7.5, 3e38)
"""Two are subnormal, in float32 or in float64; a value divided by them may overflow."""
BLOCK = 8192


@dataclass(frozen=True)
class Expected:
    """What the second opinion says: NaN in `value` and `variance` where there is none."""

    value: Array
    flags: Mapping[str, Bools]
    variance: Array | None = None


@dataclass(frozen=True)
class Case:
    """A formula and everything that it takes; constants are float64, with labels."""

    name: str
    words: Mapping[str, Array]
    constants: Mapping[str, tuple[Array, tuple[tuple[int, ...], ...]]]
    expected: Callable[[Case], Expected] = field(repr=False)
    inputs: Mapping[str, Array] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Array:
        if name in self.words:
            return self.words[name]
        return self.inputs[name] if name in self.inputs else self.constants[name][0]

    @property
    def shape(self) -> tuple[int, ...]:
        return next(iter(self.words.values())).shape

    def bound(self, compute: str = "float32") -> Calibration:
        """Formula and constants as a file would bind them; in float64 the results too are delivered in it."""
        formula = catalog.get(self.name)
        if compute == "float64":
            formula = in_double(formula)
        return bind(
            formula,
            RawLayout(self.shape[0], self.shape[1:]),
            {n: w.dtype for n, w in self.words.items()},
            {n: np.asarray(a) for n, a in self.inputs.items()},
            {n: ConstantMap(values, labels) for n, (values, labels) in self.constants.items()},
        )

    def blocks(self) -> Iterator[tuple[slice, dict[str, Array]]]:
        """The words in blocks of frames that the reference evaluator can hold."""
        for start in range(0, self.shape[0], BLOCK):
            part = slice(start, min(start + BLOCK, self.shape[0]))
            yield part, {n: w[part] for n, w in self.words.items()}


def in_double(formula: Formula) -> Formula:
    """The formula in float64, its floating-point results too."""
    outputs = [replace(o, dtype="float64") if o.dtype == "float32" else o for o in formula.outputs]
    return replace(formula.with_compute("float64"), outputs=tuple(outputs))


def awkward(shape: tuple[int, ...], usual: Array, seed: int, part: float = 0.4) -> Array:
    """Usual numbers (repeated over the last dims), a part of them replaced by awkward ones."""
    rng = np.random.default_rng(seed)
    values = np.broadcast_to(usual.reshape(usual.shape + (1,) * (len(shape) - usual.ndim)), shape)
    values = values * rng.uniform(0.95, 1.05, shape)
    return np.where(rng.random(shape) < part, rng.choice(AWKWARD, shape), values)


def crossed(settings: int, columns: int) -> tuple[Array, Array]:
    """All words in frames (frame, y, x), and the setting of every frame: in each y the words meet another one."""
    step = WORDS // settings
    frame, row = np.arange(settings * step), np.arange(settings)
    words = (frame[:, None] + step * row) % WORDS
    return np.repeat(words[:, :, None], columns, axis=2).astype(np.uint16), frame // step


def mask(pixels: tuple[int, ...]) -> Array:
    """Bad pixels by a low bit, and one by a high bit, which is not bad."""
    bits = np.zeros(int(np.prod(pixels)), np.uint32)
    bits[1], bits[-1], bits[-2] = 1, 1 << 8, 1 << 31
    return bits.reshape(pixels)


def masked(case: Case) -> Bools:
    return np.broadcast_to((case["pixel_mask"] & 0xFFFF) != 0, case.shape)


def noises(shape: tuple[int, ...], labels: tuple[tuple[int, ...], ...], names: tuple[str, ...]) -> dict[str, Any]:
    """Constants of the variance, some awkward."""
    usual = {names[0]: 3.0, names[1]: 0.5, names[2]: 0.02}
    return {n: (awkward(shape, np.array(v), 100 + k, 0.15), labels) for k, (n, v) in enumerate(usual.items())}


ERRORS = ("noise", "pedestal_error", "gain_error")


# ----------------------------------------------------------------------------------------------------------- JUNGFRAU


def special(raw: Array) -> Bools:
    """Words that are bad in themselves but have a stage."""
    return np.isin(raw, (0xC000, 0xFFFF, 0x4000))


def harmless(raw: Array) -> Array:
    """The same words, with the neighbours of the special ones, which are of the same stage."""
    return np.where(special(raw), raw ^ 1, raw)


@np.errstate(all="ignore")
def too_large(case: Case, adc: Array, *selectors: Array) -> Bools:
    """Where a value overflows, which for the formulas is `no_calibration` too; also behind words that are bad."""
    pedestal, gain = (second._pick(case[n], *selectors) for n in ("pedestal", "gain"))
    return np.isinf((adc - pedestal) / gain)


def psi(
    case: Case,
    of_words: second.Calibrated,
    of_harmless: second.Calibrated,
    bad_setting: Mapping[str, Bools],
    overflow: Bools,
    limit: Bools,
    variance: Array,
) -> Expected:
    """Flags and value of the JUNGFRAU formulas."""
    nowhere = np.logical_or.reduce([np.zeros(case.shape, bool), *bad_setting.values()])
    flags = {
        **bad_setting,
        "invalid_gain_code": of_words.bad["invalid_gain"],
        "saturated": of_words.bad["saturated"],
        "error_word": of_words.bad["error_word"],
        "adc_limit": limit,
        "no_calibration": (of_harmless.bad["no_calibration"] | overflow) & ~nowhere,
        "masked": masked(case),
    }
    return Expected(of_words.value, flags, variance)


def jungfrau() -> Case:
    raw, _ = crossed(1, 64)
    pixels, labels = raw.shape[1:], ((0, 1, 2),)
    shape = (3, *pixels)

    def expected(c: Case) -> Expected:
        found = second.jungfrau(c["raw"], c["pedestal"], c["gain"])
        other = second.jungfrau(harmless(c["raw"]), c["pedestal"], c["gain"])
        variance = second.variance(found.value, found.stage, c["gain"], *(c[n] for n in ERRORS), PHOTON_ENERGY)
        overflow = too_large(c, c["raw"] & 0x3FFF, other.stage)
        return psi(c, found, other, {}, overflow, c["raw"] == 0x3FFF, variance)

    return Case(
        "jungfrau",
        {"raw": raw},
        {
            "pedestal": (awkward(shape, np.array([3000.0, 14_500, 14_200]), 1), labels),
            "gain": (awkward(shape, np.array([41, -1.44, -0.1145]), 2), labels),
            **noises(shape, labels, ERRORS),
        },
        expected,
        {"photon_energy": np.array(PHOTON_ENERGY), "pixel_mask": mask(pixels)},
    )


def jungfrau_wide() -> Case:
    plain = jungfrau()
    areas = np.resize(np.array([1, 2, 4], np.uint8), plain.shape[1:])

    def expected(c: Case) -> Expected:
        found = plain.expected(c)
        wide = np.broadcast_to(c["pixel_area"] > 2, c.shape)
        return Expected(np.where(wide, np.nan, found.value), {**found.flags, "wide": wide}, found.variance)

    constants = {**plain.constants, "largest_area": (np.array(2.0), ())}
    return Case("jungfrau_wide", plain.words, constants, expected, {**plain.inputs, "pixel_area": areas})


FOUR = np.array([[3000.0, 14_500, 14_200, 2500], [41, -1.44, -0.1145, 90]])


def jungfrau_hg0() -> Case:
    modes = np.array([0, 1, 2, 255], np.uint8)
    raw, setting = crossed(4, 24)
    pixels, labels = raw.shape[1:], ((0, 1, 2, 3),)
    shape = (4, *pixels)

    def expected(c: Case) -> Expected:
        high, constants = c["high_gain"], (c["pedestal"], c["gain"])
        found = second.jungfrau_hg0(c["raw"], high == 1, *constants)
        other = second.jungfrau_hg0(harmless(c["raw"]), high == 1, *constants)
        unknown = np.broadcast_to((high > 1)[:, None, None], c.shape)
        variance = second.variance(found.value, found.stage, c["gain"], *(c[n] for n in ERRORS), PHOTON_ENERGY)
        bad = {"no_gain_setting": unknown}
        overflow = too_large(c, c["raw"] & 0x3FFF, other.stage)
        return psi(c, found, other, bad, overflow, c["raw"] == 0x3FFF, variance)

    return Case(
        "jungfrau_hg0",
        {"raw": raw},
        {
            "pedestal": (awkward(shape, FOUR[0], 3), labels),
            "gain": (awkward(shape, FOUR[1], 4), labels),
            **noises(shape, labels, ERRORS),
        },
        expected,
        {"photon_energy": np.array(PHOTON_ENERGY), "pixel_mask": mask(pixels), "high_gain": modes[setting]},
    )


CELLS = (3, 0, 11)


def jungfrau_cells() -> Case:
    settings = np.array([(3, 0), (3, 1), (0, 0), (0, 1), (11, 1), (5, 0), (255, 1), (0, 255)], np.uint8)
    raw, setting = crossed(len(settings), 10)
    pixels, labels = raw.shape[1:], ((0, 1, 2, 3), CELLS)
    shape = (4, 3, *pixels)

    def expected(c: Case) -> Expected:
        cell, high, constants = c["cell"], c["high_gain"], (c["pedestal"], c["gain"])
        known = np.where(cell == 255, CELLS[0], cell)
        labels = np.array(CELLS)
        found = second.jungfrau_cells(c["raw"], cell, high == 1, *constants, labels)
        of_words = second.jungfrau_cells(c["raw"], known, high == 1, *constants, labels)
        other = second.jungfrau_cells(harmless(c["raw"]), known, high == 1, *constants, labels)
        of_frames = {"no_cell": cell == 255, "no_gain_setting": high > 1}
        bad = {n: np.broadcast_to(where[:, None, None], c.shape) for n, where in of_frames.items()}
        np.testing.assert_array_equal(bad["no_cell"], found.bad["missing_cell"])
        place = second._position(cell, labels)[:, None, None]
        errors = (c[n] for n in ERRORS)
        variance = second.variance(found.value, found.stage, c["gain"], *errors, PHOTON_ENERGY, place)
        overflow = too_large(c, c["raw"] & 0x3FFF, other.stage, np.broadcast_to(place, c.shape))
        result = psi(c, of_words, other, bad, overflow, c["raw"] == 0x3FFF, variance)
        return replace(result, value=found.value)

    return Case(
        "jungfrau_cells",
        {"raw": raw},
        {
            "pedestal": (awkward(shape, FOUR[0], 5), labels),
            "gain": (awkward(shape, FOUR[1], 6), labels),
            **noises(shape, labels, ERRORS),
        },
        expected,
        {
            "photon_energy": np.array(PHOTON_ENERGY),
            "pixel_mask": mask(pixels),
            "cell": settings[setting, 0],
            "high_gain": settings[setting, 1],
        },
    )


def jungfrau_split(all_codes: bool = False) -> Case:
    cells = np.array([*CELLS, 255], np.uint8)
    ramp, setting = crossed(4, 24)
    if all_codes:
        adcs = np.array([0, 1, 5000, 0x3FFE, 0x3FFF, 0x4000, 0x4001, 0xFFFF], np.uint16)
        adc, codes = adcs[(ramp >> 8) % 8], (ramp & 255).astype(np.uint8)
    else:
        codes = np.array([0, 1, 2, 3, 4, 7, 128, 255], np.uint8)
        adc, codes = ramp, np.broadcast_to(np.tile(codes, 3), ramp.shape).copy()
    pixels, labels = ramp.shape[1:], ((0, 1, 2), CELLS)
    shape = (3, 3, *pixels)

    def expected(c: Case) -> Expected:
        adc, code, cell = c["adc"], c["gain_code"], c["cell"]
        known, constants, places = np.where(cell == 255, CELLS[0], cell), (c["pedestal"], c["gain"]), np.array(CELLS)
        found = second.jungfrau_split(adc, code, cell, *constants, places)
        of_words = second.jungfrau_split(adc, code, known, *constants, places)
        error = of_words.bad["error_word"] | of_words.bad["saturated"]
        tame = np.where(error, np.clip(adc ^ 1, 1, 0x3FFE), adc)
        other = second.jungfrau_split(tame, code, known, *constants, places)
        bad = {"no_cell": found.bad["missing_cell"]}
        position = second._position(cell, places)[:, None, None]
        errors = (c[n] for n in ERRORS)
        variance = second.variance(found.value, found.stage, c["gain"], *errors, PHOTON_ENERGY, position)
        overflow = too_large(c, adc, other.stage, np.broadcast_to(position, c.shape))
        result = psi(c, of_words, other, bad, overflow, (code == 0) & (adc == 0x3FFF), variance)
        # An ADC of too many bits is an error before anybody asks for the code; the formula says both.
        flags = {**result.flags, "invalid_gain_code": other.bad["invalid_gain"]}
        return replace(result, value=found.value, flags=flags)

    return Case(
        "jungfrau_split",
        {"adc": adc, "gain_code": codes},
        {
            "pedestal": (awkward(shape, FOUR[0, :3], 7), labels),
            "gain": (awkward(shape, FOUR[1, :3], 8), labels),
            **noises(shape, labels, ERRORS),
        },
        expected,
        {"photon_energy": np.array(PHOTON_ENERGY), "pixel_mask": mask(pixels), "cell": cells[setting]},
    )


# ------------------------------------------------------------------------------------------------------ European XFEL

XFEL_CELLS = (7, 300)
XFEL_ERRORS = ("noise", "offset_error", "relative_gain_error")


def xfel_variance(c: Case, found: second.Calibrated, place: Array) -> Array:
    """The second opinion divides by a gain; NaN where its reciprocal is no usual number."""
    with np.errstate(all="ignore"):
        gain = 1 / c["relative_gain"]
        gain = np.where(np.isfinite(gain) & (np.abs(gain) > 1e-30) & (np.abs(gain) < 1e30), gain, np.nan)
        error = c["relative_gain_error"] * np.square(gain)
        noise, offset_error = c["noise"], c["offset_error"]
        energy = PHOTON_ENERGY * ADU_PER_KEV
        return second.variance(found.value, found.stage, gain, noise, offset_error, error, energy, place)


def xfel(c: Case, found: second.Calibrated, more: Mapping[str, Bools]) -> Expected:
    """Flags and value of AGIPD and LPD: a relative gain of 0 is no calibration either, nor is a number too large."""
    cell = c["cell"]
    none = np.broadcast_to((cell == 65_535)[..., None, None], c.shape)
    position = second._position(cell, np.array(XFEL_CELLS))[..., None, None]
    position = np.broadcast_to(position, c.shape)
    zero = second._pick(c["relative_gain"], found.stage, position) == 0
    bad = found.bad["no_calibration"] | zero | (np.isinf(found.value) & (found.stage >= 0))
    flags = {"no_cell": none, **more, "no_calibration": bad & ~none, "masked": masked(c)}
    return Expected(found.value, flags, xfel_variance(c, found, position))


def xfel_inputs(setting: Array, pixels: tuple[int, ...]) -> dict[str, Array]:
    """Cells per frame and module; no module has that of its neighbour."""
    cells = np.array([7, 300, 12, 65_535], np.uint16)
    return {
        "photon_energy": np.array(PHOTON_ENERGY),
        "adu_per_kev": np.array(ADU_PER_KEV),
        "pixel_mask": mask(pixels),
        "cell": np.stack([cells[(setting + m) % 4] for m in range(pixels[0])], axis=1),
    }


def xfel_constants(pixels: tuple[int, ...], seed: int) -> dict[str, Any]:
    labels, shape = ((0, 1, 2), XFEL_CELLS), (3, 2, *pixels)
    return {
        "offset": (awkward(shape, np.array([5000.0, 7000, 8000]), seed, 0.25), labels),
        "relative_gain": (awkward(shape, np.array([1.0, 30, 150]), seed + 1, 0.25), labels),
        **noises(shape, labels, XFEL_ERRORS),
    }


def agipd(all_digital: bool = False) -> Case:
    ramp, setting = crossed(4, 6)
    ramp = np.stack([ramp, ramp], axis=1)
    pixels = ramp.shape[1:]
    near = np.array([0, 5999, 6000, 6001, 7999, 8000, 8001, 65_535], np.uint16)
    other = np.broadcast_to(np.resize(near, pixels), ramp.shape).copy()
    labels, shape = ((0, 1), XFEL_CELLS), (2, 2, *pixels)
    rng = np.random.default_rng(20)
    thresholds = np.broadcast_to(np.array([6000.0, 8000]).reshape(2, 1, 1, 1, 1), shape)
    odd = rng.choice([np.nan, np.inf, -np.inf, -1, 9000, 6000.5], shape)

    def expected(c: Case) -> Expected:
        found = second.agipd(
            *(c[n] for n in ("analog", "digital", "cell", "thresholds", "offset", "relative_gain")),
            np.array(XFEL_CELLS),
        )
        # The second opinion takes an infinite threshold for one that is never (or always) exceeded.
        position = np.broadcast_to(second._position(c["cell"], np.array(XFEL_CELLS))[..., None, None], c.shape)
        infinite = np.zeros(c.shape, bool)
        for which in (0, 1):
            infinite |= np.isinf(second._pick(c["thresholds"], np.full(c.shape, which), position))
        result = xfel(c, found, {})
        bad = result.flags["no_calibration"] | (infinite & ~result.flags["no_cell"])
        return replace(result, flags={**result.flags, "no_calibration": bad})

    analog, digital = (other, ramp) if all_digital else (ramp, other)
    return Case(
        "agipd",
        {"analog": analog, "digital": digital},
        {
            "thresholds": (np.where(rng.random(shape) < 0.2, odd, thresholds), labels),
            **xfel_constants(pixels, 21),
        },
        expected,
        xfel_inputs(setting, pixels),
    )


def lpd() -> Case:
    ramp, setting = crossed(4, 6)
    ramp = np.stack([ramp, ramp], axis=1)
    pixels = ramp.shape[1:]

    def expected(c: Case) -> Expected:
        found = second.lpd(*(c[n] for n in ("raw", "cell", "offset", "relative_gain")), np.array(XFEL_CELLS))
        more = {"invalid_gain_code": found.bad["invalid_gain"], "error_word": found.bad["error_word"]}
        return xfel(c, found, more)

    return Case("lpd", {"raw": ramp}, xfel_constants(pixels, 31), expected, xfel_inputs(setting, pixels))


# -------------------------------------------------------------------------------------------------------- one by one


def epix10ka() -> Case:
    """All configurations, a bit above them here and there, both values of trbit and one that it cannot have."""
    raw = np.repeat(crossed(1, 6)[0], 16, axis=1)
    pixels, labels = raw.shape[1:], (tuple(range(7)),)
    config, trbit = np.indices(pixels, dtype=np.uint8)
    config[:, 1::2] |= 0xA0
    trbit = np.minimum(trbit, 4) % 3
    shape = (7, *pixels)
    gains = np.array([16.4, 5.466, 0.164, 16.4, 5.466, 0.164, 0.164])

    def expected(c: Case) -> Expected:
        found = second.epix10ka(*(c[n] for n in ("raw", "config", "trbit", "pedestal", "gain")))
        impossible = np.broadcast_to(c["trbit"] > 1, c.shape)
        bad = (found.bad["no_calibration"] | np.isinf(found.value)) & ~impossible
        flags = {
            "invalid_gain_setting": found.bad["invalid_gain"] | impossible,
            "no_calibration": bad,
            "masked": masked(c),
        }
        variance = second.variance(found.value, found.stage, c["gain"], *(c[n] for n in ERRORS), PHOTON_ENERGY)
        return Expected(found.value, flags, variance)

    return Case(
        "epix10ka",
        {"raw": raw},
        {
            "pedestal": (awkward(shape, np.full(7, 3000.0), 41, 0.2), labels),
            "gain": (awkward(shape, gains, 42, 0.2), labels),
            **noises(shape, labels, ERRORS),
        },
        expected,
        {"photon_energy": np.array(PHOTON_ENERGY), "pixel_mask": mask(pixels), "config": config, "trbit": trbit},
    )


def gotthard(split: bool = False) -> Case:
    raw = crossed(1, 64)[0][:, 0]
    pixels, labels = raw.shape[1:], ((0, 1, 2),)
    shape = (3, *pixels)
    words = {"raw": raw}
    if split:
        words = {"adc": raw, "gain_code": np.broadcast_to(np.resize([0, 1, 2, 3, 4, 255], 64), raw.shape).astype("u1")}

    def expected(c: Case) -> Expected:
        raw = (c["adc"] & 0x0FFF) | np.minimum(c["gain_code"], 4).astype(np.uint16) % 4 << 12 if split else c["raw"]
        found = second.gotthard2(raw, c["pedestal"], c["gain"])
        variance = second.variance(found.value, found.stage, c["gain"], *(c[n] for n in ERRORS), PHOTON_ENERGY)
        bad = found.bad["no_calibration"] | too_large(c, c["adc"] if split else raw & 0x0FFF, found.stage)
        if not split:
            return Expected(
                found.value, {"invalid_gain_code": found.bad["invalid_gain"], "no_calibration": bad}, variance
            )
        unknown = (c["gain_code"] > 3) | found.bad["invalid_gain"]
        wide = c["adc"] > 0x0FFF
        flags = {"error_word": wide, "invalid_gain_code": unknown, "no_calibration": bad & ~unknown}
        return Expected(found.value, flags, variance)

    return Case(
        "gotthard2_split" if split else "gotthard2",
        words,
        {
            "pedestal": (awkward(shape, np.array([300.0, 3500, 3600]), 51), labels),
            "gain": (awkward(shape, np.array([12, -0.7, -0.06]), 52), labels),
            **noises(shape, labels, ERRORS),
        },
        expected,
        {"photon_energy": np.array(PHOTON_ENERGY)},
    )


def one_stage(name: str) -> Case:
    """MOENCH and CSPAD."""
    raw, _ = crossed(1, 64)
    pixels = raw.shape[1:]

    def expected(c: Case) -> Expected:
        found = getattr(second, name)(c["raw"], c["pedestal"], c["gain"])
        tame = getattr(second, name)(c["raw"] & 0x3FFF, c["pedestal"], c["gain"])
        bad = tame.bad["no_calibration"] | np.isinf(tame.value)
        flags = {"error_word": found.bad["error_word"], "no_calibration": bad, "masked": masked(c)}
        gain, *errors = (c[n][None] for n in ("gain", *ERRORS))
        return Expected(found.value, flags, second.variance(found.value, found.stage, gain, *errors, PHOTON_ENERGY))

    return Case(
        name,
        {"raw": raw},
        {
            "pedestal": (awkward(pixels, np.array(2500.0), 61), ()),
            "gain": (awkward(pixels, np.array(20.0), 62), ()),
            **noises(pixels, (), ERRORS),
        },
        expected,
        {"photon_energy": np.array(PHOTON_ENERGY), "pixel_mask": mask(pixels)},
    )


def percival() -> Case:
    """The second opinion has the older places of the bits: the numbers are put there for it."""
    raw, _ = crossed(1, 64)
    pixels, labels = raw.shape[1:], ((0, 1, 2, 3),)
    shape = (4, *pixels)

    def expected(c: Case) -> Expected:
        raw = c["raw"]
        older = (raw & 0x1F) << 10 | (raw >> 5 & 0xFF) << 2 | raw >> 13 & 3
        slopes = ("coarse_offset", "coarse_slope", "fine_offset", "fine_slope")
        found = second.percival(older, *(c[n] for n in (*slopes, "pedestal", "gain")))
        infinite = np.isinf(c["coarse_slope"]) | np.isinf(c["fine_slope"])
        bad = found.bad["no_calibration"] | infinite | np.isinf(found.value)
        variance = second.variance(found.value, found.stage, c["gain"], *(c[n] for n in ERRORS), PHOTON_ENERGY)
        return Expected(found.value, {"no_calibration": bad, "masked": masked(c)}, variance)

    maps = {n: awkward(pixels, np.array(v), 71 + k, 0.15) for k, (n, v) in enumerate(PERCIVAL.items())}
    maps["coarse_slope"] = np.abs(maps["coarse_slope"])  # the second opinion takes the absolute value
    return Case(
        "percival",
        {"raw": raw},
        {
            **{n: (values, ()) for n, values in maps.items()},
            "adc_scale": (np.array(2047.5), ()),
            "adc_base": (np.array(4095.0), ()),
            "pedestal": (awkward(shape, np.array([1000.0, 1200, 1300, 1400]), 81, 0.2), labels),
            "gain": (awkward(shape, np.array([30.0, 8, 2, 0.5]), 82, 0.2), labels),
            **noises(shape, labels, ERRORS),
        },
        expected,
        {"photon_energy": np.array(PHOTON_ENERGY), "pixel_mask": mask(pixels)},
    )


PERCIVAL = {"coarse_offset": 20.0, "coarse_slope": 1.5, "fine_offset": 60.0, "fine_slope": 120.0}


def scaled(name: str) -> Case:
    """Plain scale and offset, and MPCCD; a factor of 0 is no calibration."""
    raw, _ = crossed(1, 64)
    pixels = raw.shape[1:]
    constants = {"offset": awkward(pixels, np.array(-40.0), 91), "scaling_factor": awkward(pixels, np.array(0.02), 92)}
    errors = {}
    inputs = {"pixel_mask": mask(pixels)}
    if name == "mpccd":
        errors = noises(pixels, (), ("noise", "offset_error", "scaling_factor_error"))
        inputs["photon_energy"] = np.array(PHOTON_ENERGY)

    def expected(c: Case) -> Expected:
        found = second.linear(c["raw"], c["offset"], c["scaling_factor"])
        bad = found.bad["no_calibration"] | (c["scaling_factor"] == 0) | np.isinf(found.value)
        flags = {"no_calibration": np.broadcast_to(bad, c.shape), "masked": masked(c)}
        if not errors:
            return Expected(found.value, flags)
        with np.errstate(all="ignore"):
            gain = 1 / c["scaling_factor"]
            gain = np.where(np.isfinite(gain) & (np.abs(gain) > 1e-30) & (np.abs(gain) < 1e30), gain, np.nan)
            error = c["scaling_factor_error"] * np.square(gain)
            given = (c["noise"][None], c["offset_error"][None], error[None])
            variance = second.variance(found.value, found.stage, gain[None], *given, PHOTON_ENERGY)
        return Expected(found.value, flags, variance)

    given = {n: (values, ()) for n, values in constants.items()} | errors
    return Case(name, {"raw": raw}, given, expected, inputs)


MAKERS: Mapping[str, Callable[[], Case]] = {
    "agipd": agipd,
    "agipd, all digital": lambda: agipd(all_digital=True),
    "cspad": lambda: one_stage("cspad"),
    "epix10ka": epix10ka,
    "gotthard2": gotthard,
    "gotthard2_split": lambda: gotthard(split=True),
    "jungfrau": jungfrau,
    "jungfrau_cells": jungfrau_cells,
    "jungfrau_hg0": jungfrau_hg0,
    "jungfrau_split": jungfrau_split,
    "jungfrau_wide": jungfrau_wide,
    "jungfrau_split, all codes": lambda: jungfrau_split(all_codes=True),
    "linear": lambda: scaled("linear"),
    "lpd": lpd,
    "moench": lambda: one_stage("moench"),
    "mpccd": lambda: scaled("mpccd"),
    "percival": percival,
}


@lru_cache(maxsize=1)
def case(name: str) -> Case:
    """A case by name, made once."""
    return MAKERS[name]()
