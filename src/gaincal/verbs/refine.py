"""``refine``: gains from photon peaks, and how the pedestal drifts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from gaincal.errors import RequestError
from gaincal.nexus import names
from gaincal.nexus.atomic import atomic_output, refuse_existing, refuse_input
from gaincal.nexus.group import array_checksum, new_group
from gaincal.nexus.read import Master, open_master
from gaincal.nexus.trust import reading
from gaincal.nexus.write import array_field, field, new_process
from gaincal.quality.found import PartPeaks, find_peaks
from gaincal.quality.refine import MAX_ERROR, MIN_PHOTONS, MODULE, PIXEL, Factors
from gaincal.quality.refine import refine as find_factors
from gaincal.quality.statistics import Progress, Statistics, collect

Array = npt.NDArray[Any]
GAIN, FACTOR, STAGE = "gain", "gain_factor", "stage"
ADU_PER_KEV = "ADU/keV"
CONSTANTS = "constants"
METHOD = "distance of the peaks of one photon and of none; Redford et al., JINST 13 (2018) C01027"


@dataclass(frozen=True)
class ModuleGain:
    """Expected against found, of a module.

    Parameters
    ----------
    name : str
    expected : float
        Distance of a photon from none, in the units of `Refined`.
    zero, photon : float or None
        Where the peaks were found.
    factor, error : float or None
        By which gains are off: 1.02 means that values come out 2 % too large.
    pixels : int
        That have a factor of their own.
    drift : float or None
        Highest minus lowest zero-photon peak; 0 if it is not significant.
    zero_over_time : list of (int, int, float or None, float or None)
        First and last frame of each slice, zero-photon peak, its error.
    """

    name: str
    expected: float
    zero: float | None
    photon: float | None
    factor: float | None
    error: float | None
    pixels: int
    drift: float | None
    zero_over_time: list[tuple[int, int, float | None, float | None]]


@dataclass(frozen=True)
class Refined:
    """What `refine` found.

    Parameters
    ----------
    path : str or None
        The file with the factors.
    output, units : str
    frames, run_frames : int
        That were looked at, and of the run.
    stage : int or None
        Whose gain it is.
    modules : list of ModuleGain
    notes : list of str
    """

    path: str | None
    output: str
    units: str
    frames: int
    run_frames: int
    stage: int | None
    modules: list[ModuleGain]
    notes: list[str]


def refine(
    path: str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    *,
    frames: int | None = None,
    per_pixel: bool = True,
    inputs: Mapping[str, float] | None = None,
    calibration: str | None = None,
    overwrite: bool = False,
    trust: Iterable[str | os.PathLike[str]] = (),
    progress: Progress | None = None,
) -> Refined:
    """Find out from photon peaks how far gains are off, and write factors and refined gains.

    Parameters
    ----------
    path : str or path
        A master.
    target : str or path, optional
        The constants file to write.
    frames : int, optional
        At most so many, evenly spread; all if None.
    per_pixel : bool
        Give pixels with photons enough factors of their own.
    inputs, calibration, trust
        As for `gaincal.nexus.read.open_master`.
    overwrite : bool
        Replace an existing `target`.
    progress : callable (done, total) -> None, optional

    Returns
    -------
    Refined

    Raises
    ------
    FileError, TrustError, BindError, RequestError, OutputError
    """
    if target is not None:
        refuse_input(Path(target), [Path(path)])
        refuse_existing(Path(target), overwrite)
    master = open_master(path, trust=trust, calibration=calibration, inputs=inputs)
    with master.resolver, reading(path):
        found = collect(master, frames, progress)
        peaks = find_peaks(found)
        factors = find_factors(master, found, peaks, per_pixel, progress)
    modules = [_module(found, factors, k, peak) for k, peak in enumerate(peaks[: len(found.parts)])]
    if all(m.factor is None for m in modules):
        raise RequestError(f"{os.fspath(path)}: no module shows a peak of one photon that could be fitted")
    notes = [f"{m.name}: no peak of one photon; its factor is 1" for m in modules if m.factor is None]
    gain = _gain(master, factors, notes)
    stage = None if not found.stages else found.stages[0]
    if target is not None:
        _write(Path(target), master, found, factors, gain, modules, overwrite)
    written = None if target is None else os.fspath(target)
    return Refined(written, found.output, found.units, len(found.frames), found.run_frames, stage, modules, notes)


def _module(found: Statistics, factors: Factors, k: int, peak: PartPeaks) -> ModuleGain:
    assert found.photon is not None
    own = int(np.count_nonzero(factors.origin[found.parts[k].index] == PIXEL))
    return ModuleGain(
        peak.name,
        found.photon,
        None if peak.zero is None else peak.zero.centre,
        None if peak.photon is None else peak.photon.centre,
        peak.gain(found.photon),
        peak.gain_error(found.photon),
        own,
        peak.drift,
        [
            (s.first, s.last, None, None) if s.zero is None else (s.first, s.last, s.zero.centre, s.zero.error)
            for s in peak.slices
        ],
    )


def _gain(master: Master, factors: Factors, notes: list[str]) -> Array | None:
    """The gains of the file with those of the first stage refined; None if the formula does not divide by them."""
    calibration = master.calibration
    declared = next((c for c in calibration.formula.constants if c.name == GAIN), None)
    pixel_dims = calibration.formula.checked.pixel_dims
    if declared is None or declared.units != ADU_PER_KEV or declared.dims[-len(pixel_dims) :] != pixel_dims:
        notes.append(f"the formula has no {GAIN} in {ADU_PER_KEV}: only factors are written")
        return None
    if GAIN not in calibration.arrays:
        notes.append(f"{GAIN} is too large to be refined in memory: only factors are written")
        return None
    gain = np.array(calibration.arrays[GAIN])
    axes = [d for d in declared.dims if d not in pixel_dims]
    place = tuple(0 if axis == STAGE else slice(None) for axis in axes)
    gain[place] *= factors.factor
    return gain


def _write(
    target: Path,
    master: Master,
    found: Statistics,
    factors: Factors,
    gain: Array | None,
    modules: Sequence[ModuleGain],
    overwrite: bool,
) -> None:
    with atomic_output(target, overwrite=overwrite) as written:
        file = written.file
        file.attrs[names.DEFAULT_ATTRIBUTE] = "entry"
        entry = new_group(file, "entry", names.ENTRY)
        constants = new_group(entry, CONSTANTS, names.COLLECTION)
        _write_factors(constants, factors, found)
        if gain is not None:
            _write_gain(constants, master, gain)
        _write_modules(constants, modules, found.units)
        process = new_process(entry)
        parameters = new_group(process, "parameters", names.PARAMETERS)
        field(parameters, "method", METHOD)
        field(parameters, "source", Path(master.resolver.named).name)
        field(parameters, "calibration_checksum", master.stored.checksum)
        field(parameters, "output", found.output)
        field(parameters, "expected", found.photon, found.units)
        field(parameters, "frames", np.int64(len(found.frames)))
        field(parameters, "run_frames", np.int64(found.run_frames))
        field(parameters, "pixel_min_photons", np.int64(MIN_PHOTONS))
        field(parameters, "pixel_max_error", MAX_ERROR)


def _data(parent: h5py.Group, name: str, values: Array, units: str, axes: Sequence[str]) -> h5py.Group:
    group = new_group(parent, name, names.DATA)
    group.attrs[names.SIGNAL_ATTRIBUTE] = name
    group.attrs[names.AXES_ATTRIBUTE] = list(axes)
    field_of = array_field(group, name, values)
    field_of.attrs[names.UNIT_ATTRIBUTE] = units
    integrity = new_group(group, names.INTEGRITY, names.NOTE)
    field(integrity, "algorithm", "sha256")
    field(integrity, "checksum", array_checksum(values))
    return group


def _write_factors(constants: h5py.Group, factors: Factors, found: Statistics) -> None:
    axes = ["."] * factors.factor.ndim
    group = _data(constants, FACTOR, factors.factor, "1", axes)
    group.attrs["description"] = "values come out so many times too large; gains that divide are multiplied by it"
    if found.stages:
        field(group, STAGE, np.int32(found.stages[0]))
    array_field(group, "error", factors.error)
    array_field(group, "photons", factors.photons)
    origin = array_field(group, "origin", factors.origin)
    origin.attrs["flag_values"] = np.array([0, MODULE, PIXEL], np.uint8)
    origin.attrs["flag_meanings"] = "none module pixel"


def _write_gain(constants: h5py.Group, master: Master, gain: Array) -> None:
    calibration = master.calibration
    pixel_dims = calibration.formula.checked.pixel_dims
    declared = next(c for c in calibration.formula.constants if c.name == GAIN)
    axes = [d for d in declared.dims if d not in pixel_dims]
    group = _data(constants, GAIN, gain, declared.units, [*axes, *("." for _ in pixel_dims)])
    for axis, labels in zip(axes, calibration.labels.get(GAIN, ()), strict=True):
        array_field(group, axis, np.array(labels, np.int32))


def _write_modules(constants: h5py.Group, modules: Sequence[ModuleGain], units: str) -> None:
    """Expected against found, and the drift, as columns."""
    group = new_group(constants, "modules", names.PARAMETERS)
    array_field(group, "name", np.array([m.name.encode("ascii", "backslashreplace") for m in modules]))
    for name in ("expected", "zero", "photon", "factor", "error", "drift"):
        column = [getattr(m, name) for m in modules]
        values = array_field(group, name, np.array([np.nan if v is None else v for v in column]))
        values.attrs[names.UNIT_ATTRIBUTE] = "1" if name in ("factor", "error") else units
    drift = np.array([[np.nan if s[2] is None else s[2] for s in m.zero_over_time] for m in modules])
    array_field(group, "zero_over_time", drift).attrs[names.UNIT_ATTRIBUTE] = units
    first = np.array([s[0] for s in modules[0].zero_over_time], np.int64)
    array_field(group, "first_frame", first)
