"""Write a geometry as CrystFEL's ``.geom`` text, so that reading it again gives the same geometry, to the last bit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from gaincal._version import __version__
from gaincal.geometry.crystfel_lines import BAD, COLLECTION, GROUP, RIGID
from gaincal.geometry.hierarchy import arranged
from gaincal.geometry.panels import BadRegion, Geometry, Group, Panel, Vector

ALL = "all"
"""What CrystFEL calls the group of everything."""
NEIGHBOURS = 4
"""How far from the product of two numbers a number can be whose quotient is one of them, in last places."""


def to_geom(geometry: Geometry) -> str:
    """The text of a ``.geom`` file.

    Parameters
    ----------
    geometry : Geometry

    Returns
    -------
    str
    """
    common = _common(geometry)
    panels = {panel.name: panel for panel in geometry.panels}
    return "\n".join(
        [
            f"; written by gaincal {__version__}",
            *(f"{key} = {value}" for key, value in geometry.carried),
            *_distance(geometry),
            *(f"{key} = {value}" for key, value in common.items()),
            *_dims(geometry),
            "",
            *_groups(geometry),
            *(line for region in geometry.bad for line in _region(panels, region)),
            *(line for panel in geometry.panels for line in _panel(panel, common)),
            "",
        ]
    )


def _common(geometry: Geometry) -> dict[str, str]:
    """What all panels say alike."""
    first = dict(_carried(geometry.panels[0]))
    for panel in geometry.panels[1:]:
        mine = _carried(panel)
        first = {key: value for key, value in first.items() if mine.get(key) == value}
    return first


def _carried(panel: Panel) -> dict[str, str]:
    return {"res": repr(panel.resolution), **dict(panel.carried)}


def _distance(geometry: Geometry) -> Iterator[str]:
    if geometry.distance is not None:
        yield f"clen = {geometry.distance!r}"
    elif geometry.distance_from:
        yield f"clen = {geometry.distance_from}"


def _dims(geometry: Geometry) -> Iterator[str]:
    stacked = geometry.panels[0].module is not None
    yield "dim0 = %"
    yield from ("dim2 = ss", "dim3 = fs") if stacked else ("dim1 = ss", "dim2 = fs")


def _groups(geometry: Geometry) -> Iterator[str]:
    for group in geometry.groups or ([] if _plain(geometry) else _parents(geometry)):
        yield f"{RIGID if group.rigid else GROUP}{group.name} = {','.join(group.members)}"
    for name, members in geometry.collections:
        yield f"{COLLECTION}{name} = {','.join(members)}"
    yield ""


def _plain(geometry: Geometry) -> bool:
    """Whether a reader finds the parts of a detector without groups."""
    found = arranged(geometry)
    return found.levels == geometry.levels and found.panels == geometry.panels


def _parents(geometry: Geometry) -> list[Group]:
    """The parts of a detector as groups, where it did not come with any; the whole is called all."""
    found: dict[tuple[str, ...], list[str]] = {}
    for panel in geometry.panels:
        for depth in range(1, len(panel.parents) + 1):
            found.setdefault(panel.parents[:depth], []).append(panel.name)
    alone = len({path[-1] for path in found}) == len(found)
    named = {path: path[-1] if alone else "_".join(path) for path in found}
    groups = [Group(named[path], tuple(members), False) for path, members in found.items()]
    outer = [named[path] for path in found if len(path) == 1] or [panel.name for panel in geometry.panels]
    return [*groups, Group(ALL, tuple(outer), False)]


def _region(panels: Mapping[str, Panel], region: BadRegion) -> Iterator[str]:
    name = region.name if region.name.startswith(BAD) else BAD + region.name
    if region.panel is None:
        keys, bounds = ("min_x", "max_x", "min_y", "max_y"), region.bounds
    else:
        panel = panels[region.panel]
        low, high, left, right = region.bounds
        keys = ("min_ss", "max_ss", "min_fs", "max_fs")
        bounds = low + panel.row, high + panel.row, left + panel.column, right + panel.column
        yield f"{name}/panel = {region.panel}"
    yield from (f"{name}/{key} = {value!r}" for key, value in zip(keys, bounds, strict=True))
    yield ""


def _panel(panel: Panel, common: Iterable[str]) -> Iterator[str]:
    fields = {key: value for key, value in _carried(panel).items() if key not in common}
    if panel.module is not None:
        fields["dim1"] = str(panel.module)
    fields |= {
        "min_ss": str(panel.row),
        "max_ss": str(panel.row + panel.rows - 1),
        "min_fs": str(panel.column),
        "max_fs": str(panel.column + panel.columns - 1),
        "fs": _direction(panel.fast, panel.resolution),
        "ss": _direction(panel.slow, panel.resolution),
        "corner_x": repr(_undivided(panel.corner[0], panel.resolution)),
        "corner_y": repr(_undivided(panel.corner[1], panel.resolution)),
        "coffset": repr(panel.corner[2]),
    }
    yield from (f"{panel.name}/{key} = {value}" for key, value in fields.items())
    yield ""


def _direction(vector: Vector, resolution: float) -> str:
    """A direction without exponents: other readers take the e for an axis."""
    parts = zip((_undivided(v, resolution) for v in vector), "xyz", strict=True)
    return " ".join(f"{np.format_float_positional(v, sign=True)}{axis}" for v, axis in parts if v or axis != "z")


def _undivided(quotient: float, divisor: float) -> float:
    """The number whose quotient by `divisor` is `quotient`, bit for bit wherever there is one."""
    near = quotient * divisor
    below = above = near
    for _ in range(NEIGHBOURS):
        for candidate in (below, above):
            if candidate / divisor == quotient:
                return candidate
        below, above = math.nextafter(below, -math.inf), math.nextafter(above, math.inf)
    return near
