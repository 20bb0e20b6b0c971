"""Statistics of a run: one pass over calibrated frames, an even sample of them unless all are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.calibration import Calibration
from gaincal.errors import RequestError
from gaincal.formulas.program import CLIPPED_BIT, MISSING_BIT, NO_VALUE_BIT, Program
from gaincal.kernels.threads import available_threads
from gaincal.nexus import names
from gaincal.nexus.evaluate import Evaluation
from gaincal.nexus.read import Master
from gaincal.quality.parts import Part, missing_shares, parts_of

Array = npt.NDArray[Any]
Progress = Callable[[int, int], None]
SAMPLE = 200
"""Frames that are looked at if nothing else is said."""
MAX_SLICES = 40
KEV, PHOTON = "keV", "photon"
BINS_PER_PHOTON = 100
RANGE = (-2, 8)
"""Of the spectrum, in photons."""
BINS = BINS_PER_PHOTON * (RANGE[1] - RANGE[0])
BITS = 32
MANY_SIGMA = 0.04
"""Width of a bin, in standard deviations of the first frame, where nobody says what a photon gives."""
NO_STAGE = -1


@dataclass(frozen=True, eq=False)
class Statistics:
    """What one pass over calibrated frames found.  `frames` below are those that were looked at.

    Parameters
    ----------
    output, units : str
        What was histogrammed.
    photon : float or None
        Where one photon must be, in these units; None if nobody stated it.
    run_frames : int
        Of the whole run.
    frames : ndarray (frame,) of int64
        Those that were looked at.
    first : ndarray (slice + 1,) of int64
        Where in `frames` each slice of time begins, and the end.
    parts : tuple of Part
        Modules.
    stages : tuple of int
        Gain stages, in the order of their labels, -1 for none; empty if the formula has none.
    stage_counts : ndarray (slice, part, stage) of int64
        Pixels; missing ones count nowhere.
    spectrum : ndarray (slice, part, bin) of int64
        Valid pixels by their value.
    edges : ndarray (bin + 1,) of float64
    outside : ndarray (part, 2) of int64
        Valid pixels below and above the spectrum.
    flags : dict of str to ndarray (part,) of int64
        Pixels by reason; a pixel can have several.
    voiding : tuple of str
        Reasons that leave no value.
    looked_at, present, valid : ndarray (part,) of int64
        Pixels of all frames; with words; with a value.
    mean : ndarray (*pixels) of float32
        Of valid values; NaN where there is none.
    always : ndarray (*pixels) of uint32
        Flags that a pixel had in each frame.
    missing : ndarray (run frame, part) of float32
        Share of the words that there are not, in all frames of the run.
    """

    output: str
    units: str
    photon: float | None
    run_frames: int
    frames: Array
    first: Array
    parts: tuple[Part, ...]
    stages: tuple[int, ...]
    stage_counts: Array
    spectrum: Array
    edges: Array
    outside: Array
    flags: dict[str, Array]
    voiding: tuple[str, ...]
    looked_at: Array
    present: Array
    valid: Array
    mean: Array
    always: Array
    missing: Array


def collect(master: Master, frames: int | None = SAMPLE, progress: Progress | None = None) -> Statistics:
    """Look at calibrated frames, one after the other.

    Parameters
    ----------
    master : Master
    frames : int, optional
        At most so many, evenly spread over the run; all if None.
    progress : callable (done, total) -> None, optional
        Told after every frame.

    Returns
    -------
    Statistics

    Raises
    ------
    RequestError
        If the run has no frames, or no output can be computed.
    FileError
        If a stored chunk is damaged.
    """
    total = master.calibration.layout.frames
    if total == 0:
        raise RequestError(f"{master.resolver.named}: has no frames to look at")
    chosen = np.unique(np.linspace(0, total - 1, min(total, frames or total)).astype(np.int64))
    sums = _Sums.begin(master, chosen)
    for done, frame in enumerate(chosen):
        sums.add(int(frame), done)
        if progress is not None:
            progress(done + 1, len(chosen))
    return sums.statistics()


def spectrum_output(calibration: Calibration) -> str:
    """The available output that says best where photons are: in keV, else in photons, else the default one."""
    found = {o.name: o for o in calibration.formula.outputs if o.name in calibration.available_outputs()}
    kept = [o for o in found.values() if o.variance_of is None]
    if not kept:
        raise RequestError(f"formula '{calibration.formula.name}': no output can be computed from what the file has")
    for units in (KEV, PHOTON):
        for output in kept:
            if output.units == units and "int" not in output.dtype:
                return output.name
    return calibration.preferred_output() or kept[0].name


def photon_value(calibration: Calibration, units: str) -> float | None:
    """What one photon gives in an output of some units; the median energy where it is another in each frame."""
    if units == PHOTON:
        return 1.0
    energy = calibration.arrays.get(names.PHOTON_ENERGY)
    if units != KEV or energy is None or not np.isfinite(energy).any():
        return None
    return float(np.nanmedian(energy))


@dataclass(eq=False)
class _Sums:
    """Sums over the frames so far."""

    master: Master
    frames: Array
    parts: tuple[Part, ...]
    values: Evaluation
    stage: Evaluation | None
    edges: Array
    photon: float | None
    first: Array = field(init=False)

    @classmethod
    def begin(cls, master: Master, frames: Array) -> _Sums:
        calibration, threads = master.calibration, available_threads()
        program = calibration.program(spectrum_output(calibration))
        values = Evaluation(calibration, master.words, program, threads)
        photon = photon_value(calibration, calibration.formula.output(program.value).units)
        step = calibration.stage_step()
        stage = None
        if step is not None:
            stage = Evaluation(calibration, master.words, calibration.step_program(step, "int32"), threads)
        edges = np.linspace(*RANGE, BINS + 1) * photon if photon else _edges_of(values, int(frames[0]))
        return cls(master, frames, parts_of(master), values, stage, edges, photon)

    def __post_init__(self) -> None:
        count = min(MAX_SLICES, len(self.frames))
        self.first = np.linspace(0, len(self.frames), count + 1).astype(np.int64)
        parts, pixels = len(self.parts), self.values.shape[1:]
        self.labels = _labels(self.master.calibration) if self.stage is not None else ()
        self.stage_counts = np.zeros((count, parts, len(self.labels)), np.int64)
        self.spectrum = np.zeros((count, parts, len(self.edges) - 1), np.int64)
        self.outside = np.zeros((parts, 2), np.int64)
        self.bits = np.zeros((parts, BITS), np.int64)
        self.looked_at, self.present, self.valid = (np.zeros(parts, np.int64) for _ in range(3))
        self.total, self.seen = np.zeros(pixels, np.float64), np.zeros(pixels, np.uint32)
        self.always = np.full(pixels, 0xFFFFFFFF, np.uint32)
        self.void = void_bits(self.values.program)

    def add(self, frame: int, done: int) -> None:
        """Take a frame into account."""
        origin, count = (frame, *(0 for _ in self.values.shape[1:])), (1, *self.values.shape[1:])
        values, flags = self.values.read(origin, count, with_flags=True)
        assert flags is not None
        stages = None if self.stage is None else self.stage.read(origin, count)[0][0]
        here = int(np.searchsorted(self.first, done, "right")) - 1
        self.always &= flags[0]
        for k, part in enumerate(self.parts):
            inside = part.index
            self._add_part(here, k, values[0][inside], flags[0][inside], None if stages is None else stages[inside])
            self._add_mean(inside, values[0][inside], flags[0][inside])

    def _add_part(self, here: int, part: int, values: Array, flags: Array, stages: Array | None) -> None:
        raised = flags[flags != 0]
        found = int(np.bitwise_or.reduce(raised)) if raised.size else 0
        for bit in range(BITS):
            if found >> bit & 1:
                self.bits[part, bit] += np.count_nonzero(raised & np.uint32(1 << bit))
        missing = np.count_nonzero(raised >> np.uint32(MISSING_BIT))
        valid = values[flags & self.void == 0] if found & int(self.void) else values.reshape(-1)
        self.looked_at[part] += flags.size
        self.present[part] += flags.size - missing
        self.valid[part] += valid.size
        counts = self._binned(valid)
        self.spectrum[here, part] += counts[1:-1]
        self.outside[part] += counts[[0, -1]]
        if stages is not None:
            there = stages if not missing else stages[flags >> np.uint32(MISSING_BIT) == 0]
            for k, label in enumerate(self.labels):
                self.stage_counts[here, part, k] += np.count_nonzero(there == label)

    def _binned(self, values: Array) -> Array:
        """Values by bin of the spectrum, the first below and the last above it."""
        bins = len(self.edges) - 1
        width = (self.edges[-1] - self.edges[0]) / bins
        kind = values.dtype if values.dtype.kind == "f" else np.dtype(np.float64)
        places = np.subtract(values, kind.type(self.edges[0] - width), dtype=kind)
        places *= kind.type(1 / width)
        np.clip(places, 0, bins + 1, out=places)
        return np.bincount(places.astype(np.intp), minlength=bins + 2)

    def _add_mean(self, inside: tuple[slice, ...], values: Array, flags: Array) -> None:
        valid = flags & self.void == 0
        np.add(self.total[inside], values, out=self.total[inside], where=valid)
        self.seen[inside] += valid

    def statistics(self) -> Statistics:
        """What was found."""
        calibration, program = self.master.calibration, self.values.program
        bits = calibration.flag_bits()
        with np.errstate(invalid="ignore"):
            mean = (self.total / np.where(self.seen, self.seen, np.nan)).astype(np.float32)
        return Statistics(
            output=program.value,
            units=calibration.formula.output(program.value).units,
            photon=self.photon,
            run_frames=calibration.layout.frames,
            frames=self.frames,
            first=self.first,
            parts=self.parts,
            stages=self.labels,
            stage_counts=self.stage_counts,
            spectrum=self.spectrum,
            edges=self.edges,
            outside=self.outside,
            flags={name: self.bits[:, bit] for name, bit in bits.items()},
            voiding=tuple(name for name, bit in bits.items() if int(self.void) >> bit & 1),
            looked_at=self.looked_at,
            present=self.present,
            valid=self.valid,
            mean=mean,
            always=self.always,
            missing=missing_shares(self.master.words, self.parts, calibration.layout.frames),
        )


def void_bits(program: Program) -> np.uint32:
    """Bits that leave no value."""
    void = (1 << NO_VALUE_BIT) | (1 << MISSING_BIT) | sum(1 << bit for bit, flag in program.flags if flag.voids)
    return np.uint32(void & ~(1 << CLIPPED_BIT))


def _labels(calibration: Calibration) -> tuple[int, ...]:
    """Labels of the stages that the constants have, and that of none."""
    found = {NO_STAGE}
    for item in calibration.formula.constants:
        axes = [d for d in item.dims if d not in calibration.formula.checked.pixel_dims]
        labels = calibration.labels.get(item.name, ())
        found |= {label for axis, own in zip(axes, labels, strict=False) if axis == "stage" for label in own}
    return (*sorted(found - {NO_STAGE}), NO_STAGE)


def _edges_of(values: Evaluation, frame: int) -> Array:
    """Bins for values of which nobody says what a photon gives: from the spread of a frame."""
    pixels = values.shape[1:]
    found, flags = values.read((frame, *(0 for _ in pixels)), (1, *pixels), with_flags=True)
    assert flags is not None
    valid = found[flags & void_bits(values.program) == 0].astype(np.float64)
    middle = float(np.median(valid)) if valid.size else 0.0
    spread = 1.4826 * float(np.median(np.abs(valid - middle))) if valid.size else 0.0
    width = MANY_SIGMA * spread if np.isfinite(spread) and spread > 0 else max(abs(middle), 1.0) / BINS
    return middle + width * (np.arange(BINS + 1) - BINS * -RANGE[0] / (RANGE[1] - RANGE[0]))
