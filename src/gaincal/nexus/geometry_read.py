"""Read the geometry of an NXdetector: its panels, each through the chain of axes that carries it.

Nothing in the file is believed: links go through the resolver, chains have an end, units are known ones.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from gaincal.errors import FileError
from gaincal.geometry.arm import rotation
from gaincal.geometry.hierarchy import arranged
from gaincal.geometry.panels import ASIC, MODULE, QUADRANT, Geometry, Panel, Vector, length, measurable, overlapping
from gaincal.geometry.tree import LETTERS, Path, in_order, labelled
from gaincal.nexus import names
from gaincal.nexus.fields import attribute_numbers, attribute_text, read_array
from gaincal.nexus.read import descend, of_class
from gaincal.nexus.trust import Place, Resolver

Array = npt.NDArray[Any]
MAX_CHAIN = 64
MAX_PANELS = 4096
MAX_EXTENT = 1 << 20
MAX_PARTS = 4 * MAX_PANELS
LENGTHS = {
    "m": 1.0,
    "meter": 1.0,
    "metre": 1.0,
    "cm": 1e2,
    "mm": 1e3,
    "millimeter": 1e3,
    "um": 1e6,
    "µm": 1e6,
    "micron": 1e6,
    "microns": 1e6,
    "nm": 1e9,
}
"""How many of a unit make a metre."""
ANGLES = {"deg": 1.0, "degree": 1.0, "degrees": 1.0, "rad": 180 / math.pi, "radian": 180 / math.pi}
"""How many degrees a unit has."""
LEVELS = {letter: level for level, letter in LETTERS.items()}
LABEL = re.compile(rf"{names.ARRAY}(D0(?:[QMA]\d+)+)")
PLAIN_NAME = re.compile(r"(?!bad|group|rigid_group)[A-Za-z0-9_.+-]{1,60}")
"""What can be called so in a ``.geom`` file, too."""
DIMS = (2, 3)
ALIKE = 1e-3


@dataclass
class _Chains:
    """Axes that were walked already, by file and path: matrices (4, 4) from what they carry to the laboratory."""

    resolver: Resolver
    known: dict[tuple[FilePath, str], Array] = field(default_factory=dict)

    def matrix(self, owner: Place, group: Place) -> Array:
        """What takes a point from where `owner`, a member of `group`, stands to the laboratory."""
        pending: list[tuple[tuple[FilePath, str], Place]] = []
        axis, matrix = owner, np.eye(4)
        while (path := _carrier(axis)) != ".":
            key = group.file, path if path.startswith("/") else f"{group.path}/{path}"
            if key in self.known:
                matrix = self.known[key]
                break
            if len(pending) >= MAX_CHAIN:
                raise owner.error(f"its depends_on leads on for more than {MAX_CHAIN} axes: a cycle?", code="geometry")
            axis, group = _axis(self.resolver, axis, group, path)
            pending.append((key, axis))
        for key, axis in reversed(pending):
            matrix = self.known[key] = matrix @ _step(axis)
        return matrix


def read_geometry(resolver: Resolver, detector: Place) -> Geometry | None:
    """The geometry of a detector, None if it has no panels.

    Parameters
    ----------
    resolver : Resolver
    detector : Place
        The NXdetector.

    Returns
    -------
    Geometry
        In the laboratory, wherever arms have moved the detector; its distance is that of the mean plane.

    Raises
    ------
    FileError
        That names the field that is missing, odd, or moves during the run.
    """
    modules = of_class(resolver, detector, names.DETECTOR_MODULE)
    if not modules:
        return None
    if len(modules) > MAX_PANELS:
        raise detector.error(f"has {len(modules)} panels, at most {MAX_PANELS} are read", code="geometry")
    chains = _Chains(resolver)
    panels = _of_one_size(resolver, detector, tuple(_panel(resolver, module, chains) for module in modules))
    if len({p.module is None for p in panels}) > 1:
        raise detector.error("has panels with two and with three dims", code="geometry")
    common = overlapping(panels)
    if common:
        problem = f"panels {common[0].name} and {common[1].name} have a pixel of the data in common"
        raise detector.error(problem, code="geometry")
    return _placed(_named(resolver, detector, Geometry(panels, 0.0)))


def _placed(geometry: Geometry) -> Geometry:
    """Panels whose z is counted from the sample, counted from their mean plane."""
    return geometry.placed_at(geometry.origin[2])


# --- panels ----------------------------------------------------------------------------------


def _panel(resolver: Resolver, module: Place, chains: _Chains) -> Panel:
    origin, size = (_integers(resolver, module, name) for name in (names.DATA_ORIGIN, names.DATA_SIZE))
    if len(origin) != len(size) or any(n < 1 for n in size) or any(n != 1 for n in size[:-2]):
        raise module.error(f"data_origin {origin} and data_size {size} are no rectangle", code="geometry")
    fast, slow = (_needed(resolver, module, name) for name in (names.FAST_DIRECTION, names.SLOW_DIRECTION))
    matrix = chains.matrix(fast, module)
    corner = matrix @ [*_numbers_in_metres(fast), 1.0]
    ways = []
    for way, turned in ((fast, matrix), (slow, chains.matrix(slow, module))):
        x, y, z = turned[:3, :3] @ (_unit_vector(way) * _value(way, LENGTHS))
        ways.append((float(x), float(y), float(z)))
    layer = origin[0] if len(origin) == DIMS[1] else None
    box = origin[-2], origin[-1], size[-2], size[-1]
    name = module.path.rsplit("/", 1)[-1]
    place: Vector = (float(corner[0]), float(corner[1]), float(corner[2]))
    if not measurable(place, ways[0], ways[1]):
        raise module.error("its pixels have no size, or lie beyond all measure", code="geometry")
    return Panel(name, layer, *box, place, ways[0], ways[1], _resolution(ways[0]))


def _resolution(way: Vector) -> float:
    """Pixels per metre, without the rounding of a chain of matrices."""
    return float(f"{1 / length(way):.12g}")


def _of_one_size(resolver: Resolver, detector: Place, panels: tuple[Panel, ...]) -> tuple[Panel, ...]:
    """Panels with the resolution that the detector states, if theirs differs only by the length of vectors."""
    place = resolver.find("x_pixel_size", detector)
    stated = None if place is None else _value(place, LENGTHS)
    if not stated or any(abs(p.resolution * stated - 1) > ALIKE for p in panels):
        return panels
    resolution = float(f"{1 / stated:.12g}")
    return tuple(replace(p, resolution=resolution) for p in panels)


def _needed(resolver: Resolver, group: Place, name: str) -> Place:
    found = resolver.find(name, group)
    if found is None:
        raise group.error(f"has no {name}", code="geometry")
    return found


def _integers(resolver: Resolver, module: Place, name: str) -> tuple[int, ...]:
    place = _needed(resolver, module, name)
    values = read_array(place).reshape(-1)
    if values.dtype.kind not in "iu" or len(values) not in DIMS or not all(0 <= int(v) < MAX_EXTENT for v in values):
        raise place.error(f"must be 2 or 3 whole numbers from 0 to {MAX_EXTENT - 1}", code="geometry")
    return tuple(int(v) for v in values)


# --- axes ------------------------------------------------------------------------------------


def _carrier(axis: Place) -> str:
    """Path of what an axis depends on."""
    path = attribute_text(axis, names.DEPENDS_ON)
    if not path:
        raise axis.error("has no depends_on", "the end of a chain says depends_on = '.'", code="geometry")
    return path


def _axis(resolver: Resolver, axis: Place, group: Place, path: str) -> tuple[Place, Place]:
    """What an axis in a group depends on, with its own group."""
    above, _, name = path.rpartition("/")
    start = resolver.find(above or "/", group) if "/" in path else group
    found = resolver.find(name, start) if start is not None else None
    if start is None or found is None or not isinstance(found.item, h5py.Dataset):
        raise axis.error(f"depends on '{path}', which is no axis", code="geometry")
    return found, start


def _step(axis: Place) -> Array:
    """Matrix (4, 4) of one axis: its rotation or translation, and its offset."""
    matrix = np.eye(4)
    kind = attribute_text(axis, names.TRANSFORMATION_TYPE)
    offset = np.array(_numbers_in_metres(axis))
    if kind == names.ROTATION:
        x, y, z = _unit_vector(axis).tolist()
        matrix[:3, :3] = rotation((x, y, z), _value(axis, ANGLES, inverse=True))
    elif kind == names.TRANSLATION:
        offset = offset + _unit_vector(axis) * _value(axis, LENGTHS)
    else:
        raise axis.error(f"transformation_type is {kind!r}, not translation or rotation", code="geometry")
    matrix[:3, 3] = offset
    return matrix


def _unit_vector(axis: Place) -> Array:
    vector = attribute_numbers(axis, names.VECTOR, 3)
    size = None if vector is None else float(np.linalg.norm(vector))
    if vector is None or size is None or not 0 < size < math.inf:
        raise axis.error("has no vector of three numbers", code="geometry")
    return np.asarray(vector / size)


def _numbers_in_metres(axis: Place) -> tuple[float, float, float]:
    """The offset of an axis."""
    if names.OFFSET not in axis.item.attrs:
        return 0.0, 0.0, 0.0
    offset = attribute_numbers(axis, names.OFFSET, 3)
    if offset is None:
        raise axis.error("its offset is not three finite numbers", code="geometry")
    unit = attribute_text(axis, names.OFFSET_UNITS)
    if unit is None and offset.any():
        unit = attribute_text(axis, names.UNIT_ATTRIBUTE)
    if offset.any() and unit not in LENGTHS:
        raise axis.error(f"offset_units is {unit!r}, not one of {', '.join(LENGTHS)}", code="geometry")
    x, y, z = (float(v) / LENGTHS.get(unit or "m", 1.0) for v in offset)
    return x, y, z


def _value(axis: Place, units: Mapping[str, float], inverse: bool = False) -> float:
    """The one value of an axis, in metres or degrees."""
    values = read_array(axis).reshape(-1)
    if values.dtype.kind not in "iuf" or not values.size or not np.isfinite(values).all():
        raise axis.error("is not a finite number", code="geometry")
    if (values != values[0]).any():
        raise axis.error("moves during the run", "state one geometry for each position", code="geometry")
    unit = attribute_text(axis, names.UNIT_ATTRIBUTE)
    if unit not in units and values[0]:
        raise axis.error(f"units is {unit!r}, not one of {', '.join(units)}", code="geometry")
    scale = units.get(unit or "", 1.0)
    return float(values[0]) * scale if inverse else float(values[0]) / scale


# --- parts -----------------------------------------------------------------------------------


def _named(resolver: Resolver, detector: Place, geometry: Geometry) -> Geometry:
    """The geometry with parents: those of the NXdetector_group, else what the names of the panels say."""
    labels = {p.name: m[1] for p in geometry.panels if (m := LABEL.fullmatch(p.name))}
    levels = tuple(LEVELS[letter] for letter in re.findall(r"[QMA]", next(iter(labels.values()), "")))
    if len(labels) == len(geometry.panels) and levels in _ORDERS:
        for paths in _trees(resolver, detector):
            found = {label: path for path, label in labelled(paths, levels).items()} if _even(paths, levels) else {}
            if all(len(found.get(label, ())) == len(levels) for label in labels.values()):
                return _renamed(geometry, labels, found, levels)
    plain = [p.name.removeprefix(f"{names.ARRAY}D0").lower() for p in geometry.panels]
    if len(set(plain)) < len(plain) or not all(PLAIN_NAME.fullmatch(name) for name in plain):
        plain = [f"p{number}" for number in range(len(plain))]
    panels = tuple(replace(p, name=name) for p, name in zip(geometry.panels, plain, strict=True))
    return arranged(replace(geometry, panels=panels))


_ORDERS = {
    tuple(level for level, used in zip((QUADRANT, MODULE, ASIC), bits, strict=True) if used)
    for bits in ((0, 1, 0), (1, 1, 0), (0, 1, 1), (1, 0, 1), (1, 1, 1), (0, 0, 1))
}


def _even(paths: Sequence[Path], levels: tuple[str, ...]) -> bool:
    return max(len(path) for path in paths) <= len(levels)


def _renamed(
    geometry: Geometry, labels: Mapping[str, str], found: Mapping[str, Path], levels: tuple[str, ...]
) -> Geometry:
    """Panels in the order of the tree, with the names they have in it."""
    order = {label: number for number, label in enumerate(found)}
    panels = [
        replace(p, name=found[labels[p.name]][-1], parents=found[labels[p.name]][:-1])
        for p in sorted(geometry.panels, key=lambda p: order[labels[p.name]])
    ]
    unique = len({p.name for p in panels}) == len(panels)
    named = panels if unique else [replace(p, name="".join((*p.parents, p.name))) for p in panels]
    return replace(geometry, panels=tuple(named), levels=levels, rule="NXdetector_group of the file")


def _trees(resolver: Resolver, detector: Place) -> list[list[Path]]:
    """The trees of the NXdetector_groups beside a detector, as paths in their order."""
    instrument = resolver.get(detector.path.rpartition("/")[0] or "/")
    found = []
    for group in descend(resolver, instrument, names.DETECTOR_GROUP):
        paths = _tree(resolver, group)
        if paths:
            found.append(in_order(paths))
    return found


def _tree(resolver: Resolver, group: Place) -> list[Path] | None:
    """Paths of a group's parts; None if they make no tree with one root."""
    try:
        columns = [
            read_array(resolver.walk(group, f"group_{name}")).reshape(-1) for name in ("names", "index", "parent")
        ]
    except FileError:
        return None
    kinds = "".join(column.dtype.kind for column in columns)
    if (
        kinds not in ("Sii", "Suu", "Sui", "Siu")
        or not len(columns[0]) == len(columns[1]) == len(columns[2]) <= MAX_PARTS
    ):
        return None
    paths: dict[int, Path] = {}
    for text, number, over in zip(*(column.tolist() for column in columns), strict=True):
        if over in paths:
            name = text.decode("ascii", "replace")
            if not PLAIN_NAME.fullmatch(name):
                return None
            paths[number] = (*paths[over], name)
        elif paths:
            return None
        else:
            paths[number] = ()
        if len(paths[number]) > len(LETTERS):
            return None
    return list(paths.values())
