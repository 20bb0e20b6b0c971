"""How good a set of constants is: declared rules and six numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.constants import ConstantMap
from gaincal.nexus import names
from gaincal.nexus.constantsfile import COUNTS, REASONS, ConstantsSet
from gaincal.quality.parts import Part, parts_of_pixels
from gaincal.quality.planes import Plane, plane_of_set, plane_values, planes_of_set
from gaincal.quality.rules import Number, Rule, oddness, percent, worst

Array = npt.NDArray[Any]
PEDESTALS, NOISE, STAGE = ("pedestal", "offset"), "noise", "stage"
BAD_PIXELS = (0.02, 0.1)
LACKING = (0, math.inf)
ODD_NOISE = (2.0, 4.0)
MOVED = (1.0, 5.0)
FEW = (0.15, 0.35)
"""Limits above which a set is doubtful, and bad: shares, stages, a factor, and parts of the noise of a dark frame.

The last two are those of some 40 and 8 frames.
"""
GOOD_BITS = np.uint32((1 << names.BAD_BITS) - 1)


def pedestal_name(found: ConstantsSet) -> str:
    """What the pedestal is called in a set; empty if it has none."""
    return next((name for name in PEDESTALS if name in found.constants), "")


def judge_set(found: ConstantsSet, lacking: Sequence[int], previous: Sequence[Plane]) -> list[Rule]:
    """Apply all rules to each module and stage; each tells of the worst.

    Parameters
    ----------
    found : ConstantsSet
    lacking : sequence of int
        Stages of the formula that the set does not have.
    previous : sequence of Plane
        Of the set before; empty if there is none.
    """
    none = "no previous set was given (--previous)" if not previous else "the previous set has no such pedestal"
    share, where = worst(dict(_bad_shares(found)))
    noise, noisy = _odd_noise(found)
    moved, moving = worst(dict(_moves(found, previous)))
    error, few = worst(dict(_errors(found)))
    listed = ", ".join(map(str, lacking))
    return [
        Rule(
            "stages-lacking", "stages that the set lacks", float(len(lacking)), *LACKING, "", "", f"no stage {listed}"
        ),
        Rule("bad-pixels", "bad pixels", share, *BAD_PIXELS, "%", where, "" if share is not None else "no pixel mask"),
        Rule("odd-noise", "noise of a module against the others (factor)", noise, *ODD_NOISE, "x", noisy, _why(noise)),
        Rule("pedestal-error", "statistical error of a pedestal, median", error, *FEW, "noise", few, _more(error)),
        Rule(
            "pedestal-moved",
            "pedestal moved since the previous set, median",
            moved,
            *MOVED,
            "noise",
            moving,
            none if moved is None else "",
        ),
    ]


def _why(noise: float | None) -> str:
    return "one module alone" if noise is None else ""


def _more(error: float | None) -> str:
    return "most of its pixels have no dark words" if error == math.inf else "take more frames"


def set_parts(found: ConstantsSet) -> tuple[Part, ...]:
    """The modules of a set."""
    pixels = found.constants[pedestal_name(found)].values.shape[len(found.axes[pedestal_name(found)]) :]
    return parts_of_pixels(pixels)


def _bad_shares(found: ConstantsSet) -> Iterator[tuple[str, float | None]]:
    if found.pixel_mask is None:
        return
    for part in set_parts(found):
        yield part.name, float(np.mean(found.pixel_mask[part.index] & GOOD_BITS != 0))


def _stages(found: ConstantsSet) -> tuple[int | None, ...]:
    return found.labels(pedestal_name(found)).get(STAGE, (None,))


def _odd_noise(found: ConstantsSet) -> tuple[float | None, str]:
    """The module whose noise is farthest from the median of all, in any stage."""
    if NOISE not in found.constants or len(set_parts(found)) < 2:
        return None, ""
    factors: dict[str, float | None] = {}
    for stage in _stages(found):
        plane = plane_of_set(found, NOISE, stage)
        medians = {f"{part.name}, stage {stage}": _median(plane.values[part.index]) for part in set_parts(found)}
        factors |= oddness(medians)
    return worst(factors)


def _moves(found: ConstantsSet, previous: Sequence[Plane]) -> Iterator[tuple[str, float | None]]:
    """Median change of the pedestal, in units of the noise."""
    before = {p.key: p for p in previous}
    for stage in _stages(found):
        plane = plane_of_set(found, pedestal_name(found), stage)
        other = before.get(plane.key)
        if other is None or other.values.shape != plane.values.shape or NOISE not in found.constants:
            continue
        noise = plane_of_set(found, NOISE, stage).values
        for part in set_parts(found):
            change = np.abs(plane.values[part.index].astype(np.float64) - other.values[part.index])
            yield f"{part.name}, stage {stage}", _median(change) / _median(noise[part.index])


def _errors(found: ConstantsSet) -> Iterator[tuple[str, float | None]]:
    """One over the square root of the words behind a pedestal."""
    if COUNTS not in found.constants:
        return
    for stage in _stages(found):
        plane = plane_of_set(found, COUNTS, stage)
        for part in set_parts(found):
            count = _median(plane.values[part.index].astype(np.float64))
            yield f"{part.name}, stage {stage}", 1 / math.sqrt(count) if count > 0 else math.inf


def _median(values: Array) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else math.nan


def six_numbers_of_set(found: ConstantsSet, lacking: Sequence[int], rules: Sequence[Rule]) -> list[Number]:
    """What stands on top: stages, words, pedestal and noise of the first stage, bad pixels, change."""
    stages = _stages(found)
    first = stages[0]
    pedestal = plane_of_set(found, pedestal_name(found), first)
    noise = plane_of_set(found, NOISE, first) if NOISE in found.constants else None
    counts = plane_of_set(found, COUNTS, first) if COUNTS in found.constants else None
    state = {r.name: r for r in rules}
    mask = found.pixel_mask
    bad = "?" if mask is None else percent(float(np.mean(mask & GOOD_BITS != 0)))
    moved = state["pedestal-moved"]
    total, there = len(stages) + len(lacking), ", ".join(str(s) for s in stages)
    note = f"{there}; lacking: {', '.join(map(str, lacking))}" if lacking else f"{there}; none is lacking"
    of_first = f"median, stage {first}" if first is not None else "median"
    return [
        Number("stages", "stages", f"{len(stages)} of {total}", note),
        Number("words", "words per pixel", "?" if counts is None else f"{_median(counts.values):.0f}", of_first),
        Number("pedestal", pedestal.name, f"{_median(pedestal.values):.1f} {pedestal.units}", of_first),
        Number("noise", "noise, rms", "?" if noise is None else f"{_median(noise.values):.2f} {noise.units}", of_first),
        Number("bad", "bad pixels", bad, "one of the reasons below"),
        Number("moved", "pedestal moved", moved.shown[0], moved.where or moved.why),
    ]


def reason_counts(found: ConstantsSet) -> dict[str, tuple[Array, dict[str, int]]]:
    """Pixels by reason of the darks: in any stage or cell, and how many in each stage."""
    constant = found.constants.get(REASONS)
    if constant is None:
        return {}
    listed: dict[str, tuple[Array, dict[str, int]]] = {}
    for stage in found.labels(REASONS).get(STAGE, (None,)):
        bits = _any_cell(found, constant, stage)
        for bit, name in found.reason_names.items():
            pixels = (bits >> np.uint32(bit) & np.uint32(1)).astype(bool)
            before, counts = listed.get(name, (np.zeros(pixels.shape, bool), dict[str, int]()))
            counts[str(stage)] = int(np.count_nonzero(pixels))
            listed[name] = (before | pixels, counts)
    return {name: found for name, found in listed.items() if found[0].any()}


def _any_cell(found: ConstantsSet, constant: ConstantMap, stage: int | None) -> Array:
    """Reasons of a stage, in any of its cells."""
    labels, axes = found.labels(REASONS), found.axes[REASONS]
    lead = [range(len(labels[a])) if a != STAGE else [labels[a].index(stage)] for a in axes]
    bits: Array | None = None
    for place in np.ndindex(*(len(r) for r in lead)):
        index = tuple(r[k] for r, k in zip(lead, place, strict=True))
        values = plane_values(constant, index)
        bits = values.copy() if bits is None else bits | values
    assert bits is not None
    return bits


def all_planes(found: ConstantsSet) -> list[Plane]:
    """Maps of everything in a set but its counts and reasons."""
    return [p for p in planes_of_set(found) if p.name not in (COUNTS, REASONS)]
