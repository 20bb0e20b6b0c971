"""Pixels where they are in the laboratory, seen along the beam from the sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.geometry.panels import Geometry, Panel
from gaincal.nexus.names import KEV_ANGSTROM
from gaincal.report.canvas import EDGE, binned

Array = npt.NDArray[Any]
MM = 1e3
MARGIN = 0.02
BEAM_WITHIN = 0.3
"""The beam is in the picture if it passes the panels within this part of their extent."""
STEEPEST = math.radians(60)
"""Between the beam and the normal of the detector; beyond, it is seen from the side."""
RINGS = 4


@dataclass(frozen=True, eq=False)
class _Placed:
    """Where a panel appears: a box of the picture, which of its points show the panel, and their pixels.

    Of the points that it shows, those at the rim have their middle beside the panel.
    """

    panel: Panel
    box: tuple[slice, slice]
    shows: Array
    rim: Array
    row: Array
    column: Array


class Laboratory:
    """Pixels projected along the beam.

    Parameters
    ----------
    geometry : Geometry
    edge : int
        Longest edge of a picture.

    Attributes
    ----------
    extent : tuple of float
        Left, right, bottom and top in mm: x points to the left, y up.
    """

    def __init__(self, geometry: Geometry, edge: int = EDGE) -> None:
        self.geometry, self.labels = geometry, ("x (mm), seen from the sample", "y (mm)")
        corners = MM * geometry.corners()[..., :2].reshape(-1, 2)
        low, high = corners.min(0), corners.max(0)
        size = float((high - low).max())
        if np.hypot(*np.maximum(np.maximum(low, -high), 0)) < BEAM_WITHIN * size:
            low, high = np.minimum(low, 0), np.maximum(high, 0)
        margin = MARGIN * size
        low, high = low - margin, high + margin
        pitch = MM * min(math.hypot(*p.fast[:2]) for p in geometry.panels)
        self.point = max(float((high - low).max()) / edge, pitch)
        self.step = max(1, round(self.point / pitch))
        columns, rows = (math.ceil(n / self.point) for n in high - low)
        self.shape = (rows, columns)
        self.extent = (
            float(high[0]),
            float(high[0] - columns * self.point),
            float(high[1] - rows * self.point),
            float(high[1]),
        )
        self.x = self.extent[0] - (np.arange(columns) + 0.5) * self.point
        self.y = self.extent[3] - (np.arange(rows) + 0.5) * self.point
        self._reach = 0.5 * self.point / pitch if self.step > 1 else 0.0
        self._placed = self._shared([found for p in geometry.panels if (found := self._place(p)) is not None])

    def image(self, values: Array, reduce: Callable[..., Any] = np.fmax.reduce) -> Array:
        """A picture (row, column) of pixels, binned; NaN where there is no panel."""
        whole = np.full(self.shape, np.nan, np.float32)
        for placed in self._placed:
            squares = binned(values[placed.panel.index].astype(np.float32, copy=False), self.step, reduce)
            pixels = placed.row[placed.shows] // self.step, placed.column[placed.shows] // self.step
            whole[placed.box][placed.shows] = squares[pixels]
        return whole

    def label_place(self, two_theta: Array, angle: float) -> tuple[float, float]:
        """The point of a ring that is farthest from the edges of the picture, where a label fits; in mm."""
        x, y = np.meshgrid(self.x, self.y)
        rows, columns = np.indices(self.shape)
        room = np.minimum(np.minimum(rows, rows[::-1]), np.minimum(columns, columns[:, ::-1]))
        off = np.abs(two_theta - angle) / np.abs(np.gradient(two_theta, axis=0) + 1j * np.gradient(two_theta, axis=1))
        place = np.unravel_index(np.argmax(np.where(off < 1, room, -1)), off.shape)
        return float(x[place]), float(y[place])

    def outlines(self) -> Array:
        """Corners of the panels, (panel, 5, 2) in mm; the first is repeated."""
        corners = MM * self.geometry.corners()[..., :2]
        return np.concatenate([corners, corners[:, :1]], axis=1)

    def two_theta(self) -> Array:
        """Angle to the beam of every point of the picture, on the plane that lies closest to all panels; radian."""
        points = self.geometry.corners().reshape(-1, 3) * MM
        ones = np.ones(len(points))
        plane, *_ = np.linalg.lstsq(np.column_stack([points[:, :2], ones]), points[:, 2], rcond=None)
        x, y = np.meshgrid(self.x, self.y)
        z = plane[0] * x + plane[1] * y + plane[2] + MM * self.geometry.stated_distance
        return np.asarray(np.arctan2(np.hypot(x, y), z))

    def _place(self, panel: Panel) -> _Placed | None:
        matrix = MM * np.array([panel.fast[:2], panel.slow[:2]]).T  # (column, row) -> mm
        if abs(np.linalg.det(matrix)) < 1e-12 * self.point**2:
            return None
        around = [panel.at(r * panel.rows, c * panel.columns) for r in (0, 1) for c in (0, 1)]
        corners = MM * np.array(around)[:, :2]
        left, top = self.extent[0], self.extent[3]
        columns = np.array([left - corners[:, 0].max(), left - corners[:, 0].min()]) / self.point
        rows = np.array([top - corners[:, 1].max(), top - corners[:, 1].min()]) / self.point
        box = slice(int(rows[0]), math.ceil(rows[1]) + 1), slice(int(columns[0]), math.ceil(columns[1]) + 1)
        x, y = np.meshgrid(self.x[box[1]], self.y[box[0]])
        offset = np.stack([x - MM * panel.corner[0], y - MM * panel.corner[1]])
        column, row = np.einsum("ij,jyx->iyx", np.linalg.inv(matrix), offset)
        beyond = np.maximum(np.maximum(-column, column - panel.columns), np.maximum(-row, row - panel.rows))
        row, column = (np.clip(at, 0, n - 1).astype(np.intp) for at, n in ((row, panel.rows), (column, panel.columns)))
        return _Placed(panel, box, beyond <= self._reach, beyond > 0, row, column)

    def _shared(self, placed: Sequence[_Placed]) -> list[_Placed]:
        """Every point shows one panel: the one that its middle is on, else one whose rim it is.

        Without the rims, gaps much narrower than a point would be seen here and not there, and look like broken rows.
        """
        owner = np.full(self.shape, -1)
        for at_rim in (True, False):
            for k, found in enumerate(placed):
                owner[found.box][found.shows & (found.rim == at_rim)] = k
        return [replace(found, shows=owner[found.box] == k) for k, found in enumerate(placed)]


def faces_the_beam(geometry: Geometry) -> bool:
    """Whether the panels can be drawn as the sample sees them along the beam."""
    normals = [np.cross(p.fast, p.slow) for p in geometry.panels]
    steepest = max(math.acos(min(1.0, abs(float(n[2])) / float(np.linalg.norm(n)))) for n in normals)
    return geometry.distance is not None and steepest <= STEEPEST


def rings(two_theta: Array, energy: float | None) -> list[tuple[float, str]]:
    """Angles (radian) at which rings are drawn, with what they mean: resolutions where the energy (keV) is known."""
    largest = float(two_theta.max())
    wanted = [math.atan(math.tan(min(largest, 1.5)) * k / (RINGS + 0.5)) for k in range(1, RINGS + 1)]
    if energy is None or not energy > 0:
        degrees = [float(f"{math.degrees(angle):.2g}") for angle in wanted]
        return [(math.radians(d), f"{d:g}\N{DEGREE SIGN}") for d in degrees]
    wavelength = KEV_ANGSTROM / energy
    found = []
    for angle in wanted:
        spacing = float(f"{wavelength / (2 * math.sin(angle / 2)):.2g}")
        sine = wavelength / (2 * spacing)
        if sine < 1 and 2 * math.asin(sine) <= largest:
            found.append((2 * math.asin(sine), f"{spacing:g} \N{LATIN CAPITAL LETTER A WITH RING ABOVE}"))
    return found
