"""``refine``: gains from photon peaks, and how the pedestal drifts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from gaincal._version import __version__
from gaincal.errors import RequestError
from gaincal.nexus import names
from gaincal.nexus.atomic import atomic_output, refuse_existing, refuse_input
from gaincal.nexus.constantsfile import ConstantsWriter, Fact
from gaincal.nexus.group import new_group
from gaincal.nexus.read import Master, open_master
from gaincal.nexus.trust import reading
from gaincal.quality.found import PartPeaks, find_peaks
from gaincal.quality.refine import MAX_ERROR, MIN_PHOTONS, MODULE, PIXEL, Factors
from gaincal.quality.refine import refine as find_factors
from gaincal.quality.statistics import Progress, Statistics, collect
from gaincal.sources.gather import find_template, known_facts

Array = npt.NDArray[Any]
GAIN, FACTOR, STAGE = "gain", "gain_factor", "stage"
ADU_PER_KEV = "ADU/keV"
MODULES = "modules"
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
        validity = known_facts(master.resolver, find_template(master.resolver), None, {})
    modules = [_module(found, factors, k, peak) for k, peak in enumerate(peaks[: len(found.parts)])]
    if all(m.factor is None for m in modules):
        raise RequestError(f"{os.fspath(path)}: no module shows a peak of one photon that could be fitted")
    notes = [f"{m.name}: no peak of one photon; its factor is 1" for m in modules if m.factor is None]
    gain = _gain(master, factors, notes)
    stage = None if not found.stages else found.stages[0]
    if target is not None:
        with atomic_output(Path(target), overwrite=overwrite) as file:
            _write(file.file, master, found, factors, gain, modules, validity)
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
    file: h5py.File,
    master: Master,
    found: Statistics,
    factors: Factors,
    gain: Array | None,
    modules: Sequence[ModuleGain],
    validity: Mapping[str, Fact],
) -> None:
    writer = ConstantsWriter(file, factors.factor.shape)
    if gain is not None:
        _put_gain(writer, master, gain)
    _put_factors(writer, factors)
    _put_modules(writer, modules, found.units)
    writer.finish(None, {}, validity, _parameters(master, found))


def _parameters(master: Master, found: Statistics) -> dict[str, Fact]:
    assert found.photon is not None
    stage = {"refined_stage": int(found.stages[0])} if found.stages else {}
    return {
        "program": "gaincal",
        "version": __version__,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "formula": master.calibration.formula.name,
        "method": METHOD,
        "source": Path(master.resolver.named).name,
        "calibration_checksum": master.stored.checksum,
        "output": found.output,
        "expected": float(found.photon),
        "expected_units": found.units,
        "frames": len(found.frames),
        "run_frames": found.run_frames,
        "pixel_min_photons": MIN_PHOTONS,
        "pixel_max_error": MAX_ERROR,
        **stage,
    }


def _put_gain(writer: ConstantsWriter, master: Master, gain: Array) -> None:
    calibration = master.calibration
    declared = next(c for c in calibration.formula.constants if c.name == GAIN)
    axes = [d for d in declared.dims if d not in calibration.formula.checked.pixel_dims]
    labels = dict(zip(axes, calibration.labels.get(GAIN, ()), strict=True))
    writer.create(GAIN, gain.dtype, declared.units, labels)
    for place in np.ndindex(*gain.shape[: len(axes)]):
        writer.put(GAIN, tuple(labels[axis][k] for axis, k in zip(axes, place, strict=True)), gain[place])


def _put_factors(writer: ConstantsWriter, factors: Factors) -> None:
    writer.create(FACTOR, factors.factor.dtype, "1", {})
    writer.put(FACTOR, (), factors.factor)
    writer.group[FACTOR].attrs["description"] = (
        "values come out so many times too large; gains that divide are multiplied by it"
    )
    writer.attach(f"{FACTOR}/error", factors.error, "1")
    writer.attach(f"{FACTOR}/photons", factors.photons)
    origin = writer.attach(f"{FACTOR}/origin", factors.origin)
    origin.attrs["flag_values"] = np.array([0, MODULE, PIXEL], np.uint8)
    origin.attrs["flag_meanings"] = "none module pixel"


def _put_modules(writer: ConstantsWriter, modules: Sequence[ModuleGain], units: str) -> None:
    """Expected against found, and the drift, as columns."""
    new_group(writer.group, MODULES, names.PARAMETERS)
    writer.attach(f"{MODULES}/name", np.array([m.name.encode("ascii", "backslashreplace") for m in modules]))
    for name in ("expected", "zero", "photon", "factor", "error", "drift"):
        column = [getattr(m, name) for m in modules]
        values = np.array([np.nan if v is None else v for v in column])
        writer.attach(f"{MODULES}/{name}", values, "1" if name in ("factor", "error") else units)
    drift = np.array([[np.nan if s[2] is None else s[2] for s in m.zero_over_time] for m in modules])
    writer.attach(f"{MODULES}/zero_over_time", drift, units)
    writer.attach(f"{MODULES}/first_frame", np.array([s[0] for s in modules[0].zero_over_time], np.int64))
