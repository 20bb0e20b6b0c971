"""Words that mean the same but do not follow each other, or mean what settings say: replaced by words that do."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.formulas.checks import FRAME
from gaincal.formulas.formula import Formula
from gaincal.formulas.program import needs, program_for_step
from gaincal.kernels.dark_rules import NARROW, Stage
from gaincal.kernels.reference import evaluate

Array = npt.NDArray[Any]
WORDS = np.arange(1 << 16, dtype=np.uint16)
STAGE, ADC = "stage", "adc"
ADC_BITS = 14
"""Where a gain code is put behind the ADC."""
ANY = -1
OTHER, UNDEFINED = 1, 3
SETTINGS = 16
"""Values of each map of settings that the formula is asked with: those of the catalogue have four bits."""


@dataclass(frozen=True)
class Translation:
    """What words are replaced by.

    Parameters
    ----------
    stages : tuple of Stage
        Of the new words.
    tables : mapping of int to ndarray (65536,) of uint16
        By the label of a stage that somebody states for all of a run, or by `ANY` for all runs.
    """

    stages: tuple[Stage, ...]
    tables: Mapping[int, Array]


def translate(formula: Formula, value: str) -> Translation | None:
    """How words of a formula are replaced, None where it need not or cannot be done.

    Parameters
    ----------
    formula : Formula
        With steps called stage and adc.
    value : str
        The input that is the words.
    """
    types = formula.checked.types
    if any(name not in types or types[name].kind != "integer" for name in (ADC, STAGE)):
        return None
    maps = {i.name for i in formula.inputs if i.dtype == "uint8" and i.dims and FRAME not in i.dims}
    if needs(formula, ADC) != {value} or not {value} <= needs(formula, STAGE) <= {value, *maps}:
        return None
    adc, _ = _asked(formula, ADC, {value: WORDS[None, :]})
    if adc.min() < 0 or adc.max() > NARROW:
        return None
    settings = sorted(needs(formula, STAGE) - {value})
    return _by_setting(formula, value, adc, settings) if settings else _by_word(formula, value, adc)


def _by_word(formula: Formula, value: str, adc: Array) -> Translation | None:
    """Where bits are not looked at, the words of a stage are scattered."""
    stage, special = _asked(formula, STAGE, {value: WORDS[None, :]})
    labels = [int(k) for k in np.unique(stage) if k >= 0]
    scattered = any(np.ptp(np.flatnonzero(stage == k)) >= np.count_nonzero(stage == k) for k in labels)
    if not scattered or labels != [*range(len(labels))] or len(labels) > UNDEFINED or (special & (stage >= 0)).any():
        return None
    code = np.where(stage < 0, UNDEFINED, stage)
    nothing = _words(UNDEFINED) if (stage < 0).any() else (1, 0)
    top = int(adc.max())
    stages = tuple(Stage(k, _words(k), (_words(k)[0], _words(k)[0] + top), nothing, _words(k)[0]) for k in labels)
    return Translation(stages, {ANY: _joined(adc, code)})


def _by_setting(formula: Formula, value: str, adc: Array, settings: list[str]) -> Translation:
    """Where pixels have settings, a word tells a stage that is stated, or another one: whatever the settings."""
    told: dict[int, Array] = {}
    for numbers in itertools.product(range(SETTINGS), repeat=len(settings)):
        given = {name: np.full(WORDS.size, n, np.uint8) for name, n in zip(settings, numbers, strict=True)}
        stage, _ = _asked(formula, STAGE, {value: WORDS[None, :], **given})
        for label in (int(k) for k in np.unique(stage) if k >= 0):
            told[label] = told.get(label, np.zeros(WORDS.size, bool)) | (stage == label)
    stages = tuple(Stage(k, _words(0), (0, int(adc.max())), (1, 0), 0) for k in sorted(told))
    return Translation(stages, {k: _joined(adc, np.where(own, 0, OTHER)) for k, own in told.items()})


def _asked(formula: Formula, name: str, given: Mapping[str, Array]) -> tuple[Array, Array]:
    """What a step makes of all words, and which of them are special."""
    program = program_for_step(formula, {}, name, "int32", frozenset(given))
    values, flags = evaluate(program, {i.name: given[i.name] for i in program.inputs})
    return np.broadcast_to(values, (1, WORDS.size))[0], np.broadcast_to(flags, (1, WORDS.size))[0] != 0


def _joined(adc: Array, code: Array) -> npt.NDArray[np.uint16]:
    return np.asarray(adc | code << ADC_BITS, np.uint16)


def _words(code: int) -> tuple[int, int]:
    return code << ADC_BITS, (code << ADC_BITS) + NARROW
