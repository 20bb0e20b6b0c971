"""Where the pixels of a master are drawn."""

from __future__ import annotations

from gaincal.errors import FileError
from gaincal.nexus.geometry_read import read_geometry
from gaincal.nexus.read import Master
from gaincal.report.canvas import EDGE, Canvas, Stored
from gaincal.report.laboratory import Laboratory, faces_the_beam


def canvas_of(master: Master, stored: bool = False, edge: int = EDGE) -> tuple[Canvas, list[str]]:
    """Where pixels are drawn, and why not in the laboratory if the file has a geometry.

    Parameters
    ----------
    master : Master
    stored : bool
        As they are stored, whatever the file says.
    edge : int
        Longest edge of a picture, in points.
    """
    pixels = master.calibration.layout.pixels
    as_stored = Stored(pixels, edge)
    if stored:
        return as_stored, []
    try:
        geometry = read_geometry(master.resolver, master.detector)
    except FileError as error:
        if error.code != "geometry":
            raise
        return as_stored, [f"pixels are drawn as stored: {error}"]
    if geometry is None:
        return as_stored, []
    needed = geometry.pixels
    if len(needed) != len(pixels) or any(n > m for n, m in zip(needed, pixels, strict=True)):
        return as_stored, [f"pixels are drawn as stored: the geometry is of frames {needed}, these are {pixels}"]
    if not faces_the_beam(geometry):
        return as_stored, ["pixels are drawn as stored: along the beam the detector is seen from the side"]
    return Laboratory(geometry, edge), []
