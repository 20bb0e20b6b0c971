"""A second opinion on every detector family: plain NumPy in float64, written from the facts and from no evaluator.

The facts are `detectors.md` (in the docstrings: "the page") and, for the variance, `formula.md`. Where the page says
nothing, the docstring says under "Open" what is assumed here. Nothing of gaincal is imported.

Shapes: words are ``(..., y, x)``, or ``(..., strip)`` for Gotthard; ``...`` are frames (and modules). Constants are
``(stage, pixel...)`` or ``(stage, cell, pixel...)``, where ``pixel...`` are as many of the last axes of the words as
the constants have: with the module axis or without. Cells and flags of frames have the axes of the words but the last
two; an axis of length 1 is stretched.

Constants that are not finite may overflow or cancel on the way: the arithmetic is silent, the reasons say it. A value
that overflows float64 with constants that are finite stays infinite.

Reasons in `Calibrated.bad`:

``error_word``       the word carries no measurement; its stage is -1 and no other reason is looked for
``missing_cell``     no frame was recorded (memory cell 255); likewise
``invalid_gain``     the gain code stands for no stage; the stage is -1
``saturated``        the stage is known, the value is not; constants are still looked at
``no_calibration``   the stage is known (or, AGIPD, cannot be) and a constant is missing, not finite or a divisor of 0
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

EPIX10KA_RANGES = (
    ("FH", 28, 28),
    ("FM", 28, 12),
    ("FL", 12, 8),
    ("AHL_H", 60, 16),
    ("AML_M", 60, 0),
    ("AHL_L", 60, 48),
    ("AML_L", 60, 32),
)
"""Name, mask and what must be left of the configuration bits, in the order of the stages and of the asking."""


@dataclass(frozen=True)
class Calibrated:
    """What became of the words; all arrays have the shape of the words."""

    value: Floats
    """NaN where there is no valid value."""
    stage: Ints
    """-1 where there is none."""
    bad: dict[str, Bools]
    """For every reason of the family, where it holds."""


# ------------------------------------------------------------------------------------------------ shared small pieces


def _words(raw: Words, bits: int = 16) -> Ints:
    words = np.asarray(raw)
    if words.dtype.kind not in "iu":
        raise TypeError(f"words are integers, not {words.dtype}")
    words = words.astype(np.int64)
    if np.any((words < 0) | (words >= 1 << bits)):
        raise ValueError(f"a word has more than {bits} bits")
    return words


def _stage_of(code: Ints, codes: tuple[int, ...]) -> Ints:
    """The place of each code in `codes`; -1 where it is not there."""
    stage = np.full(code.shape, -1, dtype=np.int64)
    for place, known in enumerate(codes):
        stage[code == known] = place
    return stage


def _per_word(per_frame: Words, shape: tuple[int, ...]) -> Words:
    """What holds for a whole frame (or module of a frame), for each of its pixels."""
    frames = np.asarray(per_frame)
    stretched: Words = np.broadcast_to(frames.reshape(*frames.shape, 1, 1), shape)
    return stretched


def _position(cell: Words, labels: Words) -> Ints:
    """The place of each cell among the labels of the constants; -1 where it is not there."""
    names = [int(label) for label in np.asarray(labels).ravel()]
    if len(set(names)) != len(names):
        raise ValueError("two sets of constants have the same cell label")
    places = {name: place for place, name in enumerate(names)}
    cells = np.asarray(cell)
    found: Ints = np.array([places.get(int(c), -1) for c in cells.ravel()], dtype=np.int64).reshape(cells.shape)
    return found


def _pick(table: Words, *selectors: Ints) -> Floats:
    """The constant of each word: `selectors` choose along the first axes, the place of the pixel along the others.

    A selector of -1 gives NaN.
    """
    constants = np.asarray(table).astype(np.float64)
    shape = np.broadcast_shapes(*(s.shape for s in selectors))
    pixel = constants.ndim - len(selectors)
    if constants.shape[len(selectors) :] != shape[len(shape) - pixel :]:
        raise ValueError(f"constants of shape {constants.shape} do not fit words of shape {shape}")
    here = np.indices(shape, sparse=True)[len(shape) - pixel :]
    found = constants[(*(np.maximum(s, 0) for s in selectors), *here)]
    for selector in selectors:
        found = np.where(selector < 0, np.nan, found)
    return np.asarray(found, dtype=np.float64)


@np.errstate(all="ignore")
def _over(numerator: Floats, divisor: Floats) -> Floats:
    """The quotient; NaN where the divisor is 0."""
    quotient: Floats = np.full(numerator.shape, np.nan)
    np.divide(numerator, divisor, out=quotient, where=divisor != 0)
    return quotient


def _unusable(*constants: Floats, divisors: tuple[Floats, ...] = ()) -> Bools:
    """Where any constant is not finite, or any divisor is 0."""
    bad = np.zeros(np.broadcast_shapes(*(c.shape for c in (*constants, *divisors))), dtype=np.bool_)
    for constant in (*constants, *divisors):
        bad = bad | ~np.isfinite(constant)
    for divisor in divisors:
        bad = bad | (divisor == 0)
    return bad


def _result(value: Floats, stage: Ints, bad: dict[str, Bools]) -> Calibrated:
    any_bad = np.zeros(value.shape, dtype=np.bool_)
    for where in bad.values():
        any_bad |= where
    return Calibrated(np.where(any_bad, np.nan, value), stage, bad)


@np.errstate(all="ignore")
def _subtract_and_divide(
    adc: Ints, stage: Ints, pedestal: Words, gain: Words, bad: dict[str, Bools], *more: Ints
) -> Calibrated:
    """``(adc - pedestal[stage]) / gain[stage]``; `more` selects along further axes of the constants."""
    p, g = _pick(pedestal, stage, *more), _pick(gain, stage, *more)
    value = _over(adc.astype(np.float64) - p, g)
    return _result(value, stage, {**bad, "no_calibration": (stage >= 0) & _unusable(p, divisors=(g,))})


@np.errstate(all="ignore")
def _subtract_and_multiply(
    adc: Ints, stage: Ints, offset: Words, relative_gain: Words, bad: dict[str, Bools], position: Ints
) -> Calibrated:
    """``(adc - offset[stage, cell]) * relative_gain[stage, cell]``."""
    o, r = _pick(offset, stage, position), _pick(relative_gain, stage, position)
    value = (adc.astype(np.float64) - o) * r
    return _result(value, stage, {**bad, "no_calibration": (stage >= 0) & _unusable(o, r)})


# ----------------------------------------------------------------------------------------------------------- JUNGFRAU


def _jungfrau_stage(code: Ints, adc: Ints) -> tuple[Ints, dict[str, Bools]]:
    """The stage and the reasons that are in the word itself."""
    error = ((code == 3) & (adc == 0x3FFF)) | ((code == 1) & (adc == 0)) | (adc > 0x3FFF)
    stage = np.where(error, -1, _stage_of(code, (0, 1, 3)))
    bad = {
        "error_word": error,
        "invalid_gain": ~error & (stage < 0),
        "saturated": (code == 3) & (adc == 0),
    }
    return stage, bad


def jungfrau(raw: Words, pedestal: Words, gain: Words) -> Calibrated:
    """JUNGFRAU with one set of constants: `pedestal` and `gain` are ``(3, pixel...)``.

    The page: "code = w >> 14, adc = w & 0x3FFF. code 0 -> G0, 1 -> G1, 3 -> G2. Code 2 is not a physical state."
    "keV = (adc - pedestal[stage]) / gain[stage]", the gain with its sign. "0xC000 = saturated (code 3, adc 0); 0xFFFF,
    0x4000 = error".

    Open: whether a saturated word has a value (here none, and stage 2) and an error word a stage (here none); whether
    0x3FFF ("seen on dead pixels") is an error (here a good word of G0); whether in a forced-gain frame (`daq_rec` bits
    12-13) a word of another stage is bad (here `daq_rec` is not looked at); what a gain of 0 or a constant that is not
    finite means (here ``no_calibration``).
    """
    words = _words(raw)
    code, adc = words >> 14, words & 0x3FFF
    stage, bad = _jungfrau_stage(code, adc)
    return _subtract_and_divide(adc, stage, pedestal, gain, bad)


def daq_rec_high_gain(daq_rec: Words) -> Bools:
    """Whether a frame was taken with high gain; the page: "chosen per frame by bit 0 of the DAQ record (`daq_rec`)"."""
    return np.asarray((np.asarray(daq_rec).astype(np.int64) & 1) == 1, dtype=np.bool_)


def storage_cell(debug: Words) -> Ints:
    """The storage cell of a frame; the page: "cell number in bits 8-11 of detSpec3 / DAQ info"."""
    return np.asarray((np.asarray(debug).astype(np.int64) >> 8) & 0xF, dtype=np.int64)


def jungfrau_hg0(raw: Words, high_gain: Words, pedestal: Words, gain: Words) -> Calibrated:
    """JUNGFRAU with the high-gain stage: constants are ``(4, pixel...)``, HG0 the fourth; `high_gain` is per frame.

    The page: "a separate G0 (HG0) constant set, chosen per frame by bit 0 of the DAQ record"; "a correct reader looks
    at every frame". Gain files have "4 (+HG0)" planes: HG0 after G0, G1, G2.

    Open: which constants a switched pixel of a high-gain frame takes (here G1 and G2; files of six planes have HG1 and
    HG2 of their own); which number HG0 has as a stage (here 3); a module axis of the flags (`daq_rec` is ``(frames,
    1)`` or ``(frames, modules)``; here whatever the words have before y and x); a frame without a DAQ record.
    """
    words = _words(raw)
    code, adc = words >> 14, words & 0x3FFF
    stage, bad = _jungfrau_stage(code, adc)
    stage = np.where((stage == 0) & _per_word(high_gain, words.shape).astype(np.bool_), 3, stage)
    return _subtract_and_divide(adc, stage, pedestal, gain, bad)


def _without_missing(cell: Ints, stage: Ints, bad: dict[str, Bools]) -> tuple[Ints, dict[str, Bools]]:
    """Cell 255 is a frame that was not recorded: whatever its words look like, nothing else is said of them."""
    missing = cell == 255
    rest = {reason: where & ~missing for reason, where in bad.items()}
    return np.where(missing, -1, stage), {**rest, "missing_cell": missing}


def jungfrau_cells(
    raw: Words, cell: Words, high_gain: Words, pedestal: Words, gain: Words, cell_labels: Words
) -> Calibrated:
    """JUNGFRAU with storage cells and the high-gain stage: constants are ``(4, cell, pixel...)``.

    The page: "Storage cells: 16; cell number in bits 8-11 of detSpec3 / DAQ info. Constants then have a cell axis.";
    "memoryCell u1 (trains,16; 255 = missing)".

    Open: whether cells are matched by label or by position (here by label, as the page says for AGIPD); what a cell
    without constants means (here ``no_calibration``, and the stage of the word stays); whether 255 is missing outside
    the European XFEL's files (here everywhere, even if 255 were a label).
    """
    words = _words(raw)
    code, adc = words >> 14, words & 0x3FFF
    stage, bad = _jungfrau_stage(code, adc)
    stage = np.where((stage == 0) & _per_word(high_gain, words.shape).astype(np.bool_), 3, stage)
    stage, bad = _without_missing(_per_word(cell, words.shape), stage, bad)
    position = _per_word(_position(cell, cell_labels), words.shape)
    return _subtract_and_divide(adc, stage, pedestal, gain, bad, position)


def jungfrau_split(
    adc: Words, gain_code: Words, cell: Words, pedestal: Words, gain: Words, cell_labels: Words
) -> Calibrated:
    """JUNGFRAU of the European XFEL, its words already split: constants are ``(3, cell, pixel...)``.

    The page: "adc u2 (trains,16,512,1024), gain u1 (codes 0,1,3 already split), memoryCell u1 (trains,16; 255 =
    missing)".

    Open: whether the special words survive the splitting (here they are told by code and adc: 3 and 0, 3 and 0x3FFF, 1
    and 0); an adc of more than 14 bits (here an error word); the high-gain stage (the files carry no flag; here none);
    whether the second axis, 16, is the order in the train or the cell (here the order: `cell` says the cell).
    """
    counts, code = _words(adc), _words(gain_code, bits=8)
    stage, bad = _jungfrau_stage(code, counts)
    stage, bad = _without_missing(_per_word(cell, counts.shape), stage, bad)
    position = _per_word(_position(cell, cell_labels), counts.shape)
    return _subtract_and_divide(counts, stage, pedestal, gain, bad, position)


# ------------------------------------------------------------------------------------------------- European XFEL, SLAC


def agipd(
    analog: Words,
    digital: Words,
    cell: Words,
    thresholds: Words,
    offset: Words,
    relative_gain: Words,
    cell_labels: Words,
) -> Calibrated:
    """AGIPD: `cell` per frame and module, thresholds ``(2, cell, pixel...)``, the others ``(3, cell, pixel...)``.

    The page: "Stage = number of thresholds exceeded: `d > T0[cell,y,x]`, `d > T1[cell,y,x]` (strict ...)"; "signal =
    (analog - offset[stage,cell,y,x]) * relative_gain[stage,cell,y,x]"; "Cell number per frame and module
    (`image/cellId`), sparse, by label".

    Open: a cell without constants and a threshold of NaN (here ``no_calibration`` without a stage, already if one of
    the two is NaN and the other would decide); thresholds in the wrong order (here still the number exceeded, so that
    T1 alone gives stage 1); the unit of the signal (relative to what, keV or ADU of the high stage); words of analog or
    digital that are not data; a relative gain of 0 (here a good 0); a number for a missing cell.
    """
    a, d = _words(analog), _words(digital)
    position = _per_word(_position(cell, cell_labels), a.shape)
    first = _pick(thresholds, np.zeros(a.shape, dtype=np.int64), position)
    second = _pick(thresholds, np.ones(a.shape, dtype=np.int64), position)
    unknown = np.isnan(first) | np.isnan(second)
    exceeded = (d > first).astype(np.int64) + (d > second).astype(np.int64)
    result = _subtract_and_multiply(a, np.where(unknown, -1, exceeded), offset, relative_gain, {}, position)
    return _result(result.value, result.stage, {"no_calibration": unknown | result.bad["no_calibration"]})


def lpd(raw: Words, cell: Words, offset: Words, relative_gain: Words, cell_labels: Words) -> Calibrated:
    """LPD: constants are ``(3, cell, pixel...)``.

    The page: "adc 12 bits (0-11), gain 2 bits (12-13), 512 cells [bit places not confirmed from a primary source]".

    Open: everything but the bits. Here, as for AGIPD, ``(adc - offset) * relative_gain``; codes 0, 1, 2 are the stages
    and 3 is invalid; a word with bit 14 or 15 is an error word; cells go by label, and one without constants is
    ``no_calibration`` while the stage of the word stays.
    """
    words = _words(raw)
    error = (words >> 14) != 0
    stage = np.where(error, -1, _stage_of((words >> 12) & 3, (0, 1, 2)))
    position = _per_word(_position(cell, cell_labels), words.shape)
    bad = {"error_word": error, "invalid_gain": ~error & (stage < 0)}
    return _subtract_and_multiply(words & 0x0FFF, stage, offset, relative_gain, bad, position)


def epix10ka(raw: Words, config: Words, trbit: Words, pedestal: Words, gain: Words) -> Calibrated:
    """ePix10ka: `config` and `trbit` per pixel, constants ``(7, pixel...)``.

    The page: "bit 14 = switched to low, adc = low 14 bits"; "cbits = config (bits 0-3) | trbit<<4 | databit<<5. Ranges
    by masked equality, in this order: &28==28 FH, &28==12 FM, &12==8 FL, &60==16 AHL_H, &60==0 AML_M, &60==48 AHL_L,
    &60==32 AML_L; 16 of 64 codes match none = invalid"; "E = (adc - ped[stage]) / gain[stage]".

    Open: bit 15 of the word (here ignored); bits of the configuration above 3 (here ignored); which numbers the stages
    have (here the order above, 0 to 6); a switched bit in a fixed range (here ignored, as its masks leave bit 5 out);
    saturated and error words (here none); whether "default gains" stand in where constants are missing (here not).
    """
    words = _words(raw)
    bits = (_words(config) & 15) | ((_words(trbit) & 1) << 4)
    cbits = np.broadcast_to(bits, words.shape) | (((words >> 14) & 1) << 5)
    stage = np.full(words.shape, -1, dtype=np.int64)
    for place, (_, mask, wanted) in reversed(list(enumerate(EPIX10KA_RANGES))):
        stage[(cbits & mask) == wanted] = place
    return _subtract_and_divide(words & 0x3FFF, stage, pedestal, gain, {"invalid_gain": stage < 0})


# ------------------------------------------------------------------------------------------------------------- others


def gotthard2(raw: Words, pedestal: Words, gain: Words, codes: tuple[int, int, int] = (0, 1, 3)) -> Calibrated:
    """Gotthard-II: constants are ``(3, strip)``.

    The page: "1280 strips, adc = w & 0x0FFF, gain = (w & 0x3000) >> 12".

    Open: which codes are the stages (here 0, 1, 3 as for its relatives JUNGFRAU and Gotthard-I, so that 2 is invalid;
    literally "gain = ..." may as well mean 0, 1, 2: give `codes`); the formula (here JUNGFRAU's); bits 14 and 15 (here
    ignored); special words (here none); storage cells.
    """
    words = _words(raw)
    stage = _stage_of((words & 0x3000) >> 12, codes)
    return _subtract_and_divide(words & 0x0FFF, stage, pedestal, gain, {"invalid_gain": stage < 0})


def _one_stage(words: Ints, pedestal: Words, gain: Words) -> Calibrated:
    """14 bits and one gain; `pedestal` and `gain` are ``(pixel...)`` or scalars."""
    error = (words >> 14) != 0
    stage = np.where(error, -1, 0).astype(np.int64)
    only = np.asarray(pedestal)[np.newaxis], np.asarray(gain)[np.newaxis]
    return _subtract_and_divide(words & 0x3FFF, stage, *only, {"error_word": error})


def moench(raw: Words, pedestal: Words, gain: Words) -> Calibrated:
    """MOENCH with a single gain: constants are ``(pixel...)`` or scalars.

    The page does not have it at all; `formula.md` only names it.

    Open: everything. Here 14 bits and one gain, ``(adc - pedestal) / gain``, and a word with bit 14 or 15 is an error
    word. (A MOENCH that switches would be `jungfrau`, as Gotthard-I is: "14 + 2 bits like JUNGFRAU".)
    """
    return _one_stage(_words(raw), pedestal, gain)


def cspad(raw: Words, pedestal: Words, gain: Words) -> Calibrated:
    """CSPAD without its common mode: constants are ``(pixel...)`` or scalars.

    The page: "14 bits, 185 x 388 per 2x1, one gain; common mode per section (not elementwise)".

    Open: the formula (here ``(adc - pedestal) / gain``, ADU per keV; a multiplying gain is as likely); bits 14 and 15
    (here an error word); signed words of files that are corrected already (here refused); saturation.
    """
    return _one_stage(_words(raw), pedestal, gain)


@np.errstate(all="ignore")
def percival_adc(
    raw: Words, coarse_offset: Words, coarse_slope: Words, fine_offset: Words, fine_slope: Words
) -> Floats:
    """The digitised voltage of Percival in ADU; its constants are ``(pixel...)`` or scalars. NaN where a slope is 0.

    The page: "coarse 5, fine 8, gain 2 bits (Odin layout: 14-10, 9-2, 1-0); ADC = ((coarse - oc)/|sc|)*2047.5 - ((fine
    - of)/sf)*2047.5 + 4095".
    """
    words = _words(raw)
    coarse, fine = ((words >> 10) & 0x1F).astype(np.float64), ((words >> 2) & 0xFF).astype(np.float64)
    oc, sc, of, sf = (
        np.broadcast_to(np.asarray(c).astype(np.float64), words.shape)
        for c in (coarse_offset, coarse_slope, fine_offset, fine_slope)
    )
    return _over(coarse - oc, np.abs(sc)) * 2047.5 - _over(fine - of, sf) * 2047.5 + 4095


@np.errstate(all="ignore")
def percival(
    raw: Words,
    coarse_offset: Words,
    coarse_slope: Words,
    fine_offset: Words,
    fine_slope: Words,
    pedestal: Words,
    gain: Words,
) -> Calibrated:
    """Percival, one frame by itself: `pedestal` (ADU) and `gain` are ``(stage, pixel...)``.

    The page: the words and the ADC formula of `percival_adc`; "gain 2 bits".

    Open: bit 15 (here ignored); which codes are stages (here code n is stage n as far as the constants go, others are
    invalid); what follows the ADC formula (here ``(ADC - pedestal[stage]) / gain[stage]``); "sample minus reset frame
    before (CDS)" joins two frames, is not elementwise, and is left to the caller (whether with the reset frame's own
    constants, and for which stages, the page does not say); a slope of 0 (here ``no_calibration``).
    """
    words = _words(raw)
    stage = _stage_of(words & 3, tuple(range(np.asarray(pedestal).shape[0])))
    adc = percival_adc(raw, coarse_offset, coarse_slope, fine_offset, fine_slope)
    p, g = _pick(pedestal, stage), _pick(gain, stage)
    no_calibration = (stage >= 0) & _unusable(adc, p, divisors=(g,))
    return _result(_over(adc - p, g), stage, {"invalid_gain": stage < 0, "no_calibration": no_calibration})


@np.errstate(all="ignore")
def linear(raw: Words, offset: Words, scaling_factor: Words) -> Calibrated:
    """Plain scale and offset, ``(pixel...)`` or scalars, of numbers of any kind.

    `formula.md`: NXmx `data_scaling_factor` and `data_offset`, "`(data + offset) * scaling_factor`": the offset is
    *added*, before the scaling.

    Open: numbers that stand for "no value" (here none; a raw NaN stays NaN without a reason); a factor of 0 (here a
    good 0); one stage, 0.
    """
    data = np.asarray(raw).astype(np.float64)
    o, s = (np.broadcast_to(np.asarray(c).astype(np.float64), data.shape) for c in (offset, scaling_factor))
    return _result((data + o) * s, np.zeros(data.shape, dtype=np.int64), {"no_calibration": _unusable(o, s)})


def mpccd(raw: Words, scaling_factor: Words, offset: Words | float = 0.0) -> Calibrated:
    """MPCCD: `scaling_factor` (and `offset`, if any) per pixel or scalar.

    The page: "per-pixel or scalar gain only: NXmx `data_scaling_factor`".

    Open: whether the gain multiplies or divides (here, by the name of the field, it multiplies); whether 65535 is
    saturated (here a good word); a pedestal ("gain only": here 0 unless given).
    """
    return linear(_words(raw), np.asarray(offset), scaling_factor)


# ----------------------------------------------------------------------------------------------------------- variance


@np.errstate(all="ignore")
def variance(
    value: Floats,
    stage: Ints,
    gain: Words,
    noise: Words | None = None,
    pedestal_error: Words | None = None,
    gain_error: Words | None = None,
    photon_energy: Words | float | None = None,
    position: Ints | None = None,
) -> Floats:
    """The variance of a value in keV^2; NaN where the value is NaN or has no stage.

    `noise` and `pedestal_error` in ADU, `gain` and `gain_error` in ADU per keV, all ``(stage, pixel...)`` or, with
    `position` (the place of each word's cell in the constants), ``(stage, cell, pixel...)``; `photon_energy` in keV.

    `formula.md`: "per stage `(noise/gain)^2 + (pedestal_error/gain)^2 + (value*gain_error/gain)^2 + shot noise`, using
    the terms whose constants are there." Shot noise is here ``max(value, 0) * photon_energy``, as the brief has it.

    Open: the formula of the shot noise, and what a value below 0 does; a NaN in one of the constants of a pixel (here
    the variance is NaN; the term could be left out); families whose gain multiplies (here give 1/relative_gain, whose
    relative error is the same to first order); whether `noise` holds the rounding to whole ADU, 1/12 ADU^2 (the rms of
    dark frames does); correlations between frames: the errors of constants do not average out.
    """
    more = () if position is None else (position,)
    g = _pick(gain, stage, *more)
    total = np.zeros(value.shape)
    for sigma in (noise, pedestal_error):
        if sigma is not None:
            total = total + _over(_pick(sigma, stage, *more), g) ** 2
    if gain_error is not None:
        total = total + (value * _over(_pick(gain_error, stage, *more), g)) ** 2
    if photon_energy is not None:
        total = total + np.maximum(value, 0) * np.asarray(photon_energy, dtype=np.float64)
    return np.where(np.isnan(value) | (stage < 0), np.nan, total)
