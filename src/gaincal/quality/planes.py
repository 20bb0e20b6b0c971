"""Maps of constants, stage by stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.calibration import Calibration
from gaincal.constants import ConstantMap
from gaincal.formulas.formula import Constant
from gaincal.nexus.constantsfile import ConstantsSet

Array = npt.NDArray[Any]
FIRST = ("pedestal", "offset", "noise", "gain")
STAGE = "stage"
MAX_PLANES = 24


@dataclass(frozen=True, eq=False)
class Plane:
    """A map of the pixels.

    Parameters
    ----------
    name, units : str
    stage : int or None
    values : ndarray (*pixels)
    note : str
        Of which cell it is, where there are several.
    """

    name: str
    units: str
    stage: int | None
    values: Array
    note: str = ""

    @property
    def title(self) -> str:
        """For people."""
        stage = "" if self.stage is None else f", stage {self.stage}"
        return f"{self.name}{stage}{f', {self.note}' if self.note else ''}"

    @property
    def key(self) -> tuple[str, int | None]:
        """The same in another set."""
        return self.name, self.stage


def planes_of(calibration: Calibration) -> list[Plane]:
    """Maps of all real constants that the file has, pedestals first; of several cells the first."""
    pixel_dims = calibration.formula.checked.pixel_dims
    found: list[Plane] = []
    kept = [c for c in calibration.formula.constants if c.dtype is None and set(pixel_dims) <= set(c.dims)]
    order = {name: k for k, name in enumerate(FIRST)}
    for constant in sorted(kept, key=lambda c: order.get(c.name, len(FIRST))):
        if constant.name in calibration.given and constant.name not in calibration.defaulted:
            found += _of_constant(calibration, constant, [d for d in constant.dims if d not in pixel_dims])
    return found[:MAX_PLANES]


def _of_constant(calibration: Calibration, constant: Constant, axes: list[str]) -> list[Plane]:
    labels = calibration.labels.get(constant.name, ())
    others = [f"{axis} {own[0]}" for axis, own in zip(axes, labels, strict=True) if axis != STAGE and len(own) > 1]
    stages = next((own for axis, own in zip(axes, labels, strict=True) if axis == STAGE), (None,))
    found = []
    for k, stage in enumerate(stages):
        place = tuple(k if axis == STAGE else 0 for axis in axes)
        values = _values(calibration, constant.name, place)
        found.append(Plane(constant.name, constant.units, stage, values, ", ".join(others)))
    return found


def _values(calibration: Calibration, name: str, place: tuple[int, ...]) -> Array:
    if name in calibration.arrays:
        return np.asarray(calibration.arrays[name][place])
    large = calibration.large[name]
    return plane_values(ConstantMap(large.values, large.labels), place)


def plane_values(constant: ConstantMap, place: tuple[int, ...]) -> Array:
    """The pixels at one place of all named axes, from memory or from the file."""
    values = constant.values
    if isinstance(values, np.ndarray):
        return np.asarray(values[place])
    pixels = values.shape[len(place) :]
    found = np.empty(pixels, values.dtype)
    for index in np.ndindex(*pixels[:-2]):
        found[index] = values.slab((*place, *index))
    return found


def planes_of_set(found: ConstantsSet) -> list[Plane]:
    """Maps of all constants of a constants file, pedestals first; of several cells the first."""
    order = {name: k for k, name in enumerate(FIRST)}
    planes = []
    for name in sorted(found.constants, key=lambda n: order.get(n, len(FIRST))):
        for stage in found.labels(name).get(STAGE, (None,)):
            planes.append(plane_of_set(found, name, stage))
    return planes[:MAX_PLANES]


def plane_of_set(found: ConstantsSet, name: str, stage: int | None) -> Plane:
    """A map of a constant of a constants file; of several cells the first."""
    labels = found.labels(name)
    others = [f"{axis} {own[0]}" for axis, own in labels.items() if axis != STAGE and len(own) > 1]
    place = tuple(own.index(stage) if axis == STAGE and stage is not None else 0 for axis, own in labels.items())
    values = plane_values(found.constants[name], place)
    return Plane(name, found.units[name], stage, values, ", ".join(others))
