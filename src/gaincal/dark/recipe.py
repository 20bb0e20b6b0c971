"""What a formula makes of every possible word: which tell a stage, which carry a value, which tell nothing.

The formula decides, by being asked: all 65,536 words go through its own steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.dark.translation import ADC, ADC_BITS, ANY, STAGE, WORDS, translate
from gaincal.errors import RequestError
from gaincal.formulas.checks import words_inputs
from gaincal.formulas.formula import Formula
from gaincal.formulas.program import needs, program_for_step
from gaincal.kernels.dark_rules import NARROW, Stage
from gaincal.kernels.reference import evaluate

Array = npt.NDArray[Any]
PEDESTALS = ("pedestal", "offset")
STAGE_AXIS, CELL_AXIS = "stage", "cell"
HIGH_GAIN, THRESHOLDS, GAIN_CODE = "high_gain", "thresholds", "gain_code"
UNDEFINED_CODE = 2


@dataclass(frozen=True)
class Recipe:
    """How dark frames of a formula are taken.

    Parameters
    ----------
    formula : Formula
    constant : str
        What the mean of dark frames is called: pedestal or offset.
    axes, pixel_dims : tuple of str
        Its named axes, and those of the pixels.
    value, code, digital : str
        The words that are averaged; those with a gain code of their own, and a second plane that tells the stage
        by thresholds; empty where there are none.
    stages : tuple of tuple of Stage
        Of frames with low gain, and of frames with high gain.
    tables : mapping of int to ndarray (65536,) of uint16
        What words are replaced by before they are looked at, where words that mean the same do not follow each other:
        for runs in a stage that somebody states, by its label; by `ANY` for all runs.
    """

    formula: Formula
    constant: str
    axes: tuple[str, ...]
    pixel_dims: tuple[str, ...]
    value: str
    code: str
    digital: str
    stages: tuple[tuple[Stage, ...], ...]
    tables: Mapping[int, Array] = field(default_factory=dict)

    @property
    def must_be_stated(self) -> bool:
        """Whether words alone do not tell the stage of a frame."""
        return bool(self.digital) or bool(self.tables and ANY not in self.tables)

    def table(self, stage: int) -> Array | None:
        """What words of a run are replaced by; None for nothing."""
        return self.tables.get(ANY, self.tables.get(stage))

    @property
    def labels(self) -> tuple[int, ...]:
        """All stages."""
        return tuple(sorted({stage.label for stages in self.stages for stage in stages}))

    def stage(self, label: int) -> Stage:
        """The words of a stage."""
        return next(s for stages in self.stages for s in stages if s.label == label)

    def forced(self, code: int) -> int | None:
        """The stage that a forced gain code stands for."""
        return {0: 0, 1: 1, 2: 2, 3: 2}.get(code)


def find_recipe(formula: Formula) -> Recipe:
    """How dark frames of a formula are taken; raises RequestError for a formula without pedestals of its words."""
    constant = next((c for c in formula.constants if c.name in PEDESTALS), None)
    words = words_inputs(formula)
    if constant is None or not words:
        raise RequestError(f"formula '{formula.name}' has no constant {' or '.join(PEDESTALS)} that darks could give")
    pixel_dims = formula.checked.pixel_dims
    axes = tuple(d for d in constant.dims if d not in pixel_dims)
    if set(axes) - {STAGE_AXIS, CELL_AXIS}:
        raise RequestError(
            f"formula '{formula.name}' has a {constant.name} by {', '.join(axes)}, which darks cannot give"
        )
    if any(c.name == THRESHOLDS for c in formula.constants) and len(words) == 2:
        whole = tuple(Stage(k, (0, 0xFFFF), (0, NARROW)) for k in range(3))
        return Recipe(formula, constant.name, axes, pixel_dims, words[0], "", words[1], (whole,))
    code = next((n for n in words if n == GAIN_CODE), "")
    value = next((n for n in words if n != code), "")
    if len(words) != 1 + bool(code):
        raise RequestError(f"darks of formula '{formula.name}' cannot be taken: it has words {', '.join(words)}")
    if not code and STAGE_AXIS in axes and (found := translate(formula, value)):
        return Recipe(formula, constant.name, axes, pixel_dims, value, "", "", (found.stages,), found.tables)
    settings = (0, 1) if any(i.name == HIGH_GAIN for i in formula.inputs) else (0,)
    stages = tuple(_stages(formula, value, code, axes, high) for high in settings)
    return Recipe(formula, constant.name, axes, pixel_dims, value, code, "", stages)


def join_code(adc: Array, code: Array) -> npt.NDArray[np.uint16]:
    """ADC and gain code in one word; what is too large for it becomes an undefined code."""
    valid = (adc < 1 << ADC_BITS) & (code < 4)
    return np.where(valid, adc | (code.astype(np.uint16) << ADC_BITS), UNDEFINED_CODE << ADC_BITS).astype(np.uint16)


def _stages(formula: Formula, value: str, code: str, axes: tuple[str, ...], high: int) -> tuple[Stage, ...]:
    """The stages that words tell."""
    given = dict(_given(value, code, high))
    if any(i.name == HIGH_GAIN and len(i.dims) > 1 for i in formula.inputs):
        given[HIGH_GAIN] = given[HIGH_GAIN][:, None]  # by frame and module
    name = STAGE if STAGE_AXIS in axes else ADC
    kind = formula.checked.types.get(name)
    there = {i.name for i in formula.inputs} & given.keys()
    if kind is None or kind.kind != "integer" or not needs(formula, name) <= there:
        raise RequestError(f"darks of formula '{formula.name}' cannot be taken: its {name} is not told by a word alone")
    program = program_for_step(formula, {}, name, "int32", frozenset(there))
    found, flags = evaluate(program, {i.name: given[i.name] for i in program.inputs})
    told = np.broadcast_to(found, (1, WORDS.size))[0]
    special = np.broadcast_to(flags, (1, WORDS.size))[0] != 0
    if name == ADC:  # one stage: the words that are their own value
        told = np.where(told == WORDS, 0, -1)
    labels = [int(label) for label in np.unique(told) if label >= 0]
    nothing = _run(formula, told < 0) if STAGE_AXIS in axes and (told < 0).any() else (1, 0)
    return tuple(_stage(formula, label, told == label, special, nothing) for label in labels)


def _given(value: str, code: str, high: int) -> Mapping[str, Array]:
    """All words, as the inputs of a formula."""
    if code:
        low = WORDS & np.uint16((1 << ADC_BITS) - 1)
        split = {value: low[None, :], code: (WORDS >> ADC_BITS).astype(np.uint8)[None, :]}
        return {**split, HIGH_GAIN: np.array([high], np.uint8)}
    return {value: WORDS[None, :], HIGH_GAIN: np.array([high], np.uint8)}


def _stage(formula: Formula, label: int, own: Array, special: Array, undefined: tuple[int, int]) -> Stage:
    right = _run(formula, own)
    good = _run(formula, own & ~special)
    return Stage(label, right, good, undefined, right[0])


def _run(formula: Formula, chosen: Array) -> tuple[int, int]:
    """First and last of words that must follow each other."""
    places = np.flatnonzero(chosen)
    if not len(places) or places[-1] - places[0] + 1 != len(places):
        raise RequestError(f"darks of formula '{formula.name}' cannot be taken: the words of a stage are no neighbours")
    return int(places[0]), int(places[-1])


def by_frame_and_module(values: Array, modules: int) -> Array:
    """(frame,) or (frame, module) as (frame, module)."""
    return np.broadcast_to(values.reshape(len(values), -1), (len(values), modules))
