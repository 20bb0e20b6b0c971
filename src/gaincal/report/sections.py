"""Sections that reports have in common."""

from __future__ import annotations

from collections.abc import Sequence

from gaincal.quality.planes import Plane
from gaincal.report import figures
from gaincal.report.canvas import Canvas
from gaincal.report.page import Section


def constants_section(planes: Sequence[Plane], previous: Sequence[Plane], canvas: Canvas) -> Section | None:
    """Maps and histograms of constants, and what changed since the previous set."""
    if not planes:
        return None
    before = {p.key: p for p in previous}
    pictures, lacking = [], []
    for plane in planes:
        pictures.append(figures.of_plane(plane, canvas))
        other = before.get(plane.key)
        if other is not None and other.values.shape == plane.values.shape:
            pictures.append(figures.of_difference(plane, other, canvas))
        elif previous:
            lacking.append(plane.title)
    text = [f"Not in the previous set, or of another shape: {'; '.join(lacking)}."] if lacking else []
    if not previous:
        text.append("No previous set was given (--previous), so nothing is compared.")
    return Section("Constants", text, pictures)
