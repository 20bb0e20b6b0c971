"""`Panel` and `Geometry`: which pixels of the data lie where.

One laboratory frame is used everywhere, that of NeXus (McStas): z along the beam, y up, x completing a
right-handed frame, so that it points to the left for who looks along the beam.  CrystFEL's frame is the
same one, so that nothing is turned between a ``.geom`` file and NeXus.  Lengths are metres.  A corner is
the outer corner of the first pixel of a panel, not its centre, in both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.errors import BindError, RequestError

Array = npt.NDArray[Any]
Vector = tuple[float, float, float]
MAX_PIXELS = 1 << 27
"""Of a detector: its positions then take 3 GiB."""
FARTHEST, LARGEST = 1e6, 1.0
"""Metres, to a panel and across a pixel."""
QUADRANT, MODULE, ASIC = "quadrant", "module", "asic"
CORNERS = ((0, 0), (0, 1), (1, 1), (1, 0))


@dataclass(frozen=True)
class Panel:
    """A rectangle of the data whose pixels lie on a flat, regular grid.

    Parameters
    ----------
    name : str
    module : int or None
        Index in data (module, y, x); None in data (y, x).
    row, column, rows, columns : int
        The rectangle.
    corner : (float, float, float)
        Of its first pixel, in metres; z is counted from the distance of the detector.
    fast, slow : (float, float, float)
        From a pixel to the next in its row, and in its column, in metres.
    resolution : float
        Pixels per metre, nominally.
    parents : tuple of str
        What it is part of, the largest first; as many as `Geometry.levels` has before the last.
    carried : tuple of (str, str)
        What a ``.geom`` file says besides, by name.
    """

    name: str
    module: int | None
    row: int
    column: int
    rows: int
    columns: int
    corner: Vector
    fast: Vector
    slow: Vector
    resolution: float
    parents: tuple[str, ...] = ()
    carried: tuple[tuple[str, str], ...] = ()

    def at(self, row: float, column: float) -> Vector:
        """Where a point of the panel lies, counted in pixels from its corner."""
        x, y, z = (c + row * s + column * f for c, s, f in zip(self.corner, self.slow, self.fast, strict=True))
        return x, y, z

    def centres(self) -> Array:
        """Centres of the pixels, float64 (3, row, column)."""
        rows, columns = np.arange(self.rows) + 0.5, np.arange(self.columns) + 0.5
        found = np.empty((3, self.rows, self.columns))
        for axis in range(3):
            along = self.corner[axis] + rows * self.slow[axis]
            np.add(along[:, None], columns * self.fast[axis], out=found[axis])
        return found

    @property
    def index(self) -> tuple[int | slice, ...]:
        """The rectangle, as an index of the data of a frame."""
        box = slice(self.row, self.row + self.rows), slice(self.column, self.column + self.columns)
        return box if self.module is None else (self.module, *box)


@dataclass(frozen=True)
class BadRegion:
    """Pixels that a ``.geom`` file excludes.

    Parameters
    ----------
    name : str
    panel : str or None
        With it: first and last row, first and last column, counted in the panel, inclusively.  Without:
        lowest and highest x, lowest and highest y, in pixels of each panel.
    bounds : (float, float, float, float)
    """

    name: str
    panel: str | None
    bounds: tuple[float, float, float, float]


@dataclass(frozen=True)
class Group:
    """Panels (or groups) that a ``.geom`` file moves together; of the older syntax if `rigid`."""

    name: str
    members: tuple[str, ...]
    rigid: bool


@dataclass(frozen=True)
class Geometry:
    """A detector.

    Parameters
    ----------
    panels : tuple of Panel
    distance : float or None
        From the sample along the beam to where the panels' z is zero, in metres; None if nobody stated it.
    distance_from : str
        Where CrystFEL finds the distance, if that is not in the ``.geom`` file.
    levels : tuple of str
        What the parents of panels, and the panels themselves, are: quadrant, module, asic.
    rule : str
        How the parents were found.
    groups : tuple of Group
    collections : tuple of (str, tuple of str)
        Groups of groups, of the older syntax.
    bad : tuple of BadRegion
    carried : tuple of (str, str)
        What a ``.geom`` file says of the whole, by name.
    """

    panels: tuple[Panel, ...]
    distance: float | None
    distance_from: str = ""
    levels: tuple[str, ...] = (MODULE,)
    rule: str = field(default="flat", compare=False)
    groups: tuple[Group, ...] = ()
    collections: tuple[tuple[str, tuple[str, ...]], ...] = ()
    bad: tuple[BadRegion, ...] = ()
    carried: tuple[tuple[str, str], ...] = ()

    @property
    def pixels(self) -> tuple[int, ...]:
        """Shape of the smallest data that has all panels: (y, x) or (module, y, x)."""
        rows = max(p.row + p.rows for p in self.panels)
        columns = max(p.column + p.columns for p in self.panels)
        modules = [p.module for p in self.panels if p.module is not None]
        return (max(modules) + 1, rows, columns) if modules else (rows, columns)

    @property
    def stated_distance(self) -> float:
        """The distance; raises RequestError if nobody stated it."""
        if self.distance is None:
            where = f"stands in the data files, at '{self.distance_from}'" if self.distance_from else "is not stated"
            raise RequestError(f"the distance of the detector {where}; state it: distance=METRES")
        return self.distance

    @property
    def origin(self) -> Vector:
        """Mean of the centres of the panels; z is counted from the distance."""
        return mean([p.at(p.rows / 2, p.columns / 2) for p in self.panels])

    def placed_at(self, distance: float) -> Geometry:
        """The same panels with their mean plane at a distance from the sample, in metres."""
        shift = self.origin[2]
        panels = tuple(replace(p, corner=(p.corner[0], p.corner[1], p.corner[2] - shift)) for p in self.panels)
        return replace(self, panels=panels, distance=distance)

    def positions(self, pixels: tuple[int, ...] | None = None) -> Array:
        """Where the centres of all pixels lie.

        Parameters
        ----------
        pixels : tuple of int, optional
            Shape of the data of a frame; `Geometry.pixels` if None.

        Returns
        -------
        ndarray
            float64 (*pixels, 3), x, y and z in metres from the sample; NaN where there is no panel.

        Raises
        ------
        RequestError
            If the distance is not stated.
        BindError
            If the panels lie beyond `pixels`, or there are too many pixels.
        """
        distance, shape = self.stated_distance, self.pixels if pixels is None else pixels
        if len(shape) != len(self.pixels) or any(mine > n for mine, n in zip(self.pixels, shape, strict=True)):
            raise BindError(f"the panels take data of {self.pixels}, the frames are {shape}")
        if math.prod(shape) > MAX_PIXELS:
            raise BindError(f"the data have {math.prod(shape)} pixels, at most {MAX_PIXELS} are computed")
        found = np.full((*shape, 3), np.nan)
        for panel in self.panels:
            inside = found[panel.index]
            for axis, values in enumerate(panel.centres()):
                inside[..., axis] = values
            inside[..., 2] += distance
        return found

    def corners(self) -> Array:
        """The four corners of every panel, float64 (panel, 4, 3), z counted from the distance."""
        return np.array([[p.at(r * p.rows, c * p.columns) for r, c in CORNERS] for p in self.panels])

    def bad_pixels(self, pixels: tuple[int, ...]) -> npt.NDArray[np.bool_]:
        """Pixels in bad regions, or on panels that are not to be used; bool (*pixels)."""
        found = np.zeros(pixels, bool)
        for panel in self.panels:
            if dict(panel.carried).get("no_index", "0").lower() in ("1", "true"):
                found[panel.index] = True
            regions = [region for region in self.bad if region.panel in (None, panel.name)]
            places = panel.centres()[:2] * panel.resolution if any(r.panel is None for r in regions) else None
            for region in regions:
                found[panel.index] |= _inside(panel, region, places)
        return found


def measurable(corner: Vector, fast: Vector, slow: Vector) -> bool:
    """Whether a panel is of this world: no pixel without size, none of a metre, none behind the moon."""
    sizes = length(fast), length(slow)
    return max(map(abs, corner)) <= FARTHEST and all(0 < size <= LARGEST for size in sizes)


def mean(points: list[Vector]) -> Vector:
    """Mean of points, exactly summed."""
    x, y, z = (math.fsum(values) / len(points) for values in zip(*points, strict=True))
    return x, y, z


def length(vector: Vector) -> float:
    """Length of a vector."""
    return math.hypot(*vector)


def overlapping(panels: tuple[Panel, ...]) -> tuple[Panel, Panel] | None:
    """Two panels that have a pixel of the data in common, None if there are none."""
    alive: list[Panel] = []
    module: int | None = None
    for panel in sorted(panels, key=lambda p: (-1 if p.module is None else p.module, p.row)):
        alive = [p for p in alive if p.row + p.rows > panel.row] if panel.module == module else []
        module = panel.module
        for other in alive:  # which have begun above, and not ended
            if _meet(panel.column, panel.columns, other.column, other.columns):
                return other, panel
        alive.append(panel)
    return None


def _meet(first: int, count: int, other: int, other_count: int) -> bool:
    return first < other + other_count and other < first + count


def _inside(panel: Panel, region: BadRegion, places: Array | None) -> npt.NDArray[np.bool_]:
    """Pixels of a panel in a region; `places` are their x and y in pixels, for regions of the laboratory."""
    low, high, left, right = region.bounds
    if region.panel is None and places is not None:
        x, y = places
        return np.asarray((x >= low) & (x <= high) & (y >= left) & (y <= right))
    rows, columns = np.arange(panel.rows), np.arange(panel.columns)
    return np.asarray(((rows >= low) & (rows <= high))[:, None] & ((columns >= left) & (columns <= right)))
