"""Write a geometry into an NXdetector: its axes, its panels, and which part belongs to which.

The chain of each panel is that of cctbx: AXIS_RAIL (the distance) carries AXIS_D0 (the detector), which
carries quadrants, modules and ASICs; the arm comes first where there is one.  Axes of parts are rotations
by zero, there to be refined.  A panel begins at the origin of its axis, because DIALS looks nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np

from gaincal.geometry.arm import Arm, beam_center
from gaincal.geometry.panels import Geometry, Panel, Vector, length
from gaincal.geometry.tree import DETECTOR, Node, nodes
from gaincal.nexus import names
from gaincal.nexus.group import new_group
from gaincal.nexus.write import LENGTH, array_field, discard, field, members_of_class

ANGLE = "deg"
RAIL, TWO_THETA, SHIFT_X, SHIFT_Y = "AXIS_RAIL", "AXIS_TWO_THETA", "AXIS_X", "AXIS_Y"
ARM = "detector_arm"
REPLACED = ("distance", "x_pixel_size", "y_pixel_size", "beam_center_x", "beam_center_y", names.DEPENDS_ON)
STILL: Vector = (0.0, 0.0, 0.0)
ABOUT_BEAM: Vector = (0.0, 0.0, 1.0)
NO_PARENT = -1


def write_geometry(detector: h5py.Group, geometry: Geometry, arm: Arm) -> None:
    """Write a geometry, in the place of the one that a detector has.

    Parameters
    ----------
    detector : h5py.Group
        The NXdetector, in an NXinstrument.
    geometry : Geometry
        For the words of the detector; its distance must be stated.
    arm : Arm

    Raises
    ------
    RequestError
        If the distance is not stated.
    """
    distance = geometry.stated_distance
    _clear(detector)
    group = new_group(detector, names.TRANSFORMATIONS, names.TRANSFORMATIONS_CLASS)
    carrier = _write_arm(group, arm, distance)
    parts = nodes(geometry)
    _write_axes(group, parts, carrier)
    by_path = {part.path: part for part in parts}
    for panel in geometry.panels:
        _write_panel(detector, panel, by_path[(*panel.parents, panel.name)], group.name)
    _write_group(detector.parent, detector.name, parts)
    field(detector, names.DEPENDS_ON, f"{group.name}/{names.AXIS}{parts[0].label}")
    field(detector, "distance", distance + geometry.origin[2], LENGTH)
    _write_sizes(detector, geometry, arm)


def _clear(detector: h5py.Group) -> None:
    """Take out the geometry that there is."""
    axes = (names.DETECTOR_MODULE, names.TRANSFORMATIONS_CLASS)
    old = [member.name.rsplit("/", 1)[-1] for nx_class in axes for member in members_of_class(detector, nx_class)]
    for name in {*old, *REPLACED, names.TRANSFORMATIONS}:
        discard(detector, name)
    for group in members_of_class(detector.parent, names.DETECTOR_GROUP):
        discard(detector.parent, group.name.rsplit("/", 1)[-1])


def _write_arm(group: h5py.Group, arm: Arm, distance: float) -> str:
    """Axes that move the detector as a whole; returns the path of the last."""
    last = "."
    if arm.axis is not None:
        axis = tuple(a / length(arm.axis) for a in arm.axis)
        last = _axis(group, TWO_THETA, arm.two_theta, axis, last, names.ROTATION, STILL, ARM)
    last = _axis(group, RAIL, distance, (0.0, 0.0, 1.0), last, names.TRANSLATION, STILL, ARM)
    for name, value, vector in ((SHIFT_X, arm.x, (1.0, 0.0, 0.0)), (SHIFT_Y, arm.y, (0.0, 1.0, 0.0))):
        if value:
            last = _axis(group, name, value, vector, last, names.TRANSLATION, STILL, ARM)
    return last


def _write_axes(group: h5py.Group, parts: Sequence[Node], carrier: str) -> None:
    """An axis for every part, which carries those below it."""
    by_path = {part.path: part for part in parts}
    for part in parts:
        parent = by_path[part.path[:-1]] if part.path else None
        holds = carrier if parent is None else f"{group.name}/{names.AXIS}{parent.label}"
        origin = STILL if parent is None else parent.origin
        x, y, z = (mine - theirs for mine, theirs in zip(part.origin, origin, strict=True))
        component = ARM if part.level == DETECTOR else f"detector_{part.level}"
        _axis(group, f"{names.AXIS}{part.label}", 0.0, ABOUT_BEAM, holds, names.ROTATION, (x, y, z), component)


def _write_panel(detector: h5py.Group, panel: Panel, part: Node, axes: str) -> None:
    group = new_group(detector, f"{names.ARRAY}{part.label}", names.DETECTOR_MODULE)
    layer = () if panel.module is None else (panel.module,)
    field(group, names.DATA_ORIGIN, np.array((*layer, panel.row, panel.column), np.int64))
    field(group, names.DATA_SIZE, np.array((*(1 for _ in layer), panel.rows, panel.columns), np.int64))
    for name, way in ((names.FAST_DIRECTION, panel.fast), (names.SLOW_DIRECTION, panel.slow)):
        size = length(way)
        vector = tuple(w / size for w in way)
        _axis(group, name, size, vector, f"{axes}/{names.AXIS}{part.label}", names.TRANSLATION, STILL)


def _axis(
    group: h5py.Group,
    name: str,
    value: float,
    vector: Sequence[float],
    depends_on: str,
    kind: str,
    offset: Vector,
    component: str = "",
) -> str:
    """Create an axis of NXtransformations, in metres or degrees; returns its path."""
    dataset = field(group, name, float(value), ANGLE if kind == names.ROTATION else LENGTH)
    attributes: dict[str, Any] = {
        names.TRANSFORMATION_TYPE: kind,
        names.VECTOR: np.asarray(vector, np.float64),
        names.OFFSET: np.asarray(offset, np.float64),
        names.OFFSET_UNITS: LENGTH,
        names.DEPENDS_ON: depends_on,
    }
    attributes |= {names.EQUIPMENT_COMPONENT: component} if component else {}
    for key, content in attributes.items():
        dataset.attrs[key] = content
    return str(dataset.name)


def _write_group(instrument: h5py.Group, detector: str, parts: Sequence[Node]) -> None:
    """Which part belongs to which, by the names that the ``.geom`` file gave them."""
    name = names.DETECTOR_GROUP_NAME
    discard(instrument, name)
    group = new_group(instrument, name, names.DETECTOR_GROUP)
    numbers = {part.path: number for number, part in enumerate(parts, start=1)}
    titles = [(part.path[-1] if part.path else detector.rsplit("/", 1)[-1]).encode() for part in parts]
    width = max(len(title) for title in titles)
    array_field(group, "group_names", np.array(titles, f"S{width}"))
    array_field(group, "group_index", np.array(list(numbers.values()), np.int32))
    above = [numbers[part.path[:-1]] if part.path else NO_PARENT for part in parts]
    array_field(group, "group_parent", np.array(above, np.int32))


def _write_sizes(detector: h5py.Group, geometry: Geometry, arm: Arm) -> None:
    """What readers take for guidance."""
    sizes = {p.resolution for p in geometry.panels}
    center = beam_center(geometry, arm)
    for k, direction in enumerate("xy"):
        if len(sizes) == 1:
            field(detector, f"{direction}_pixel_size", 1 / geometry.panels[0].resolution, LENGTH)
        if center is not None:
            field(detector, f"beam_center_{direction}", center[k], LENGTH)
