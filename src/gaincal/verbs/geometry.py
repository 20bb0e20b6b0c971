"""``geometry``: where the panels of a detector are, and the way to CrystFEL's ``.geom`` files and back."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gaincal.errors import FileError
from gaincal.geometry.arm import STILL, beam_center
from gaincal.geometry.crystfel import read_geom, stated_beam
from gaincal.geometry.crystfel_text import to_geom
from gaincal.geometry.fit import split_asics
from gaincal.geometry.panels import ASIC, Geometry
from gaincal.nexus import names
from gaincal.nexus.atomic import refuse_input, write_text
from gaincal.nexus.geometry_read import read_geometry
from gaincal.nexus.read import descend
from gaincal.nexus.trust import Resolver, reading
from gaincal.sources.gather import stated_energy

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
SIGNATURE_PLACES = (0, 512, 1024, 2048)


@dataclass(frozen=True)
class Described:
    """What `geometry` found.

    Parameters
    ----------
    file : str
    panels : int
    levels : list of str
        What the parents of panels, and the panels themselves, are.
    parts : dict of str to int
        How many of each level there are.
    rule : str
        How the parents were found.
    data : list of int
        Shape of the data of a frame that holds all panels.
    pixel_size : list of float
        Smallest and largest, in metres.
    distance : float or None
        From the sample to the mean plane of the panels, in metres.
    distance_from : str
        Where CrystFEL finds it, if the file does not state it.
    beam : dict or None
        Panel that the beam hits, row and column in it.
    beam_center : list of float or None
        Metres, from the upper left of the box around all panels, as the sample sees it; of a single panel
        along its rows and columns.
    box : list of list of float
        Lowest and highest x and y, in metres.
    wavelength : float or None
        Angstrom.
    resolution : float or None
        At the corner that is farthest from the beam, in angstrom.
    bad_regions, groups : int
    written : str or None
    """

    file: str
    panels: int
    levels: list[str]
    parts: dict[str, int]
    rule: str
    data: list[int]
    pixel_size: list[float]
    distance: float | None
    distance_from: str
    beam: dict[str, str | float] | None
    beam_center: list[float] | None
    box: list[list[float]]
    wavelength: float | None
    resolution: float | None
    bad_regions: int
    groups: int
    written: str | None

    def lines(self) -> list[str]:
        """The same for people."""
        parts = ", ".join(f"{count} {_several(name, count)}" for name, count in self.parts.items())
        low, high = (f"{1e6 * size:.6g}" for size in self.pixel_size)
        size = low if low == high else f"{low} to {high}"
        (left, right), (down, up) = self.box
        lines = [
            f"{self.file}: {self.panels} panels",
            f"  parts       {parts}; from {self.rule}",
            f"  data        {tuple(self.data)}, pixels of {size} um",
            f"  distance    {_distance(self)}",
            f"  box         x {1e3 * left:.3f} to {1e3 * right:.3f} mm, y {1e3 * down:.3f} to {1e3 * up:.3f} mm",
        ]
        if self.beam is not None:
            where = f"row {self.beam['row']:.2f}, column {self.beam['column']:.2f} of panel {self.beam['panel']}"
            lines.append(f"  beam        hits {where}")
        else:
            lines.append("  beam        hits no panel")
        if self.beam_center is not None:
            x, y = (1e3 * length for length in self.beam_center)
            lines.append(f"              {x:.3f} mm right of the upper left, {y:.3f} mm below, as the sample sees it")
        if self.wavelength is not None:
            edge = "" if self.resolution is None else f", {self.resolution:.3f} angstrom at the farthest corner"
            lines.append(f"  wavelength  {self.wavelength:.6g} angstrom{edge}")
        lines += [f"  bad         {self.bad_regions} regions"] if self.bad_regions else []
        return lines + ([f"  written     {self.written}"] if self.written else [])


def geometry(
    path: str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    *,
    split: bool = False,
    overwrite: bool = False,
    trust: Iterable[str | os.PathLike[str]] = (),
) -> Described:
    """Describe the geometry of a ``.geom`` file or of a NeXus file's detector, and write it as ``.geom``.

    Parameters
    ----------
    path : str or path
    target : str or path, optional
        A ``.geom`` file to write.
    split : bool
        Cut modules of known detectors into ASICs.
    overwrite : bool
        Replace an existing `target`.
    trust : iterable of str or path
        Directories, beside the file's own, whose files may be opened.

    Returns
    -------
    Described

    Raises
    ------
    FileError, TrustError, RequestError, OutputError
    """
    found, wavelength = load(path, trust)
    found = split_asics(found) if split else found
    if target is not None:
        refuse_input(Path(target), [Path(path)])
        write_text(target, to_geom(found), overwrite=overwrite)
    return describe(found, os.fspath(path), wavelength, None if target is None else os.fspath(target))


def load(path: str | os.PathLike[str], trust: Iterable[str | os.PathLike[str]] = ()) -> tuple[Geometry, float | None]:
    """The geometry that a ``.geom`` or a NeXus file has, and the wavelength in angstrom if it states it."""
    if not _is_hdf5(path):
        found = read_geom(path)
        beam = stated_beam(found)
        if beam is None:
            return found, None
        return found, beam[1] if beam[0] == "wavelength" else names.KEV_ANGSTROM / beam[1]
    with Resolver(path, trust) as resolver, reading(path):
        for entry in descend(resolver, resolver.get("/"), names.ENTRY):
            for detector in descend(resolver, entry, names.INSTRUMENT, names.DETECTOR):
                stored = read_geometry(resolver, detector)
                if stored is not None:
                    energy = stated_energy(resolver, entry)
                    known = energy is not None and energy.ndim == 0
                    return stored, names.KEV_ANGSTROM / float(energy) if known and energy is not None else None
    problem = f"has no {names.DETECTOR_MODULE} in an {names.DETECTOR}"
    raise FileError(path, "", problem, "embed with --geometry FILE.geom", code="no-geometry")


def _is_hdf5(path: str | os.PathLike[str]) -> bool:
    if not Path(path).is_file():
        return False
    with reading(path), Path(path).open("rb") as stream:
        for place in SIGNATURE_PLACES:
            stream.seek(place)
            if stream.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE:
                return True
    return False


def describe(found: Geometry, file: str, wavelength: float | None, written: str | None = None) -> Described:
    """Figures of a geometry."""
    corners = found.corners()
    known = found.distance is not None
    center = beam_center(found, STILL) if known else None
    paths = {(*p.parents, p.name)[: depth + 1] for p in found.panels for depth in range(len(found.levels))}
    sizes = [1 / p.resolution for p in found.panels]
    return Described(
        file=file,
        panels=len(found.panels),
        levels=list(found.levels),
        parts={level: sum(len(path) == depth for path in paths) for depth, level in enumerate(found.levels, start=1)},
        rule=found.rule,
        data=list(found.pixels),
        pixel_size=[min(sizes), max(sizes)],
        distance=found.stated_distance + found.origin[2] if known else None,
        distance_from=found.distance_from,
        beam=_hit(found),
        beam_center=None if center is None else list(center),
        box=[[float(corners[..., k].min()), float(corners[..., k].max())] for k in range(2)],
        wavelength=wavelength,
        resolution=_resolution(found, wavelength) if known else None,
        bad_regions=len(found.bad),
        groups=len(found.groups),
        written=written,
    )


def _hit(found: Geometry) -> dict[str, str | float] | None:
    """The panel that the beam hits, and where in it."""
    if found.distance is None and any(p.fast[2] or p.slow[2] for p in found.panels):
        return None
    for panel in found.panels:
        ways = np.array([panel.slow, panel.fast, (0.0, 0.0, -1.0)]).T
        if abs(np.linalg.det(ways)) < np.finfo(float).tiny:
            continue  # the panel is seen edge-on
        row, column, _ = np.linalg.solve(ways, -np.array(panel.corner))
        if 0 <= row < panel.rows and 0 <= column < panel.columns:
            return {"panel": panel.name, "row": float(row), "column": float(column)}
    return None


def _resolution(found: Geometry, wavelength: float | None) -> float | None:
    """Spacing of the planes that reflect to the corner with the largest angle (Bragg's law)."""
    if wavelength is None:
        return None
    x, y, z = np.moveaxis(found.corners(), -1, 0)
    angle = float(np.arctan2(np.hypot(x, y), z + found.stated_distance).max())
    return wavelength / (2 * math.sin(angle / 2)) if angle > 0 else None


def _several(level: str, count: int) -> str:
    name = level.upper() if level == ASIC else level
    return name if count == 1 else f"{name}s"


def _distance(found: Described) -> str:
    if found.distance is not None:
        return f"{1e3 * found.distance:.4f} mm"
    return f"not stated; CrystFEL takes it from '{found.distance_from}'" if found.distance_from else "not stated"
