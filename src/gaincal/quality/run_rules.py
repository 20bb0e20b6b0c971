"""How good a run is: declared rules and six numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gaincal.quality.found import PartPeaks
from gaincal.quality.peaks import Peak
from gaincal.quality.rules import Number, Rule, near, oddness, percent, worst
from gaincal.quality.statistics import NO_STAGE, Statistics

MISSING = (0.01, 0.2)
WITHOUT_VALUE = (0.02, 0.1)
NO_CODE = (0.001, 0.01)
TOO_LOW = (0.1, 0.2)
OFF_ZERO = (0.05, 0.15)
DRIFT = (0.05, 0.15)
OFF_GAIN = (0.02, 0.05)
NOISE = (0.2, 0.35)
NO_ZERO = (0.0, np.inf)
ODD_NOISE = (2.0, 4.0)
"""Limits above which a run is doubtful, and bad: shares, photons, and the last one a factor."""
BELOW = 2.5
"""Widths below the zero-photon peak where Gaussian noise has about 1 % of the values that are below its centre."""
NO_PHOTON = "nobody stated the photon energy: --set photon_energy=KEV"
NO_PEAK = "no such peak in the spectrum"
NO_VALUES = "no pixel has a value"


def judge_run(statistics: Statistics, peaks: Sequence[PartPeaks]) -> list[Rule]:
    """Apply all rules to each module; each tells of the worst one."""
    return [
        *_rules_of_words(statistics),
        *_rules_of_peaks(statistics, peaks[: len(statistics.parts)]),
    ]


def _rules_of_words(found: Statistics) -> list[Rule]:
    names = [part.name for part in found.parts]
    lost = dict(zip(names, found.missing.mean(0).tolist(), strict=True))
    rules = [_share("words-missing", "words that are missing, of all frames", lost, MISSING)]
    with np.errstate(invalid="ignore"):
        void = dict(zip(names, (1 - found.valid / found.present).tolist(), strict=True))
        rules.append(_share("without-value", "pixels with words but without a value", void, WITHOUT_VALUE))
        if found.stages:
            none = found.stage_counts[:, :, found.stages.index(NO_STAGE)].sum(0) / found.present
            without = dict(zip(names, none.tolist(), strict=True))
            rules.append(_share("no-stage", "gain codes that stand for no stage", without, NO_CODE))
    return rules


def _share(name: str, text: str, values: dict[str, float], limits: tuple[float, float]) -> Rule:
    value, where = worst(dict(values))
    return Rule(name, text, value, *limits, "%", where, "" if value is not None else "there are no words")


def _rules_of_peaks(found: Statistics, peaks: Sequence[PartPeaks]) -> list[Rule]:
    photon = found.photon
    rules = [_no_zero(found, peaks), _odd_noise(found, peaks), _too_low(found, peaks)]
    if photon is None:
        lacking = (("zero-off", OFF_ZERO), ("drift", DRIFT), ("gain-off", OFF_GAIN), ("noise", NOISE))
        texts = ("zero-photon peak off zero", "drift of the zero-photon peak", "photon peak off its place", "noise")
        return rules + [
            Rule(name, text, None, *limits, "photon", why=NO_PHOTON)
            for (name, limits), text in zip(lacking, texts, strict=True)
        ]
    scale = abs(photon)
    off = {p.name: None if p.zero is None else abs(p.zero.centre) / scale for p in peaks}
    drift = {p.name: None if p.drift is None else p.drift / scale for p in peaks}
    gain = {p.name: None if (g := p.gain(photon)) is None else abs(g - 1) for p in peaks}
    noise = {p.name: None if p.zero is None else p.zero.width / scale for p in peaks}
    return [
        *rules,
        _of_peak("zero-off", "zero-photon peak off zero", off, OFF_ZERO, "photon", "the pedestal does not fit"),
        _of_peak("drift", "drift of the zero-photon peak in the run", drift, DRIFT, "photon", "the pedestal moves"),
        _of_peak(
            "gain-off", "distance of photon and zero peak, off", gain, OFF_GAIN, "%", "gaincal refine measures it"
        ),
        _of_peak("noise", "noise (width of the zero-photon peak)", noise, NOISE, "photon", ""),
    ]


def _of_peak(
    name: str, text: str, values: dict[str, float | None], limits: tuple[float, float], units: str, why: str
) -> Rule:
    value, where = worst(values)
    return Rule(name, text, value, *limits, units, where, NO_PEAK if value is None else why)


def _odd_noise(found: Statistics, peaks: Sequence[PartPeaks]) -> Rule:
    """Whether a module is much noisier or quieter than the others, or has no zero-photon peak where they have one."""
    text = "noise of a module against the others (factor)"
    widths = {p.name: None if p.zero is None else p.zero.width for p in peaks}
    there = {p.name: found.valid[k] > 0 for k, p in enumerate(peaks)}
    known = [w for w in widths.values() if w]
    if len(peaks) < 2 or not known:
        return Rule("odd-noise", text, None, *ODD_NOISE, "x", why="one module alone" if len(peaks) < 2 else NO_PEAK)
    factors = oddness(widths)
    factors |= {name: np.inf for name, width in widths.items() if width is None and there[name]}
    value, where = worst(factors)
    return Rule("odd-noise", text, value, *ODD_NOISE, "x", where, "no zero-photon peak" if value == np.inf else "")


def _no_zero(found: Statistics, peaks: Sequence[PartPeaks]) -> Rule:
    """In how many modules nothing tells whether the pedestal fits: constants that are all wrong leave no peak."""
    lacking = [p.name for k, p in enumerate(peaks) if found.valid[k] > 0 and p.zero is None]
    there = int(np.count_nonzero(found.valid[: len(peaks)]))
    where = lacking[0] if len(peaks) > 1 and lacking else ""
    return Rule(
        "no-zero-peak",
        "modules without a zero-photon peak",
        len(lacking) / there if there else None,
        *NO_ZERO,
        "%",
        where,
        "are constants, units and photon energy right? Very bright frames have none either" if there else NO_VALUES,
    )


def _too_low(found: Statistics, peaks: Sequence[PartPeaks]) -> Rule:
    """Whether there is more below the zero-photon peak than its noise: photons only add, so some pedestals are wrong.

    The centre of the peak alone does not tell, where it is that of those pixels of a module that are right.
    """
    shares = {p.name: _share_too_low(found, k, p.zero) for k, p in enumerate(peaks)}
    text = "values below the noise, of those below the zero-photon peak"
    return _of_peak("too-low", text, shares, TOO_LOW, "%", "the pedestal of some pixels does not fit")


def _share_too_low(found: Statistics, part: int, zero: Peak | None) -> float | None:
    if zero is None:
        return None
    centres = (found.edges[1:] + found.edges[:-1]) / 2
    counts = found.spectrum[:, part].sum(0)
    low = int(counts[centres < zero.centre - BELOW * zero.width].sum() + found.outside[part, 0])
    below = int(counts[centres < zero.centre].sum() + found.outside[part, 0])
    return low / below if below else None


def six_numbers(found: Statistics, peaks: Sequence[PartPeaks]) -> list[Number]:
    """What stands on top: frames, pixels, stages, and the two peaks and the noise of the whole detector."""
    whole = peaks[-1]
    complete = float(np.mean(found.missing.max(1) == 0))
    valid = found.valid.sum() / max(1, found.present.sum())
    numbers = [
        Number("frames", "complete frames", percent(complete), f"of {found.run_frames}"),
        Number("valid", "pixels with a value", percent(float(valid)), "where there are words"),
    ]
    if found.stages:
        first = found.stage_counts[:, :, 0].sum() / max(1, found.stage_counts.sum())
        numbers.append(Number("first_stage", f"in stage {found.stages[0]}", percent(float(first)), "of all pixels"))
    else:
        numbers.append(Number("first_stage", "gain stages", "none", "in this formula"))
    zero, photon = whole.zero, whole.photon
    expected = "no photon energy stated" if found.photon is None else f"expected {found.photon:.4g}"
    numbers += [
        Number("zero", "zero-photon peak", _value(zero.centre if zero else None, found), "expected 0"),
        Number("photon", "photon peak", _value(photon.centre if photon else None, found), expected),
        Number("noise", "noise, rms", _value(zero.width if zero else None, found), "width of the zero-photon peak"),
    ]
    return numbers


def _value(value: float | None, found: Statistics) -> str:
    return "not found" if value is None else f"{near(value, found.photon)} {found.units}"
