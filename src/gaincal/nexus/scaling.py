"""NXmx's own scale and offset, `(data + data_offset) * data_scaling_factor`: read, and written where it is the same."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from gaincal.constants import ConstantMap
from gaincal.formulas.checks import words_inputs
from gaincal.formulas.formula import Formula
from gaincal.nexus.fields import read_array
from gaincal.nexus.group import MAX_CONSTANT_BYTES, Provenance
from gaincal.nexus.trust import Place, Resolver
from gaincal.nexus.write import array_field, field, own

Array = npt.NDArray[Any]
FACTOR, OFFSET = "scaling_factor", "offset"
FIELDS = MappingProxyType({FACTOR: "data_scaling_factor", OFFSET: "data_offset"})
"""What NXmx calls the constants of a formula that is only a scale and an offset."""


def read_scaling(
    resolver: Resolver, detector: Place | None, formula: Formula, pixels: tuple[int, ...]
) -> dict[str, tuple[ConstantMap, Provenance]]:
    """The constants of a formula that an NXmx detector states itself, a number spread over all pixels."""
    found = {}
    for constant in formula.constants if detector and is_scaling(formula) else ():
        place = resolver.find(FIELDS[constant.name], detector) if constant.name in FIELDS else None
        if place is None:
            continue
        values = read_array(place, MAX_CONSTANT_BYTES)
        if values.size == 1:
            values = np.broadcast_to(values.reshape(()), pixels)
        elif values.shape != pixels:
            raise place.error(f"has shape {values.shape}, the frames are {pixels}", code="wrong-shape")
        origin = Provenance(place.file.name, f"HDF5 {place.path}", "")
        found[constant.name] = (ConstantMap(np.ascontiguousarray(values), ()), origin)
    return found


def is_scaling(formula: Formula) -> bool:
    """Whether the default output is ``(words + offset) * scaling_factor`` and nothing else."""
    steps = {step.name: step for step in formula.steps}
    words = set(words_inputs(formula))
    last = steps[formula.output().name]
    if last.operation != "multiply" or FACTOR not in last.arguments:
        return False
    inner = next((steps.get(a) for a in last.arguments if a != FACTOR), None)
    return inner is not None and inner.operation == "add" and set(inner.arguments) - {OFFSET} <= words


def write_scaling(detector: h5py.Group, formula: Formula, constants: Mapping[str, ConstantMap]) -> None:
    """State the constants as NXmx does, where the detector does not yet and the formula says the same."""
    if not is_scaling(formula):
        return
    for name, wanted in FIELDS.items():
        values = constants[name].values if name in constants else None
        if own(detector, wanted) is not None or not isinstance(values, np.ndarray) or not values.size:
            continue
        first = values.reshape(-1)[0]
        if np.all(values == first):
            field(detector, wanted, first)
        else:
            array_field(detector, wanted, values)
