"""The geometry that a user names, fitted to the words of a run, with what was stated about its arm."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.calibration import RawLayout
from gaincal.errors import BindError, RequestError
from gaincal.geometry.arm import STILL, Arm
from gaincal.geometry.crystfel import read_geom
from gaincal.geometry.fit import fitted
from gaincal.geometry.panels import Geometry, Vector
from gaincal.geometry.square import squared
from gaincal.nexus import names
from gaincal.nexus.write import parse_number

Array = npt.NDArray[Any]
DISTANCE = "distance"
TWO_THETA, AXIS, SHIFTS = "two_theta", "two_theta_axis", ("detector_x", "detector_y")
OF_ARM = (TWO_THETA, AXIS, *SHIFTS)
STATED_BY_PANELS = ("pixel_size", "beam_center_x", "beam_center_y")
USER_BIT = next(bit for bit, name in names.PIXEL_MASK_BITS.items() if name == "user")
DIMS = 3


@dataclass(frozen=True)
class Placed:
    """A geometry for the words of a run, or none.

    Parameters
    ----------
    geometry : Geometry or None
    arm : Arm
    metadata : mapping of str to str or float
        What was stated, without what the geometry says.
    bad : ndarray or None
        Pixels that it excludes, bool.
    notes : tuple of str
        What the user should know.
    """

    geometry: Geometry | None
    arm: Arm
    metadata: Mapping[str, str | float]
    bad: npt.NDArray[np.bool_] | None = None
    notes: tuple[str, ...] = ()

    def masked(self, mask: Array | None) -> Array | None:
        """A pixel mask, with the pixels that the geometry excludes as the user's."""
        if self.bad is None or not self.bad.any():
            return mask
        excluded = self.bad.astype(np.uint32) << np.uint32(USER_BIT)
        return excluded if mask is None else np.asarray(mask | excluded)


def find_geometry(
    path: str | os.PathLike[str] | None, metadata: Mapping[str, str | float], layout: RawLayout
) -> Placed:
    """Read a ``.geom`` file and fit it to the words of a run.

    Parameters
    ----------
    path : str or path or None
    metadata : mapping of str to str or float
        What the user stated; ``distance`` is that of the mean plane of the panels.
    layout : RawLayout

    Raises
    ------
    FileError, BindError, RequestError
    """
    if path is None:
        alone = [name for name in OF_ARM if name in metadata]
        if alone:
            raise RequestError(f"{alone[0]} moves a detector whose panels are known: give its geometry, too")
        return Placed(None, STILL, metadata)
    twice = [name for name in STATED_BY_PANELS if name in metadata]
    if twice:
        raise RequestError(f"{twice[0]} is stated twice: {os.fspath(path)} has it; leave one of them away")
    try:
        geometry = fitted(read_geom(path), layout.pixels)
        if DISTANCE in metadata:
            geometry = geometry.placed_at(_positive(DISTANCE, float(metadata[DISTANCE])))
        _positive(DISTANCE, geometry.stated_distance)
    except (BindError, RequestError) as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from error
    geometry, moved, skewed = squared(geometry)
    bad = geometry.bad_pixels(layout.pixels)
    left = {name: value for name, value in metadata.items() if name not in (DISTANCE, *OF_ARM)}
    return Placed(geometry, _arm(metadata), left, bad, (*_notes(geometry, bad), *_doubts(moved, skewed)))


def _arm(metadata: Mapping[str, str | float]) -> Arm:
    shifts = [float(metadata.get(name, 0.0)) for name in SHIFTS]
    if (TWO_THETA in metadata) != (AXIS in metadata):
        raise RequestError(f"{TWO_THETA} and {AXIS} belong together: {TWO_THETA}=30 {AXIS}=0,1,0")
    axis = _axis(str(metadata[AXIS])) if AXIS in metadata else None
    return Arm(float(metadata.get(TWO_THETA, 0.0)), axis, shifts[0], shifts[1])


def _axis(text: str) -> Vector:
    numbers = [parse_number(AXIS, part) for part in text.split(",")]
    if len(numbers) != DIMS or not any(numbers):
        raise RequestError(f"{AXIS}={text}: write three numbers, X,Y,Z, in the laboratory")
    return numbers[0], numbers[1], numbers[2]


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise RequestError(f"{name}={value}: must be above zero")
    return value


def _notes(geometry: Geometry, bad: Array) -> list[str]:
    parts = " > ".join(geometry.levels)
    notes = [f"geometry: {len(geometry.panels)} panels ({parts}), from {geometry.rule}"]
    if bad.any():
        notes.append(f"{np.count_nonzero(bad)} pixels that the geometry excludes are masked as 'user'")
    said = {key for panel in geometry.panels for key, _ in panel.carried if key not in ("data", "no_index")}
    stays = sorted(said | {key for key, _ in geometry.carried})
    return notes + ([f"what the geometry file says of {', '.join(stays)} is not carried over"] if stays else [])


def _doubts(moved: float, skewed: list[str]) -> list[str]:
    notes = [f"panels were made rectangular, which moved pixels by up to {1e6 * moved:.2g} um"] if moved else []
    if skewed:
        listed = ", ".join(skewed[:8])
        notes.append(f"rows and columns are not perpendicular in {len(skewed)} panels ({listed}): DIALS refuses these")
    return notes
