"""One frame as it was recorded, staged, calibrated and flagged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gaincal.errors import RequestError
from gaincal.kernels.threads import available_threads
from gaincal.nexus.evaluate import Evaluation
from gaincal.nexus.read import Master
from gaincal.quality.statistics import KEV, photon_value, spectrum_output

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Look:
    """A frame.

    Parameters
    ----------
    frame : int
    output, units : str
        What the values are.
    photon : float or None
        What one photon gives, in these units.
    energy : float or None
        Of the photons, in keV.
    values : ndarray (*pixels)
        Floating-point; NaN where flags leave no value.
    flags : ndarray (*pixels) of uint32
    bits : dict of str to int
        The bit of each reason.
    stage : ndarray (*pixels) of int32, or None
        -1 for none; None if the formula has no stages.
    words : dict of str to ndarray (*pixels)
        Raw words by the name of their input; 0 where missing.
    """

    frame: int
    output: str
    units: str
    photon: float | None
    energy: float | None
    values: Array
    flags: Array
    bits: dict[str, int]
    stage: Array | None
    words: dict[str, Array]

    def reasons(self) -> dict[str, int]:
        """Pixels by reason, most first, only those that there are."""
        counts = {n: int(np.count_nonzero(self.flags >> np.uint32(b) & np.uint32(1))) for n, b in self.bits.items()}
        return {n: c for n, c in sorted(counts.items(), key=lambda item: -item[1]) if c}


def look_at(master: Master, frame: int, output: str | None = None) -> Look:
    """Compute everything about one frame.

    Parameters
    ----------
    master : Master
    frame : int
        Negative numbers count from the end.
    output : str, optional
        The one that says best where photons are if None.

    Raises
    ------
    RequestError
        If there is no such frame or output.
    FileError
        If a stored chunk is damaged.
    """
    calibration = master.calibration
    total, pixels = calibration.layout.frames, calibration.layout.pixels
    if not -total <= frame < total:
        raise RequestError(f"{master.resolver.named}: no frame {frame}; the run has {total}")
    number = frame % total
    origin, count, threads = (number, *(0 for _ in pixels)), (1, *pixels), available_threads()
    program = calibration.program(output or spectrum_output(calibration))
    values, flags = Evaluation(calibration, master.words, program, threads).read(origin, count, with_flags=True)
    assert flags is not None
    step = calibration.stage_step()
    stage = None
    if step is not None:
        staged = calibration.step_program(step, "int32")
        stage = Evaluation(calibration, master.words, staged, threads).read(origin, count)[0][0]
    units = calibration.formula.output(program.value).units
    bits = calibration.flag_bits()
    shown = values[0].astype(np.float64 if values.dtype.itemsize > 4 else np.float32)
    if program.fill is not None:
        shown[values[0] == program.fill] = np.nan
    words = {name: item.read(origin, count, threads)[0][0] for name, item in master.words.items()}
    photon, energy = photon_value(calibration, units), photon_value(calibration, KEV)
    return Look(number, program.value, units, photon, energy, shown, flags[0], bits, stage, words)
