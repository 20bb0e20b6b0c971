"""Rows and columns of panels made perpendicular, where rounded directions are not quite."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.geometry.panels import CORNERS, Geometry, Panel, Vector, length

Array = npt.NDArray[Any]
SQUARE = 1e-9
"""Cosine of an angle that is as good as a right one."""
MOST_MOVED = 0.5e-6
"""Metres that a pixel may move for the sake of right angles."""


def squared(geometry: Geometry) -> tuple[Geometry, float, list[str]]:
    """Make rows and columns of every panel perpendicular where that moves hardly anything.

    ``.geom`` files round directions to some decimals.  DIALS refuses a panel whose axes are not
    perpendicular to 1e-6.

    Returns
    -------
    geometry : Geometry
    moved : float
        How far a pixel was moved at most, in metres.
    skewed : list of str
        Panels that stay as they are, because a pixel would have to move by more than half a micrometre.
    """
    panels, most, skewed = [], 0.0, []
    for panel in geometry.panels:
        better, moved = _squared(panel)
        if moved <= MOST_MOVED:
            panels.append(better)
            most = max(most, moved)
        else:
            panels.append(panel)
            skewed.append(panel.name)
    return replace(geometry, panels=tuple(panels)), most, skewed


def _squared(panel: Panel) -> tuple[Panel, float]:
    """The panel turned to right angles about its centre, each axis by half, and how far its corners move."""
    f, s = (np.array(way) / length(way) for way in (panel.fast, panel.slow))
    if abs(f @ s) <= SQUARE:
        return panel, 0.0
    along, across = (f + s) / np.linalg.norm(f + s), (f - s) / np.linalg.norm(f - s)
    fast, slow = (along + across) * (length(panel.fast) / 2**0.5), (along - across) * (length(panel.slow) / 2**0.5)
    middle = panel.at(panel.rows / 2, panel.columns / 2)
    corner = np.array(middle) - fast * (panel.columns / 2) - slow * (panel.rows / 2)
    better = replace(panel, corner=_vector(corner), fast=_vector(fast), slow=_vector(slow))
    moved = [
        math.dist(panel.at(r * panel.rows, c * panel.columns), better.at(r * panel.rows, c * panel.columns))
        for r, c in CORNERS
    ]
    return better, max(moved)


def _vector(values: Array) -> Vector:
    return float(values[0]), float(values[1]), float(values[2])
