"""What moves a detector as a whole, and where the beam then hits it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.geometry.panels import Geometry, Vector, length

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Arm:
    """The arm that carries a detector.

    Parameters
    ----------
    two_theta : float
        Degrees, right-handed about `axis`.
    axis : (float, float, float) or None
        Through the sample, in the laboratory; None if there is no such arm.
    x, y : float
        How far the detector is shifted on its arm, in metres.
    """

    two_theta: float = 0.0
    axis: Vector | None = None
    x: float = 0.0
    y: float = 0.0


STILL = Arm()


def rotation(axis: Vector, degrees: float) -> Array:
    """Matrix (3, 3) of a right-handed rotation (Rodrigues' formula)."""
    x, y, z = (a / length(axis) for a in axis)
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.asarray(np.eye(3) + sine * cross + (1 - cosine) * (cross @ cross))


def beam_center(geometry: Geometry, arm: Arm) -> tuple[float, float] | None:
    """Where the beam hits the mean plane of a detector, in metres; None if it does not.

    For one panel: along its rows and columns, from its corner.  For several: from the upper left of the
    box around all, as the sample sees it, to the right and down.
    """
    beam = np.array([0.0, 0.0, 1.0])
    if arm.axis is not None:
        beam = rotation(arm.axis, arm.two_theta).T @ beam
    depth = geometry.stated_distance + geometry.origin[2]
    if beam[2] <= 0 or depth <= 0:
        return None
    x, y = beam[0] / beam[2] * depth - arm.x, beam[1] / beam[2] * depth - arm.y
    if len(geometry.panels) == 1:
        panel = geometry.panels[0]
        point = x - panel.corner[0], y - panel.corner[1], geometry.origin[2] - panel.corner[2]
        along = [sum(p * d for p, d in zip(point, way, strict=True)) / length(way) for way in (panel.fast, panel.slow)]
        return float(along[0]), float(along[1])
    corners = geometry.corners()
    return float(corners[..., 0].max() - x), float(corners[..., 1].max() - y)
