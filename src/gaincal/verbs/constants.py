"""``constants diff``: what has changed between two sets of constants."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.constants import ConstantMap
from gaincal.errors import FileError
from gaincal.nexus.constantsfile import COUNTS, REASONS, ConstantsSet, read_constants
from gaincal.nexus.slabs import slab
from gaincal.sources.mask_bits import reasons_of

Array = npt.NDArray[Any]
BEYOND = 5.0
"""Robust standard deviations from which on a difference is far from that of the other pixels."""
NORMAL_MAD = 1.482602218505602


@dataclass(frozen=True)
class Difference:
    """How a constant differs, in one stage and cell: second set minus first.

    Parameters
    ----------
    constant, units : str
    labels : dict of str to int
    median, scatter : float
        Of the differences, over pixels that have a value in both sets; scatter is robust.
    largest : float
        Largest absolute difference.
    beyond : int
        Pixels further from the median than `BEYOND` times the scatter.
    only : (int, int)
        Pixels that have a value in the first, and in the second set only.
    """

    constant: str
    units: str
    labels: dict[str, int]
    median: float
    scatter: float
    largest: float
    beyond: int
    only: tuple[int, int]


@dataclass(frozen=True)
class Comparison:
    """What differs between two sets.

    Parameters
    ----------
    differences : list of Difference
    lacking : list of str
        What only one of the sets has.
    masked : dict of str to int
        Bad pixels: ``first``, ``second``, ``now bad``, ``now good``.
    now_bad : dict of str to int
        Reasons of the pixels that are bad in the second set only.
    facts : dict of str to (object, object)
        Validity and parameters that differ.
    """

    differences: list[Difference]
    lacking: list[str]
    masked: dict[str, int]
    now_bad: dict[str, int]
    facts: dict[str, tuple[Any, Any]]


def diff(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> Comparison:
    """Compare two constants files.

    Parameters
    ----------
    first, second : str or path

    Returns
    -------
    Comparison

    Raises
    ------
    FileError
        If one is no constants file, or their frames have different shapes.
    """
    a, b = read_constants(first), read_constants(second)
    if a.pixels != b.pixels:
        raise FileError(b.file, "", f"has frames of {b.pixels}, those of {a.file} are {a.pixels}", code="wrong-shape")
    shared = [n for n in a.constants if n in b.constants and n not in (COUNTS, REASONS)]
    lacking = [f"{n}: only in {s.file}" for s, o in ((a, b), (b, a)) for n in s.constants if n not in o.constants]
    for name in shared:
        lacking += _lacking(a, b, name)
    masks = [np.zeros(s.pixels, np.uint32) if s.pixel_mask is None else s.pixel_mask for s in (a, b)]
    bad = [mask & np.uint32(0xFFFF) != 0 for mask in masks]
    masked = {
        "first": int(np.count_nonzero(bad[0])),
        "second": int(np.count_nonzero(bad[1])),
        "now bad": int(np.count_nonzero(bad[1] & ~bad[0])),
        "now good": int(np.count_nonzero(bad[0] & ~bad[1])),
    }
    now_bad = reasons_of(np.where(bad[1] & ~bad[0], masks[1], 0).astype(np.uint32))
    differences = [d for name in shared for d in _differences(a, b, name)]
    return Comparison(differences, lacking, masked, now_bad, _facts(a, b))


def _places(found: ConstantsSet, name: str) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Where the planes of a constant lie, by their labels."""
    labels = found.constants[name].labels
    return {
        tuple(axis[k] for axis, k in zip(labels, place, strict=True)): place
        for place in np.ndindex(tuple(len(axis) for axis in labels))
    }


def _lacking(a: ConstantsSet, b: ConstantsSet, name: str) -> Iterator[str]:
    for axis, ours in a.labels(name).items():
        theirs = b.labels(name).get(axis, ())
        for found, only in ((a, set(ours) - set(theirs)), (b, set(theirs) - set(ours))):
            if only:
                yield f"{name}, {axis} {', '.join(map(str, sorted(only)))}: only in {found.file}"


def _plane(constant: ConstantMap, place: tuple[int, ...]) -> Array:
    values = constant.values
    if isinstance(values, np.ndarray):
        return np.asarray(values[place], np.float64)
    inner = np.ndindex(values.shape[len(place) : -2])
    return np.stack([slab(values, (*place, *k)) for k in inner]).astype(np.float64)


def _differences(a: ConstantsSet, b: ConstantsSet, name: str) -> Iterator[Difference]:
    theirs = _places(b, name)
    for labels, place in _places(a, name).items():
        if labels not in theirs:
            continue
        old, new = _plane(a.constants[name], place).reshape(-1), _plane(b.constants[name], theirs[labels]).reshape(-1)
        has = np.isfinite(old), np.isfinite(new)
        change = (new - old)[has[0] & has[1]]
        median = float(np.median(change)) if change.size else float("nan")
        scatter = NORMAL_MAD * float(np.median(np.abs(change - median))) if change.size else float("nan")
        yield Difference(
            name,
            a.units[name],
            dict(zip(a.axes[name], labels, strict=True)),
            median,
            scatter,
            float(np.abs(change).max(initial=0.0)),
            int(np.count_nonzero(np.abs(change - median) > BEYOND * scatter)),
            (int(np.count_nonzero(has[0] & ~has[1])), int(np.count_nonzero(has[1] & ~has[0]))),
        )


def _facts(a: ConstantsSet, b: ConstantsSet) -> dict[str, tuple[Any, Any]]:
    ours, theirs = {**a.parameters, **a.validity}, {**b.parameters, **b.validity}
    return {n: (ours.get(n), theirs.get(n)) for n in {**ours, **theirs} if ours.get(n) != theirs.get(n)}
