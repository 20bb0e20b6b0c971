"""Maps of constants, stage by stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.calibration import Calibration
from gaincal.formulas.formula import Constant

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
    large, pixels = calibration.large[name], calibration.layout.pixels
    lead = pixels[:-2]
    values = np.empty(pixels, large.values.dtype)
    for index in np.ndindex(*lead):
        values[index] = large.values.slab((*place, *index))
    return values
