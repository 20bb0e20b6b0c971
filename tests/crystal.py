"""A rotation series of a crystal, recorded as raw JUNGFRAU words in an NXmx file, as a beamline writes it.

Everything is in the frame of NeXus and CrystFEL: z along the beam, y up, x to the left of who looks along the beam.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import numpy.typing as npt

from gaincal.nexus.names import KEV_ANGSTROM
from gaincal.simulate import PHOTON_ENERGY, Module, digitise, make_module

Array = npt.NDArray[Any]
SHAPE = (512, 1024)
PIXEL, DISTANCE = 75e-6, 0.08
CELL = (34.0, 43.0, 52.0)
"""Angstrom; all angles are 90 degrees."""
RESOLUTION = 2.7
MOSAICITY, SPOT = 0.2, 1.1
"""Widths of a reflection: degrees of rotation, pixels."""
BRIGHTEST = 4000.0
"""Mean of the intensities at low resolution, in photons: their middles switch the gain.  None is too weak to find."""
BACKGROUND = 0.3
HALF = 5
_erf = np.vectorize(math.erf, otypes=[float])
TRANSFORMATIONS = "/entry/sample/transformations"


@dataclass(frozen=True)
class Scan:
    """A sweep about one axis.

    Parameters
    ----------
    start, step : float
        Degrees.
    frames : int
    """

    start: float
    step: float
    frames: int

    @property
    def angles(self) -> Array:
        """Where the frames begin."""
        return self.start + self.step * np.arange(self.frames)


@dataclass(frozen=True, eq=False)
class Reflections:
    """Where and when reflections appear: pixels (fast, slow), degrees, and photons."""

    fast: Array
    slow: Array
    angle: Array
    width: Array
    photons: Array


def orientation(seed: int = 4) -> Array:
    """Reciprocal vectors of the crystal as columns, turned anyhow."""
    turned, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return np.asarray(turned * np.sign(np.linalg.det(turned)) @ np.diag(1 / np.array(CELL)))


def reflections(scan: Scan, seed: int = 5) -> Reflections:
    """All reflections of a scan about -x, each as often as it crosses the Ewald sphere on the detector."""
    most = [int(np.ceil(edge / RESOLUTION)) for edge in CELL]
    indices = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in most), indexing="ij"), -1).reshape(-1, 3)
    vectors = indices @ orientation().T
    squared = (vectors**2).sum(1)
    kept = (squared > 1 / 25**2) & (squared < 1 / RESOLUTION**2)
    vectors, squared = vectors[kept], squared[kept]
    falloff = np.exp(-8 * squared)
    photons = BRIGHTEST * falloff * (0.2 + np.random.default_rng(seed).exponential(1.0, len(falloff)))
    found = [_crossings(vectors, squared, photons, sign) for sign in (1, -1)]
    fast, slow, angle, width, light = (np.concatenate(values) for values in zip(*found, strict=True))
    first = np.round((scan.start - angle) / 360) * 360  # the turn that is nearest to the middle of the scan
    angle = angle + first
    angle = np.where(angle < scan.start - 5, angle + 360, angle)
    inside = (angle > scan.start - 5) & (angle < scan.start + scan.step * scan.frames + 5)
    return Reflections(fast[inside], slow[inside], angle[inside], width[inside], light[inside])


def _crossings(vectors: Array, squared: Array, photons: Array, sign: int) -> tuple[Array, ...]:
    """Solve |k + R(angle) v| = |k| for rotations about -x: v_y and v_z turn, v_x stays."""
    k = PHOTON_ENERGY / KEV_ANGSTROM
    radius = np.hypot(vectors[:, 1], vectors[:, 2])
    z = -squared / (2 * k)
    hit = np.abs(z) < radius
    vectors, radius, z, photons = vectors[hit], radius[hit], z[hit], photons[hit]
    y = sign * np.sqrt(radius**2 - z**2)
    # About -x by an angle: from (y, z) to (y cos + z sin, z cos - y sin).
    angle = np.degrees(np.arctan2(vectors[:, 2], vectors[:, 1]) - np.arctan2(z, y))
    out = np.stack([vectors[:, 0], y, z + k], axis=1)
    fast = 0.5 * SHAPE[1] - out[:, 0] / out[:, 2] * DISTANCE / PIXEL
    slow = 0.5 * SHAPE[0] - out[:, 1] / out[:, 2] * DISTANCE / PIXEL
    # The nearer a reflection is to the axis, the longer it takes to cross the sphere.
    zeta = np.abs(out[:, 1]) / np.hypot(out[:, 0], out[:, 1])
    margin = HALF + 1
    inside = (margin < fast) & (fast < SHAPE[1] - margin) & (margin < slow) & (slow < SHAPE[0] - margin) & (zeta > 0.3)
    inside &= out[:, 2] > 0
    return fast[inside], slow[inside], angle[inside], MOSAICITY / zeta[inside], photons[inside]


def make_frames(scan: Scan, module: Module, seed: int = 6) -> Iterator[Array]:
    """Words of each frame."""
    spots, random = reflections(scan), np.random.default_rng(seed)
    for start in scan.angles:
        image = np.full(SHAPE, BACKGROUND)
        share = _between(spots.angle, spots.width, start, start + scan.step) * spots.photons
        for number in np.flatnonzero(share > 0.05):
            _add(image, spots.fast[number], spots.slow[number], share[number])
        yield digitise(module, random.poisson(image), random)


def _between(middle: Array, width: Array | float, low: Array | float, high: Array | float) -> Array:
    """Part of a normal distribution between two places."""
    return np.asarray(_below((high - middle) / width) - _below((low - middle) / width))


def _below(x: Array) -> Array:
    return np.asarray(0.5 * (1 + _erf(x / math.sqrt(2))))


def _add(image: Array, fast: float, slow: float, photons: float) -> None:
    row, column = int(slow), int(fast)
    rows, columns = np.arange(row - HALF, row + HALF + 1), np.arange(column - HALF, column + HALF + 1)
    profile = np.outer(_between(slow, SPOT, rows, rows + 1), _between(fast, SPOT, columns, columns + 1))
    image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] += photons * profile


def record(scan: Scan) -> Array:
    """Words (frame, y, x) of a scan."""
    return np.stack(list(make_frames(scan, make_module(SHAPE))))


def constants(modules: int = 1) -> dict[str, Array]:
    """Constants of the detector, (stage, y, x) or (stage, module, y, x)."""
    module = make_module(SHAPE)
    return {"pedestal": _stacked(module.pedestal, modules), "gain": _stacked(module.gain, modules)}


def _stacked(images: Array, modules: int) -> Array:
    return images if modules == 1 else images.reshape(len(images), modules, SHAPE[0] // modules, SHAPE[1])


def write_run(directory: Path, words: Array, modules: int = 1, angles: Array | None = None, step: float = 0.0) -> None:
    """Write ``raw.nxs`` with words and metadata, (frame, y, x) or (frame, module, y, x), and where omega was."""
    stack = _stacked(words, modules)
    with h5py.File(directory / "raw.nxs", "w") as file:
        write_metadata(file, stack.shape[1:], angles, step)
        filters = hdf5plugin.Bitshuffle(cname="lz4")
        data = file["/entry"].create_group("data")
        data.attrs["NX_class"], data.attrs["signal"] = "NXdata", "data"
        data.create_dataset("data", data=stack, chunks=(1, *stack.shape[1:]), fletcher32=True, **filters)


def write_modules(directory: Path, words: Array, modules: int, lost: Mapping[int, tuple[int, ...]]) -> None:
    """Write ``m0.h5`` ... with words and pulse ids of a module each, without the frames that it lost, out of order."""
    parts = _stacked(words, modules)
    for module in range(modules):
        rows = np.array([k for k in range(len(words)) if k not in lost.get(module, ())])
        rows[4:8] = rows[4:8][::-1].copy()
        with h5py.File(directory / f"m{module}.h5", "w") as file:
            file["pulse_id"] = 7_000_000_000 + 4 * rows
            stored = parts[rows, module]
            file.create_dataset("words", data=stored, chunks=(1, *stored.shape[1:]), fletcher32=True)


def write_geom(path: Path, modules: int, gap: int | None) -> None:
    """Write CrystFEL's geometry of modules below each other: stacked, or in one image with so many rows between."""
    rows = SHAPE[0] // modules
    lines = [f"clen = {DISTANCE}", f"res = {1 / PIXEL!r}", "data = /entry/data/data", "dim0 = %"]
    lines += ["dim2 = ss", "dim3 = fs"] if gap is None else ["dim1 = ss", "dim2 = fs"]
    for module in range(modules):
        first = 0 if gap is None else module * (rows + gap)
        stated = {"min_ss": first, "max_ss": first + rows - 1, "min_fs": 0, "max_fs": SHAPE[1] - 1}
        stated |= {"fs": "-x", "ss": "-y", "corner_x": SHAPE[1] / 2, "corner_y": SHAPE[0] / 2 - module * rows}
        stated |= {"dim1": module} if gap is None else {}
        lines += [f"m{module}/{key} = {value}" for key, value in stated.items()]
    path.write_text("\n".join(lines) + "\n")


def write_metadata(file: h5py.File, pixels: tuple[int, ...], angles: Array | None = None, step: float = 0.0) -> None:
    """Write everything but words into an empty file."""
    groups = {"entry": "NXentry", "sample": "NXsample", "sample/transformations": "NXtransformations"}
    groups |= {"source": "NXsource", "instrument": "NXinstrument", "instrument/beam": "NXbeam"}
    groups |= {"instrument/detector": "NXdetector", "instrument/detector/transformations": "NXtransformations"}
    for path, nx_class in groups.items():
        file.create_group(path if path == "entry" else f"entry/{path}").attrs["NX_class"] = nx_class
    texts = {"definition": "NXmx", "start_time": "2026-01-01T12:00:00Z", "end_time_estimated": "2026-01-01T12:01:00Z"}
    texts |= {"sample/name": "simulated", "source/name": "simulated", "instrument/name": "simulated"}
    texts |= {"sample/depends_on": ".", "instrument/detector/sensor_material": "Si"}
    for path, text in texts.items():
        file[f"entry/{path}"] = text
    if angles is not None:
        _write_goniometer(file, angles, step)
    detector = file["/entry/instrument/detector"]
    detector["sensor_thickness"], detector["distance"], detector["frame_time"] = 320e-6, DISTANCE, 0.01
    detector["x_pixel_size"], detector["y_pixel_size"] = PIXEL, PIXEL
    for name in ("sensor_thickness", "distance", "x_pixel_size", "y_pixel_size"):
        detector[name].attrs["units"] = "m"
    detector["frame_time"].attrs["units"] = "s"
    # What holds for words, and for nothing that is calculated from them.
    detector["saturation_value"], detector["bit_depth_readout"] = 65_535, 16
    beam = file["/entry/instrument/beam"].create_dataset("incident_wavelength", data=KEV_ANGSTROM / PHOTON_ENERGY)
    beam.attrs["units"] = "angstrom"
    _write_geometry(detector, pixels)


def _write_goniometer(file: h5py.File, angles: Array, step: float) -> None:
    group = file[TRANSFORMATIONS]
    file["/entry/sample/depends_on"][()] = f"{TRANSFORMATIONS}/omega"
    for name, values in (("omega", angles), ("omega_end", angles + step)):
        axis = group.create_dataset(name, data=values)
        axis.attrs["units"], axis.attrs["transformation_type"] = "deg", "rotation"
        axis.attrs["vector"], axis.attrs["depends_on"] = np.array([-1.0, 0.0, 0.0]), "."
    group.create_dataset("omega_increment_set", data=step).attrs["units"] = "deg"


def _write_geometry(detector: h5py.Group, pixels: tuple[int, ...]) -> None:
    """Modules below each other, without a gap; where they lie in the words is said by all of their indices."""
    chain = f"{detector.name}/transformations/distance"
    detector["depends_on"] = chain
    _axis(detector["transformations"], "distance", DISTANCE, (0, 0, 1), ".")
    rows = pixels[-2]
    for number in range(pixels[0] if len(pixels) == 3 else 1):
        module = detector.create_group(f"module_{number}")
        module.attrs["NX_class"] = "NXdetector_module"
        stacked = (number,) if len(pixels) == 3 else ()
        module["data_origin"] = np.array([*stacked, 0, 0])
        module["data_size"] = np.array([*(1 for _ in stacked), *pixels[-2:]])
        corner = (0.5 * SHAPE[1] * PIXEL, (0.5 * SHAPE[0] - number * rows) * PIXEL, 0.0)
        _axis(module, "module_offset", 0.0, (1, 0, 0), chain, corner)
        for name, vector in (("fast_pixel_direction", (-1, 0, 0)), ("slow_pixel_direction", (0, -1, 0))):
            _axis(module, name, PIXEL, vector, f"{module.name}/module_offset")


def _axis(
    group: h5py.Group,
    name: str,
    value: float,
    vector: tuple[float, ...],
    depends_on: str,
    offset: tuple[float, ...] = (0.0, 0.0, 0.0),
) -> None:
    axis = group.create_dataset(name, data=float(value))
    axis.attrs["units"] = axis.attrs["offset_units"] = "m"
    axis.attrs["vector"], axis.attrs["offset"] = np.array(vector, float), np.array(offset)
    axis.attrs["transformation_type"], axis.attrs["depends_on"] = "translation", depends_on
