"""``apply``: write the calibrated frames as a standard NXmx file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from gaincal.errors import RequestError
from gaincal.formulas.program import RESERVED_FLAGS, Program
from gaincal.kernels.results import Tally
from gaincal.kernels.threads import available_threads
from gaincal.nexus import names
from gaincal.nexus.atomic import AtomicFile, atomic_output, refuse_existing, refuse_input, write_text
from gaincal.nexus.described import copy_entry, write_mask, write_range
from gaincal.nexus.evaluate import Evaluation
from gaincal.nexus.frames import Progress, frames_at_once, write_frames
from gaincal.nexus.group import new_group
from gaincal.nexus.read import Master, open_master
from gaincal.nexus.readers import Reader, check_facts, check_name, fix_text, get_reader, program_for, settings
from gaincal.nexus.slab import slab
from gaincal.nexus.write import array_field, field, new_process, write_metadata

Array = npt.NDArray[Any]
Fill = Callable[[AtomicFile, h5py.Group], Tally]
"""Writes the frames of a `Work` as the signal of an entry."""


@dataclass(frozen=True)
class Applied:
    """What `apply` wrote.

    Parameters
    ----------
    path : Path
    output, dtype, units : str
    frames : int
        Written frames.
    missing_frames : int
        Frames of these without a single word.
    pixels : int
        Pixels per frame.
    flags : dict of str to int
        Number of pixels (over all frames) per reason.
    not_tested : list of str
        Flags that the file has no inputs for.
    settings : Path or None
        A second file: what the user must tell the program that the first is for.
    """

    path: Path
    output: str
    dtype: str
    units: str
    frames: int
    missing_frames: int
    pixels: int
    flags: dict[str, int]
    not_tested: list[str]
    settings: Path | None = None


@dataclass(frozen=True, eq=False)
class Work:
    """What is to be written of an open master.

    Parameters
    ----------
    master : Master
    program : Program
    variance : Program, optional
        What computes the variance of the output, where its errors are wanted.
    first, count : int
        Frames.
    inputs : mapping of str to float
        Replace inputs of the formula.
    max_memory : int, optional
        As for `apply`.
    reader : Reader, optional
        The program that it is for.
    """

    master: Master
    program: Program
    variance: Program | None
    first: int
    count: int
    inputs: Mapping[str, float]
    max_memory: int | None = None
    reader: Reader | None = None

    @property
    def pixels(self) -> tuple[int, ...]:
        """Shape of a frame."""
        return self.master.calibration.layout.pixels

    @property
    def stored(self) -> tuple[int, ...]:
        """Shape of a frame in the file."""
        return slab(self.pixels) if self.reader else self.pixels

    def fill(self, threads: int, progress: Progress | None = None) -> Fill:
        """What computes and writes the frames."""
        calibration, words = self.master.calibration, self.master.words
        evaluation = Evaluation(calibration, words, self.program, threads)
        spread = Evaluation(calibration, words, self.variance, threads) if self.variance else None
        cut = self.first, self.count, frames_at_once(evaluation, spread, self.max_memory)
        return lambda written, entry: write_frames(written, entry, evaluation, spread, cut, self.stored, progress)


def apply(
    path: str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    *,
    output: str | None = None,
    dtype: str | None = None,
    flagged: float | None = None,
    frames: tuple[int | None, int | None] | None = None,
    inputs: Mapping[str, float] | None = None,
    calibration: str | None = None,
    profile: str | None = None,
    reasons: Iterable[str] | None = None,
    errors: bool = False,
    reader: str | None = None,
    jobs: int | None = None,
    max_memory: int | None = None,
    overwrite: bool = False,
    trust: Iterable[str | os.PathLike[str]] = (),
    progress: Progress | None = None,
) -> Applied:
    """Calibrate all frames and write them as the signal of a standard NXmx file.

    Parameters
    ----------
    path : str or path
        A master, as `embed` makes it.
    target : str or path, optional
        The file to write; ``<master>_<output>.nxs`` beside the master if None, or what suits the `reader`.
    output : str, optional
        Which output; the formula's default if None, or its counts for a `reader`.
    dtype : str, optional
        One of the dtypes that the output declares.
    flagged : float, optional
        Value of flagged pixels, instead of the declared fill.
    frames : (int or None, int or None), optional
        First frame, and the one after the last, as in a slice.
    inputs : mapping of str to float, optional
        Replace inputs of the formula, such as photon_energy in keV.
    calibration : str, optional
        Which calibration, where the file has several.
    profile : str, optional
        Reproduce what another program makes of the same words: ``jungfrau_utils``, ``aare`` ...
    reasons : iterable of str, optional
        Flags of the formula, and reasons of the pixel mask, that make a pixel bad; all of them if None.
    errors : bool
        Write standard deviations, too, as ``data_errors``.
    reader : str, optional
        Write what a program accepts: ``dials``, ``xds`` or ``crystfel``.  Modules are laid below each other,
        nothing is NaN, and the mask holds just what makes a pixel bad.
    jobs : int, optional
        Threads to compute with; all that the process may use if None.
    max_memory : int, optional
        MiB that frames on their way may take, beside constants; 1024 if None.
    overwrite : bool
        Replace an existing file.
    trust : iterable of str or path
        Directories, beside the master's own, whose files may be opened.
    progress : callable (done, total) -> None, optional
        Told after every block of frames.

    Returns
    -------
    Applied

    Raises
    ------
    FileError, TrustError, BindError, RequestError, OutputError
    """
    master = open_master(path, trust=trust, calibration=calibration, inputs=inputs, profile=profile, reasons=reasons)
    with master.resolver:
        work = prepare(master, output, dtype, flagged, frames, inputs, errors, max_memory, reader)
        chosen = Path(target) if target is not None else beside(Path(path), work)
        return write_whole(work, chosen, overwrite, work.fill(jobs or available_threads(), progress))


def prepare(
    master: Master,
    output: str | None,
    dtype: str | None,
    flagged: float | None,
    frames: tuple[int | None, int | None] | None,
    inputs: Mapping[str, float] | None,
    errors: bool,
    max_memory: int | None = None,
    reader: str | None = None,
) -> Work:
    """Check what is asked of a master, in the words of `apply`; raises RequestError where it is not to be had."""
    row = None if reader is None else get_reader(reader)
    if row is None:
        program = master.calibration.program(output, dtype, flagged)
    else:
        program = program_for(row, master, output, dtype, flagged)
    variance = _variance(master, program) if errors else None
    cut = _range(frames, master.calibration.layout.frames)
    return Work(master, program, variance, *cut, inputs or {}, max_memory, row)


def write_applied(work: Work, target: Path, overwrite: bool, fill: Fill) -> Applied:
    """Write the NXmx file around the frames that `fill` writes; raises OutputError, and RequestError for an input."""
    master, inputs = work.master, work.inputs
    refuse_existing(target, overwrite)
    refuse_input(target, master.resolver.opened)
    with atomic_output(target, overwrite=overwrite) as written:
        entry = copy_entry(written.file, master, work.first, work.count, work.reader)
        if work.reader:
            check_facts(work.reader, written.file[master.detector.path], master.resolver.named)
        tally = fill(written, entry)
        if names.PHOTON_ENERGY in inputs:
            wavelength = names.KEV_ANGSTROM / inputs[names.PHOTON_ENERGY]
            write_metadata(entry, written.file[master.detector.path], {"wavelength": wavelength})
        result = _finish(entry, work, tally, target)
        if work.reader and work.reader.fixed_text:
            fix_text(written.file)
        return result


def write_whole(work: Work, target: Path, overwrite: bool, fill: Fill) -> Applied:
    """Write the NXmx file, and the settings beside it that go with a program; raises as `write_applied` does."""
    reader = work.reader
    if reader is not None:
        check_name(reader, target)
    if reader is None or not reader.settings:
        return write_applied(work, target, overwrite, fill)
    second = target.with_name(reader.settings_name.format(stem=target.stem))
    refuse_existing(second, overwrite)
    told = settings(reader, work.master, work.program, target, (work.count, *work.stored))
    applied = write_applied(work, target, overwrite, fill)
    write_text(second, told, overwrite=overwrite)
    return replace(applied, settings=second)


def _variance(master: Master, program: Program) -> Program:
    """What computes the variance of an output; raises RequestError where it is not to be had."""
    formula = master.calibration.formula
    declared = formula.variance(program.value)
    if declared is None:
        listed = ", ".join(str(o.variance_of) for o in formula.outputs if o.variance_of) or "none"
        raise RequestError(f"there is no variance of {program.value}; formula '{formula.name}' has that of {listed}")
    return master.calibration.program(declared.name)


def beside(master: Path, work: Work) -> Path:
    """Where the calibrated frames go if nobody says."""
    name = work.reader.file_name if work.reader else f"{{stem}}_{work.program.value}.nxs"
    return master.with_name(name.format(stem=master.stem))


def _range(frames: tuple[int | None, int | None] | None, total: int) -> tuple[int, int]:
    first, stop, _ = slice(*(frames or (None, None))).indices(total)
    if stop <= first:
        raise RequestError(f"no frames in {frames}: the run has {total}")
    return first, stop - first


def _finish(entry: h5py.Group, work: Work, tally: Tally, path: Path) -> Applied:
    """Everything that is known only after the last frame."""
    master, program, frames = work.master, work.program, (work.first, work.count)
    formula = master.calibration.formula
    bits = {flag.name: bit for bit, flag in enumerate(formula.flags)}
    tested = set(master.calibration.tested_flags())
    flags = {n: int(tally.counts[b]) for n, b in (bits | RESERVED_FLAGS).items() if n in tested or n in RESERVED_FLAGS}
    output = formula.output(program.value)
    pixels = int(np.prod(work.pixels))
    not_tested = [n for n in bits if n not in tested]
    result = Applied(
        path, output.name, program.dtype, output.units, work.count, tally.missing_frames, pixels, flags, not_tested
    )
    dataset = entry[names.DATA_PATH.rsplit("/", 1)[-1]][names.IMAGE]
    dataset.attrs[names.UNIT_ATTRIBUTE] = output.units
    dataset.attrs["long_name"] = f"{output.name} ({output.units})"
    detector = entry.file[master.detector.path]
    write_mask(detector, master, program, tally.always, work.reader)
    write_range(detector, program, work.reader)
    _write_frame_numbers(dataset.parent, master, frames)
    _write_process(entry, master, program, result, work.first)
    return result


def _write_frame_numbers(group: h5py.Group, master: Master, frames: tuple[int, int]) -> None:
    first, count = frames
    numbers = {"frame": np.arange(first, first + count, dtype=np.int64)}
    numbers |= {name: values[first : first + count] for name, values in master.ids.items()}
    for name, values in numbers.items():
        if name not in group:
            array_field(group, name, values)


def _write_process(entry: h5py.Group, master: Master, program: Program, result: Applied, first: int) -> None:
    """What was done, so that it can be done again."""
    formula = master.calibration.formula
    process = new_process(entry)
    parameters = new_group(process, "parameters", names.PARAMETERS)
    fill = np.nan if program.fill is None else program.fill
    facts: dict[str, Any] = {
        "formula": f"{formula.name} version {formula.version}",
        "formula_digest": formula.digest,
        "calibration_checksum": master.stored.checksum,
        "calibration": master.located.group.path,
        "master": master.resolver.master.name,
        "output": result.output,
        "units": result.units,
        "dtype": result.dtype,
        "flagged_value": np.dtype(program.dtype).type(fill),
        "first_frame": np.int64(first),
        "frames": np.int64(result.frames),
        "missing_frames": np.int64(result.missing_frames),
    }
    facts |= {} if master.reasons is None else {"reasons": " ".join(master.reasons) or "none"}
    facts |= {n: a for n, a in master.calibration.arrays.items() if a.size == 1 and n not in master.stored.constants}
    for key, value in facts.items():
        field(parameters, key, value)
    counts = new_group(process, "flags", names.PARAMETERS)
    counts.create_dataset("name", data=np.array([n.encode() for n in result.flags], "S63"))
    counts.create_dataset("pixels", data=np.array(list(result.flags.values()), np.int64))
